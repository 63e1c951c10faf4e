"""Several programs at a time on a CPU.

XLA runs the programs that one thread dispatches one after the other, and a small program leaves cores idle: most of its
operators are too short to be cut up. Programs of different threads run side by side. A TPU or GPU has one queue whoever fills it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from .cores import usable_cores

R = TypeVar("R")

MOST = 2
"""Programs at a time on a CPU. Each holds the activations of a batch; more than two were not measured, nor more cores."""


class Lanes:
    """Threads that dispatch in turn. JAX's settings of the calling thread (`with jax.default_device(...)`) do not reach them."""

    def __init__(self) -> None:
        count = min(MOST, usable_cores()) if jax.default_backend() == "cpu" else 0
        self._next = itertools.cycle([ThreadPoolExecutor(1, f"lane-{number}") for number in range(count)] or [None])

    def dispatch(self, call: Callable[..., R], *arguments: Any) -> R:
        """call(*arguments) from the next thread; returns as soon as that has dispatched, before its arrays are there."""
        lane = next(self._next)
        return lane.submit(call, *arguments).result() if lane else call(*arguments)
