"""Reads what `torch.save` wrote (zip and legacy formats) without torch and without running anything from the file.

There is no fallback: what `unpickle` refuses is refused. Tensors are views into the memory-mapped file, not copies, and
every size is checked against the file.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .unpickle import Inert, Machine, Refused, Storage, Tensor, quote, require

__all__ = ["Inert", "Tensor", "TorchFileError", "load", "state_dict"]

PICKLE_LIMIT = 4 << 20  # bytes. The pickle of the largest TrOCR is 0.1 MB, and a pickle's objects outgrow it 70 times
DIRECTORY_LIMIT = 16 << 20  # bytes of zip directory
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class TorchFileError(ValueError):
    """A file that is no PyTorch checkpoint, is damaged, or asks for more than tensors. One line, names the file."""


def load(path: Path | str) -> Any:
    """What the file holds, tensors as `Tensor`, foreign objects as `Inert`.

    Raises:
        TorchFileError: damaged, hostile, or no such file.
    """
    path = Path(path)
    with _one_error(path):
        buffer = _map(path)
        return _load_zip(path, buffer) if buffer[:4] == b"PK\x03\x04" else _load_legacy(buffer)


def state_dict(content: Any, path: Path | str) -> dict[str, Tensor]:
    """The tensors in `load`'s result: the whole file, or what it keeps under "model" (fairseq, DeiT) or "state_dict".

    Raises:
        TorchFileError: it holds something other than tensors.
    """
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise TorchFileError(f"{path}: holds no named tensors")
    other = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if other:
        raise TorchFileError(f"{path}: {quote(other[0])} is not a tensor; expected a file of weights only")
    return content


@contextmanager
def _one_error(path: Path) -> Iterator[None]:
    """Whatever goes wrong in a malformed file comes out as one kind of error; its cause is kept for debugging."""
    try:
        yield
    except Refused as error:
        raise TorchFileError(f"{path}: {error}") from None
    except OSError as error:
        raise TorchFileError(f"{path}: cannot be read ({error.strerror or 'input/output error'})") from error
    except Exception as error:
        raise TorchFileError(f"{path}: not a PyTorch checkpoint, or damaged") from error


def _map(path: Path) -> memoryview:
    """The file as memory, read as it is touched."""
    with open(path, "rb") as file:
        require(file.seek(0, io.SEEK_END) > 0, "is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


# --- the zip format: <root>/data.pkl, and one uncompressed member <root>/data/<key> a storage ---


class _BoundedReader(io.FileIO):
    """A file that bounds what `zipfile` reads at a time: by itself that reads a directory of any size that a file claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(DIRECTORY_LIMIT if size is None or size < 0 else min(size, DIRECTORY_LIMIT))
        require(len(data or b"") < DIRECTORY_LIMIT, "its zip directory is too large")
        return data or b""


def _load_zip(path: Path, buffer: memoryview) -> Any:
    with _BoundedReader(path) as file, zipfile.ZipFile(file) as archive:  # pyright: ignore[reportArgumentType]
        members = {info.filename: info for info in archive.infolist()}
        require(len(members) == len(archive.infolist()), "two zip members have the same name")
        require(sum(info.file_size for info in members.values()) <= len(buffer), "has overlapping zip members")
    roots = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    require(len(roots) == 1, "a zip file, but not one that torch.save wrote")
    root, storages = roots[0], {}
    if f"{root}byteorder" in members:
        require(bytes(_member(buffer, members[f"{root}byteorder"])) == b"little", "its numbers are big-endian")

    def storage(dtype: np.dtype, key: str, count: int) -> Storage:
        found = storages.get(key)
        if found is None:
            data = _member(buffer, members[f"{root}data/{key}"])
            found = storages[key] = Storage(dtype, count, data)
        require((found.dtype, found.count) == (dtype, count), f"storage {quote(key)} is described in two ways")
        require(len(found.data or b"") == dtype.itemsize * count, f"storage {quote(key)} has the wrong size")
        return found

    pickle = _member(buffer, members[f"{root}data.pkl"])
    require(len(pickle) <= PICKLE_LIMIT, f"its pickle has {len(pickle)} bytes, more than any checkpoint needs")
    return Machine(pickle, storage).run()


def _member(buffer: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of an uncompressed member, in place."""
    require(info.compress_type == zipfile.ZIP_STORED, "has compressed members, which torch.save never writes")
    require(not info.flag_bits & 1 and info.file_size == info.compress_size, "has encrypted or faulty zip members")
    header = struct.unpack_from("<4s22xHH", buffer, info.header_offset)
    start = info.header_offset + 30 + header[1] + header[2]
    require(header[0] == b"PK\x03\x04" and start + info.file_size <= len(buffer), "is cut short")
    data = buffer[start : start + info.file_size]
    require(not info.CRC or zlib.crc32(data) == info.CRC, f"is damaged: wrong checksum of {quote(info.filename)}")
    return data


# --- the legacy format: magic, protocol, system, object and storage keys as five pickles, then the storages ---


def _load_legacy(buffer: memoryview) -> Any:
    storages: dict[str, Storage] = {}

    def storage(dtype: np.dtype, key: str, count: int, view: None = None) -> Storage:
        require(view is None, "has storages that are views of others, as only very old versions of torch wrote")
        found = storages.setdefault(key, Storage(dtype, count))
        require((found.dtype, found.count) == (dtype, count), f"storage {quote(key)} is described in two ways")
        return found

    require(buffer[:1] == b"\x80", "not a PyTorch checkpoint")
    values, position = [], 0
    for expected in (LEGACY_MAGIC, LEGACY_PROTOCOL, None, None, None):
        machine = Machine(buffer[position : position + PICKLE_LIMIT], storage)
        values.append(machine.run())
        require(expected in (None, values[-1]), "not a PyTorch checkpoint")
        position += machine.position
    require(values[2]["little_endian"] is True, "its numbers are big-endian")
    keys = values[4]
    require(all(type(key) is str for key in keys), "its list of storages is inconsistent")
    require(sorted(keys) == sorted(storages), "its list of storages is inconsistent")
    for key in keys:
        position = _attach(buffer, position, storages[key])
    return values[3]


def _attach(buffer: memoryview, position: int, storage: Storage) -> int:
    """Gives a storage its bytes: an int64 count, then the numbers. Returns where they end."""
    start = position + 8
    end = start + storage.count * storage.dtype.itemsize
    require(struct.unpack_from("<q", buffer, position)[0] == storage.count, "its list of storages is inconsistent")
    require(end <= len(buffer), "is cut short")
    storage.data = buffer[start:end]
    return end
