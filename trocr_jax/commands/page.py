"""`trocr-jax read --page`: pages in, their lines out, in one of the page formats; another detector's files of lines on request.

Every page of a TIFF is a page. One that cannot be read is reported and does not stop the others.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import files, images, page
from ..flags import REPETITION, UNLIKELY
from ..image_paths import STDIN, standard_input
from ..line import one_line, to_json
from ..pages.formats import DOCUMENTS, Page, render
from ..pages.outlines import MAX_BYTES, PageFormatError, parse_lines
from ..terminal import UsageError, remark

PAGE_BREAK = "\f"  # between the texts of pages, as other programs have it
SUFFIXES = {"text": ".txt", "tsv": ".tsv", "json": ".json", "hocr": ".hocr", "alto": ".alto.xml", "page": ".page.xml"}
LONGEST_NAME = 255  # bytes, in nearly every file system
DOUBTS = {
    UNLIKELY: "have what the model hardly sees (below 1 in 100); a pattern may have forced them",
    REPETITION: "repeat themselves at the end, as of a model that is lost",
    "length": "were cut off after as many tokens as they may have (--max-tokens)",
}
"""What is told of a page whose lines have these flags or ends."""
_FORMAT = re.compile(r"(\.(page|alto))?\.(xml|json|hocr|html?)$", re.IGNORECASE)  # what ends the name of a file of lines


@dataclass(frozen=True)
class Job:
    """What to do with every page.

    Attributes:
        format: one of SUFFIXES.
        lines: file with the places of the lines, or a folder with one such file for each page, named as the page; None to
            find them.
        output: folder for one file a page; None prints.
        options: as for `Reader.read`.
    """

    format: str
    lines: str | None
    output: str | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a page comes from.

    Attributes:
        path: its file.
        number: from 1, in a file that holds several.
        content: what is in the file where that is standard input.
    """

    path: Path
    number: int | None = None
    content: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return str(self.path) + (f"#page={self.number}" if self.number else "")

    @property
    def stem(self) -> str:
        """What files that belong to the page are named after."""
        return (self.path.stem if self.content is None else "stdin") + (f"-{self.number}" if self.number else "")

    def load(self) -> Image.Image:
        """The page; raises ImageError."""
        return images.load_page(self.path if self.content is None else self.content, self.number or 1)


def sources(paths: list[Path]) -> list[Source]:
    """The pages of image files, in order."""
    return [source for path in paths for source in _sources(path)]


def _sources(path: Path) -> list[Source]:
    content = standard_input() if path is STDIN else None
    try:
        count = images.count_pages(path if content is None else content)
    except images.ImageError:  # told when it is read
        count = 1
    return [Source(path, number, content) for number in range(1, count + 1)] if count > 1 else [Source(path, None, content)]


def check(job: Job, pages: list[Source]) -> None:
    """Before a model is loaded.

    Raises:
        UsageError: the flags do not fit each other or the pages.
    """
    several = len(pages) > 1
    if several and job.format in DOCUMENTS and not job.output:
        raise UsageError(f"--format {job.format} is one document a page: name a folder for several pages with --output")
    if several and job.lines and not Path(job.lines).is_dir():
        raise UsageError("--lines must be a folder with a file for each page where there are several pages")
    if job.lines and not Path(job.lines).exists():
        raise UsageError(f"--lines {job.lines}: no such file or folder")
    if job.output and Path(job.output).exists() and not Path(job.output).is_dir():
        raise UsageError(f"--output {job.output} is no folder: a file for each page goes into it")
    if job.output:
        _check_names(pages, job)
        _check_replaced(pages, job)
        try:
            Path(job.output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output {job.output}: {error.strerror}") from None


def _check_names(pages: list[Source], job: Job) -> None:
    first: dict[Path, Source] = {}
    for source in pages:
        other = first.setdefault(target := _target(source, job), source)
        if len(os.fsencode(target.name)) > LONGEST_NAME:
            raise UsageError(f"{source} would be written to a file whose name is too long, {target.name}")
        if other != source:  # the same page twice is written twice
            raise UsageError(f"{other} and {source} would both be written to {target}: read them one by one, into other folders")


def _check_replaced(pages: list[Source], job: Job) -> None:
    """Refuses to replace what is read; says of other files that they will be."""
    there = {target: target.resolve() for target in (_target(source, job) for source in pages) if target.exists()}
    if not there:
        return
    read = {path.resolve() for source in pages for path in (source.path, *_files_of_lines(source, job.lines))}
    if lost := [target for target, path in there.items() if path in read]:
        raise UsageError(f"{lost[0]} is read and would be written to: name another folder with --output")
    more = f" and {len(there) - 1} more" if len(there) > 1 else ""
    remark(f"--output {job.output}: {next(iter(there)).name}{more} will be replaced")


def read_pages(pages: list[Source], reader: Any, job: Job) -> int:
    """Reads and writes; returns how many pages failed."""
    failed, apart = 0, ""
    for source in pages:
        try:
            found = _read(source, reader, job)
            failed += _tell_of(found, source)
            _give(source, apart + _text(found, source, job.format), job)
            apart = PAGE_BREAK if job.format == "text" and not job.output else ""
        except (images.ImageError, PageFormatError) as error:
            failed += 1
            remark(f"{source}: {error}")
            if job.format == "json" and not job.output:
                print(to_json({"path": str(source), "error": str(error)}), flush=True)
            elif job.format == "text" and not job.output:  # an empty page in its place
                print(end=apart, flush=True)
                apart = PAGE_BREAK
    return failed


def _tell_of(found: Page, source: Source) -> bool:
    """Says what is wrong with a page; whether a line of it could not be read."""
    if not found.lines:
        remark(f"{source}: no lines found")
    errors = {number: found.line.error for number, found in enumerate(found.lines, 1) if found.line.error}
    for number, error in errors.items():
        remark(f"{source}: line {number}: {error}")
    for what, count in _doubts(found):
        remark(f"{source}: {count} of {len(found.lines)} lines {what}")
    if found.turned:
        remark(f"{source}: read turned by {found.turned} degrees counter-clockwise; as it stands hardly a line could be read")
    if page.is_lost(found) and not any(UNLIKELY in found.line.flags for found in found.lines):
        remark(f"{source}: hardly a line could be read, whichever way it is turned; has the model seen such writing?")
    return bool(errors)


def _doubts(found: Page) -> Iterator[tuple[str, int]]:
    """What is doubtful about lines, and of how many."""
    counts = Counter(flag for line in found.lines for flag in (*line.line.flags, line.line.finish_reason))
    yield from ((what, counts[name]) for name, what in DOUBTS.items() if counts[name])


def _read(source: Source, reader: Any, job: Job) -> Page:
    return page.read_page(reader, source.load(), _given(source, job.lines), **job.options)


def _given(source: Source, lines: str | None) -> list[np.ndarray] | None:
    """The outlines of a page's lines from a file.

    Raises:
        PageFormatError: there is no such file, it cannot be read, or it tells no lines.
    """
    if lines is None:
        return None
    found = _files_of_lines(source, lines)
    if len(found) != 1:
        raise PageFormatError(f"{lines} has {len(found)} files of lines named {source.stem}; one is needed")
    path = found[0]
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PageFormatError(f"{path}: {error.strerror}") from None
    try:
        return parse_lines(content)
    except PageFormatError as error:
        raise PageFormatError(f"{path}: {error}") from None


def _files_of_lines(source: Source, lines: str | None) -> list[Path]:
    """What may tell the lines of a page: the file that --lines names, or those in its folder."""
    if lines is None:
        return []
    return _named_as(source, Path(lines)) if Path(lines).is_dir() else [Path(lines)]


def _named_as(source: Source, folder: Path) -> list[Path]:
    """The files in a folder that are named as a page and a format, or, where there is none, as the page and anything after it."""
    own = source.path.resolve()  # which may lie among them
    inside = [f for f in folder.iterdir() if f"{f.name}.".startswith(f"{source.stem}.") and f.is_file() and f.resolve() != own]
    exact = [file for file in inside if _FORMAT.sub("", file.name) in (source.stem, source.stem + source.path.suffix)]
    return exact or inside


def _text(found: Page, source: Source, form: str) -> str:
    if form == "tsv":
        return "".join(f"{one_line(str(source))}\t{one_line(line.line.text)}\n" for line in found.lines)
    name = str(source) if form == "json" else source.path.name
    return render(found, form, name, source.number or 1)  # pyright: ignore[reportArgumentType]


def _give(source: Source, text: str, job: Job) -> None:
    if job.output is None:
        print(text, end="", flush=True)
        return
    target = _target(source, job)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(target, text.encode())


def _target(source: Source, job: Job) -> Path:
    """The file that a page is written to."""
    return Path(job.output or "", source.stem + SUFFIXES[job.format])
