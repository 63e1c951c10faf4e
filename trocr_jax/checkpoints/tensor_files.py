"""Tensors by name in weight files, safetensors or torch, whole or in shards, read when they are used; and writing them.

Nothing here knows what the tensors mean (`weights`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from ..files import FilesError, read_json
from . import torch_files

WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


class ArrayLike(Protocol):
    """What a checkpoint holds under a name: shape and dtype at once, the numbers on `np.asarray`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __array__(self) -> np.ndarray: ...


Tensors = Mapping[str, ArrayLike]


def open_tensors(path: Path | str) -> Tensors:
    """The tensors of a model directory or of a single `.safetensors`, `.bin` or `.pt` file, read when they are used.

    Raises:
        FilesError: no weights there, or a file of them is damaged.
        TorchFileError: the same for files that torch wrote.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found:
            raise FilesError(f"{path}: holds no weights; expected one of {', '.join(WEIGHT_FILES)}")
        path = found[0]
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return torch_files.state_dict(torch_files.load(path), path)


class SafetensorsSlice:
    """A tensor of a safetensors file that stays mapped; `np.asarray` reads it."""

    def __init__(self, file: Any, name: str, path: Path):
        self._file, self._name = file, name
        view = file.get_slice(name)
        if view.get_dtype() not in _SAFETENSORS_DTYPES:
            raise FilesError(f"{path}: tensor {name!a} has the unsupported type {view.get_dtype()}")
        self.shape = tuple(view.get_shape())
        self.dtype = _SAFETENSORS_DTYPES[view.get_dtype()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._file.get_tensor(self._name), dtype, copy=copy)


_SAFETENSORS_DTYPES = {
    "F64": np.dtype("f8"), "F32": np.dtype("f4"), "F16": np.dtype("f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("i8"), "I32": np.dtype("i4"), "I16": np.dtype("i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip


def _open_safetensors(path: Path) -> Tensors:
    try:
        file = safetensors.safe_open(str(path), "np")
    except OSError as error:
        raise FilesError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from None
    except safetensors.SafetensorError:
        raise FilesError(f"{path}: not a safetensors file, or damaged") from None
    return {name: SafetensorsSlice(file, name, path) for name in file.keys()}


def _open_shards(index: Path) -> Tensors:
    """The union of the files that an index names, which lie beside it and hold exactly the tensors that it promises."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise FilesError(f"{index}: has no weight_map")
    tensors: dict[str, ArrayLike] = {}
    for file in sorted({str(file) for file in names.values()}):
        if not re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", file):
            raise FilesError(f"{index}: names the weight file {file!a}; expected a plain file name beside it")
        if not (index.parent / file).is_file():
            raise FilesError(f"{index.parent}: the weight file {file} that {index.name} names is missing")
        shard = open_tensors(index.parent / file)
        absent = [name for name in names if names[name] == file and name not in shard]
        if absent or tensors.keys() & shard.keys():
            raise FilesError(f"{index.parent / file}: does not hold what {index.name} promises; damaged or mixed up")
        tensors.update(shard)
    return tensors


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes tensors and reads them back: safetensors 0.8.0 stores wrong numbers for strided arrays without a word.

    Raises:
        FilesError: the disk is full, or what came back differs.
    """
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise FilesError(f"{path}: cannot be written; is the disk full?") from error
    path.chmod(mode)  # safetensors makes files that only their owner can read
    written = _open_safetensors(path)
    wrong = [name for name, array in arrays.items() if not same(np.asarray(written[name]), array)]
    if wrong:
        raise FilesError(f"{path}: reads back differently from what was written ({', '.join(wrong)})")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, NaNs included."""
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and np.array_equal(a.reshape(-1).view("u1"), b.reshape(-1).view("u1"))
