"""A model and data sets small enough to train in a test: drawn with Pillow's own font, so that no fonts are needed."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trocr_jax import pretrained
from trocr_jax.config import DecoderConfig, EncoderConfig, TrOCRConfig
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.tokens import character_vocabulary
from trocr_jax.train.config import Config, DataConfig, OptimizerConfig, PreflightConfig, StartConfig
from trocr_jax.train.parameters import build
from trocr_jax.train.start import random_parameters

SIZE = (16, 48)
TOKENIZER = character_vocabulary("é")
MODEL = TrOCRConfig(
    EncoderConfig("vit", SIZE, (16, 8), hidden_size=16, num_layers=2, num_heads=2, mlp_size=32, activation="relu", qkv_bias=True),
    DecoderConfig(
        vocab_size=TOKENIZER.size, hidden_size=16, num_layers=2, num_heads=2, mlp_size=32, activation="relu", max_positions=24,
        cross_attention_size=16, dropout=0.1,
    ),
)  # fmt: skip


def model_directory(folder: Path, config: TrOCRConfig = MODEL, seed: int = 0) -> Path:
    """A complete model directory with random numbers."""
    processor = ImageProcessor(height=config.encoder.image_size[0], width=config.encoder.image_size[1], fit="pad")
    companions = {**TOKENIZER.files, "preprocessor_config.json": json.dumps(processor.to_hf()).encode()}
    return pretrained.save(build(config, random_parameters(config, seed)), folder, companions)


def draw(text: str) -> Image.Image:
    image = Image.new("RGB", (8 + 7 * len(text), 16), (250, 250, 250))
    ImageDraw.Draw(image).text((3, 1), text, fill=(10, 10, 10), font=ImageFont.load_default(12))
    return image


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("0123456789"), rng.integers(1, 6))) for _ in range(count)]


def line_folder(folder: Path, count: int = 40) -> Path:
    """A data set in unilm's layout; returns its list."""
    (folder / "image").mkdir(parents=True)
    rows = []
    for number, text in enumerate(texts(count)):
        draw(text).save(folder / "image" / f"{number:03d}.png")
        rows.append(f"{number:03d}.png\t{text}")
    (folder / "gt_train.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "gt_train.txt"


def config(folder: Path, **changes) -> Config:
    """A run of 20 steps of 8 lines below a folder, which gets its model and data when it has none."""
    model, data = folder / "start", folder / "lines" / "gt_train.txt"
    if not model.exists():
        model_directory(model)
        line_folder(folder / "lines")
    base = Config(
        out=folder / "run", start=StartConfig(model=str(model)), steps=20, batch_size=8, max_tokens=8, eval_lines=8,
        data=DataConfig(train=(str(data),), valid=(str(data),), threads=1), log_every=1, eval_every=20, save_every=7,
        optimizer=OptimizerConfig(lr=1e-3, warmup=5), preflight=PreflightConfig(enabled=False), devices=1,
    )  # fmt: skip
    return replace(base, **changes)


def equal_trees(a, b) -> None:
    """Bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
