"""Data sets that hold images in one file: LMDB as the scene text benchmarks come, and parquet with an image column."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from trocr_jax.containers import IMAGE_COLUMNS, ContainerError, LineDatabase, image_bytes

from .records import TEXT_COLUMNS, Record, SourceError, column

_READING = threading.Lock()  # a pyarrow file is not for several threads, and one of them is enough to fill the cache


class Lmdb:
    """A `LineDatabase` as a source."""

    def __init__(self, path: Path):
        self.path = str(path.resolve())
        self.count = self._database.count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        image, label = self._database.image(index + 1), self._database.label(index + 1)
        name = f"image-{index + 1:09d}"
        if label is None:
            raise SourceError(f"{name} has no label")
        return Record(image or b"", label.decode("utf-8"), name)

    @property
    def _database(self) -> LineDatabase:
        return _opened(self.path, os.getpid())


@cache
def _opened(path: str, process: int) -> LineDatabase:
    """Opens a database, once for each path and process."""
    try:
        return LineDatabase(path)
    except ContainerError as error:
        raise SourceError(f"{path}: {error}") from None


class Parquet:
    """Row groups are read when a row of theirs is asked for, and a few are kept."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        names = _file(str(paths[0])).schema_arrow.names
        self.image, self.text = column(names, IMAGE_COLUMNS, paths[0]), column(names, TEXT_COLUMNS, paths[0])
        _refuse_other_than_text(paths[0], self.text)
        groups = [(str(path), group) for path in paths for group in range(_file(str(path)).num_row_groups)]
        sizes = [_file(path).metadata.row_group(group).num_rows for path, group in groups]
        self.groups, self.starts = groups, [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Record:
        place = bisect_right(self.starts, index) - 1
        path, group = self.groups[place]
        with _READING:
            images, texts = _row_group(path, group, self.image, self.text)
        row = index - self.starts[place]
        image = image_bytes(images[row].as_py()) or b""  # its text still counts
        text, name = texts[row].as_py(), f"{Path(path).name} row {index}"
        if text is None:
            raise SourceError(f"{name}: has no text")
        return Record(image, text, name)


def _refuse_other_than_text(path: Path, name: str) -> None:
    """Raises SourceError for a column of numbers, say, whose zeros in front are lost."""
    from pyarrow import types

    kind = _file(str(path)).schema_arrow.field(name).type
    plain = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(plain) or types.is_large_string(plain) or types.is_string_view(plain)):
        raise SourceError(f"{path}: the column {name} holds {kind}, not text")


@lru_cache(maxsize=64)
def _file(path: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError):
        raise SourceError(f"{path}: not a parquet file, or damaged") from None


@lru_cache(maxsize=8)
def _row_group(path: str, group: int, image: str, text: str) -> tuple[Any, Any]:
    table = _file(path).read_row_group(group, columns=[image, text])
    return table[image].combine_chunks(), table[text].combine_chunks()
