"""Compiles the reading programs for a TPU that this machine need not have: memory per chip, that no chip awaits another, price.

libtpu compiles for a described topology on any machine. What it prints are compiler figures, not measurements.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m trocr_jax.serve.tpu --topology v5e:2x2 --engine --price
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled

from trocr_jax import ahead_of_time, sharding
from trocr_jax.batching import device
from trocr_jax.chips import Chip, Cost, chip_of, estimate
from trocr_jax.cli import program
from trocr_jax.config import PRESETS
from trocr_jax.decoding import GenerateConfig
from trocr_jax.generation.loop import STEPS_PER_CHUNK, whole_chunks, widths
from trocr_jax.generation.packed import Packed, model_of, pack
from trocr_jax.model import TrOCR
from trocr_jax.terminal import check_known

HALF = (0.5, 0.5, 0.5)
ALL, DATA = PartitionSpec(), PartitionSpec("data")


@dataclass(frozen=True)
class Config:
    topology: str = "v5e:1x1"
    """As libtpu names it: v5e:1x1, v5e:2x2, v5e:4x4, v6e:2x2, v5p:2x2x1, ..."""
    models: tuple[str, ...] = ("microsoft/trocr-base-handwritten", "microsoft/trocr-large-handwritten")
    """Presets."""
    batch_size: int = 64
    """Images a chip, or slots of the engine."""
    tokens: int = 64
    """Most new tokens."""
    beams: tuple[int, ...] = (1, 4)
    """Each compiled on its own; 1 is greedy."""
    engine: bool = False
    """Compile the step of the continuous engine too."""
    price: bool = False
    """Estimate lines a second and dollars for 1,000."""
    line_tokens: int = 20
    """Tokens of a line, for the price."""
    dollars: float | None = None
    """Price of a chip an hour. By default its list price, see `trocr_jax.chips`."""


def run(config: Config) -> int:
    """Prints a row a program, then a JSON line.

    Raises:
        ValueError: a price is asked for, and the chip's rates are not known; before anything is compiled.
    """
    check_known("model", config.models, PRESETS)
    chip = chip_of(config.topology) if config.price else None
    mesh = ahead_of_time.tpu_mesh(config.topology)
    programs = [row for name in config.models for row in measure(mesh, name, chip, config)]
    print(
        json.dumps({"topology": config.topology, "chips": mesh.size, "batch_per_chip": config.batch_size, "programs": programs})
    )
    return 0


def measure(mesh: Mesh, name: str, chip: Chip | None, config: Config) -> list[dict[str, Any]]:
    """A model's programs in bfloat16, data parallel, and what the compiler says of each; with a chip, prices too."""
    model = TrOCR.abstract(PRESETS[name], jnp.bfloat16)
    rows = [reading(mesh, name, model, beams, chip, config) for beams in config.beams]
    return [*rows, engine(mesh, name, model, chip, config)] if config.engine else rows


def reading(mesh: Mesh, name: str, model: TrOCR, beams: int, chip: Chip | None, config: Config) -> dict[str, Any]:
    """Priced as a batch whose lines all have `line_tokens` tokens."""
    label = "greedy" if beams == 1 else f"{beams} beams"
    row, program = compiled(name, label, partial(compile_reading, mesh, model, config.batch_size, config.tokens, beams))
    if chip:
        row |= priced(ahead_of_time.cost(program, chip, rounds(config.line_tokens, config.tokens)), mesh, chip, config)
    return {"beams": beams, **row}


def engine(mesh: Mesh, name: str, model: TrOCR, chip: Chip | None, config: Config) -> dict[str, Any]:
    """Priced as a batch of images, and the steps that their lines take in as many slots."""
    packed = jax.eval_shape(partial(pack, backend="tpu"), model)
    row, advance = compiled(name, "engine", partial(compile_engine, mesh, packed, config.batch_size, config.tokens))
    if chip:
        steps = ahead_of_time.cost(advance, chip) * math.ceil(config.line_tokens / device.STEPS)
        encoding = ahead_of_time.cost(compile_encoding(mesh, packed, config.batch_size), chip)
        row |= priced(encoding + steps, mesh, chip, config)
    return row


def priced(cost: Cost, mesh: Mesh, chip: Chip, config: Config) -> dict[str, float]:
    """Lines a second and dollars for 1,000, from what a batch costs one chip."""
    return estimate(cost, chip, config.batch_size, mesh.size, config.dollars)


def compiled(name: str, label: str, compile_it: Callable[[], Compiled]) -> tuple[dict[str, Any], Compiled]:
    """Compiles one program and tells its memory and its collectives."""
    began = time.perf_counter()
    program = compile_it()
    held, collectives = ahead_of_time.bytes_held(program), ahead_of_time.collectives(program).total()
    seconds = round(time.perf_counter() - began, 1)
    print(f"{name:<36} {label:<8} {held / 2**30:6.2f} GiB a chip  {collectives} collectives  {seconds:6.1f} s", file=sys.stderr)
    return {
        "model": name, "program": label, "bytes_per_chip": held, "collectives": collectives,
        "kernels": ahead_of_time.kernels(program), "compile_s": seconds,
    }, program  # fmt: skip


def rounds(tokens: int, most: int) -> list[int]:
    """How often each of `loop.run`'s loops, one a width of the cache, runs for lines of so many tokens."""
    steps = [min(width, whole_chunks(tokens)) for width in widths(whole_chunks(most))]
    return [(end - begin) // STEPS_PER_CHUNK for begin, end in itertools.pairwise([0, *steps])]


def compile_reading(mesh: Mesh, model: TrOCR, batch_size: int, tokens: int, beams: int) -> Compiled:
    """`sharding.data_parallel`: each chip reads its own `batch_size` images and stops on its own."""
    work = sharding.Read(GenerateConfig(tokens, num_beams=beams), HALF, HALF)
    rows = batch_size * mesh.size
    limits = shaped(mesh, jax.ShapeDtypeStruct((rows,), jnp.int32), DATA)
    return sharding.data_parallel.lower(shaped(mesh, model, ALL), images(mesh, model, rows), None, limits, work, mesh).compile()


def compile_engine(mesh: Mesh, packed: Packed, batch_size: int, tokens: int) -> Compiled:
    """The engine's `advance` on every chip, each with `batch_size` slots of its own."""
    state = jax.eval_shape(lambda packed: device.empty(packed, batch_size * mesh.size, tokens), packed)
    advance = jax.shard_map(
        partial(device.advance, rules=GenerateConfig(tokens)), mesh=mesh, in_specs=(ALL, DATA),
        out_specs=(DATA, PartitionSpec(None, "data")), check_vma=False,
    )  # fmt: skip
    return jax.jit(advance, donate_argnums=1).lower(shaped(mesh, packed, ALL), shaped(mesh, state, DATA)).compile()


def compile_encoding(mesh: Mesh, packed: Packed, batch_size: int) -> Compiled:
    """The engine's `encode` on every chip."""
    encode = jax.shard_map(
        partial(device.encode, mean=HALF, std=HALF), mesh=mesh, in_specs=(ALL, DATA), out_specs=DATA, check_vma=False
    )
    return jax.jit(encode).lower(shaped(mesh, packed, ALL), images(mesh, model_of(packed), batch_size * mesh.size)).compile()


def images(mesh: Mesh, model: TrOCR, rows: int) -> Any:
    """The shape of uint8 images, cut over the mesh."""
    return shaped(mesh, jax.ShapeDtypeStruct((rows, *model.config.encoder.image_size, 3), jnp.uint8), DATA)


def shaped(mesh: Mesh, tree: Any, spec: PartitionSpec) -> Any:
    """Shapes with a place on the mesh."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), tree)


if __name__ == "__main__":
    raise SystemExit(program("trocr_jax.serve.tpu"))
