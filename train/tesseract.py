"""Sets a model beside Tesseract 5, line by line: character error rate and lines a second at every level of damage.

Both read the same drawn lines, in fonts and texts that training never sees. Tesseract is given the pictures as PNG files, one
process a core with one thread each and a list of files to read, which is its fastest way; `--psm 7` tells it that a picture is
one line. Debian has it as `tesseract-ocr`, its Latin model as `tesseract-ocr-script-latn`.

    python -m trocr_jax.train.tesseract --count 200
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trocr_jax import metrics
from trocr_jax.cli import program
from trocr_jax.cores import usable_cores
from trocr_jax.reader import Reader
from trocr_jax.terminal import check_known
from trocr_jax.tesseract import read_lines

from .config import SyntheticConfig
from .drawing import fonts, synthesis

WORD = "5"
"""The level of a word in Tesseract's table."""


@dataclass(frozen=True)
class Config:
    """What to compare.

    Attributes:
        model: directory or hub name; by default the model in the package.
        count: lines of every level.
        levels: names from synthesis.LEVELS.
        fonts: folder of fonts that training does not use.
        seed: decides the lines.
        max_length: characters of a text at most.
        batch_size: lines that the model reads at once.
        language: what Tesseract reads: "eng", or "Latin" with letters of all Latin alphabets.
        process_a_line: start Tesseract for every picture, as pytesseract does, instead of once a core.
        program: Tesseract's name or path.
        alone: run Tesseract without a model.
    """

    model: str | None = None
    count: int = 200
    levels: tuple[str, ...] = tuple(synthesis.LEVELS)
    fonts: Path = SyntheticConfig().held_out_fonts
    seed: int = 2026
    max_length: int = 48
    batch_size: int = 32
    language: str = "eng"
    process_a_line: bool = False
    program: str = "tesseract"
    alone: bool = False


@dataclass(frozen=True)
class Score:
    """How one of the two did on a level.

    Attributes:
        cer, low, high: character error rate in percent and the ends of its 95 % interval.
        right: share of lines without a mistake, percent.
        lines_per_s: pictures in memory (model) or on disk (Tesseract) to texts, starting its processes included.
    """

    cer: float
    low: float
    high: float
    right: float
    lines_per_s: float


def run(config: Config) -> int:
    """Reads every level with both; a row a level on stderr, one JSON object on stdout.

    Raises:
        UsageError: no such level. ValueError: no Tesseract, or it fails.
    """
    check_known("level", config.levels, synthesis.LEVELS)
    said = version(config.program)
    reader = None if config.alone else Reader.from_pretrained(config.model)
    faces = fonts.find_faces(config.fonts)
    levels: dict[str, dict[str, Score]] = {}
    for level in config.levels:
        lines = synthesis.heldout(level, config.count, config.seed, faces, config.max_length)
        levels[level] = compare([image for image, _, _ in lines], [text for _, text, _ in lines], reader, config)
        print(row(level, levels[level]), file=sys.stderr)
    plain = {level: {who: vars(score) for who, score in scores.items()} for level, scores in levels.items()}
    head = {"tesseract": said, "language": config.language, "process_a_line": config.process_a_line, "cores": usable_cores()}
    print(json.dumps({**head, "model": reader and reader.name, "lines": config.count, "seed": config.seed, "levels": plain}))
    return 0


def compare(pictures: Sequence[Image.Image], texts: Sequence[str], reader: Reader | None, config: Config) -> dict[str, Score]:
    """The scores of both, by name; Tesseract's alone without a reader."""
    with tempfile.TemporaryDirectory() as folder:
        files = store(pictures, Path(folder))
        began = time.perf_counter()
        scores = {"tesseract": scored(read(files, config), texts, began)}
    if reader is not None:
        reader.read(list(pictures), batch_size=config.batch_size)  # compiles
        began = time.perf_counter()
        read_by_model = [line.text for line in reader.read(list(pictures), batch_size=config.batch_size)]
        scores["model"] = scored(read_by_model, texts, began)
    return scores


def scored(predictions: Sequence[str], texts: Sequence[str], began: float) -> Score:
    """The score of texts that took from `began` (time.perf_counter) until now."""
    speed = len(texts) / (time.perf_counter() - began)
    found = metrics.score(("cer", "accuracy"), predictions, texts)
    cer, low, high = (round(x, 3) for x in found["cer"])
    return Score(cer, low, high, round(found["accuracy"][0], 2), round(speed, 2))


def row(level: str, scores: dict[str, Score]) -> str:
    cells = [
        f"{who} CER {s.cer:6.2f} % ({s.low:.2f} to {s.high:.2f}), {s.right:5.1f} % right, {s.lines_per_s:6.1f} lines/s"
        for who, s in scores.items()
    ]
    return f"{level:<6} {'   '.join(cells)}"


# --- Tesseract ---


def version(program: str) -> str:
    """Tesseract's first line about itself.

    Raises:
        ValueError: it is not installed.
    """
    if shutil.which(program) is None:
        raise ValueError(f"{program} is not installed; on Debian: apt install tesseract-ocr")
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def store(pictures: Sequence[Image.Image], folder: Path) -> list[Path]:
    """PNG files of the pictures, as they are: paper around them, as Tesseract's manual advises, made it no better."""
    paths = [folder / f"{index:06d}.png" for index in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    return paths


def read(files: Sequence[Path], config: Config) -> list[str]:
    """The texts of picture files, in order.

    Raises:
        ValueError: Tesseract failed.
    """
    cores = usable_cores()
    length = 1 if config.process_a_line else -(-len(files) // cores)
    parts = [files[first : first + length] for first in range(0, len(files), length)]
    with ThreadPoolExecutor(cores) as pool:
        return [text for found in pool.map(lambda part: _read_part(part, config), parts) for text in found]


def _read_part(files: Sequence[Path], config: Config) -> list[str]:
    names = files[0].with_suffix(".txt")
    return words_of_pages(read_lines(files, names, "-l", config.language, "tsv", program=config.program), len(files))


def words_of_pages(table: str, pages: int) -> list[str]:
    """The words of every page from Tesseract's table; a page where it finds nothing has no row, and is read as empty."""
    words: list[list[str]] = [[] for _ in range(pages)]
    for line in table.splitlines()[1:]:
        kind, page, *_, text = line.split("\t")
        if kind == WORD and text.strip():
            words[int(page) - 1].append(text.strip())
    return [" ".join(found) for found in words]


if __name__ == "__main__":
    raise SystemExit(program("trocr_jax.train.tesseract"))
