"""Batches for the step, a function of the step number alone: order, reading, and preparing ahead of the device.

Letters: B lines, T tokens of a label.

A position p = step * batch_size + row has its record and its random numbers from (seed, p) alone, so that resuming is exact and
hosts can share the work in any number: each reads its rows of the same global batch. grain gives the order of files
(shuffled anew every epoch, mixed by weight). A record that cannot be used is named, counted, and its place given to
another that depends on p alone.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np

from trocr_jax import images
from trocr_jax.images import ImageProcessor
from trocr_jax.tokens import Tokenizer

from .pool import LinePool
from .records import Source, SourceError
from .sources import open_source

Place = tuple[int, int]
SYNTHETIC = "synthetic"
LENGTH_STEP = 16  # labels are padded to a multiple of it, so that few programs are compiled
SUBSTITUTES = 20
WHOLE_EVERY = 4  # steps
JUDGED_FROM = 200  # different records, or all there are, before the share of bad ones counts


@dataclass(frozen=True)
class Example:
    """A line ready for a batch: uint8 pixels [height,width,3], label [T], and where it came from."""

    pixels: np.ndarray
    label: list[int]
    place: Place


@dataclass(frozen=True)
class Batch:
    """uint8 images [B,height,width,3], int32 labels [B,T] (end token last, padded); the places do not go to the device."""

    images: np.ndarray
    labels: np.ndarray
    places: tuple[Place, ...]


def parse_source(text: str) -> tuple[str, float]:
    """ "path@0.3" -> path and weight.

    Raises:
        SourceError: the weight is no positive number.
    """
    path, at, weight = text.rpartition("@")
    if not at:
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        return text, 1.0  # an "@" in the path
    if not 0 < value < float("inf"):
        raise SourceError(f"{text}: the weight behind the @ must be above 0")
    return path, value


class Order(Protocol):
    """Position -> (source, index within it); a random-access sequence without end."""

    def __getitem__(self, position: int) -> Place: ...


class PoolOrder:
    """The order of drawn lines: position p takes one of the `available` ones, drawn with (seed, p)."""

    def __init__(self, pool: LinePool, seed: int, source: int = 0):
        self.pool, self.seed, self.source = pool, seed, source

    def __len__(self) -> int:
        return np.iinfo(np.int64).max

    def __getitem__(self, position: int) -> Place:
        index = np.random.default_rng((self.seed, position)).integers(0, self.pool.available(position))
        return self.source, int(index)


def mixed_order(sources: Sequence[Source | LinePool], weights: Sequence[float], seed: int) -> Order:
    """Every source shuffled anew each epoch, and all of them mixed by weight."""
    if len(sources) == 1 and isinstance(sources[0], LinePool):
        return PoolOrder(sources[0], seed)  # without grain, which an accelerator machine may lack
    import grain

    parts: list[Any] = []
    for number, source in enumerate(sources):
        if isinstance(source, LinePool):
            parts.append(grain.MapDataset.source(cast(Any, PoolOrder(source, seed, number))))
        else:
            places = grain.MapDataset.range(len(source)).seed(seed + number).shuffle().repeat()
            parts.append(places.map(lambda index, number=number: (number, int(index))))
    return parts[0] if len(parts) == 1 else cast(Order, grain.MapDataset.mix(parts, weights=list(weights)))


class Loader:
    """Position -> Example.

    Args:
        sources: what `Order` numbers.
        max_tokens: of a label, its end token counted.
        max_bad: share of records that cannot be used above which to give up.
        augment: (image, generator) -> image, for lines that were not drawn.
        report: called with what is wrong with a record, once for each.
    """

    def __init__(
        self, sources: Sequence[Source | LinePool], order: Order, tokenizer: Tokenizer, processor: ImageProcessor, seed: int,
        max_tokens: int, max_bad: float = 0.01, augment: Callable[..., Any] | None = None,
        report: Callable[[str], None] = lambda problem: None,
    ):  # fmt: skip
        self.sources, self.order, self.tokenizer, self.processor = sources, order, tokenizer, processor
        self.seed, self.max_tokens, self.max_bad, self.augment, self.report = seed, max_tokens, max_bad, augment, report
        self.bad: set[Place] = set()
        self.seen = [np.zeros(_size(source), bool) for source in sources]
        self._last = ""
        self.met, self.judged_from = 0, min(JUDGED_FROM, sum(map(_size, sources)))
        self._lock = threading.Lock()

    def __getitem__(self, position: int) -> Example:
        """Raises SourceError where too many records cannot be used."""
        substitutes = np.random.default_rng((self.seed, position, 1)).integers(0, position + JUDGED_FROM, SUBSTITUTES)
        problem = ""
        for candidate in (position, *substitutes.tolist()):
            place = self.order[candidate]
            try:
                example = self._example(place, position)
            except _BadRecord as bad:
                problem = str(bad)
                self._judge(place, problem)
            else:
                self._judge(place)
                return example
        raise SourceError(f"{SUBSTITUTES} records in a row cannot be used; the last: {problem}")

    def text(self, position: int) -> str:
        """The label as it stands in the source; empty where it cannot be read."""
        source, index = self.order[position]
        found = self.sources[source]
        try:
            return found[index][1] if isinstance(found, LinePool) else found[index].text
        except (ValueError, OSError, KeyError):
            return ""

    def _example(self, place: Place, position: int) -> Example:
        source = self.sources[place[0]]
        if isinstance(source, LinePool):
            pixels, text = source[place[1]]
            return Example(pixels, self._label(text), place)
        name = f"source {place[0]} record {place[1]}"
        try:
            record = source[place[1]]
            name = record.name
            label = self._label(record.text)
            image = images.load(record.image)
        except (ValueError, OSError, KeyError) as error:
            raise _BadRecord(f"{name}: {error}") from None
        if self.augment:
            image = self.augment(image, np.random.default_rng((self.seed, position)))
        return Example(self.processor(image), label, place)

    def _label(self, text: str) -> list[int]:
        if not text.strip():  # a model that learns to say nothing forgets how to read
            raise _BadRecord("its label is empty")
        label = self.tokenizer.labels(text)
        if len(label) > self.max_tokens:
            raise _BadRecord(f"its label has {len(label)} tokens, more than --max-tokens {self.max_tokens}")
        return label

    def _judge(self, place: Place, problem: str = "") -> None:
        """Counts a record the first time it is met, and gives up where too many cannot be used."""
        source, index = place
        with self._lock:
            if self.seen[source][index]:
                return
            self.seen[source][index] = True
            self.met += 1
            if problem:
                self.bad.add(place)
                self._last = problem
            bad, met = len(self.bad), self.met
        if problem:
            self.report(problem)
        if bad > self.max_bad * met and met >= self.judged_from:
            limit = f"more than --data.max-bad {self.max_bad}"
            raise SourceError(f"{bad} of {met} records cannot be used, {limit}; the last: {self._last}")


def _size(source: Source | LinePool) -> int:
    return source.config.lines if isinstance(source, LinePool) else len(source)


class _BadRecord(ValueError):
    """One record cannot be used."""


class Batches:
    """Step -> Batch.

    Args:
        load: position -> Example.
        rows: which rows of every global batch this host reads.
        group: batches that are sorted by length together.
        cut: pixels; empty columns at the right are left out, to a multiple of it; 0 never.
    """

    def __init__(
        self, load: Any, batch_size: int, seed: int, pad: int, max_tokens: int, rows: range | None = None, group: int = 1,
        threads: int = 1, cut: int = 0,
    ):  # fmt: skip
        self.cut = cut
        self.load, self.batch_size, self.seed, self.pad, self.max_tokens = load, batch_size, seed, pad, max_tokens
        self.rows, self.group = rows or range(batch_size), group
        self.threads = ThreadPoolExecutor(threads) if threads > 1 else None
        self._group: tuple[int, list[list[Example]]] = (-1, [])

    def __getitem__(self, step: int) -> Batch:
        if self.group == 1:
            return self._cut(step, self._collate(self._read(step), self.max_tokens))
        number, place = divmod(step, self.group)
        if self._group[0] != number:
            self._group = (number, self._sorted(number))
        rows = self._group[1][place]
        longest = max(len(row.label) for row in rows)
        return self._cut(step, self._collate(rows, min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.max_tokens)))

    def _sorted(self, number: int) -> list[list[Example]]:
        """The examples of a group's steps, the shortest labels in one batch and so on, and the batches in random order."""
        examples = [row for step in range(number * self.group, (number + 1) * self.group) for row in self._read(step)]
        examples.sort(key=lambda row: len(row.label))
        order = np.random.default_rng((self.seed, number)).permutation(self.group)
        return [examples[i * self.batch_size : (i + 1) * self.batch_size] for i in order]

    def _read(self, step: int) -> list[Example]:
        positions = [step * self.batch_size + row for row in self.rows]
        return list((self.threads.map if self.threads else map)(self.load.__getitem__, positions))

    def _collate(self, rows: list[Example], length: int) -> Batch:
        labels = np.full((len(rows), length), self.pad, np.int32)
        for label, row in zip(labels, rows, strict=True):
            label[: len(row.label)] = row.label
        return Batch(np.stack([row.pixels for row in rows]), labels, tuple(row.place for row in rows))

    def _cut(self, step: int, batch: Batch) -> Batch:
        """Without the columns at the right that are like the last one in every image; every fourth step stays whole."""
        if not self.cut or step % WHOLE_EVERY == 0:
            return batch
        differs = (batch.images != batch.images[:, :, -1:]).any(axis=(0, 1, 3))
        used = int(np.flatnonzero(differs)[-1]) + 1 if differs.any() else 1
        return replace(batch, images=batch.images[:, :, : -(-used // self.cut) * self.cut])


def prefetch(batches: Any, first: int, last: int, ahead: int = 4) -> Iterator[tuple[int, Any]]:
    """(step, batches[step]) for first <= step < last, made by a thread that runs ahead; its exceptions are raised here."""
    ready: queue.Queue[Any] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(first, last):
                put((step, batches[step]))
                if stopped.is_set():
                    return
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in itertools.repeat(None, last - first):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def open_sources(places: Sequence[str], pool: Callable[[], LinePool]) -> tuple[list[Source | LinePool], list[float]]:
    """The sources that a configuration names, with their weights.

    Raises:
        SourceError: there is none, or one cannot be opened.
    """
    if not places:
        raise SourceError("no data to train on: set --data.train")
    named = [parse_source(text) for text in places]
    return [pool() if path == SYNTHETIC else open_source(path) for path, _ in named], [weight for _, weight in named]
