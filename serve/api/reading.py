"""Waiting for the answers of a request: the engine's thread signals, the event loop looks what has grown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from .answer import Answer, Delta, Entry
from .errors import timed_out


class Signal:
    """Set by the engine's thread, waited for in the event loop; many settings between two waits are one."""

    def __init__(self) -> None:
        self._loop, self._event, self._pending = asyncio.get_running_loop(), asyncio.Event(), False

    def set(self) -> None:
        if not self._pending:
            self._pending = True
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()
        self._pending = False


class Reading:
    """The answers of one request, and waiting for them.

    Args:
        answers: `n` of them.
        signal: set by their jobs.
        deadline: on the event loop's clock, which is `time.monotonic`.
        images: how many the model looks at, a page's lines one by one.
    """

    def __init__(self, answers: list[Answer], signal: Signal, deadline: float, images: int):
        self.answers, self.images, self._signal, self._deadline = answers, images, signal, deadline

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """(index of the answer, what it has grown by) until all are complete.

        Raises:
            ApiError: 504 at the deadline, 500 when the device fails.
        """
        while True:
            for index, answer in enumerate(self.answers):
                if answer.finish_reason is None:
                    delta = answer.grow()
                    if delta.text or delta.entries or answer.finish_reason is not None:
                        yield index, delta
            if all(answer.finish_reason is not None for answer in self.answers):
                return
            await self._wait()

    async def complete(self) -> list[tuple[Entry, ...]]:
        """Waits for all; the tokens of every answer."""
        entries: list[tuple[Entry, ...]] = [()] * len(self.answers)
        async for index, delta in self.deltas():
            entries[index] += delta.entries
        return entries

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    def close(self) -> None:
        for answer in self.answers:
            answer.close()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._signal.wait()
        except TimeoutError:
            raise timed_out() from None
