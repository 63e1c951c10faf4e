"""Draws lines of a new domain as a data set to train on, with a sheet of them to look at first.

    python -m trocr_jax.train.draw --out serials --pattern "@@-####-??#" --count 1500 --sheet sheet.png

docs/tutorial.md goes on from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from trocr_jax import files
from trocr_jax.cli import program
from trocr_jax.terminal import UsageError, check_known, check_writable

from .config import SyntheticConfig
from .drawing import fonts, synthesis
from .drawing.texts import draw_text
from .sets.records import read_text

DIGITS, CAPITALS = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Config:
    """What to draw.

    Attributes:
        out: folder for the images and their `metadata.jsonl`; must not hold anything yet.
        fonts: folder of fonts, or one font file.
        texts: file with a text a line, taken in random order.
        pattern: or texts by a pattern: "#" is a digit, "@" a capital letter, "?" one of both, anything else itself.
            With neither, texts are drawn as for the model in the package.
        count: lines.
        levels: damage, drawn evenly: clean, worn, rough.
        seed: another one draws other lines.
        sheet: picture of the first lines, to see what the model will see.
    """

    out: Path
    fonts: Path = SyntheticConfig().fonts
    texts: Path | None = None
    pattern: str | None = None
    count: int = 500
    levels: tuple[str, ...] = ("clean", "worn")
    seed: int = 0
    sheet: Path | None = None


def run(config: Config) -> int:
    """Draws; returns the exit code.

    Raises:
        UsageError: no such level, or flags that mean nothing. ValueError: no fonts, or a text that none of them can draw.
    """
    check(config)
    faces, text = find_faces(config.fonts), text_maker(config)
    rows: list[dict[str, str]] = []
    with files.new_directory(config.out) as folder:
        for index in range(config.count):
            rng = np.random.default_rng((config.seed, index))
            label = text(rng)
            image = synthesis.draw_line(label, rng, faces, config.levels[index % len(config.levels)])
            rows.append({"file_name": f"{index:06d}.png", "text": label})
            image.save(folder / rows[-1]["file_name"])
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    if config.sheet:
        from . import sheet

        shown = [(Image.open(config.out / row["file_name"]), row["text"]) for row in rows[: sheet.LINES]]
        sheet.arranged(shown).save(config.sheet)
    print(f"{config.count} lines in {config.out}", file=sys.stderr)
    return 0


def check(config: Config) -> None:
    """Raises UsageError for flags that mean nothing or do not fit each other, before anything is drawn."""
    check_known("level", config.levels, synthesis.LEVELS)
    if config.texts and config.pattern:
        raise UsageError("--texts and --pattern both say what is written: leave one out")
    if not config.levels or config.count < 1 or config.seed < 0:
        raise UsageError("--levels needs at least one, --count must be at least 1, --seed not below 0")
    if config.sheet:
        check_writable(config.sheet, "--sheet")


def find_faces(place: Path) -> list[fonts.Face]:
    """The faces of a folder, or of one file."""
    if place.is_file():
        return [fonts.Face(place.stem, "", (str(place),))]
    return fonts.find_faces(place)


def text_maker(config: Config) -> Callable[[Generator], str]:
    """Where texts come from.

    Raises:
        ValueError: the file of texts is empty or cannot be read.
    """
    if pattern := config.pattern:
        return lambda rng: fill(pattern, rng)
    if config.texts is None:
        return lambda rng: draw_text(rng)[0]
    texts = [line.strip() for line in read_text(config.texts.expanduser()).split("\n") if line.strip()]
    if not texts:
        raise ValueError(f"{config.texts}: holds no texts")
    return lambda rng: texts[rng.integers(len(texts))]


def fill(pattern: str, rng: Generator) -> str:
    """A pattern with its signs replaced by random ones."""
    choices = {"#": DIGITS, "@": CAPITALS, "?": DIGITS + CAPITALS}
    return "".join(choices[sign][rng.integers(len(choices[sign]))] if sign in choices else sign for sign in pattern)


if __name__ == "__main__":
    raise SystemExit(program("trocr_jax.train.draw"))
