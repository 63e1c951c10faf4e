"""What happens to a request before and around its route, in this order, each step cheaper than the next:

    name it; refuse malformed framing and foreign hosts; check the key; is there room? check the key's rate; then read the body,
    within bytes and time; run the route; watch for the client's leaving meanwhile; put everything right; write it down.

So a refused request costs neither memory nor decoding, and a client that vanishes frees what it had.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

from starlette.requests import Request

from .errors import ApiError, bad_request, internal
from .limits import VALUE_BYTES
from .logs import log
from .service import RequestContext, Service
from .wire import media_type

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OPEN = frozenset({"/", "/healthz", "/readyz"})
"""Paths without a key: they show nothing that anybody sent, and the page must be there to ask for one."""
BAD_FRAMING = "bad_framing"
_FINISH_SECONDS = 2.0
_BEFORE_VALUES = b"{", b"[", b","
"""What stands before a value of JSON, and nowhere in base64: an image counts as one."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Guard:
    """An ASGI application around the routes, whose paths it knows by name even for requests that never get there."""

    def __init__(self, app: Any, service: Service, paths: Sequence[str], *, local_only: bool):
        self.app, self.service, self.paths, self.local_only = app, service, paths, local_only

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _Passage(self, scope, receive, send).run()
        else:
            await send({"type": "websocket.close"})


class _Passage:
    """One request on its way through."""

    def __init__(self, guard: Guard, scope: MutableMapping[str, Any], receive: Receive, send: Send):
        self.guard, self.service, self.scope, self.receive, self._send = guard, guard.service, scope, receive, send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.context = RequestContext()
        self.status = 0
        self.bytes = 0
        self.values = 0
        self.unread = True

    async def run(self) -> None:
        given = self.headers.get(b"x-request-id", b"")
        if _REQUEST_ID.fullmatch(given):
            self.context.id = given.decode()
        self.scope.setdefault("state", {})["context"] = self.context
        try:
            self._admit()
            await self._serve()
        except ApiError as error:
            await self._refuse(error)
        except _GoneError:
            self.service.metrics.vanished.inc()
        except Exception as error:
            log("error", level=40, error=error, id=self.context.id)
            await self._refuse(internal())
        finally:
            self._put_right()

    # --- before ---

    def _admit(self) -> None:
        """Raises ApiError for whoever is not let in."""
        if b"transfer-encoding" in self.headers and b"content-length" in self.headers:  # two readings of one request: smuggling
            raise bad_request("a request has a length or a transfer encoding, not both", None, BAD_FRAMING)
        if self.guard.local_only:
            self._keep_local()
        if self.scope["path"] in OPEN and self.scope["method"] in ("GET", "HEAD"):
            return
        authorization = self.headers.get(b"authorization")
        self.context.key = self.service.keys.name(authorization.decode("latin-1") if authorization else None)
        if self.scope["method"] == "POST":
            self.service.check_ready()
            self.service.rate.charge(self.context.key)
            self.context.deadline = self.context.started + self.service.limits.request_seconds

    def _keep_local(self) -> None:
        """Without keys any page in a browser on this machine could send requests. Raises ApiError for other pages' (421, 403)."""
        if not _is_local(self.headers.get(b"host", b"")):
            raise ApiError(421, "this server answers to localhost only, as long as it has no API key", "wrong_host")
        if self.scope["method"] == "POST" and _is_from_elsewhere(self.headers):
            raise ApiError(403, "pages of other origins may not call this server", "cross_site")

    async def _serve(self) -> None:
        if self.scope["method"] != "POST":
            await self.guard.app(self.scope, self.receive, self.send)
            return
        body = await self._read_body()
        gone, sent = asyncio.Event(), False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                await gone.wait()
                return {"type": "http.disconnect"}
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        route = asyncio.create_task(self.guard.app(self.scope, replay, self.send))
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((route, watch), return_when=asyncio.FIRST_COMPLETED)
            if not route.done():
                raise _GoneError
            await route
        finally:
            for task in (route, watch):
                task.cancel()
            await asyncio.gather(route, watch, return_exceptions=True)

    async def _read_body(self) -> bytes:
        """Raises ApiError for a body too large (413), too slow (408) or when too much is being received (503)."""
        limits, body, more = self.service.limits, bytearray(), True
        is_json = media_type(Request(self.scope)).endswith("json")  # also x+json, which FastAPI parses
        if _length(self.headers) > limits.body_bytes:
            raise _too_large(limits.body_bytes)
        try:
            async with asyncio.timeout(limits.body_seconds):
                while more:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    if len(body) + len(chunk) > limits.body_bytes:
                        raise _too_large(limits.body_bytes)
                    self._take(len(chunk), sum(map(chunk.count, _BEFORE_VALUES)) if is_json else 0)
                    body += chunk
        except TimeoutError:
            self.unread = False  # nothing more is expected
            raise ApiError(408, "the body of the request did not arrive in time", "body_timeout") from None
        self.unread = False
        return bytes(body)

    def _take(self, size: int, values: int) -> None:
        """Counts bytes of a body and the values that begin in them. Raises ApiError where they are too many (413, 503)."""
        most = self.service.limits.body_values
        if self.values + values > most:
            raise ApiError(413, f"the body has more than {most} values", "body_too_large")
        self.service.bodies.enter(size + VALUE_BYTES * values)
        self.bytes += size
        self.values += values

    # --- meanwhile ---

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: Message) -> None:
        """Sends a piece of the answer, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self.context.id.encode())]
            if self.service.state == "draining":
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        await self._send(message)

    # --- after ---

    async def _refuse(self, error: ApiError) -> None:
        if self.status:  # too late for another answer
            return
        self.context.refusal = error.code
        content = error.encode()
        headers = {"content-type": "application/json", "content-length": str(len(content)), **error.headers}
        if error.status in (408, 413) or error.code == BAD_FRAMING:  # what follows on the connection may be no request
            headers["connection"] = "close"
        start = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": start})
        await self.send({"type": "http.response.body", "body": content, "more_body": True})
        await self._let_finish()
        await self.send({"type": "http.response.body"})

    async def _let_finish(self) -> None:
        """Takes and drops what a refused client still sends: closed at once, its connection would be reset before it could read
        why. Not for long, and nothing is kept.
        """
        try:
            async with asyncio.timeout(_FINISH_SECONDS):
                while self.unread:
                    message = await self.receive()
                    self.unread = message["type"] == "http.request" and message.get("more_body", False)
        except TimeoutError:
            pass

    def _put_right(self) -> None:
        self.context.close()
        self.service.bodies.leave(self.bytes + VALUE_BYTES * self.values)
        route = _route(self.scope["path"], self.guard.paths)
        seconds = time.monotonic() - self.context.started
        self.service.metrics.requests.labels(route, str(self.status)).inc()
        if self.context.refusal:
            self.service.metrics.refused.labels(self.context.refusal).inc()
        self.service.metrics.request_seconds.labels(route).observe(seconds)
        if self.scope["path"] not in OPEN:
            log(
                "request", id=self.context.id, key=self.context.key, method=self.scope["method"][:8], route=route,
                status=self.status, ms=round(1000 * seconds, 1), bytes=self.bytes, **self.context.notes,
            )  # fmt: skip


class _GoneError(Exception):
    """The client has left."""


def _route(path: str, paths: Sequence[str]) -> str:
    """The one of a server's few paths that a request means, or "other": a label must not be whatever somebody asks for."""
    if path in paths:
        return path
    templates = (known for known in paths if "{" in known and path.startswith(known.partition("{")[0]))
    return next(templates, "other")


def _length(headers: dict[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() and len(length) < 20 else 0


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit} bytes: send smaller images, or fewer", "body_too_large")


@lru_cache(64)
def _is_local(host: bytes) -> bool:
    """Whether a Host header names this machine: another name that leads here is a web page's trick (DNS rebinding)."""
    name = re.sub(r":\d*$", "", host.decode("latin-1").lower())
    try:
        return name in ("localhost", "") or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_from_elsewhere(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser says that another page than this server's sends the request: a form needs no CORS to be sent."""
    if headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
        return True
    _, named, host = headers.get(b"origin", b"http://localhost").partition(b"://")  # "null" of a page that hides what it is
    return not (named and _is_local(host))
