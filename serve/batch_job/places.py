"""Files here and elsewhere: a path of this machine, or a URL that fsspec knows (gs://, s3://, https://, ...).

A local path goes to no library. A URL's scheme may need a package of its own (gcsfs for gs://), which the message then names.

What cannot be read is of three kinds. PlaceError: it is not there, or bad, and stays so; a job stores that. FetchError: not now;
a job stores nothing, so that another run tries again. UsageError: a Python package is missing here.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

from trocr_jax.cli import UsageError

T = TypeVar("T")

PAUSES = (1.0, 5.0)
"""Seconds before another try at what cannot be read now."""
_PASSING = frozenset({408, 425, 429})  # of HTTP's 4xx, those that say: later
_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)


class PlaceError(ValueError):
    """A place that cannot be read, now or later. `reason` is the message without the place."""

    def __init__(self, place: str, reason: str):
        super().__init__(f"{place}: {reason}")
        self.reason = reason


class FetchError(ValueError):
    """A place that cannot be read now: the network, the storage or its permissions. `reason` is the message without the place
    and what to do."""

    def __init__(self, place: str, reason: str, remedy: str = "run the same command again, what is finished is kept"):
        super().__init__(place, reason, remedy)
        self.place, self.reason, self.remedy = place, reason, remedy

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}; {self.remedy}"


@contextmanager
def storage(place: str) -> Iterator[None]:
    """Whatever is raised becomes one of the three kinds, since every scheme has its own exceptions."""
    try:
        yield
    except Exception as error:
        raise _meaning(place, error) from None


def _meaning(place: str, error: Exception) -> Exception:
    if isinstance(error, PlaceError | FetchError | UsageError):
        return error
    if isinstance(error, ImportError):
        return UsageError(f"{place}: needs another Python package ({error})")
    if isinstance(error, FileNotFoundError):
        return PlaceError(place, "no such file")
    kind, status = type(error).__name__, getattr(error, "status", 0)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING
    if refused or isinstance(error, ValueError | IsADirectoryError | NotADirectoryError):
        return PlaceError(place, f"cannot be read ({kind}{f' {status}' if refused else ''})")
    reason = getattr(error, "strerror", None) or kind
    return FetchError(place, f"cannot be read now ({reason})")


def steadily(begin: Callable[[], Iterator[T]]) -> Iterator[T]:
    """What cannot be read now is begun again, after longer and longer pauses, and what was given of it already passed over.

    Raises:
        FetchError: of the last try.
    """
    given = 0
    for pause in (*PAUSES, None):
        try:
            for item in itertools.islice(begin(), given, None):
                given += 1
                yield item
            return
        except FetchError:
            if pause is None:
                raise
            time.sleep(pause)


def patiently(read: Callable[[], T]) -> T:
    """One thing, read as `steadily` reads several."""
    return next(steadily(lambda: iter((read(),))))


def is_url(place: str) -> bool:
    return bool(_URL.match(place))


def join(folder: str, name: str) -> str:
    """A name beside a list, unless it is complete by itself."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def parent(place: str) -> str:
    return place.rpartition("/")[0] if is_url(place) else os.path.dirname(place)


def expand(place: str) -> list[tuple[str, str]]:
    """The files that a place names, as (name, place) in order of the names: a file, all visible ones below a folder, or a glob's.

    A name is the path below the folder, or below the part of a glob that is before its first wildcard.

    Raises:
        PlaceError: there is none, or it cannot be listed.
        FetchError: it cannot be listed now.
    """
    found = _expand_url(place) if is_url(place) else _expand_path(place)
    if not found:
        raise PlaceError(place, "no such file or folder" if not glob.has_magic(place) else "no file matches")
    return sorted(found)


def _expand_path(place: str) -> list[tuple[str, str]]:
    path = os.path.expanduser(place)
    if os.path.isdir(path):
        return [(os.path.relpath(file, path).replace(os.sep, "/"), file) for file in _walk(path)]
    if os.path.exists(path):
        return [(os.path.basename(path), path)]
    files = [file for file in glob.glob(path, recursive=True) if os.path.isfile(file)]
    return [(os.path.relpath(file, _fixed(path) or ".").replace(os.sep, "/"), file) for file in files]


def _fixed(pattern: str) -> str:
    """The folder of a glob above its first wildcard, with its slash."""
    head, slash, _ = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")
    return head + slash


def _walk(folder: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise PlaceError(error.filename, f"cannot be listed ({error.strerror})")

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(root, name) for name in names if not name.startswith("."))


def _expand_url(place: str) -> list[tuple[str, str]]:
    with storage(place):
        system, path = _remote(place)
        base = path.rstrip("/") + "/"
        if glob.has_magic(path):
            files, base = system.glob(path), _fixed(path)
        elif system.isdir(path):
            files = system.find(path)
        else:
            files = [path] if system.exists(path) else []
        names = [file[len(base) :] if file.startswith(base) else file.rpartition("/")[2] for file in files]
        places = [system.unstrip_protocol(file) for file in files]
    return [(n, p) for n, p in zip(names, places, strict=True) if not any(part.startswith(".") for part in n.split("/"))]


def _remote(place: str) -> tuple[Any, str]:
    """fsspec's file system and path."""
    import fsspec

    return fsspec.core.url_to_fs(place)


@cache
def check_scheme(scheme: str) -> None:
    """Raises UsageError where the package of a URL's scheme is missing. An unknown scheme is no fault of this machine."""
    with suppress(PlaceError), storage(f"{scheme}://"):
        import fsspec

        for part in scheme.split("::"):
            fsspec.get_filesystem_class(part)


def read_url(place: str) -> bytes:
    """Raises PlaceError, FetchError or UsageError."""
    with storage(place):
        system, path = _remote(place)
        return system.cat_file(path)


@contextmanager
def opened(place: str) -> Iterator[IO[bytes]]:
    """A file to read, which can be sought in. What reading it raises becomes one of the three kinds, too.

    Raises:
        PlaceError, FetchError, UsageError: it cannot be opened.
    """
    with storage(place), _open(place) as file:
        yield file


def _open(place: str) -> IO[bytes]:
    if not is_url(place):
        return open(Path(place).expanduser(), "rb")
    system, path = _remote(place)
    return system.open(path, "rb")
