"""Admission: how much is under way, and how long a refused client should wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from .errors import ApiError, overloaded

_REMEMBERED = 64
_LONGEST_WAIT = 30.0


class Gate:
    """A counter with a limit. Only the event loop uses it.

    Args:
        limit: most units inside.
        message: for whoever is refused.
    """

    def __init__(self, limit: int, message: str, clock: Callable[[], float] = time.monotonic):
        self.limit, self.message, self.clock = limit, message, clock
        self.inside = 0
        # (time, units) of the last departures, after (time, 0) of the entry into an empty house
        self._left: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)

    def enter(self, units: int, held: int = 0) -> None:
        """Lets units in.

        Args:
            held: those of the same request that are inside already.

        Raises:
            ApiError: 503, and nothing was counted; 413 for what would not fit into the empty house either.
        """
        if held + units > self.limit:
            raise ApiError(413, "more than this server ever takes at once", "too_large")
        if self.inside + units > self.limit:
            raise overloaded(self.wait(), self.message)
        if not self.inside:  # a pace measured over idle time would be that of the clients
            self._left.clear()
            self._left.append((self.clock(), 0))
        self.inside += units

    def leave(self, units: int) -> None:
        self.inside -= units
        if units:
            self._left.append((self.clock(), units))

    def wait(self) -> float:
        """Seconds in which half of what is inside will have left, at the pace of the last departures."""
        if len(self._left) < 2:
            return 1.0
        (since, _), *left = self._left
        pace = sum(units for _, units in left) / max(self.clock() - since, 1e-3)
        return min(max(self.inside / 2 / pace, 1.0), _LONGEST_WAIT)

    @property
    def full(self) -> bool:
        return self.inside >= self.limit
