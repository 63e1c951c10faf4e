"""What a device could do at best: its ceilings as measured, the arithmetic and traffic of reading a batch, and both in one plot.

Letters: B lines, T new tokens, S image tokens, E their width, L layers, D width, N heads, F MLP width, V vocabulary.
The counts are of our own way to compute (cross-attention on the image tokens, see `decoder_layer`), and the least that must
move: the weights once an encoded batch and once a decoding step, the image tokens twice a layer, the cache once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trocr_jax.config import TrOCRConfig

WIDTH = {"cpu": 2048}
"""Width of the square matrices that are multiplied, by backend; 8192 for any other."""
COPIED = 1 << 28
"""Bytes of the buffer that is copied."""


@dataclass(frozen=True)
class Ceilings:
    """The best that was measured: operations a second in one dtype, and bytes a second read and written."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes of one stage."""

    flops: float
    bytes: float

    def seconds(self, ceilings: Ceilings) -> float:
        """The least time for it: the slower of arithmetic and traffic."""
        return max(self.flops / ceilings.flops, self.bytes / ceilings.bytes)


def ceilings(dtype: Any) -> Ceilings:
    """Measures the default device with a product of matrices and a copy in place."""
    n = WIDTH.get(jax.default_backend(), 8192)
    square = jnp.ones((n, n), dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32, precision="highest"))
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    buffer = jnp.zeros(COPIED // 4, jnp.float32)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        buffer = copy(buffer).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return Ceilings(2 * n**3 / fastest(product, square), 2 * COPIED / min(seconds[1:]))


def fastest(function: Any, *arguments: Any, rounds: int = 5) -> float:
    """Seconds of the fastest call after one that compiles."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def encoding(config: TrOCRConfig, batch: int, itemsize: int) -> Work:
    """The work of encoding a batch of images, with numbers of `itemsize` bytes."""
    e, S, D = config.encoder, config.encoder.num_tokens, config.encoder.hidden_size
    patch = e.patch_size[0] * e.patch_size[1] * e.num_channels
    layer = 8 * S * D * D + 4 * S * S * D + 4 * S * D * e.mlp_size
    last = 2 * S * D * config.memory_size if config.has_projection else 0
    flops = batch * (2 * S * patch * D + e.num_layers * layer + last)
    weights = patch * D + e.num_layers * (4 * D * D + 2 * D * e.mlp_size)
    pixels = e.image_size[0] * e.image_size[1] * e.num_channels
    return Work(flops, itemsize * (weights + batch * (pixels + S * config.memory_size)))


def decoding(config: TrOCRConfig, batch: int, tokens: int, itemsize: int) -> Work:
    """The work of all greedy decoding steps of a batch, with numbers of `itemsize` bytes."""
    d, S, E, D = config.decoder, config.encoder.num_tokens, config.memory_size, config.decoder.hidden_size
    projections = 6 * D * D + 2 * E * D + 2 * D * d.mlp_size  # weights: self q k v o, cross q o, cross k v, MLP
    step = d.num_layers * (2 * projections + 4 * d.num_heads * S * E) + 2 * D * d.vocab_size
    cache = d.num_layers * 2 * D * tokens * (tokens + 1) // 2  # items read over all steps, one line
    moved = tokens * (d.num_layers * (projections + batch * 2 * S * E) + D * d.vocab_size) + batch * cache
    return Work(batch * (tokens * step + 2 * cache), itemsize * moved)


def plot(path: Path, ceilings: Ceilings, points: Sequence[tuple[str, Work, float]]) -> None:
    """A roofline as PNG: the measured ceilings, and (name, work, seconds) of stages as points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s")
    ridge = ceilings.flops / ceilings.bytes
    intensities = [work.flops / work.bytes for _, work, _ in points]
    x = np.geomspace(min(*intensities, ridge) / 4, max(*intensities, ridge) * 4, 64)
    axes.plot(x, np.minimum(ceilings.flops, x * ceilings.bytes) / 1e9, color="black", linewidth=1)
    for (name, work, seconds), intensity in zip(points, intensities, strict=True):
        axes.scatter([intensity], [work.flops / seconds / 1e9], label=name, s=24)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, format="png")
