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
from typing import Any, TypeVar, get_args, get_type_hints

from .config import PRESETS, Config

__all__ = ["Config", "main", "parse", "run"]
T = TypeVar("T")


def parse(arguments: Sequence[str], prog: str = "trocr-jax train") -> Config:
    """Flags to a Config. Exits with code 2 and a message on wrong use.

    Raises:
        ValueError: no such preset, or a file that holds something else than settings.
    """
    import tyro

    base, rest = Config(), list(arguments)
    for flag, change in (("--preset", _preset), ("--config", _from_file)):
        base, rest = _take(flag, change, base, rest)
    description = f"{__doc__} Presets: {', '.join(PRESETS)}."
    return tyro.cli(Config, prog=prog, args=rest, default=base, description=description)


def run(config: Config) -> int:
    """Trains; returns the exit code."""
    from .loop import train

    return train(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m train` in a checkout."""
    try:
        return run(parse(sys.argv[1:] if arguments is None else arguments))
    except (ValueError, OSError) as error:
        print(f"trocr-jax train: {error}", file=sys.stderr)
        return 1


def _take(flag: str, change: Any, base: Config, rest: list[str]) -> tuple[Config, list[str]]:
    for place, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name == flag:
            if not equals and place + 1 == len(rest):
                raise ValueError(f"{flag} needs a value")
            value = value if equals else rest[place + 1]
            return change(base, value), rest[:place] + rest[place + (1 if equals else 2) :]
    return base, rest


def _preset(base: Config, name: str) -> Config:
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def _from_file(base: Config, path: str) -> Config:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
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


def _is(value: Any, kind: type) -> bool:
    """Whether a value of a file is of this kind; true and false are no numbers, whole numbers are."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or kind is float and isinstance(value, int)


def _value(old: Any, kind: Any, new: Any, place: str) -> Any:
    if dataclasses.is_dataclass(old):
        return overlay(old, new, place)
    if kind is Path:
        return Path(new)
    if isinstance(new, list):
        return tuple(new)
    if kind is float and isinstance(new, str) and _FLOAT.fullmatch(new):
        return float(new)  # YAML 1.1 takes 1e-08, which JSON writes, for text
    if kind in (int, float, str, bool) and not _is(new, kind):
        raise ValueError(f"{place} must be {kind.__name__}, not {new!r}")
    choices = get_args(kind)
    if choices and all(isinstance(choice, str) for choice in choices) and new not in choices:
        raise ValueError(f"{place} must be one of {', '.join(choices)}, not {new!r}")
    return new
