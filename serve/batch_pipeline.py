"""From images to lines with the device always fed: read, decode and sort ahead of it, and let it work on one batch while
the one before is read out.

Batches never cross a unit, and a unit's batches depend on its images alone. So a unit gives the same bytes whoever does it,
after any number of restarts. Within a window of up to WINDOW lines, pictures of like shape share a batch: a batch decodes as
long as its longest text, and a wide picture holds a long one. A short batch is filled up with copies of its last row: one
program, and no longer texts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from trocr_jax.decoding import GenerateConfig, Generation
from trocr_jax.line import Line
from trocr_jax.prepared import Prepared
from trocr_jax.reader import Reader

from .batch_decode import Decoders
from .batch_units import Item, groups

WINDOW = 1024
CHUNK = 8
"""Images that a decoder gets at a time."""
AHEAD = 2
"""Batches on the device, the one that is read out counted."""


@dataclass
class Window:
    """Some lines of a unit on their way: their images are being decoded."""

    unit: int
    items: list[Item]
    chunks: list[Future[list[Prepared]]]
    last: bool

    @property
    def ready(self) -> bool:
        return all(chunk.done() for chunk in self.chunks)

    def prepared(self) -> list[Prepared]:
        """Waits for the decoders."""
        images = (image for chunk in self.chunks for image in chunk.result())
        return [Prepared(None, error=item.error) if item.error else image for item, image in zip(self.items, images, strict=True)]


def windows(unit: int, items: Iterator[Item], decoders: Decoders) -> Iterator[Window]:
    """A unit's windows, at least one, each sent to the decoders as a whole before it is handed on."""
    parts = groups(items, WINDOW)
    part = next(parts, [])
    while True:
        chunks = [decoders.submit([item.image for item in chunk]) for chunk in groups(part, CHUNK)]
        following = next(parts, None)
        yield Window(unit, part, chunks, following is None)
        if following is None:
            return
        part = following


def batches(prepared: Sequence[Prepared], size: int) -> list[list[int]]:
    """Indices of the readable ones in batches of pictures of like shape."""
    readable = [i for i, image in enumerate(prepared) if image.pixels is not None]
    return list(groups(sorted(readable, key=lambda i: (prepared[i].aspect, i)), size))


class DeviceClock:
    """How long the device was busy, seen by a thread that waits for each result."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "device-clock")
        self._spans: list[tuple[float, Future[float]]] = []

    def submitted(self, result: Generation) -> None:
        self._spans.append((time.perf_counter(), self._pool.submit(_ready, result)))

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


def _ready(result: Generation) -> float:
    jax.block_until_ready(result)
    return time.perf_counter()


@dataclass(frozen=True)
class Submitted:
    """A batch on the device: rows `indices` of a window, whose lines go to `lines`."""

    result: Generation
    indices: list[int]
    prepared: list[Prepared]
    lines: list[Line | None]


class Pipeline:
    """Reads windows with one model.

    Args:
        reader: the model.
        config: how to decode.
        batch_size: images a step of the device.
        store: called with a unit's number, items and lines when the unit is complete.
        progress: called with the lines of every batch.
    """

    def __init__(
        self, reader: Reader, config: GenerateConfig, batch_size: int,
        store: Callable[[int, list[Item], list[Line]], None], progress: Callable[[int], None],
    ):  # fmt: skip
        self.reader, self.config, self.batch_size, self.store, self.progress = reader, config, batch_size, store, progress
        self.clock = DeviceClock()
        self._flying: deque[Submitted] = deque()
        self._waiting: deque[tuple[Window, list[Line | None]]] = deque()

    def run(self, source: Iterator[Window], stop: Callable[[], None]) -> None:
        """Everything of the source; one window is read and decoded ahead.

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
        prepared = window.prepared()
        lines: list[Line | None] = [Line(error=image.error) if image.pixels is None else None for image in prepared]
        self._waiting.append((window, lines))
        self.progress(sum(line is not None for line in lines))
        for indices in batches(prepared, self.batch_size):
            pixels = [image for i in indices if (image := prepared[i].pixels) is not None]
            full = np.stack(pixels + pixels[-1:] * (self.batch_size - len(pixels)))
            result = self.reader.generate(full, self.config)
            self.clock.submitted(result)
            self._flying.append(Submitted(result, indices, prepared, lines))
            while len(self._flying) >= AHEAD:
                self._read_out()
        self._store_complete()

    def _read_out(self) -> None:
        """The oldest batch on the device as lines."""
        batch = self._flying.popleft()
        result = batch.result
        columns = jax.device_get((result.tokens, result.logprobs, result.lengths, result.finished))
        for i, *best in zip(batch.indices, *(column[:, 0] for column in columns), strict=False):  # what follows is filling
            tokens, logprobs, length, finished = best
            batch.lines[i] = self.reader.line(tokens, logprobs, int(length), bool(finished), batch.prepared[i].flags)
        self.progress(len(batch.indices))
        self._store_complete()

    def _store_complete(self) -> None:
        """Units whose last window is read are stored, in order."""
        while units := self._complete():
            items = [item for window, _ in units for item in window.items]
            lines = [line for _, found in units for line in found if line is not None]
            for _ in units:
                self._waiting.popleft()
            self.store(units[0][0].unit, items, lines)

    def _complete(self) -> list[tuple[Window, list[Any]]]:
        """The windows of the oldest unit, where all are there and read."""
        found = []
        for window, lines in self._waiting:
            if any(line is None for line in lines):
                return []
            found.append((window, lines))
            if window.last:
                return found
        return []
