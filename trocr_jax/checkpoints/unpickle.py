"""A stack machine for the pickles that `torch.save` writes, which runs nothing from the file.

A pickle is a program that may call any function it can name. Python's `Unpickler` with a filtered `find_class` still
lets a file set attributes on what it got, or ask for gigabytes through one memo index. This machine knows only the
operations that tensors need, builds only dicts, lists, tuples, numbers, strings and the records below, refuses every
other name, and copies nothing whose size a file could multiply. What a checkpoint holds beside tensors (fairseq's
arguments: argparse, omegaconf and fairseq objects) becomes `Inert`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np


class Refused(Exception):
    """The pickle is refused; the message, in our own words, says why."""


def require(condition: bool, reason: str = "has a malformed pickle") -> None:
    if not condition:
        raise Refused(reason)


def quote(value: Any) -> str:
    """A name out of an untrusted file, fit for a message."""
    return ascii(value)[:80] if isinstance(value, str | int | None) else "an object"


@dataclass
class Inert:
    """Stands for an object of a class that is not loaded: its name, constructor arguments, attributes and items."""

    kind: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass
class Storage:
    """A flat buffer of `count` numbers; legacy files put the bytes after the pickle, so `data` comes later."""

    dtype: np.dtype
    count: int
    data: memoryview | None = None


@dataclass(frozen=True)
class Tensor:
    """A strided view of a storage. `np.asarray(tensor)` gives the array, read-only and without a copy."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        size = self.dtype.itemsize
        flat = np.frombuffer(self.storage.data or b"", self.dtype, self.storage.count)[self.offset :]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, [size * s for s in self.strides], writeable=False)
        return np.array(view, dtype, copy=copy)


_DTYPES = {
    "torch.DoubleStorage": np.dtype("<f8"), "torch.FloatStorage": np.dtype("<f4"), "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"), "torch.ShortStorage": np.dtype("<i2"), "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"), "torch.BoolStorage": np.dtype("?"),
}  # fmt: skip
_BUILTIN_TYPES = ("dict", "list", "tuple", "set", "str", "int", "long", "float", "bool", "object")
_INERT = frozenset(
    "argparse.Namespace typing.Any pathlib.PosixPath collections.defaultdict torch.Size torch.device numpy.dtype "
    "numpy.core.multiarray.scalar numpy._core.multiarray.scalar _codecs.encode".split()
    + [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTIN_TYPES]
)
_INERT_PACKAGES = ("fairseq.", "omegaconf.")


@dataclass(frozen=True)
class _Callable:
    call: Callable[..., Any]


def _find(module: Any, name: Any) -> _Callable | np.dtype:
    require(type(module) is str and type(name) is str)
    path = f"{module}.{name}"
    if path in _DTYPES:
        return _DTYPES[path]
    if path in _FUNCTIONS:
        return _FUNCTIONS[path]
    if path in _INERT or path.startswith(_INERT_PACKAGES):
        return _Callable(lambda *args: Inert(path, args))
    raise Refused(f"refused: it wants {quote(path)}, which no file of weights needs")


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any = None, _hooks: Any = None, view: Any = None
) -> Tensor:
    """A tensor over a storage, if it stays inside and is no larger than it; `view` says that its numbers are to be negated."""
    require(not view, "has a tensor that is a negated or conjugated view")
    require(isinstance(storage, Storage) and isinstance(shape, tuple), "has a malformed tensor")
    require(len(shape) == len(strides) <= 32, "has a malformed tensor")
    sizes = [offset, *shape, *strides]
    require(all(type(n) is int and 0 <= n < 1 << 48 for n in sizes), "has a malformed tensor")
    if 0 in shape:
        require(math.prod(n for n in shape if n) < 1 << 48, "has a malformed tensor")
        return Tensor(Storage(storage.dtype, 0), 0, shape, (0,) * len(shape))
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    require(last < storage.count >= math.prod(shape), "has a tensor that reaches outside its storage")
    return Tensor(storage, offset, shape, tuple(strides))


def _first(value: Any, *_: Any) -> Any:
    return value


_FUNCTIONS = {
    "collections.OrderedDict": _Callable(lambda: {}),
    "torch._utils._rebuild_tensor_v2": _Callable(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Callable(_first),
    "torch._utils._rebuild_parameter_with_state": _Callable(_first),
}


class Machine:
    """Runs one pickle: protocols 2 to 5, as far as tensors and plain data need them."""

    def __init__(self, data: memoryview, storage: Callable[..., Storage]):
        self.data, self.position, self.storage = data, 0, storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the pickle builds; `position` is then just after it."""
        while (code := self.take(1)) != b".":
            _OPERATIONS[code](self)
        return self.stack.pop()

    def take(self, count: int) -> bytes:
        end = self.position + count
        require(end <= len(self.data), "is cut short")
        data = bytes(self.data[self.position : end])
        self.position = end
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))[0]

    def line(self) -> str:
        text = bytes(self.data[self.position : self.position + 1024])
        self.position += text.index(b"\n") + 1
        return text[: text.index(b"\n")].decode()

    def text(self, layout: str) -> str:
        return self.take(self.number(layout)).decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def pop(self, count: int) -> list[Any]:
        require(len(self.stack) - (self.marks[-1] if self.marks else 0) >= count)
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def reduce(self) -> None:
        function, args = self.pop(2)
        require(isinstance(function, _Callable) and isinstance(args, tuple) and len(args) <= 64)
        self.push(function.call(*args))

    def build(self) -> None:
        """Attributes of the object below: kept on `Inert`, dropped on a dict (torch's `_metadata`)."""
        (state,) = self.pop(1)
        target = self.stack[-1]
        require(isinstance(target, Inert | dict))
        if isinstance(target, Inert):
            target.state = state

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        require(isinstance(target, list | Inert))
        (target if isinstance(target, list) else target.items).extend(values)

    def set_items(self, values: list[Any]) -> None:
        target, pairs = self.stack[-1], list(zip(values[::2], values[1::2], strict=True))
        require(all(_is_plain_key(key) for key, _ in pairs), "has an unusual dict key")
        require(isinstance(target, dict | Inert))
        target.update(pairs) if isinstance(target, dict) else target.items.extend(pairs)

    def persistent(self) -> None:
        (name,) = self.pop(1)
        require(isinstance(name, tuple) and 5 <= len(name) <= 6, "has a malformed storage")
        kind, dtype, key, _, count = name[:5]
        require(kind == "storage" and isinstance(dtype, np.dtype) and type(key) is str, "has a malformed storage")
        require(type(count) is int and count >= 0, "has a malformed storage")
        self.push(self.storage(dtype, key, count, *name[5:]))


def _is_plain_key(key: Any) -> bool:
    """Strings and small numbers: others can be crafted to collide and make a dict quadratic."""
    return type(key) is str or (type(key) is int and 0 <= key < 1 << 32)


def _push(value: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    return lambda m: m.push(value(m))


_OPERATIONS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # protocol
    b"\x95": lambda m: m.take(8),  # frame
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"K": _push(lambda m: m.number("B")),
    b"M": _push(lambda m: m.number("H")),
    b"J": _push(lambda m: m.number("i")),
    b"\x8a": _push(lambda m: int.from_bytes(m.take(m.number("B")), "little", signed=True)),
    b"G": _push(lambda m: struct.unpack(">d", m.take(8))[0]),
    b"X": _push(lambda m: m.text("I")),
    b"\x8c": _push(lambda m: m.text("B")),
    b"\x8d": _push(lambda m: m.text("Q")),
    b")": _push(lambda m: ()),
    b"\x85": _push(lambda m: tuple(m.pop(1))),
    b"\x86": _push(lambda m: tuple(m.pop(2))),
    b"\x87": _push(lambda m: tuple(m.pop(3))),
    b"t": _push(lambda m: tuple(m.since_mark())),
    b"]": _push(lambda m: []),
    b"a": lambda m: m.extend(m.pop(1)),
    b"e": lambda m: m.extend(m.since_mark()),
    b"}": _push(lambda m: {}),
    b"s": lambda m: m.set_items(m.pop(2)),
    b"u": lambda m: m.set_items(m.since_mark()),
    b"q": lambda m: m.remember(m.number("B")),
    b"r": lambda m: m.remember(m.number("I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": _push(lambda m: m.memo[m.number("B")]),
    b"j": _push(lambda m: m.memo[m.number("I")]),
    b"c": _push(lambda m: _find(m.line(), m.line())),
    b"\x93": _push(lambda m: _find(*m.pop(2))),
    b"R": lambda m: m.reduce(),
    b"\x81": lambda m: m.reduce(),  # cls.__new__(cls, *args): the same for records
    b"b": lambda m: m.build(),
    b"Q": lambda m: m.persistent(),
}
