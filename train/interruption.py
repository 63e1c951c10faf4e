"""SIGTERM and Ctrl-C end a run after a step, and save it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

from trocr_jax.terminal import INTERRUPTED


class Interruption:
    """Whether this run was told to end.

    Attributes:
        asked: by a signal, to this host or, from the next step on, to another one.
        by_hand: with Ctrl-C.
    """

    def __init__(self) -> None:
        self.asked = self.by_hand = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes signals for as long as this lasts; several hosts have jax's own handler, which tells all of them."""
        caught = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        before = {number: signal.signal(number, self._take) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self.by_hand:
                os._exit(INTERRUPTED)  # a KeyboardInterrupt while XLA's threads run crashes Python at its end
            os.write(2, b"\ntrocr-jax: interrupted: ends and saves after this step; Ctrl-C once more ends at once\n")
            self.by_hand = True
        self.asked = True

    def after(self, step: int) -> bool:
        """Whether the run ends after this step: all hosts must stop at the same one."""
        if jax.process_count() > 1:
            self.asked = multihost_utils.reached_preemption_sync_point(step)
        return self.asked
