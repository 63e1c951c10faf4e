"""Who may come in, and how often."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import ApiError

ENVIRONMENT = "TROCR_API_KEY"
ANONYMOUS = "anonymous"
_REMARK = re.compile(r"(^|\s)#.*")


class Keys:
    """API keys, of which only sha256 digests are kept. Without any key everybody is let in.

    Digests of a fixed length are compared in constant time, and always with all keys, so that an answer's time tells nothing
    about how much of a key was right or whose it was.
    """

    def __init__(self, keys: Iterable[str]):
        self._digests = [_digest(key) for key in keys]

    @property
    def required(self) -> bool:
        return bool(self._digests)

    def name(self, authorization: str | None) -> str:
        """What to call the owner of an Authorization header: the first digits of the key's digest.

        Raises:
            ApiError: 401.
        """
        if not self.required:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        known = [hmac.compare_digest(digest, other) for other in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            raise ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", "invalid_api_key")
        return digest[:4].hex()


def read_keys(file: str | None, environment: str | None) -> list[str]:
    """Keys of a file (one a line; # at its start or behind a space begins a remark) and of a variable (commas between).

    Raises:
        ValueError: naming the source: the file cannot be read or holds no key, or a key is short enough to be guessed.
    """
    given = _checked([key.strip() for key in (environment or "").split(",")], ENVIRONMENT)
    return given if file is None else _keys_of(file) + given


def _keys_of(file: str) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise ValueError(f"--api-key-file {file}: {why}") from None
    if keys := _checked([_REMARK.sub("", line).strip() for line in lines], f"--api-key-file {file}"):
        return keys
    raise ValueError(f"--api-key-file {file}: holds no API key; write one a line")


def _checked(keys: list[str], source: str) -> list[str]:
    """Those that are not empty."""
    keys = [key for key in keys if key]
    if any(len(key) < 16 or not key.isascii() or not key.isprintable() for key in keys):
        raise ValueError(f"{source}: an API key needs at least 16 plain characters; `openssl rand -hex 24` makes a good one")
    return keys


class RateLimit:
    """A token bucket a key: `burst` images at once, `rate` a minute after that.

    A request needs one token to come in; its other images are charged when they are counted, if need be as debt.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic):
        self.rate, self.burst, self.clock = rate / 60, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def charge(self, name: str, images: int = 1, *, admit: bool = True) -> None:
        """Takes tokens; with `admit`, only if there is one.

        Raises:
            ApiError: 429 with the time until there is one.
        """
        if not self.rate:
            return
        now = self.clock()
        tokens, then = self._buckets.get(name, (float(self.burst), now))
        tokens = min(self.burst, tokens + (now - then) * self.rate)
        if admit and tokens < 1:
            wait = (1 - tokens) / self.rate
            raise ApiError(429, "this key has sent too many images, try again later", "rate_limit_exceeded", retry_after=wait)
        self._buckets[name] = tokens - images, now


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
