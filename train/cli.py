"""Train or fine-tune a model.

`--preset NAME` starts from a whole run's settings, `--config FILE` (YAML or JSON) lays a file's over them, and the other flags
override both.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trocr_jax import files
from trocr_jax.cli import load
from trocr_jax.terminal import UsageError, guarded

from .config import PRESETS, Config

__all__ = ["Config", "main", "parse", "run"]
T = TypeVar("T")
UNIONS = (UnionType, Union)  # int | None, and what Python makes of Literal[...] | None


def parse(arguments: Sequence[str], prog: str = "trocr-jax train") -> Config:
    """Flags to a Config. Exits with code 2 and a message on wrong use.

    Raises:
        UsageError: no such preset, or a flag without its value. ValueError: a file that holds something other than settings.
    """
    import tyro

    base, rest = Config(), list(arguments)
    for flag, change in (("--preset", _preset), ("--config", _from_file)):
        base, rest = _take(flag, change, base, rest)
    description = f"{__doc__} Presets: {', '.join(PRESETS)}."
    return tyro.cli(Config, prog=prog, args=rest, default=base, description=description)


def run(config: Config) -> int:
    """Trains; returns the exit code."""
    late = {"grain": ("--data.train", config.data.train), "tensorboardX": ("--tensorboard", config.tensorboard)}
    for package, (flag, asked) in late.items():
        if asked:
            load(package, flag, "train")
    from .loop import train

    return train(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m train` in a checkout."""
    return guarded(lambda: run(parse(sys.argv[1:] if arguments is None else arguments)))


def _take(flag: str, change: Any, base: Config, rest: list[str]) -> tuple[Config, list[str]]:
    for place, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name == flag:
            if not equals and place + 1 == len(rest):
                raise UsageError(f"{flag} needs a value")
            value = value if equals else rest[place + 1]
            return change(base, value), rest[:place] + rest[place + (1 if equals else 2) :]
    return base, rest


def _preset(base: Config, name: str) -> Config:
    if name not in PRESETS:
        raise UsageError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def _from_file(base: Config, path: str) -> Config:
    yaml = load("yaml", "--config", "train")
    try:
        content = yaml.safe_load(files.expand(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{path}: not valid YAML or JSON") from None
    return overlay(base, content, path)


def overlay(base: T, content: Any, place: str) -> T:
    """A dataclass with the fields that a file names replaced.

    Raises:
        ValueError: a field that does not exist, or holds the wrong kind of value; the message says where.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{place}: expected fields and values")
    kinds = get_type_hints(type(base))
    unknown = [str(name) for name in content if name not in kinds]
    if unknown:
        raise ValueError(f"{place}: unknown {', '.join(unknown)}; known: {', '.join(kinds)}")
    changes = {name: _value(getattr(base, name), kinds[name], x, f"{place}: {name}") for name, x in content.items()}
    return dataclasses.replace(base, **changes)  # pyright: ignore[reportArgumentType]


_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def _value(old: Any, kind: Any, new: Any, place: str) -> Any:
    if dataclasses.is_dataclass(old):
        return overlay(old, new, place)
    value = _converted(kind, new)
    if not _fits(value, kind):
        raise ValueError(f"{place} must be {_said(kind)}, not {new!r}")
    return value


def _converted(kind: Any, new: Any) -> Any:
    """What a file can write for a value of a kind that YAML and JSON do not have."""
    if float in (kind, *get_args(kind)) and isinstance(new, str) and _FLOAT.fullmatch(new):
        return float(new)  # YAML 1.1 takes 1e-08, which JSON writes, for text
    if kind == tuple[str, ...] and isinstance(new, str):
        return (new,)
    if kind is Path and isinstance(new, str):
        return Path(new)
    return tuple(new) if isinstance(new, list) else new


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of this kind; true and false are no numbers, whole numbers are."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in parts
    if origin in UNIONS:
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        parts = parts[:1] * len(value) if ... in parts and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or kind is float and isinstance(value, int)


def _said(kind: Any) -> str:
    """A kind in words: "int", "one of a, b", "a list of str", "a list of int and int or null"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin in UNIONS:
        return " or ".join(map(_said, parts))
    if origin is tuple:
        return "a list of " + (_said(parts[0]) if ... in parts else " and ".join(map(_said, parts)))
    return {Path: "a path", type(None): "null"}.get(kind) or kind.__name__
