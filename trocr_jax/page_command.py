"""`trocr-jax read --page`: pages in, their lines out, in one of the page formats; another detector's files of lines on request.

A page that cannot be read is reported and does not stop the others.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import files, images, page
from .cli import UsageError
from .page_formats import MAX_BYTES, Page, PageFormatError, parse_lines, render

SUFFIXES = {"text": ".txt", "tsv": ".tsv", "json": ".json", "hocr": ".hocr", "alto": ".alto.xml", "page": ".page.xml"}
DOCUMENTS = ("hocr", "alto", "page")
"""Formats of which two in a row are none."""
_FORMAT = re.compile(r"(\.(page|alto))?\.(xml|json|hocr|html?)$", re.IGNORECASE)  # what ends the name of a file of lines


@dataclass(frozen=True)
class Job:
    """What to do with every page.

    Attributes:
        format: one of SUFFIXES.
        lines: file with the places of the lines, or a folder with one such file for each page, named as the page; None to
            find them.
        output: folder for one file a page; None prints.
        options: of `Reader.read`.
    """

    format: str
    lines: str | None
    output: str | None
    options: dict[str, Any]


def check(job: Job, paths: list[Path]) -> None:
    """Before a model is loaded.

    Raises:
        UsageError: the flags do not fit each other or the pages.
    """
    pages = len(paths)
    if pages > 1 and job.format in DOCUMENTS and not job.output:
        raise UsageError(f"--format {job.format} is one document a page: name a folder for several pages with --output")
    if pages > 1 and job.lines and not Path(job.lines).is_dir():
        raise UsageError("--lines must be a folder with a file for each page where there are several pages")
    if job.lines and not Path(job.lines).exists():
        raise UsageError(f"--lines {job.lines}: no such file or folder")
    if job.output:
        _check_names(paths, job)


def _check_names(paths: list[Path], job: Job) -> None:
    first: dict[Path, Path] = {}
    for path in paths:
        other = first.setdefault(target := _target(path, job), path)
        if other != path:  # the same page twice is written twice
            raise UsageError(f"{other} and {path} would both be written to {target}: read them one by one, into other folders")


def read_pages(paths: list[Path], reader: Any, job: Job) -> int:
    """Reads and writes; returns how many pages failed."""
    failed = 0
    for path in paths:
        try:
            found = _read(path, reader, job)
            if not found.lines:
                print(f"trocr-jax: {path}: no lines found", file=sys.stderr)
            _give(path, _text(found, path, job.format), job)
        except (images.ImageError, PageFormatError) as error:
            failed += 1
            print(f"trocr-jax: {path}: {error}", file=sys.stderr)
            if job.format == "json" and not job.output:
                print(json.dumps({"path": str(path), "error": str(error)}, ensure_ascii=False), flush=True)
    return failed


def _read(path: Path, reader: Any, job: Job) -> Page:
    return page.read_page(reader, path, _given(path, job.lines), **job.options)


def _given(path: Path, lines: str | None) -> list[np.ndarray] | None:
    """The outlines of a page's lines from a file.

    Raises:
        PageFormatError: there is no such file, or it tells no lines.
    """
    if lines is None:
        return None
    source = Path(lines)
    if source.is_dir():
        beside = _beside(path, source)
        if len(beside) != 1:
            raise PageFormatError(f"{source} has {len(beside)} files of lines named {path.stem}; one is needed")
        source = beside[0]
    with open(source, "rb") as file:
        return parse_lines(file.read(MAX_BYTES + 1))


def _beside(path: Path, folder: Path) -> list[Path]:
    """The files in a folder that are named as a page and a format; without one, those whose names go on otherwise."""
    inside = [file for file in folder.iterdir() if f"{file.name}.".startswith(f"{path.stem}.") and file.is_file()]
    exact = [file for file in inside if _FORMAT.sub("", file.name) in (path.stem, path.name)]
    return exact or inside


def _text(found: Page, path: Path, form: str) -> str:
    if form == "tsv":
        return "".join(f"{path}\t{line.line.text}\n" for line in found.lines)
    return render(found, form, str(path) if form == "json" else path.name)  # pyright: ignore[reportArgumentType]


def _give(path: Path, text: str, job: Job) -> None:
    if job.output is None:
        print(text, end="", flush=True)
        return
    target = _target(path, job)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(target, text.encode())


def _target(path: Path, job: Job) -> Path:
    """The file that a page is written to."""
    return Path(job.output or "", path.stem + SUFFIXES[job.format])
