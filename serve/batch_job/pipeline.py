"""From images to lines with the device always fed: read, decode and sort ahead of it, and let it work on the next batches
while the one before them is read out.

Batches never cross a unit, and a unit's batches depend on its images alone. So a unit gives the same bytes whoever does it,
after any number of restarts. Within a window of up to WINDOW lines, pictures of like shape share a batch: a batch decodes as
long as its longest text, and a wide picture holds a long one. A short batch is filled up with copies of its last row: one
program, and no longer texts. For pages the same is done with the lines of a window of PAGES pages.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import jax
import numpy as np

from trocr_jax.decoding import GenerateConfig
from trocr_jax.line import Line, joined
from trocr_jax.page import Layout
from trocr_jax.pages.formats import Page
from trocr_jax.prepared import Prepared
from trocr_jax.reader import Reader, Wait

from .decode import CHUNK, Decoders
from .prepare import Decoded
from .units import Item, groups

WINDOW = 1024
"""Images in a window."""
WINDOW_BYTES = 256 << 20
"""Bytes of the files in a window, which the last one may exceed: a shard's images can be large, or a hostile one's all zeros."""
PAGES = 16
"""Pages in a window: they have about as many lines as WINDOW. A decoder gets one page at a time."""


@dataclass
class Window:
    """Some lines of a unit on their way: their images are being decoded, and the items are without them."""

    unit: int
    items: list[Item]
    chunks: list[Future[list[Decoded]]]
    last: bool

    @property
    def ready(self) -> bool:
        return all(chunk.done() for chunk in self.chunks)

    def decoded(self) -> list[Decoded]:
        """The decoded images of the items, for which it waits."""
        images = (image for chunk in self.chunks for image in chunk.result())
        return [Decoded.failed(item.error) if item.error else image for item, image in zip(self.items, images, strict=True)]


@dataclass(frozen=True)
class ImageReading:
    """An image without its pixels, and what was read so far of each piece of each line in it."""

    item: Item
    layout: Layout | None
    lines: list[list[Line | None]]

    @classmethod
    def of(cls, item: Item, decoded: Decoded) -> ImageReading:
        """An image that was just decoded. A piece that cannot be read is a line with an error at once, the others wait."""
        return cls(item, decoded.layout, [[_nothing_yet(piece) for piece in line.pieces] for line in decoded.lines])

    @property
    def done(self) -> bool:
        return all(None not in pieces for pieces in self.lines)

    @property
    def result(self) -> Line | Page:
        """What was read of an image that is done: a Page where it was one and could be decoded, else a Line."""
        lines = [joined([line for line in pieces if line is not None]) for pieces in self.lines]
        return lines[0] if self.layout is None else self.layout.page(lines)


def _nothing_yet(piece: Prepared) -> Line | None:
    return Line.failed(piece.error) if piece.error else None


def windows(unit: int, items: Iterator[Item], decoders: Decoders[Decoded], pages: bool) -> Iterator[Window]:
    """A unit's windows, at least one, each sent to the decoders as a whole before it is handed on."""
    parts = _parts(items, PAGES if pages else WINDOW)
    part = next(parts, [])
    while part is not None:
        chunks = [decoders.submit([item.image for item in chunk]) for chunk in groups(part, 1 if pages else CHUNK)]
        told = [replace(item, image=None) for item in part]  # a unit's files are more than memory may hold
        part = next(parts, None)
        yield Window(unit, told, chunks, part is None)


def _parts(items: Iterator[Item], count: int) -> Iterator[list[Item]]:
    """Lists of `count` items, or of fewer with WINDOW_BYTES."""
    part, size = list[Item](), 0
    for item in items:
        part.append(item)
        size += len(item.image or b"") + len(item.id)
        if len(part) == count or size >= WINDOW_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def batches(prepared: Sequence[Prepared], size: int) -> list[list[int]]:
    """Indices of the readable images, in batches of pictures of like shape."""
    readable = [i for i, image in enumerate(prepared) if image.pixels is not None]
    return list(groups(sorted(readable, key=lambda i: (prepared[i].aspect, i)), size))


class DeviceClock:
    """How long the device was busy, seen by a thread that waits for each result."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "device-clock")
        self._spans: list[tuple[float, Future[float]]] = []

    def submitted(self, wait: Wait) -> None:
        self._spans.append((time.perf_counter(), self._pool.submit(_ready, wait)))

    @property
    def first(self) -> float | None:
        """When the first batch was submitted, by time.perf_counter."""
        return self._spans[0][0] if self._spans else None

    def waited(self) -> float:
        """The share of the time from the first batch's start to the last one's end in which the device had nothing to do."""
        if not self._spans:
            return 0.0
        busy, free_from = 0.0, self._spans[0][0]
        for submitted, done in self._spans:
            end = done.result()
            busy += end - max(submitted, free_from)
            free_from = end
        return 1 - busy / max(free_from - self._spans[0][0], 1e-9)

    def close(self) -> None:
        self._pool.shutdown()


def _ready(wait: Wait) -> float:
    jax.block_until_ready(wait())
    return time.perf_counter()


@dataclass(frozen=True)
class Submitted:
    """A batch on the device: for each row its image, the pieces of its line, its index among those, and the flags it has."""

    wait: Wait
    rows: list[tuple[ImageReading, list[Line | None], int, tuple[str, ...]]]


class Pipeline:
    """Reads windows with one model.

    Args:
        reader: the model.
        config: how to decode.
        batch_size: images a step of the device.
        store: called with a unit's number and its images when the unit is complete.
        progress: called with the number of images that every batch made complete.
    """

    def __init__(
        self, reader: Reader, config: GenerateConfig, batch_size: int,
        store: Callable[[int, list[ImageReading]], None], progress: Callable[[int], None],
    ):  # fmt: skip
        self.reader, self.config, self.batch_size, self.store, self.progress = reader, config, batch_size, store, progress
        self.clock = DeviceClock()
        self._flying: deque[Submitted] = deque()
        self._waiting: deque[tuple[int, list[ImageReading], bool]] = deque()  # unit, images of a window, whether it is the last

    def run(self, source: Iterator[Window], stop: Callable[[], None]) -> None:
        """Reads all windows of the source; while one is on the device, the next one is read from its files and decoded.

        Args:
            stop: makes a source that waits for work give up; called where anything fails.
        """
        with ThreadPoolExecutor(1, "feeder") as feeder:
            try:
                ahead = feeder.submit(next, source, None)
                while window := self._next(ahead):
                    ahead = feeder.submit(next, source, None)
                    while not window.ready and self._flying:
                        self._read_out()
                    self._submit(window)
            except BaseException:
                stop()
                raise
        while self._flying:
            self._read_out()

    def close(self) -> None:
        self.clock.close()

    def _next(self, ahead: Future[Window | None]) -> Window | None:
        while not ahead.done() and self._flying:
            self._read_out()
        return ahead.result()

    def _submit(self, window: Window) -> None:
        decoded = window.decoded()
        readings = list(map(ImageReading.of, window.items, decoded))
        self._waiting.append((window.unit, readings, window.last))
        self.progress(sum(image.done for image in readings))
        prepared = [piece for image in decoded for line in image.lines for piece in line.pieces]
        rows = [(image, pieces, place) for image in readings for pieces in image.lines for place in range(len(pieces))]
        for indices in batches(prepared, self.batch_size):
            pixels = [image for i in indices if (image := prepared[i].pixels) is not None]
            full = np.stack(pixels + pixels[-1:] * (self.batch_size - len(pixels)))
            wait = self.reader.start(full, self.config)
            self.clock.submitted(wait)
            self._flying.append(Submitted(wait, [(*rows[i], prepared[i].flags) for i in indices]))
            while len(self._flying) > self.reader.ahead:  # a CPU works on two at a time
                self._read_out()
        self._store_complete()

    def _read_out(self) -> None:
        """The oldest batch on the device as lines."""
        batch = self._flying.popleft()
        lines = self.reader.lines(batch.wait(), [flags for *_, flags in batch.rows])
        for (_, pieces, place, _), line in zip(batch.rows, lines, strict=True):
            pieces[place] = line
        self.progress(sum(image.done for image in {id(image): image for image, *_ in batch.rows}.values()))
        self._store_complete()

    def _store_complete(self) -> None:
        """Units whose last window is read are stored, in order."""
        while (windows := self._complete()) is not None:
            parts = [self._waiting.popleft() for _ in range(windows)]
            self.store(parts[0][0], [image for _, readings, _ in parts for image in readings])

    def _complete(self) -> int | None:
        """The number of windows of the oldest unit; None until all of them are there and read."""
        for number, (_, readings, last) in enumerate(self._waiting, 1):
            if not all(image.done for image in readings):
                return None
            if last:
                return number
        return None
