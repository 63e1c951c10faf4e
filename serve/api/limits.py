"""What one client, and all of them together, may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from trocr_jax.terminal import UsageError

VALUE_BYTES = 200
"""What a value of JSON weighs as Python's objects where it is small: a key and a text, with their place in a dictionary."""


@dataclass(frozen=True)
class Limits:
    body_bytes: int = 20 << 20
    """Bytes of one request's body; above: 413."""
    body_values: int = 20_000
    """Values of a JSON body, its signs { [ and comma; above: 413. Checking so many can take 0.1 s, all others waiting."""
    bodies_bytes: int = 128 << 20
    """Bytes of all bodies held at once, each value of JSON counted as 200 more; above: 503."""
    header_seconds: float = 10.0
    """A connection that has not sent a whole header by then is closed."""
    body_seconds: float = 20.0
    """A body that is not there by then: 408."""
    request_seconds: float = 60.0
    """From the header to the last token; above: 504, and the image is not read."""
    send_seconds: float = 20.0
    """A client that takes nothing of its answer for so long is dropped."""
    connections: int = 1000
    """Open connections; further ones are closed at once."""
    images: int = 32
    """Images of one request."""
    pixels: int = 16_000_000
    """Pixels of one image, counted from its header before any is decoded; a line at 600 dpi has 2 million."""
    choices: int = 8
    """Most answers of a request (`n`)."""
    queue: int = 256
    """Images, and lines of pages, that wait or are being read, each times its `n`; when so many are there: 503 with Retry-After,
    the body unread."""
    rate: float = 0.0
    """Images, and lines of pages, a minute and key; above: 429 with Retry-After. 0 is no limit."""
    burst: int = 60
    """Images that a key may send at once before `rate` holds. A request is let in while one is left; images that it has above
    that are owed."""
    url_bytes: int = 10 << 20
    """Bytes of an image fetched by URL, where that is allowed."""
    url_seconds: float = 10.0
    """Time to fetch it."""

    def check(self) -> None:
        """Raises UsageError, which names the flag of a limit that would let nothing in."""
        for name in (field.name for field in fields(self)):
            value, flag = getattr(self, name), f"--limits.{name.replace('_', '-')}"
            if name == "rate" and not value >= 0:
                raise UsageError(f"{flag} must not be below 0")
            if name != "rate" and not value > 0:
                raise UsageError(f"{flag} must be above 0")
