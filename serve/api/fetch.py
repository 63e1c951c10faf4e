"""Images by URL, for operators who allow it: only from hosts they name, only from public addresses, and never by a detour.

A URL is taken apart once, by one strict pattern; what does not fit it is refused before any name is looked up. The host must be
on the list letter by letter. Its addresses are checked, and the connection goes to the checked address, so that a name which
resolves differently the second time gains nothing. No redirects, no proxies, no cookies; bytes and time are limited.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any

import httpcore2

from .errors import bad_request

_URL = re.compile(
    r"(https?)://([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)(:[1-9][0-9]{0,4})?(/[!$-;=?-\[\]_a-z~]*)?",
    re.IGNORECASE | re.ASCII,  # else U+212A, the sign of Kelvin, is a k
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{64,}=*")
_PORTS = {"http": 80, "https": 443}
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 "
        "192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 "
        "2001::/23 2001:db8::/32 2002::/16 3fff::/20"
    ).split()
)
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")


def is_host(name: str) -> bool:
    """Whether a URL can name this host: a name without scheme, port and path."""
    match = _URL.fullmatch(f"https://{name}/")
    return match is not None and match[2] == name


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's. Lists of our own: Python's `is_global` has been wrong in places."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if ip.version == 6 and ip not in _PUBLIC_V6:  # with the mapped, translated and local ranges
        return False
    return not any(ip in network for network in _NOT_PUBLIC if network.version == ip.version)


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to an address of the host only after all of them have passed the check."""

    def __init__(self, allowed: Callable[[str], bool]):
        self._allowed = allowed
        self._backend: Any = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Any = None
    ) -> httpcore2.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(map(self._allowed, addresses)):
            raise httpcore2.ConnectError("not a public address")
        return await self._backend.connect_tcp(addresses[0], port, timeout, local_address, socket_options)


class Fetcher:
    """Fetches images.

    Args:
        hosts: those that URLs may name; none means that nothing is fetched.
        max_bytes, seconds: limits for one image.
        allowed: decides on an address.
    """

    def __init__(self, hosts: Iterable[str], max_bytes: int, seconds: float, allowed: Callable[[str], bool] = is_public):
        self.hosts, self.max_bytes, self.seconds = frozenset(host.lower() for host in hosts), max_bytes, seconds
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(), max_connections=16, max_keepalive_connections=0,
            network_backend=_CheckedBackend(allowed),
        )  # fmt: skip

    def check(self, url: str, param: str | None) -> None:
        """Raises ApiError 400 unless the URL may be fetched."""
        if _BASE64.fullmatch(url, 0, 2048):
            raise bad_request("base64 alone is no URL: put data:image/png;base64, before it", param, "invalid_data_url")
        if not self.hosts:
            raise bad_request("images by URL are not allowed here: send them as data: URLs", param, "url_not_allowed")
        match = _URL.fullmatch(url) if len(url) <= 2048 else None
        if match is None or match[2].lower() not in self.hosts:
            raise bad_request("this URL is not one that images may be fetched from here", param, "url_not_allowed")
        if match[3] and int(match[3][1:]) != _PORTS[match[1].lower()]:
            raise bad_request("images are fetched from the standard ports only", param, "url_not_allowed")

    async def fetch(self, url: str, param: str | None) -> bytes:
        """The bytes behind a URL. Raises ApiError 400, which does not tell a client what the network behind us looks like."""
        self.check(url, param)
        try:
            async with asyncio.timeout(self.seconds):
                return await self._read(url)
        except _TooLargeError:
            raise bad_request("the image at this URL has too many bytes", param, "image_too_large") from None
        except (httpcore2.ConnectError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError):
            raise bad_request("the image at this URL could not be fetched", param, "url_unreachable") from None

    async def _read(self, url: str) -> bytes:
        content = bytearray()
        headers = [("accept", "image/*"), ("accept-encoding", "identity"), ("user-agent", "trocr-jax")]
        async with self._pool.stream("GET", url, headers=headers) as response:
            if response.status != 200:
                raise httpcore2.RemoteProtocolError("an image is expected, not another status")
            async for chunk in response.aiter_stream():
                content += chunk
                if len(content) > self.max_bytes:
                    raise _TooLargeError
        return bytes(content)

    async def close(self) -> None:
        await self._pool.aclose()


class _TooLargeError(Exception):
    pass
