"""How the cost of a line grows with batch, tokens, image width and model size: seconds of encoding and decoding, each alone.

    python -m trocr_jax.serve.curves --out docs/results/curves

writes OUT.json and OUT.png. Random weights of the public checkpoints' shapes; one setting varies, the others stay at its middle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from trocr_jax.cli import load, program
from trocr_jax.config import PRESETS, TrOCRConfig
from trocr_jax.decoding import GenerateConfig, generate
from trocr_jax.generation.packed import pack
from trocr_jax.model import TrOCR
from trocr_jax.terminal import check_known, check_writable

from . import bench
from .benchmark import roofline
from .benchmark.random_model import random_model


@dataclass(frozen=True)
class Config:
    out: Path
    """Where to write, without a file extension."""
    model: str = "microsoft/trocr-base-handwritten"
    """The model for every curve but the one over model size."""
    models: tuple[str, ...] = tuple(f"microsoft/trocr-{size}-handwritten" for size in ("small", "base", "large"))
    """Models for the curve over model size."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Images a batch, for the curve over them."""
    tokens: tuple[int, ...] = (4, 8, 16, 32, 64)
    """New tokens a line, for the curve over them."""
    widths: tuple[int, ...] = (96, 192, 384, 768)
    """Widths of the image, in pixels, for the curve over them."""
    batch: int = 4
    """Images a batch, where it does not vary."""
    length: int = 20
    """New tokens a line, where they do not vary."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of weights and arithmetic."""
    rounds: int = 2
    """How often each point is measured; the fastest counts."""


@dataclass(frozen=True)
class Point:
    """One setting: which curve it belongs to, where on it, and what is read."""

    curve: str
    x: int
    config: TrOCRConfig
    batch: int
    tokens: int


def run(config: Config) -> int:
    """Measures, writes and prints a row a point."""
    check_known("model", (config.model, *config.models), PRESETS)
    for ending in (".json", ".png"):
        check_writable(config.out.with_suffix(ending), "--out")
    load("matplotlib", "the picture", "train")
    limits = roofline.ceilings(jnp.dtype(config.dtype))
    found = []
    for point in points(config):
        found.append(measure(point, config, limits))
        print("{curve:<8} {x:>12}  encode {encode_s:8.3f} s  decode {decode_s:8.3f} s".format(**found[-1]), flush=True)
    setting = bench.setting(bench.Config(config.model, dtype=(config.dtype,), rounds=config.rounds))
    result = setting | {"bytes_per_s": limits.bytes, "flops_per_s": limits.flops, "points": found, "crossing": crossing(found)}
    config.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    plot(config.out.with_suffix(".png"), found)
    return 0


def points(config: Config) -> Iterator[Point]:
    """Every point of every curve."""
    base, batch, length = PRESETS[config.model], config.batch, config.length
    yield from (Point("batch", b, base, b, length) for b in config.batch_sizes)
    yield from (Point("tokens", t, base, batch, t) for t in config.tokens)
    for width in config.widths:
        encoder = replace(base.encoder, image_size=(base.encoder.image_size[0], width))
        yield Point("width", width, replace(base, encoder=encoder), batch, length)
    for name in config.models:
        model = PRESETS[name]
        yield Point("model", sum(x.size for x in jax.tree.leaves(TrOCR.abstract(model))), model, batch, length)


def measure(point: Point, config: Config, limits: roofline.Ceilings) -> dict[str, Any]:
    """Seconds of both stages, and the least that the device's ceilings allow."""
    model = random_model(point.config, config.dtype)
    shape = (point.batch, *point.config.encoder.image_size, 3)
    pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)
    encode, options = jax.jit(TrOCR.encode), GenerateConfig(point.tokens, min_new_tokens=point.tokens)
    memory, size = encode(model, pixels), jnp.dtype(config.dtype).itemsize
    stages = {
        "encode": (
            roofline.fastest(encode, model, pixels, rounds=config.rounds),
            roofline.encoding(point.config, point.batch, size),
        ),
        "decode": (
            roofline.fastest(generate, pack(model), memory, options, rounds=config.rounds),
            roofline.decoding(point.config, point.batch, point.tokens, size),
        ),
    }
    row: dict[str, Any] = {"curve": point.curve, "x": point.x, "batch": point.batch, "tokens": point.tokens}
    for name, (seconds, work) in stages.items():
        row |= {f"{name}_s": seconds, f"{name}_flops": work.flops, f"{name}_least_s": work.seconds(limits)}
    return row


def crossing(found: Sequence[dict[str, Any]]) -> float | None:
    """The number of tokens from which decoding takes longer than encoding, between the points that enclose it; None without."""
    curve = [row for row in found if row["curve"] == "tokens"]
    for a, b in zip(curve, curve[1:], strict=False):
        low, high = (row["decode_s"] - row["encode_s"] for row in (a, b))
        if low < 0 <= high:
            return a["x"] + (b["x"] - a["x"]) * -low / (high - low)
    return None


def plot(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """One panel a curve, milliseconds a line."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["curve"] for row in found))
    figure = Figure(figsize=(4 * len(names), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _panel(axes, name, [row for row in found if row["curve"] == name])
    figure.savefig(path, dpi=110)


def _panel(axes: Any, name: str, rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    places = [row["x"] for row in rows]
    for stage, colour in (("encode", "tab:blue"), ("decode", "tab:orange")):
        for key, line, label in (("_s", "o-", stage), ("_least_s", ":", f"{stage} at best")):
            axes.plot(places, [1000 * row[stage + key] / row["batch"] for row in rows], line, color=colour, label=label)
    axes.set(xscale="log", yscale="log", xlabel="million parameters" if name == "model" else name, ylabel="ms a line")
    axes.set_xticks(places, [f"{x / 1e6:.0f}" if name == "model" else str(x) for x in places])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_yticks([], minor=True)
    axes.legend(fontsize=7)


if __name__ == "__main__":
    raise SystemExit(program("trocr_jax.serve.curves"))
