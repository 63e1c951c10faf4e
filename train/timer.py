"""Where the time of a stretch of steps goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Timer:
    """Counts the time since its last reading; evaluations and checkpoints are kept apart."""

    def __init__(self) -> None:
        self.began, self.idle, self.aside = time.perf_counter(), 0.0, 0.0

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Passes items on and counts the time until each comes."""
        iterator = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.idle += time.perf_counter() - asked
            yield item

    @contextmanager
    def apart(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.aside += time.perf_counter() - began

    def read(self) -> tuple[float, float]:
        """Seconds since the last reading, and the share of them in which the device was not kept waiting for data."""
        seconds = time.perf_counter() - self.began - self.aside
        share = 1.0 - self.idle / seconds
        self.began, self.idle, self.aside = time.perf_counter(), 0.0, 0.0
        return seconds, share
