"""Files here and elsewhere: a path of this machine, or a URL that fsspec knows (gs://, s3://, https://, ...).

A local path goes to no library. A URL's scheme may need a package of its own (gcsfs for gs://), which the message then names.

What cannot be read is of three kinds. PlaceError: it is not there, or bad, and stays so; a job stores that. FetchError: not now;
a job stores nothing, so that another run tries again. UsageError: a Python package is missing here.
"""

from __future__ import annotations

import errno
import glob
import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from threading import Thread
from typing import IO, Any, TypeVar

from trocr_jax.image_paths import fixed, glob_files, natural
from trocr_jax.images import MAX_PIXELS
from trocr_jax.terminal import UsageError

T = TypeVar("T")

PAUSES = (1.0, 5.0)
"""Seconds before another try at what cannot be read now."""
DEADLINE = 120.0
"""Seconds in which a file must have come from a URL: not every scheme's package has an end of waiting."""
MAX_BYTES = 8 * MAX_PIXELS
"""Most bytes of an image file: as many as the largest image that is decoded has without compression."""
_PASSING = frozenset({408, 425, 429})  # of HTTP's 4xx, those that say: later
_LOCAL = re.compile(r"(file|local)://", re.IGNORECASE)
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
    if isinstance(error, FileNotFoundError | NotADirectoryError):  # the latter: a folder of its path is a file
        return PlaceError(place, "no such file")
    kind, status = type(error).__name__, getattr(error, "status", 0)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING
    impossible = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    if refused or impossible or isinstance(error, ValueError | IsADirectoryError):  # ValueError: also a NUL in a path
        return PlaceError(place, f"cannot be read ({kind}{f' {status}' if refused else ''})")
    reason = getattr(error, "strerror", None) or kind
    return FetchError(place, f"cannot be read now ({reason})")


def steadily(begin: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Begins again what cannot be read now, after longer and longer pauses, and passes over what was already yielded of it.

    Raises:
        FetchError: that of the last try.
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


def absolute(place: str) -> str:
    """A place that means the same whatever folder a worker is started in."""
    return place if is_url(place) else str(Path(place).expanduser().absolute())


def root_of(place: str) -> str:
    """The folder of this machine that holds an input's files or its list; / for an input elsewhere."""
    path = os.path.abspath(_path(place) or "/")
    return path if os.path.isdir(path) else os.path.abspath(fixed(path))


def _path(place: str) -> str | None:
    """The path of a place on this machine; None for a place elsewhere."""
    if _LOCAL.match(place):
        return _LOCAL.sub("", place)
    return None if is_url(place) else os.path.expanduser(place)


def check_mounted(place: str, root: str) -> None:
    """Where a place on this machine is missing, its storage must not be: what is not mounted leaves an empty folder.

    Raises:
        FetchError: the input's root is gone, or the nearest folder that is there is empty.
    """
    path = _path(place)
    if path is None or os.path.exists(path):
        return
    with storage(place):
        nearest = next(folder for folder in Path(os.path.realpath(path)).parents if folder.is_dir())
        if not os.path.isdir(root):
            raise FetchError(place, f"cannot be read now ({root} is gone: is it mounted?)")
        with os.scandir(nearest) as entries:
            empty = next(entries, None) is None
        if empty:
            raise FetchError(place, f"cannot be read now ({nearest} is empty: is it mounted?)")


def join(folder: str, name: str) -> str:
    """A name beside a list, unless it is complete by itself."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def parent(place: str) -> str:
    return place.rpartition("/")[0] if is_url(place) else os.path.dirname(place)


def expand(place: str) -> list[tuple[str, str]]:
    """The files that a place names, as (name, place), 2 before 10: a file, all visible ones below a folder, or a glob's.

    A name is the path below the folder, or below the part of a glob that is before its first wildcard.

    Raises:
        PlaceError: there is none, or it cannot be listed.
        FetchError: it cannot be listed now.
    """
    found = _expand_url(place) if is_url(place) else _expand_path(place)
    if not found:
        if os.path.isdir(os.path.expanduser(place)):
            raise PlaceError(place, "holds no files")
        raise PlaceError(place, "no such file or folder" if not glob.has_magic(place) else "no file matches")
    return sorted(found, key=lambda file: natural(file[0]))


def _expand_path(place: str) -> list[tuple[str, str]]:
    path = os.path.expanduser(place)
    if os.path.isdir(path):
        return [(os.path.relpath(file, path).replace(os.sep, "/"), file) for file in _walk(path)]
    if os.path.exists(path):
        return [(os.path.basename(path), path)]
    files = [file for file in glob_files(path) if os.path.isfile(file)]
    return [(os.path.relpath(file, fixed(path) or ".").replace(os.sep, "/"), file) for file in files]


def _walk(folder: str) -> Iterator[str]:
    """Links to folders are followed, each folder once: a link may point at what holds it."""

    def refuse(error: OSError) -> None:
        raise PlaceError(error.filename, f"cannot be listed ({error.strerror})")

    seen = set[str]()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # of two ways to a folder always the same
        yield from (os.path.join(root, name) for name in names if not name.startswith("."))


def _expand_url(place: str) -> list[tuple[str, str]]:
    with storage(place):
        system, path = _remote(place)
        base = path.rstrip("/") + "/"
        if glob.has_magic(path):
            files, base = system.glob(path), fixed(path)
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


def read_file(place: str, root: str) -> bytes:
    """An image file.

    Args:
        root: the root folder of the input that named the place, see `check_mounted`.

    Raises:
        PlaceError, FetchError, UsageError: it cannot be read, or is larger than images are.
    """
    try:
        return _read(place) if _path(place) else _in_time(place, partial(_read, place))
    except PlaceError:
        check_mounted(place, root)
        raise


def _read(place: str) -> bytes:
    with opened(place) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise PlaceError(place, "the file is larger than images are")
    return content


def _in_time(place: str, read: Callable[[], T]) -> T:
    """Reads in a thread, which is left behind where it hangs: nothing else ends what waits in another package."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(read())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=work, name="fetch", daemon=True).start()
    try:
        return answer.result(DEADLINE)
    except TimeoutError:
        raise FetchError(place, f"cannot be read now (not there after {DEADLINE:g} seconds)") from None


@contextmanager
def opened(place: str) -> Iterator[IO[bytes]]:
    """A file to read, which can be sought in. What reading it raises becomes one of the three kinds, too.

    Raises:
        PlaceError, FetchError, UsageError: it cannot be opened.
    """
    with storage(place), _open(place) as file:
        yield file


def _open(place: str) -> IO[bytes]:
    path = _path(place)
    if path is None:
        system, path = _remote(place)
        return system.open(path, "rb")
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
        raise PlaceError(place, "not a regular file")
    return open(path, "rb")
