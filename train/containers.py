"""Data sets that hold images in one file: LMDB as the scene text benchmarks come, and parquet with an image column."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from .records import TEXT_COLUMNS, Record, SourceError, column

IMAGE_COLUMNS = ("image", "img", "bytes")
_READING = threading.Lock()  # a pyarrow file is not for several threads, and one of them is enough to fill the cache


class Lmdb:
    """`num-samples`, and from 1 on `image-000000001` (a file's bytes) and `label-000000001` (UTF-8)."""

    def __init__(self, path: Path):
        self.path = path.resolve()
        count = self._get("num-samples")
        if count is None or not count.isdigit():
            raise SourceError(f"{path}: has no num-samples; not a data set of lines")
        self.count = int(count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        number = f"{index + 1:09d}"
        image, label = self._get(f"image-{number}"), self._get(f"label-{number}")
        if label is None:
            raise SourceError(f"image-{number} has no label")
        return Record(image or b"", label.decode("utf-8"), f"image-{number}")

    def _get(self, key: str) -> bytes | None:
        with _environment(str(self.path), os.getpid()).begin() as transaction:
            return transaction.get(key.encode())


@cache
def _environment(path: str, process: int) -> Any:
    """One a path and process: LMDB refuses to open a file twice in a process, and must not cross a fork."""
    import lmdb

    try:
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error:
        raise SourceError(f"{path}: not an LMDB data set, or damaged") from None
    pages = environment.info()["last_pgno"] + 1
    if os.path.getsize(environment.path() + "/data.mdb") < pages * environment.stat()["psize"]:
        environment.close()  # to read behind the end of a mapped file would kill the process
        raise SourceError(f"{path}: data.mdb was cut off; copy it again")
    return environment


class Parquet:
    """Row groups are read when a row of theirs is asked for, and a few are kept."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        names = _file(str(paths[0])).schema_arrow.names
        self.image, self.text = column(names, IMAGE_COLUMNS, paths[0]), column(names, TEXT_COLUMNS, paths[0])
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
        image = images[row].as_py()
        image = image.get("bytes") if isinstance(image, dict) else image
        image = image if isinstance(image, bytes) else b""  # its text still counts
        return Record(image, texts[row].as_py() or "", f"{Path(path).name} row {index}")


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
