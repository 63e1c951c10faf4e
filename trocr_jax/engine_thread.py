"""The one thread that talks to the device, for all engines in turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from .engine import Engine

_MOST_FAILURES = 3
"""Errors of the device without a result between them, after which no further one is expected."""


class EngineThread(threading.Thread):
    """Compiles, then takes turns while there is work, and sleeps until `wake` where there is none.

    Args:
        engines: all of them, which share `wake`.
        wake: set by whoever submits work.
        on_ready: called once when everything is compiled.
        on_error: called with an exception of the device, which costs the jobs under way.
        on_death: called with the exception that ends the thread: it came before `on_ready`, the device did not start anew after
            another, or has given nothing but errors. All jobs have failed, and no more are taken.
    """

    def __init__(
        self, engines: Sequence[Engine], wake: threading.Event, on_ready: Callable[[], object] = lambda: None,
        on_error: Callable[[Exception], object] = lambda error: None,
        on_death: Callable[[Exception], object] = lambda error: None,
    ):  # fmt: skip
        super().__init__(name="engine", daemon=True)
        self.engines, self.wake, self.on_ready, self.on_error, self.on_death = engines, wake, on_ready, on_error, on_death
        self._stopping = False

    def run(self) -> None:
        try:
            self._live()
        except Exception as error:
            for engine in self.engines:
                engine.close()
            self.on_death(error)

    def _live(self) -> None:
        for engine in self.engines:
            engine.warm_up(lambda: self._stopping)
        if not self._stopping:
            self.on_ready()
        while not self._stopping:
            self.wake.clear()
            if not self._turn():
                self.wake.wait()

    def stop(self, seconds: float | None = None) -> None:
        """Ends the thread after its turn, or the program that it compiles; jobs under way stay as they are.

        Args:
            seconds: how long to wait for that at most, as a device may hang: then the thread is still alive.
        """
        self._stopping = True
        self.wake.set()
        self.join(seconds)

    def _turn(self) -> bool:
        """Dispatches for every engine before it waits for any."""
        busy = False
        for act in (Engine.dispatch, Engine.harvest):
            for engine in self.engines:
                try:
                    busy = bool(act(engine)) or busy
                except Exception as error:  # the device's errors have many types
                    self.on_error(error)
                    engine.fail()
                    if engine.failures >= _MOST_FAILURES:
                        raise
                    busy = True  # who still waits has its turn, whether or not another job comes
        return busy
