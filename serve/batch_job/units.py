"""The words of a batch job: an item is an image to read, a line or a page; a unit is what one worker does at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One image to read.

    Attributes:
        id: what the user calls it.
        image: a path, a URL or a file's bytes; None with `error`.
        error: why there is no image.
    """

    id: str
    image: str | bytes | None
    error: str | None = None


@dataclass(frozen=True)
class Unit:
    """A piece of work, the same for every worker.

    Attributes:
        kind: "listing", "tar", "parquet", "lmdb", or "broken" for a container that could not be opened.
        place: where the container is; empty for the listing.
        start, end: bytes of the listing, row groups of a parquet file, or indices of an LMDB.
        lines: how many images, None where only reading tells.
        first: the number of the first row in its parquet file.
        name: what its lines' ids begin with; for a broken container, its id.
        error: why a container is broken.
    """

    kind: str
    place: str = ""
    start: int = 0
    end: int = 0
    lines: int | None = None
    first: int = 0
    name: str = ""
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        return {key: value for key, value in asdict(self).items() if value != getattr(Unit, key, None)}


@dataclass(frozen=True)
class Columns:
    """Names of parquet columns where they are not the usual ones."""

    image: str | None = None
    id: str | None = None


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
