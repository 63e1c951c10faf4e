"""What a batch job reads: INPUT as a plan of work units, and the images of one unit.

    folder or glob of images    id: the path below the folder, or below the glob's part before its first wildcard
    .txt .list                  a path or URL a line, relative to the list; id: the line
    .jsonl                      objects with a path or URL (`file_name`, `path`, `image`, ...) and perhaps an `id`
    .tar .tar.gz .tar.xz ...    webdataset shards; every visible image in them is a line; id: shard/member
    .parquet                    a column of images: bytes, or {bytes, path}; id: a column, else file#row
    folder with data.mdb        LMDB as scene text benchmarks come: num-samples, image-%09d; id: the key

A plan is made once and kept in the job, so that all workers mean the same lines by the same unit whatever happens to INPUT:
names of single files are frozen in a listing, of which a unit is a stretch of bytes; of containers a unit is a shard, row
groups or keys.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

from trocr_jax.containers import FILE_COLUMNS
from trocr_jax.image_paths import EXTENSIONS, UNREAD
from trocr_jax.terminal import UsageError, remark

from . import containers
from .places import PlaceError, absolute, check_mounted, check_scheme, expand, is_url, join, opened, parent, steadily
from .units import Columns, Item, Unit, groups

FILE_KEYS = (*FILE_COLUMNS, "url")
LISTS = (".txt", ".list", ".jsonl")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LEFT_OUT = UNREAD | {".zip", ".zst", ".7z", ".rar"}


def plan(place: str, unit_lines: int, listing: BinaryIO, columns: Columns) -> list[Unit]:
    """The units of an input; names of single files are written to `listing`.

    Raises:
        PlaceError: nothing there, nothing that can be read, or several kinds of it.
        FetchError: it cannot be read now. UsageError: columns are named, and there are none.
    """
    units = _units(place, unit_lines, listing, columns)
    if columns != Columns() and all(unit.kind not in ("parquet", "broken") for unit in units):
        raise UsageError(f"{place}: --image-column and --id-column are for parquet files, and here is none")
    return units


def _units(place: str, unit_lines: int, listing: BinaryIO, columns: Columns) -> list[Unit]:
    if not is_url(place) and (Path(place).expanduser() / "data.mdb").is_file():
        return containers.lmdb_units(str(Path(place).expanduser().resolve()), unit_lines)
    files = expand(place)
    if len(files) == 1 and _ends(files[0][1], LISTS):
        return freeze(read_list(files[0][1]), unit_lines, listing)
    shards = [file for file in files if _ends(file[1], TARS)]
    parts = [file for file in files if _ends(file[1], ".parquet")]
    images = [file for file in files if _is_image(file[1])]
    _check_one_kind(place, {"images": len(images), "tar shards": len(shards), "parquet files": len(parts)})
    _tell_of_others(place, [file for _, file in files])
    if shards:
        return [Unit("tar", absolute(path), name=name) for name, path in shards]
    if parts:
        found = [containers.parquet_units(name, absolute(path), unit_lines, columns) for name, path in parts]
        return list(itertools.chain.from_iterable(found))
    return freeze((Item(name, absolute(path)) for name, path in images), unit_lines, listing)


def _tell_of_others(place: str, files: Sequence[str]) -> None:
    """Pictures and documents of kinds that are not read are left out, and that is said; nobody expects other files to be read."""
    kinds = [suffix for file in files if (suffix := os.path.splitext(file)[1].lower()) in LEFT_OUT]
    if kinds:
        remark(f"{place}: {len(kinds)} files left out, of kinds that are not read ({', '.join(sorted(set(kinds)))})")


def _check_one_kind(place: str, counts: dict[str, int]) -> None:
    """Raises PlaceError where there is nothing to read, or several kinds of it: nothing is silently passed over."""
    found = [f"{count:,} {kind}" for kind, count in counts.items() if count]
    if not found:
        raise PlaceError(place, "holds no images, tar shards, parquet files or data.mdb; a list ends in .txt, .list or .jsonl")
    if len(found) > 1:
        raise PlaceError(place, f"holds {' and '.join(found)}: name one kind, for example by a glob")


def count_new(place: str, units: Sequence[Unit], listing: Path, output: Path) -> int:
    """How many files, or lines of a list, an input has that its plan does not know: they came later.

    For URLs and for an LMDB it is 0: listing a bucket again may take minutes, and a database is one file.

    Args:
        output: the job's own folder, which may lie in the input and is none of it.

    Raises:
        PlaceError, FetchError: the input cannot be read any more.
    """
    if is_url(place) or any(unit.kind == "lmdb" for unit in units):
        return 0
    files = [path for _, file in expand(place) if not Path(path := absolute(file)).is_relative_to(absolute(str(output)))]
    if len(files) == 1 and _ends(files[0], LISTS):
        found = {item.image for item in read_list(files[0])}
    else:
        found = {path for path in files if _is_image(path) or _ends(path, (*TARS, ".parquet"))}
    known = itertools.chain.from_iterable(_read_listing(unit, listing) for unit in units if unit.kind == "listing")
    for item in known:  # one by one: there may be millions
        found.discard(item.image)
    return len(found - {unit.place for unit in units} - {None})


def read(unit: Unit, listing: Path, columns: Columns, root: str = "/") -> Iterator[Item]:
    """The lines of a unit; what cannot be read is an Item with an error.

    Args:
        root: the input's root folder, see `places.check_mounted`.

    Raises:
        FetchError: a container cannot be read now. From the iterator.
    """
    if unit.kind == "listing":
        return _read_listing(unit, listing)
    if unit.kind == "broken":
        return iter([Item(unit.name, None, unit.error)])
    return _named(unit, steadily(lambda: containers.READERS[unit.kind](unit, columns)), root)


def _named(unit: Unit, items: Iterator[Item], root: str) -> Iterator[Item]:
    """A unit's items; where its container breaks while it is read, an error follows what came before, which counts."""
    try:
        yield from items
    except PlaceError as error:
        check_mounted(unit.place, root)
        yield Item(unit.name, None, error.reason)


def read_list(path: str) -> Iterator[Item]:
    """A list's lines. One that cannot be understood is an Item with an error.

    Raises:
        PlaceError, FetchError: the list cannot be read.
        UsageError: a package is missing for a URL in it.
    """
    folder, name = parent(path if is_url(path) else absolute(path)), path.rpartition("/")[2]
    with opened(path) as file:
        for number, raw in enumerate(file, 1):
            if b"\0" in raw:
                raise PlaceError(path, f"line {number} has a NUL byte, as in UTF-16; a list is UTF-8")
            line = raw.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") if number == 1 else raw.rstrip(b"\r\n")
            if line.strip():
                item = _list_item(line, folder, f"{name} line {number}", _ends(path, ".jsonl"))
                if isinstance(item.image, str) and is_url(item.image):
                    check_scheme(item.image.partition("://")[0])
                yield item


def _list_item(line: bytes, folder: str, here: str, objects: bool) -> Item:
    text = line.decode("utf-8", "surrogateescape")
    if not objects:
        return Item(text, join(folder, text))
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return Item(here, None, "not valid JSON")
    if not isinstance(row, dict):
        return Item(here, None, "not a JSON object")
    file = next((row[key] for key in FILE_KEYS if isinstance(row.get(key), str)), None)
    name = row.get("id")
    item = Item(file or here if name is None else str(name), None)
    if file is None:
        return replace(item, error=f"the object names no file; expected one of {', '.join(FILE_KEYS)}")
    return replace(item, image=join(folder, file))


def freeze(items: Iterable[Item], unit_lines: int, listing: BinaryIO) -> list[Unit]:
    """Writes the items to the listing and returns units that are stretches of it."""
    units, start, end = [], 0, 0
    for group in groups(items, unit_lines):
        end += listing.write("".join(json.dumps(asdict(item)) + "\n" for item in group).encode())  # ASCII: names may be anything
        units.append(Unit("listing", "", start, end, len(group)))
        start = end
    return units


def _read_listing(unit: Unit, listing: Path) -> Iterator[Item]:
    with open(listing, "rb") as file:
        file.seek(unit.start)
        rows = file.read(unit.end - unit.start)
    for row in rows.splitlines():
        yield Item(**json.loads(row))


def _ends(path: str, endings: str | tuple[str, ...]) -> bool:
    return path.lower().endswith(endings)


def _is_image(path: str) -> bool:
    return f".{path.rpartition('.')[2].lower()}" in EXTENSIONS
