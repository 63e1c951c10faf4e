"""The image files that PATH, DIR and GLOB arguments name. No jax here."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from .images import ImageError

EXTENSIONS = frozenset(".png .jpg .jpeg .jpe .jfif .webp .tif .tiff .gif .bmp .ppm .pgm .pbm .pnm".split())

STDIN = Path("-")
"""This object, and no equal one, stands for standard input; ./- is a file."""
LARGEST = 1 << 29
"""Bytes that are read of it at most, so that one without an end does not fill the memory."""

UNREAD = frozenset(".jp2 .j2k .jpx .jxl .avif .heic .heif .pdf .djvu .psd .svg .dng .ico .tga .pcx".split())
"""Extensions of pictures and documents that are not read here."""


def find_images(arguments: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The image files that PATH, DIR and GLOB arguments name: each once, in the order given, 2 before 10 within each.

    A path to a file is always kept; a directory gives its visible files with a known extension, without descending
    (`dir/**/*` does); a glob gives the same unless it spells an extension itself. Raises ImageError for an argument
    that names none.
    """
    return list(dict.fromkeys(path for argument in arguments for path in _expand(os.fspath(argument))))


def standard_input() -> bytes:
    """What is left in standard input; nothing where it is closed or cannot be read."""
    try:
        return sys.stdin.buffer.read(LARGEST) if sys.stdin else b""
    except OSError:
        return b""


def left_out(argument: str | os.PathLike[str]) -> list[Path]:
    """The visible files of a folder that `find_images` leaves out although their names say that they hold pictures: kinds that
    are not read, and links to nothing. Nobody expects any other file to be read.
    """
    path = Path(argument)
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")] if path.is_dir() else []
    gone = [entry for entry in entries if entry.suffix.lower() in EXTENSIONS and not entry.exists()]
    return [entry for entry in entries if entry.suffix.lower() in UNREAD] + gone


def glob_files(pattern: str) -> list[str]:
    """What a glob names. `**` enters no folder through a link, which may lead back to where it lies."""
    head, tail = fixed(pattern), pattern[len(fixed(pattern)) :].split("/")
    if "**" not in tail:
        return glob.glob(pattern)
    tail += ["*"] * (tail[-1] == "**")
    found = ((path, path.relative_to(head or ".").parts) for path in Path(head or ".").glob("/".join(tail)))
    return [str(path) for path, below in found if not any(part.startswith(".") for part in below)]


def fixed(pattern: str) -> str:
    """The folder of a glob above its first wildcard, with its slash."""
    head, slash, _ = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")
    return head + slash


def _expand(argument: str) -> list[Path]:
    path = Path(argument)
    try:
        if path.is_dir():
            matches = [entry for entry in path.iterdir() if _has_known_extension(entry)]
        elif os.path.exists(path):
            return [path]
        elif glob.has_magic(argument):
            matches = [Path(name) for name in glob_files(argument)]
            if not re.search(r"\.\w+$", argument):
                matches = [match for match in matches if _has_known_extension(match)]
        else:
            raise ImageError("missing", argument)
    except OSError:
        raise ImageError("unreadable", argument) from None
    matches = sorted((match for match in matches if match.is_file()), key=natural)
    if not matches:
        raise ImageError("no_match", argument)
    return matches


def _has_known_extension(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def natural(path: str | os.PathLike[str]) -> tuple[list[str | int], str]:
    """A key to sort paths by: 2 before 10, capital letters beside small ones, and no two paths have the same key."""
    parts = re.split(r"(\d+)", os.fspath(path))  # text and numbers in turn
    return [int(part) if index % 2 else part.lower() for index, part in enumerate(parts)], os.fspath(path)
