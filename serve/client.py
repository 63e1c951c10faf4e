"""A client for measurements: HTTP/1.1 over kept connections, and nothing that costs the machine which it shares with the server.

A common client library takes about as much of a core for a request as the server takes to answer it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Response:
    """A response; its headers have lower-case names."""

    status: int
    headers: dict[str, str]
    content: bytes


class Client:
    """A client that keeps as many connections as there are requests at once.

    Args:
        url: address of a server whose answers say their length, as those of `serve` do unless they stream.
    """

    def __init__(self, url: str):
        self._host, self._port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self._idle: list[Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection[1].close()

    async def get(self, path: str) -> Response:
        return await self._send(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())

    async def post(self, path: str, body: bytes) -> Response:
        """Sends JSON."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        return await self._send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def _send(self, request: bytes) -> Response:
        reader, writer = await self._connection()
        try:
            writer.write(request)
            response = await _receive(reader)
        except BaseException:  # a cancelled request's answer would be taken for the next one's
            writer.close()
            raise
        if response.headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return response

    async def _connection(self) -> Connection:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)


async def _receive(reader: asyncio.StreamReader) -> Response:
    start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return Response(int(start.split(" ")[1]), headers, await reader.readexactly(int(headers["content-length"])))
