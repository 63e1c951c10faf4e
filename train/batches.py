"""Batches for the step, a function of the step number alone, prepared ahead of the device.

Letters: B lines, T tokens of a label.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .data import Example, Loader, Place

LENGTH_STEP = 16  # labels are padded to a multiple of it, so that few programs are compiled
WHOLE_EVERY = 4  # steps
AHEAD = 4  # batches that are ready before the device asks for them


@dataclass(frozen=True)
class Batch:
    """uint8 images [B,height,width,3], int32 labels [B,T] (end token last, padded); the places do not go to the device."""

    images: np.ndarray
    labels: np.ndarray
    places: tuple[Place, ...]


@dataclass(kw_only=True, eq=False)
class Batches:
    """Step -> Batch.

    Attributes:
        load: position -> Example.
        batch_size: B of the global batch, over all hosts.
        seed: decides the order within groups.
        pad: token that labels are filled up with.
        max_tokens: the largest T.
        rows: which rows of every global batch this host reads; all by default.
        group: batches that are sorted by length together.
        threads: how many threads load examples.
        cut: pixels; empty columns at the right are left out, to a multiple of it; 0 never.
    """

    load: Loader
    batch_size: int
    seed: int
    pad: int
    max_tokens: int
    rows: Sequence[int] | None = None
    group: int = 1
    threads: int = 1
    cut: int = 0

    def __post_init__(self) -> None:
        self._map = ThreadPoolExecutor(self.threads).map if self.threads > 1 else map
        self._group: tuple[int, list[list[Example]]] = (-1, [])  # its number, and its batches

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
        first, rows = step * self.batch_size, self.rows or range(self.batch_size)
        return list(self._map(self.load.__getitem__, (first + row for row in rows)))

    def _collate(self, rows: list[Example], length: int) -> Batch:
        labels = np.full((len(rows), length), self.pad, np.int32)
        for label, row in zip(labels, rows, strict=True):
            label[: len(row.label)] = row.label
        return Batch(np.stack([row.pixels for row in rows]), labels, tuple(row.place for row in rows))

    def _cut(self, step: int, batch: Batch) -> Batch:
        """The batch without the columns at the right that are like the last one in every image; every fourth step stays whole."""
        if not self.cut or step % WHOLE_EVERY == 0:
            return batch
        differs = (batch.images != batch.images[:, :, -1:]).any(axis=(0, 1, 3))
        used = int(np.flatnonzero(differs)[-1]) + 1 if differs.any() else 1
        return replace(batch, images=batch.images[:, :, : -(-used // self.cut) * self.cut])


def prefetch(batches: Any, first: int, last: int) -> Iterator[tuple[int, Any]]:
    """(step, batches[step]) for first <= step < last, made by a thread that runs ahead; its exceptions are raised here."""
    ready: queue.Queue[Any] = queue.Queue(AHEAD)
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
