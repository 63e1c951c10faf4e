"""Sockets: limits that uvicorn does not have, and a shutdown that loses nobody.

uvicorn waits without end for a header, for the rest of a request that was answered early, and for a client to take its answer;
and after SIGTERM it closes its socket at once, before a load balancer has seen that it should look elsewhere, then connections
whose request is still on its way, and dies of the signal.
"""

from __future__ import annotations

import asyncio
import time
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits
from .logs import log
from .service import Service

_LAST_SECONDS = 1.0
"""Time for requests on connections that were taken before the socket closed, and for those that were cut off to say so."""


class Corked:
    """A transport that sends with one call what a turn of the event loop wrote, an answer's head and body for instance.

    Every call lets go of Python's lock and waits for it again, under load for longer than all else that an answer costs.

    Args:
        seconds: in which a client must take what has piled up, or what is left at the close.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float):
        self._transport, self._loop, self._seconds = transport, loop, seconds
        self._written: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def close(self) -> None:
        """Closes the connection after what was written, as far as the client takes it in time."""
        self._flush()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self.expect_progress()

    def expect_progress(self) -> None:
        """Gives the client its time to take what there is; after that the connection is cut off."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._transport.abort)

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        data, self._written = b"".join(self._written), []
        if data:
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1 with a limit of connections and of the time that clients take to ask and to listen.

    h11 and not httptools: it limits headers to 64 kB. What it lets pass, a length together with a transfer encoding, the guard
    refuses.
    """

    class Connection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        transport: Any  # Corked

        @property
        def waits(self) -> bool:
            """Whether the connection waits for a request, the first or a further one."""
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: Any) -> None:
            super().connection_made(Corked(transport, self.loop, limits.send_seconds))  # pyright: ignore[reportArgumentType]
            if len(self.connections) > limits.connections:
                transport.abort()
            else:
                self._timer = self.loop.call_later(limits.header_seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self.waits:
                self._stop_timer()
            elif self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(limits.header_seconds, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)
            self.transport.stop_timer()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.expect_progress()

        def resume_writing(self) -> None:
            super().resume_writing()
            if not self.transport.is_closing():
                self.transport.stop_timer()

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection


class Server(uvicorn.Server):
    """A uvicorn that drains: /readyz says no for `pause` seconds while requests are still taken, then no new ones are, and
    those under way are finished. A second signal skips the pause.
    """

    def __init__(self, config: uvicorn.Config, service: Service, pause: float):
        super().__init__(config)
        self.service, self.pause, self._drain_at = service, pause, float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drains on SIGTERM and SIGINT. Unlike uvicorn it does not hand the signal on: a drained server exits with 0."""
        if self.service.state == "draining":
            self.should_exit = True
        self._drain_at = min(self._drain_at, time.monotonic() + (self.pause if self.service.state == "ready" else 0))
        self.service.drain()

    async def on_tick(self, counter: int) -> bool:
        if time.monotonic() >= self._drain_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        for server in self.servers:
            server.close()
        await self._take_last()
        await super().shutdown(sockets)
        if cut_off := list(self.server_state.tasks):
            await asyncio.wait(cut_off, timeout=_LAST_SECONDS)
        log("stopped", left_behind=self.service.held_up)

    async def _take_last(self) -> None:
        """Waits for the requests of clients whose connections were taken: closed now, a request on its way would be lost."""
        until = time.monotonic() + _LAST_SECONDS
        connections: set[Any] = self.server_state.connections
        while time.monotonic() < until and any(connection.waits for connection in connections):
            await asyncio.sleep(0.02)
