"""Measures the training step on this machine: lines a second, seconds a step, and the arithmetic that it gets done."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from trocr_jax.cli import program
from trocr_jax.config import PRESETS, TrOCRConfig
from trocr_jax.model import TrOCR
from trocr_jax.terminal import check_known

from . import mesh as meshes
from .config import OptimizerConfig
from .optimizer import make_optimizer
from .parameters import named
from .step import StepConfig, make_step, new_state

READS_IMAGE = re.compile(r"enc|decoder\.layers\.cross_attention\.(key|value)")


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        model: a preset; its numbers are random, which changes nothing here.
        batch_size: lines a step, over all devices.
        tokens: how many tokens a label has.
        steps: measured, after two that are not.
        dtype: what to compute in.
        remat: compute activations twice instead of keeping them.
        peak: TFLOP/s of one device in this dtype, to print the share that is reached.
    """

    model: str = "microsoft/trocr-base-stage1"
    batch_size: int = 8
    tokens: int = 64
    steps: int = 5
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    peak: float | None = None


def run(config: Config) -> int:
    """Measures and prints a JSON line."""
    check_known("model", [config.model], PRESETS)
    print(json.dumps(measure(PRESETS[config.model], config)))
    return 0


def measure(model: TrOCRConfig, config: Config) -> dict[str, Any]:
    """Times whole steps from uint8 images on the device to a new state."""
    parameters = named(jax.jit(lambda: TrOCR(model, rngs=nnx.Rngs(0)))())
    step_config = StepConfig(model, frozenset(parameters), dtype=config.dtype, remat=config.remat)
    optimizer, mesh = make_optimizer(OptimizerConfig(), 1000, {}), meshes.make_mesh()
    state = jax.device_put(new_state(step_config, parameters, {}, optimizer, 0), meshes.replicated(mesh))
    rng = np.random.default_rng(0)
    shape = (config.batch_size, *model.encoder.image_size, 3)
    images = meshes.global_array(mesh, rng.integers(0, 256, shape, np.uint8), config.batch_size)
    ids = rng.integers(4, model.decoder.vocab_size, (config.batch_size, config.tokens)).astype(np.int32)
    labels = meshes.global_array(mesh, ids, config.batch_size)
    step = make_step(optimizer, step_config)
    for _ in range(2):
        state, metrics = step(state, images, labels)
    jax.block_until_ready(metrics)
    began = time.perf_counter()
    for _ in range(config.steps):
        state, metrics = step(state, images, labels)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - began) / config.steps
    done = arithmetic(model, named(TrOCR.abstract(model)), config.tokens) * config.batch_size / seconds / 1e12
    share = {"share_of_peak": round(done / (config.peak * mesh.size), 4)} if config.peak else {}
    return {
        "model": config.model, "device": jax.devices()[0].device_kind, "devices": mesh.size, "dtype": config.dtype,
        "batch_size": config.batch_size, "tokens": config.tokens, "remat": config.remat, "seconds_per_step": round(seconds, 4),
        "lines_per_s": round(config.batch_size / seconds, 3), "tflops": round(done, 3), **share,
    }  # fmt: skip


def arithmetic(model: TrOCRConfig, shapes: Mapping[str, Any], tokens: int) -> float:
    """FLOP of a training step for one line: six for every kernel entry and vector that passes it, and attention's own.

    What remat computes again is not counted: it is work, not progress.
    """
    S, T = model.encoder.num_tokens, tokens
    total = 0.0
    for name, x in shapes.items():
        if name.endswith("kernel"):
            total += x.size * (S if READS_IMAGE.match(name) else T)
    encoder, decoder = model.encoder, model.decoder
    if decoder.tie_word_embeddings:
        total += decoder.vocab_size * decoder.hidden_size * T
    total += encoder.num_layers * 2 * S * S * encoder.hidden_size + decoder.num_layers * 2 * T * (T + S) * decoder.hidden_size
    return 6.0 * total


if __name__ == "__main__":
    raise SystemExit(program("trocr_jax.train.bench"))
