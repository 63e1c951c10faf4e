"""Images in containers: webdataset's tar shards, parquet with an image column, LMDB. Each gives units, and a unit's images.

All are read by one thread as a stream; the bytes go to the decoders.
"""

from __future__ import annotations

import itertools
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import IO, Any, Self

from trocr_jax.containers import IMAGE_COLUMNS, ContainerError, LineDatabase, image_bytes
from trocr_jax.image_paths import EXTENSIONS
from trocr_jax.terminal import UsageError

from .places import MAX_BYTES, PlaceError, opened
from .units import Columns, Item, Unit

ID_COLUMNS = ("id", "key", "__key__")
MAX_DESCRIPTION = 1 << 20  # bytes of headers before a tar member
_BAD_HEADER = tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError  # pyright: ignore[reportAttributeAccessIssue]
_DAMAGE = tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, RecursionError
"""What a damaged shard makes tarfile raise: ValueError of a header's numbers, RecursionError of descriptions of descriptions."""


# --- tar ---


def read_tar(unit: Unit, columns: Columns) -> Iterator[Item]:
    """Every image of a shard, compressed or not, in order; labels and other members are passed over."""
    with opened(unit.place) as file:
        stream: Any = _Ending(file)
        try:
            with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive:
                for member in iter(archive.next, None):
                    _forget(archive)
                    if _is_image(member):
                        yield _member_item(f"{unit.name}/{member.name}", archive, member)
        except _DAMAGE as error:
            raise PlaceError(unit.place, f"the archive is damaged or cut off ({type(error).__name__})") from None


def _is_image(member: tarfile.TarInfo) -> bool:
    """By its name, as a folder's files are chosen: hidden ones are not."""
    hidden = any(part.startswith(".") for part in member.name.split("/") if part not in (".", ".."))
    return not member.isdir() and not hidden and f".{member.name.rpartition('.')[2].lower()}" in EXTENSIONS


def _forget(archive: Any) -> None:
    """Drops what tarfile keeps of all members: it grows with the shard, and nothing here asks for it."""
    archive.members.clear()
    archive.pax_headers.clear()


class _Member(tarfile.TarInfo):
    """A member whose description is bounded: long names, pax headers and maps of holes come into memory whatever their size."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Self:
        """Reads a member's headers within a bound. tarfile calls it again, from within, for what a header describes."""
        stream = archive.fileobj
        if isinstance(stream, _Bounded):
            return super().fromtarfile(archive)
        archive.fileobj = _Bounded(stream)
        try:
            return super().fromtarfile(archive)
        except _BAD_HEADER as error:  # or none, where a block of zeros should be: tarfile takes all of them for the archive's end
            raise tarfile.ReadError(str(error)) from None
        finally:
            archive.fileobj = stream


class _Bounded:
    """A stream of which MAX_DESCRIPTION bytes can be read."""

    def __init__(self, stream: Any):
        self._stream, self._left, self.tell = stream, MAX_DESCRIPTION, stream.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise tarfile.ReadError("the description of a member is too large")
        return self._stream.read(size)


class _Ending:
    """A stream that raises EOFError when it is read on after its end: tarfile would pass over a member of any claimed size in
    steps of 10 KB, whether it is there or not.
    """

    def __init__(self, file: IO[bytes]):
        self._file, self._ended = file, False

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        if not content and self._ended:
            raise EOFError
        self._ended = not content
        return content


def _member_item(name: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Item:
    """A member as an image. A link is an error, as what it leads to has been passed in the stream; so is a sparse file: its size
    is only claimed, and its holes would be filled in memory.
    """
    if not member.isfile():
        return Item(name, None, "a link, where a file was expected")
    if member.issparse() or member.size > MAX_BYTES:
        return Item(name, None, "a sparse file or a larger one than images are")
    content = archive.extractfile(member)
    return Item(name, content.read() if content else None)


# --- parquet ---


def parquet_units(name: str, place: str, unit_lines: int, columns: Columns) -> list[Unit]:
    """Row groups, put together up to `unit_lines` rows. A damaged file is a unit of one error.

    Raises:
        PlaceError: it has no column of images.
    """
    try:
        with opened(place) as file:
            parquet = _parquet(file, place)
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            names = parquet.schema_arrow.names
    except PlaceError as error:
        return [Unit("broken", place, lines=1, name=name, error=error.reason)]
    _column(names, columns.image, IMAGE_COLUMNS, place)
    units, start, first = [], 0, 0
    while start < len(sizes):
        end, lines = start + 1, sizes[start]
        while end < len(sizes) and lines + sizes[end] <= unit_lines:
            lines, end = lines + sizes[end], end + 1
        units.append(Unit("parquet", place, start, end, lines, first, name))
        start, first = end, first + lines
    return units


def read_parquet(unit: Unit, columns: Columns) -> Iterator[Item]:
    """The rows of some row groups, one at a time: a file of 1 kB may hold the same 100 MB in every row."""
    with opened(unit.place) as file:
        parquet = _parquet(file, unit.place)
        names = parquet.schema_arrow.names
        image = _column(names, columns.image, IMAGE_COLUMNS, unit.place)
        key = columns.id or next((name for name in ID_COLUMNS if name in names), None)
        wanted = [image] if key is None else [image, _column(names, key, (), unit.place)]
        number = itertools.count(unit.first)
        with _arrow(unit.place, "the parquet file is damaged or cut off"):
            for batch in parquet.iter_batches(1, row_groups=range(unit.start, unit.end), columns=wanted):
                for row in batch.to_pylist():
                    here, name = f"{unit.name}#{next(number)}", None if key is None else row[key]
                    yield _row_item(here if name is None else _text(name), row[image])


def _text(name: Any) -> str:
    """An id; some writers leave out that a column of bytes is text."""
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)


def _row_item(name: str, cell: Any) -> Item:
    image = image_bytes(cell)
    if image is not None and len(image) > MAX_BYTES:
        return Item(name, None, "larger than images are")
    return Item(name, image, None if image is not None else "the row holds no image bytes")


def _parquet(file: Any, place: str) -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UsageError(f"{place}: needs the Python package 'pyarrow': pip install 'trocr-jax[batch]'") from None
    with _arrow(place, "not a parquet file, or damaged"):
        return pyarrow.parquet.ParquetFile(file)


@contextmanager
def _arrow(place: str, reason: str) -> Iterator[None]:
    """Turns pyarrow's complaint about a file into a PlaceError. What the file's storage raises through pyarrow stays as it is."""
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException:
        raise PlaceError(place, reason) from None
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:
            raise
        raise PlaceError(place, reason) from None


def _column(names: list[str], asked: str | None, usual: tuple[str, ...], place: str) -> str:
    wanted = (asked,) if asked else usual
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise PlaceError(place, f"has the columns {', '.join(names)}; expected one of {', '.join(wanted)}")
    return found


# --- LMDB ---


def lmdb_units(place: str, unit_lines: int) -> list[Unit]:
    """Units of up to `unit_lines` consecutive samples, which LMDB numbers from 1.

    Raises:
        PlaceError: not a database of lines.
    """
    with _lmdb(place) as database:
        count = database.count
    starts = range(1, count + 1, unit_lines)
    ends = [min(start + unit_lines, count + 1) for start in starts]
    return [Unit("lmdb", place, start, end, end - start) for start, end in zip(starts, ends, strict=True)]


def read_lmdb(unit: Unit, columns: Columns) -> Iterator[Item]:
    """The images under the keys image-000000001 and so on, those of the unit's numbers."""
    with _lmdb(unit.place) as database:
        for number in range(unit.start, unit.end):
            image = database.image(number)
            yield Item(f"image-{number:09d}", image, None if image is not None else "the database lacks it")


@contextmanager
def _lmdb(place: str) -> Iterator[LineDatabase]:
    try:
        with opened(f"{place}/data.mdb"):  # LMDB's complaints about a file do not tell damage from storage that is away
            pass
        with closing(LineDatabase(place)) as database:
            yield database
    except ModuleNotFoundError:
        raise UsageError(f"{place}: needs the Python package 'lmdb': pip install 'trocr-jax[batch]'") from None
    except ContainerError as error:
        raise PlaceError(place, str(error)) from None


READERS: dict[str, Callable[..., Iterator[Any]]] = {"tar": read_tar, "parquet": read_parquet, "lmdb": read_lmdb}
