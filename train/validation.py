"""How a model reads lines it never saw: drawn ones at every level of damage, and those of data sets."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trocr_jax import images
from trocr_jax.decoding import GenerateConfig, read_pixels
from trocr_jax.metrics import character_error_rate
from trocr_jax.model import TrOCR
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.tokens import Tokenizer

from .config import Config, DataConfig, SyntheticConfig
from .data import SYNTHETIC, parse_source
from .drawing.pool import Drawer
from .drawn_sets import DrawnSet, drawn_sets
from .sets.records import Source, SourceError, row_names
from .sets.sources import open_source

BATCH = 64


@dataclass(frozen=True)
class Lines:
    """Lines to read: uint8 images [n,height,width,3] and their texts."""

    images: np.ndarray
    texts: list[str]


def held_out(config: Config, processor: ImageProcessor) -> dict[str, Lines]:
    """The lines that evaluations during training read, by the name of their group.

    Raises:
        SourceError: a data set or a record of it that cannot be used.
    """
    paths, trained = ([parse_source(place)[0] for place in places] for places in (config.data.valid, config.data.train))
    if config.data.valid == DataConfig().valid and SYNTHETIC not in trained:
        print("evaluation reads drawn lines: set --data.valid to some that are like those of --data.train", file=sys.stderr)
    drawn = drawn_lines(config.synthetic, processor, config.eval_lines) if SYNTHETIC in paths else {}
    stored = row_names((path for path in paths if path != SYNTHETIC), drawn)
    return drawn | {name: stored_lines(path, processor, config.eval_lines) for name, path in stored.items()}


def drawn_lines(config: SyntheticConfig, processor: ImageProcessor, count: int | None) -> dict[str, Lines]:
    """The lines of `drawn_sets` that training would take for this model, in the fonts of training where none are held out.

    Raises:
        SourceError: all lines of a level are too wide.
    """
    folder = Path(config.held_out_fonts).expanduser()
    if not folder.is_dir():
        print(f"no folder {folder}: evaluation draws with the fonts of training", file=sys.stderr)
        config = replace(config, held_out_fonts=config.fonts)
    drawer = Drawer(config, processor)
    return {level: _narrow_lines(level, found, drawer) for level, found in drawn_sets(config, count).items()}


def _narrow_lines(level: str, found: DrawnSet, drawer: Drawer) -> Lines:
    kept = [record for record in map(found.__getitem__, range(len(found))) if drawer.takes(record.image)]
    if not kept:
        raise SourceError(f"none of {len(found)} drawn lines of level {level} fits: raise --synthetic.max-squeeze")
    return Lines(np.stack([drawer.scaled(record.image) for record in kept]), [record.text for record in kept])


def stored_lines(place: str, processor: ImageProcessor, count: int | None = None) -> Lines:
    """`count` lines of a data set, evenly spread, because files are often sorted; or all.

    Raises:
        SourceError: one cannot be read: a benchmark with holes is another benchmark.
    """
    source = open_source(place)
    chosen = np.linspace(0, len(source) - 1, min(count or len(source), len(source))).astype(int)
    pixels, texts = zip(*(_stored_line(place, source, int(i), processor) for i in chosen), strict=True)
    return Lines(np.stack(pixels), list(texts))


def _stored_line(place: str, source: Source, index: int, processor: ImageProcessor) -> tuple[np.ndarray, str]:
    name = f"record {index}"
    try:
        record = source[index]
        name = record.name
        return processor(images.load(record.image)), record.text
    except (ValueError, OSError, KeyError) as error:
        raise SourceError(f"{place}: {name}: {error}") from None


def digest(groups: dict[str, Lines]) -> str:
    """A hash of the lines: scores of two evaluations compare where they read the same ones."""
    found = hashlib.sha256()
    for name, group in groups.items():
        found.update(repr((name, group.images.shape, group.texts)).encode())
        found.update(group.images.data)
    return found.hexdigest()[:12]


def read(model: TrOCR, tokenizer: Tokenizer, processor: ImageProcessor, pixels: np.ndarray, max_tokens: int) -> list[str]:
    """Greedy texts of uint8 images [n,height,width,3]; one program, the last batch filled up."""
    texts: list[str] = []
    config = GenerateConfig(max_new_tokens=max_tokens)
    for first in range(0, len(pixels), BATCH):
        batch = pixels[first : first + BATCH]
        padded = np.zeros((BATCH, *batch.shape[1:]), np.uint8)
        padded[: len(batch)] = batch
        limits = jnp.asarray(np.where(np.arange(BATCH) < len(batch), max_tokens, 0))
        result = read_pixels(model, jnp.asarray(padded), config, processor.mean, processor.std, None, limits)
        tokens, lengths = jax.device_get((result.tokens[:, 0], result.lengths[:, 0]))
        rows = zip(tokens[: len(batch)], lengths[: len(batch)], strict=True)
        texts += [tokenizer.decode([int(token) for token in row[:length]]) for row, length in rows]
    return texts


def evaluate(
    model: TrOCR, tokenizer: Tokenizer, processor: ImageProcessor, groups: dict[str, Lines], max_tokens: int
) -> tuple[dict[str, Any], list[tuple[np.ndarray, str, str]]]:
    """Character error rate in percent of every group and `score`, their mean; and a few lines with text and reading."""
    metrics: dict[str, Any] = {}
    samples = []
    for name, group in groups.items():
        texts = read(model, tokenizer, processor, group.images, max_tokens)
        metrics[f"cer_{name}"] = character_error_rate(texts, group.texts)
        samples += list(zip(group.images[:4], group.texts, texts, strict=False))
    return {**metrics, "score": float(np.mean(list(metrics.values())))}, samples
