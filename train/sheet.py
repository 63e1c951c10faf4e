"""Shows what a run's model will see: its first lines, scaled and augmented, above their labels.

    python -m trocr_jax.train.sheet sheet.png --preset iam --data.train iam/gt_train.txt

After the picture's name come the flags of `trocr-jax train`. A label stands as the tokens give it back, so that what the
vocabulary cannot write shows too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trocr_jax.terminal import UsageError, guarded

from . import cli
from .config import Config
from .data import training_lines
from .start import start

LINES, COLUMNS = 36, 3
GAP, LABEL = 8, 18  # px
MAX_WIDTH = 512  # px of a line on the sheet


def main(arguments: Sequence[str]) -> int:
    """Writes the picture; returns the exit code."""
    return guarded(lambda: run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Raises UsageError without a picture's name, and what `cli.parse` and `draw` raise."""
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("name the picture first, then the flags of trocr-jax train")
    config = cli.parse(arguments[1:], "trocr_jax.train.sheet PICTURE")
    draw(config).save(arguments[0])
    print(f"{LINES} lines in {Path(arguments[0])}", file=sys.stderr)
    return 0


def draw(config: Config) -> Image.Image:
    """The sheet (RGB) of a run."""
    model = start(config.start, config.seed)
    lines = training_lines(config, model, lambda problem: print(problem, file=sys.stderr))
    examples = map(lines.__getitem__, range(LINES))
    return arranged([(Image.fromarray(example.pixels), model.tokenizer.decode(example.label)) for example in examples])


def arranged(cells: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    """Pictures in a grid, each above its label."""
    pictures = [picture.convert("RGB") for picture, _ in cells]
    for picture in pictures:
        picture.thumbnail((MAX_WIDTH, picture.height))
    across = max(picture.width for picture in pictures) + GAP
    down = max(picture.height for picture in pictures) + LABEL + GAP
    sheet = Image.new("RGB", (COLUMNS * across + GAP, -(-len(cells) // COLUMNS) * down + GAP), (200, 210, 230))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for index, (picture, (_, text)) in enumerate(zip(pictures, cells, strict=True)):
        x, y = GAP + index % COLUMNS * across, GAP + index // COLUMNS * down
        sheet.paste(picture, (x, y))
        pen.text((x, y + down - LABEL - GAP + 2), text, fill=(20, 20, 60), font=font)
    return sheet


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
