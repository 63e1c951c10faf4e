"""Reads the text of line images: files, folders and globs, in order, one result an image.

An image that cannot be read is reported and does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .. import images
from ..cli import int8_backend
from ..flags import NO_TEXT, REPETITION, SEVERAL_LINES, SEVERAL_PAGES, UNLIKELY
from ..image_paths import STDIN, find_images, left_out, standard_input
from ..line import Line, one_line, to_json
from ..pages.formats import DOCUMENTS
from ..terminal import UsageError, check_pattern, remark

PROGRESS_FROM = 20
REMARKS = {
    SEVERAL_PAGES: "has several pages; only the first was read",
    SEVERAL_LINES: "holds several lines, and the model reads one: --page finds and reads all",
    NO_TEXT: "shows no writing",
    REPETITION: "its text repeats itself at the end, as of a model that is lost",
    UNLIKELY: "its text has what the model hardly sees (below 1 in 100); a pattern may have forced it",
}
"""What is told of an image whose line has a flag."""


@dataclass(frozen=True)
class Config:
    """What to read, and how.

    Attributes:
        paths: Images, folders (without those in them; DIR/**/* descends) or globs; an image that is named twice is read once.
            The image in standard input is -.
        format: text: a line an image; tsv: path<TAB>text; json: an object a line with confidence, words, tokens, flags.
            With --page text has a form feed between pages, json is an object a page, and the others (page is PAGE-XML)
            are documents.
        page: The images are pages, and TIFFs all of theirs: find their lines and read them in order, columns one after the other.
        lines: With --page: take the lines from this file (PAGE-XML, ALTO, hOCR, or JSON with boxes or polygons), or from the file
            named like the page in this folder. Quadrilaterals run clockwise from the top left of the writing.
        output: With --page: write a file a page into this folder instead of printing, named like the page (scan-2 for the second
            of scan.tif): no two may share a name.
        model: Hub name (NAME@REVISION pins a commit, tag or branch) or directory. By default the model in the package: no
            network.
        beams: Beams of the search; 1 is greedy. By default as the checkpoint says.
        alternatives: With --format json: so many of the next best readings of each line, of at least one more --beams.
        batch_size: Images a step. By default 8 on CPU (24 in int8 with a small model), 128 on TPU and GPU.
        dtype: By default float32 on CPU, bfloat16 on TPU and GPU. int8 is the fastest on a CPU, with ONNX Runtime (the
            extra "onnx"): it is always greedy, and reads some lines otherwise.
        mesh: Devices to read with: data=8, or data=4,model=2 for a model cut over pairs of them. By default one.
        pattern: A regular expression that every text shall match as a whole, as [0-9]{2}/[0-9]{2}/[0-9]{4}; needs the
            extra "pattern". Of a page every line is held to it, of a line that is too long to be read at once every piece.
        max_tokens: Most new tokens a line, or a piece of one that is read in pieces; the start token not counted. By default as
            the checkpoint says, else 128.
    """

    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH [PATH ...]")]
    format: Literal["text", "tsv", "json", "hocr", "alto", "page"] = "text"
    page: bool = False
    lines: str | None = None
    output: str | None = None
    model: str | None = None
    beams: Annotated[int | None, tyro.conf.arg(aliases=("-k",))] = None
    alternatives: int = 0
    batch_size: int | None = None
    dtype: Literal["float32", "bfloat16", "int8"] | None = None
    mesh: str | None = None
    pattern: str | None = None
    max_tokens: int | None = None


def run(config: Config) -> int:
    """Reads and prints; 1 where an image failed."""
    options = _checked(config)
    paths, without = _found(config.paths)
    if not any(path is STDIN or path.exists() for path in paths):  # no model is loaded for them
        for path in paths:
            remark(str(images.ImageError("missing", str(path))))
        return 1
    failed = (_read_pages if config.page else _read_lines)(paths, config, options)
    return int(without or failed)


def _checked(config: Config) -> dict[str, Any]:
    """Options of `Reader.read`, after a look at all flags: a mistake is told before a model is loaded."""
    if not config.paths:
        raise UsageError("name at least one image, folder or glob; 'trocr-jax read --help' tells more")
    if urls := [path for path in config.paths if "://" in path and not Path(path).exists()]:
        raise UsageError(f"URLs are not read here ({urls[0]}): 'trocr-jax batch' reads a list of them")
    options: dict[str, Any] = {"num_beams": config.beams, "max_new_tokens": config.max_tokens, "batch_size": config.batch_size}
    options = {name: value for name, value in options.items() if value is not None}
    if any(value < 1 for value in options.values()):
        raise UsageError("--beams, --batch-size and --max-tokens must be at least 1")
    if not config.page and (config.lines or config.output or config.format in DOCUMENTS):
        raise UsageError("--lines, --output and the formats hocr, alto and page are for --page")
    _check_mesh(config.mesh)
    if config.alternatives:
        _check_alternatives(config)
        options["num_return_sequences"] = 1 + config.alternatives
    if config.pattern is not None:
        check_pattern(config.pattern)
        options["pattern"] = config.pattern
    if config.dtype == "int8" and (config.mesh or (config.beams or 1) > 1):
        raise UsageError("--dtype int8 reads greedily and on the CPU: leave --beams and --mesh out")
    return options


def _check_alternatives(config: Config) -> None:
    if config.alternatives < 0:
        raise UsageError("--alternatives must be at least 0")
    if config.format != "json":
        raise UsageError("--alternatives are told by --format json alone")
    if config.alternatives >= (config.beams or 1):
        raise UsageError(f"--alternatives {config.alternatives} needs --beams {config.alternatives + 1} or more")


def _check_mesh(text: str | None) -> None:
    if text is None:
        return
    from .. import sharding

    try:
        sharding.parse_mesh(text)
    except ValueError as error:
        raise UsageError(f"--mesh: {error}") from None


def _found(arguments: tuple[str, ...]) -> tuple[list[Path], bool]:
    """The files that arguments name, each once, those that are missing in their places, to be told when it is their turn; and
    whether a folder or glob has none, which is told here.
    """
    paths, without = [], False
    for argument in arguments:
        if argument == "-":
            paths.append(STDIN)
            continue
        try:
            paths += find_images([argument])
        except images.ImageError as error:
            if error.code == "missing":
                paths.append(Path(argument))
                continue
            without = True
            remark(str(error))
        if others := left_out(argument):
            kinds = ", ".join(sorted({path.suffix.lower() for path in others}))
            remark(f"{argument}: {len(others)} files left out, of kinds that are not read or links to nothing ({kinds})")
    return list({(path, path is STDIN): path for path in paths}.values()), without


def _read_lines(paths: list[Path], config: Config, options: dict[str, Any]) -> bool:
    """Whether one failed."""
    failures = 0
    sources = (standard_input() if path is STDIN else path for path in paths)
    for path, line in _with_progress(paths, _make_reader(config).stream(sources, **options)):
        print(render(path, line, config.format), flush=True)
        for doubt in _doubts(line):
            remark(f"{path}: {doubt}")
        failures += line.error is not None
    return _told(failures, len(paths), "images")


def _doubts(line: Line) -> Iterator[str]:
    """Why the text is missing, or may not be what the image shows."""
    yield from (REMARKS[flag] for flag in line.flags if flag in REMARKS)
    if line.error:
        yield line.error
    elif line.finish_reason == "length":
        yield "its text was cut off after as many tokens as it may have (--max-tokens)"


def _read_pages(paths: list[Path], config: Config, options: dict[str, Any]) -> bool:
    """Whether one failed."""
    from . import page as page_command

    job, pages = page_command.Job(config.format, config.lines, config.output, options), page_command.sources(paths)
    page_command.check(job, pages)
    return _told(page_command.read_pages(pages, _make_reader(config), job), len(pages), "pages")


def _make_reader(config: Config) -> Any:
    """A Reader, introduced on stderr."""
    from ..compilation_cache import cache_compilations
    from ..reader import Reader

    cache_compilations()
    if config.dtype == "int8":
        reader = int8_backend().OnnxReader.from_pretrained(config.model, precision="int8")
        print(f"{reader.name} on the CPU with ONNX Runtime, int8, greedy", file=sys.stderr)
    else:
        reader = Reader.from_pretrained(config.model, dtype=config.dtype, mesh=config.mesh)
        _introduce(reader)
    return reader


def _told(failures: int, count: int, what: str) -> bool:
    if failures:
        remark(f"{failures} of {count} {what} could not be read")
    return failures > 0


def render(path: Path, line: Line, form: str) -> str:
    """One line of output."""
    if form == "json":
        return to_json({"path": str(path), **line.to_dict()})
    text = one_line(line.text)
    return f"{one_line(str(path))}\t{text}" if form == "tsv" else text


def _introduce(reader: Any) -> None:
    import jax

    devices, used = jax.devices(), reader.mesh.size if reader.mesh else 1
    more = f" of {len(devices)}, --mesh data={len(devices)} takes all" if used < len(devices) else ""
    print(f"{reader.name} on {used} x {devices[0].device_kind}{more}, {reader.model.dtype.name}", file=sys.stderr)


def _with_progress(paths: list[Path], lines: Iterator[Line]) -> Iterator[tuple[Path, Line]]:
    from tqdm import tqdm

    hidden = len(paths) < PROGRESS_FROM or not sys.stderr.isatty()
    return iter(tqdm(zip(paths, lines, strict=True), total=len(paths), unit="line", disable=hidden, file=sys.stderr))
