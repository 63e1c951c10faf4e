"""The one thread that talks to the device, for all engines in turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from .engine import Engine


class EngineThread(threading.Thread):
    """Compiles, then takes turns while there is work, and sleeps until `wake` where there is none.

    Args:
        engines: which share `wake`.
        wake: set by whoever gives work.
        on_ready: called once when everything is compiled.
        on_error: called with an exception of the device, after the jobs under way have failed; one before `on_ready` ends the
            thread.
    """

    def __init__(
        self, engines: Sequence[Engine], wake: threading.Event, on_ready: Callable[[], object] = lambda: None,
        on_error: Callable[[Exception], object] = lambda error: None,
    ):  # fmt: skip
        super().__init__(name="engine", daemon=True)
        self.engines, self.wake, self.on_ready, self.on_error = engines, wake, on_ready, on_error
        self._stopping = False

    def run(self) -> None:
        try:
            for engine in self.engines:
                engine.warm_up()
        except Exception as error:
            self.on_error(error)
            return
        self.on_ready()
        while not self._stopping:
            self.wake.clear()
            if not self._turn():
                self.wake.wait()

    def stop(self) -> None:
        """Ends the thread after its turn; jobs under way stay as they are."""
        self._stopping = True
        self.wake.set()
        self.join()

    def _turn(self) -> bool:
        """Dispatches for every engine before it waits for any."""
        busy = False
        for act in (Engine.dispatch, Engine.harvest):
            for engine in self.engines:
                try:
                    busy = bool(act(engine)) or busy
                except Exception as error:  # the device's errors have many types
                    engine.fail()
                    self.on_error(error)
                    busy = True  # who still waits has its turn, whether or not another job comes
        return busy
