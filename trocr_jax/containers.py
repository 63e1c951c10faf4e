"""What tables and containers call their images, and files that hold many images, as both training and batch jobs read them:
parquet's columns, and the LMDB of the scene text benchmarks.

A leaf without jax. lmdb is imported when a database is opened, and only then needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FILE_COLUMNS = ("file_name", "file", "filename", "path", "image", "image_path")
"""Usual names of a table's column, or of an object's field, that names an image's file; the first that is there is taken:
`file_name` as the datasets library's image folders have it."""
IMAGE_COLUMNS = ("image", "img", "bytes", "image_bytes", "png", "jpg", "jpeg")
"""Usual names of a parquet column of images; the first that is there is taken."""


class ContainerError(ValueError):
    """A container that cannot be read; the message says why, without its path."""


def image_bytes(cell: Any) -> bytes | None:
    """A file's bytes from a cell of such a column: bytes, or {bytes, path} as the datasets library writes it."""
    cell = cell.get("bytes") if isinstance(cell, dict) else cell
    return cell if isinstance(cell, bytes) else None


class LineDatabase:
    """An LMDB of lines: `num-samples`, and from 1 on `image-000000001` (a file's bytes) and `label-000000001` (UTF-8).

    Works from several threads. LMDB refuses to open a folder twice in a process, and what is open must not cross a fork.

    Raises:
        ContainerError: no such database, damaged, or cut off. From any method.
        ModuleNotFoundError: lmdb is not installed.
    """

    def __init__(self, path: str):
        import lmdb

        with _damage():
            self._environment = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False)
        try:
            self._check_size()
            self.count = self._count()
        except BaseException:
            self.close()
            raise

    def image(self, number: int) -> bytes | None:
        return self._get(f"image-{number:09d}")

    def label(self, number: int) -> bytes | None:
        return self._get(f"label-{number:09d}")

    def close(self) -> None:
        self._environment.close()

    def _check_size(self) -> None:
        """Refuses a file that was cut off: reading past the end of a mapped file would kill the process."""
        pages, size = self._environment.info()["last_pgno"] + 1, self._environment.stat()["psize"]
        if os.path.getsize(os.path.join(self._environment.path(), "data.mdb")) < pages * size:
            raise ContainerError("data.mdb was cut off; copy it again")

    def _count(self) -> int:
        count = self._get("num-samples")
        if count is None or not count.isdigit() or len(count) > 9:
            raise ContainerError("has no num-samples, or one that is no count: not an LMDB of lines")
        return int(count)

    def _get(self, key: str) -> bytes | None:
        with _damage(), self._environment.begin() as transaction:
            return transaction.get(key.encode())


@contextmanager
def _damage() -> Iterator[None]:
    import lmdb

    try:
        yield
    except lmdb.Error:
        raise ContainerError("not an LMDB of lines, or damaged") from None
