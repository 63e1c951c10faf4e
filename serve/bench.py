"""Measures how fast a model reads, beside other implementations on the same weights, images and tokens, in one run.

Rounds alternate between the candidates, so that a machine that slows down slows all of them. Prints a table, then a JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from trocr_jax.config import PRESETS
from trocr_jax.decoding import GenerateConfig, generate, precision
from trocr_jax.model import TrOCR

from . import peers

Read = peers.Read


@dataclass(frozen=True)
class Config:
    model: str | None = None
    """Hub name or directory; by default the model in the package."""
    random: bool = False
    """Random weights in the shape of a public checkpoint: no download, the same speed."""
    batch_size: int = 8
    """Images a batch."""
    tokens: int = 20
    """New tokens a line, exactly so many."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of our side."""
    rounds: int = 5
    """Timed batches of every candidate."""
    peers: bool = True
    """Run what else is installed: transformers on torch."""
    seed: int = 0
    """Of images and random weights."""


@dataclass(frozen=True)
class Timing:
    """One candidate: seconds of its first batch (with compilation) and of the timed ones, and the tokens that it gave."""

    name: str
    first: float
    seconds: tuple[float, ...]
    tokens: np.ndarray

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def run(config: Config) -> int:
    """Measures, prints a table and a JSON line."""
    model = load(config)
    pixels = (
        np.random.default_rng(config.seed)
        .uniform(-1, 1, (config.batch_size, *model.config.encoder.image_size, 3))
        .astype(np.float32)
    )
    candidates: dict[str, Read] = {f"trocr-jax ({jax.default_backend()}, {config.dtype})": ours(model)}
    if config.peers:
        candidates |= {name: make(model) for name, make in peers.available().items()}
    timings = measure(candidates, pixels, config.tokens, config.rounds)
    report(config, timings)
    return 0


def load(config: Config) -> TrOCR:
    """The model to measure, in the dtype to measure."""
    dtype = jnp.dtype(config.dtype)
    if not config.random:
        return TrOCR.from_pretrained(config.model, dtype=dtype)
    if config.model not in PRESETS:
        raise ValueError(f"--random needs --model to be one of: {', '.join(PRESETS)}")
    rng = np.random.default_rng(config.seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32), leaf.dtype),
        TrOCR.abstract(PRESETS[config.model], dtype),
    )


def ours(model: TrOCR) -> Read:
    """Encode and decode as the reader does, with the number of tokens fixed."""

    def encode(model: TrOCR, pixels: jax.Array) -> jax.Array:
        with precision(model.dtype):
            return model.encode(pixels)

    encode = jax.jit(encode)

    def read(pixels: np.ndarray, tokens: int) -> np.ndarray:
        memory = encode(model, jnp.asarray(pixels))
        return np.asarray(generate(model, memory, GenerateConfig(tokens, min_new_tokens=tokens)).tokens[:, 0])

    return read


def measure(candidates: dict[str, Read], pixels: np.ndarray, tokens: int, rounds: int) -> list[Timing]:
    """Every candidate once to warm up, then `rounds` times in turn."""
    first = {name: timed(read, pixels, tokens) for name, read in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, read in candidates.items():
            seconds[name].append(timed(read, pixels, tokens)[0])
    return [Timing(name, first[name][0], tuple(seconds[name]), first[name][1]) for name in candidates]


def timed(read: Callable[..., np.ndarray], *arguments) -> tuple[float, np.ndarray]:
    """Seconds until the result is on the host, and the result."""
    start = time.perf_counter()
    result = read(*arguments)
    return time.perf_counter() - start, result


def report(config: Config, timings: list[Timing]) -> None:
    """The table for people, then the JSON line for programs."""
    own, B = timings[0], config.batch_size
    print(f"{config.model or 'tiny-print'}, {B} images, {config.tokens} tokens, greedy, {config.rounds} rounds")
    print(f"{'':<40} {'first s':>8} {'median s':>9} {'min s':>8} {'lines/s':>8} {'ratio':>6} {'same tokens':>12}")
    rows = []
    for t in timings:
        agreement = float((t.tokens == own.tokens).mean())
        row = {
            "name": t.name, "first_s": t.first, "median_s": t.median, "min_s": min(t.seconds), "lines_per_s": B / t.median,
            "ours_over_this": t.median / own.median, "token_agreement": agreement,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{t.name:<40} {t.first:8.2f} {t.median:9.3f} {min(t.seconds):8.3f} {B / t.median:8.2f} "
            f"{t.median / own.median:6.2f} {agreement:12.2%}"
        )
    print("ratio: how many times the candidate's time is ours", file=sys.stderr)
    settings = {
        "model": config.model,
        "batch_size": B,
        "tokens": config.tokens,
        "dtype": config.dtype,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps({**settings, "results": rows}))
