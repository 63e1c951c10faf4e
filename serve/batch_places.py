"""Files here and elsewhere: a path of this machine, or a URL that fsspec knows (gs://, s3://, https://, ...).

A local path goes to no library. A URL's scheme may need a package of its own (gcsfs for gs://), which the message then names.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)


class PlaceError(ValueError):
    """A place that cannot be read. `reason` is the message without the place."""

    def __init__(self, place: str, reason: str):
        super().__init__(f"{place}: {reason}")
        self.reason = reason


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

    Raises:
        PlaceError: there is none, or it cannot be listed.
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
    return [(os.path.basename(file), file) for file in glob.glob(path, recursive=True) if os.path.isfile(file)]


def _walk(folder: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise PlaceError(error.filename, f"cannot be listed ({error.strerror})")

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(root, name) for name in names if not name.startswith("."))


def _expand_url(place: str) -> list[tuple[str, str]]:
    with _remote(place) as (system, path):
        if glob.has_magic(path):
            files = system.glob(path)
        elif system.isdir(path):
            files = system.find(path)
        else:
            files = [path] if system.exists(path) else []
        base = path.rstrip("/") + "/"
        names = [file[len(base) :] if file.startswith(base) else file.rpartition("/")[2] for file in files]
        places = [system.unstrip_protocol(file) for file in files]
    return [(n, p) for n, p in zip(names, places, strict=True) if not any(part.startswith(".") for part in n.split("/"))]


@contextmanager
def _remote(place: str) -> Iterator[tuple[Any, str]]:
    """fsspec's file system and path; whatever it raises becomes one line, since every scheme has its own exceptions."""
    import fsspec

    try:
        yield fsspec.core.url_to_fs(place)
    except PlaceError:
        raise
    except FileNotFoundError:
        raise PlaceError(place, "no such file") from None
    except ImportError as error:
        raise PlaceError(place, f"needs another Python package ({error})") from None
    except Exception as error:
        raise PlaceError(place, f"cannot be read ({type(error).__name__})") from None


def read_url(place: str) -> bytes:
    """Raises PlaceError."""
    with _remote(place) as (system, path):
        return system.cat_file(path)


@contextmanager
def opened(place: str) -> Iterator[IO[bytes]]:
    """A file to read, which can be sought in.

    Raises:
        PlaceError: it cannot be opened.
    """
    if is_url(place):
        with _remote(place) as (system, path):
            file = system.open(path, "rb")
    else:
        try:
            file = open(Path(place).expanduser(), "rb")
        except OSError as error:
            raise PlaceError(place, f"cannot be read ({error.strerror})") from None
    with file:
        yield file
