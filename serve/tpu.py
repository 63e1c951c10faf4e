"""Compiles the reading programs for a TPU that this machine need not have: memory per chip, that no chip awaits another, price.

libtpu compiles for a described topology on any machine. What it prints are compiler figures, not measurements.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m trocr_jax.serve.tpu --topology v5e:2x2 --engine --price
"""

from __future__ import annotations

import json
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
from trocr_jax.chips import Chip, chip_of, estimate
from trocr_jax.cli import check_known, program
from trocr_jax.config import PRESETS
from trocr_jax.decoding import GenerateConfig
from trocr_jax.model import TrOCR
from trocr_jax.network.attention import for_one_device

from .tpu_cost import HALF, Workload, reading_cost


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
    """Estimate lines a second and dollars for 1,000 of greedy decoding and the engine; compiles their parts as well."""
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
    model, rows = for_one_device(TrOCR.abstract(PRESETS[name], jnp.bfloat16), "tpu"), []
    for beams in config.beams:
        label = "greedy" if beams == 1 else f"{beams} beams"
        compile_it = partial(compile_reading, mesh, model, config.batch_size, config.tokens, beams)
        rows.append({"beams": beams, **compiled(name, label, compile_it)})
    if config.engine:
        rows.append(compiled(name, "engine", partial(compile_engine, mesh, model, config.batch_size, config.tokens)))
    work = Workload(config.batch_size, config.line_tokens, config.tokens)
    for row in rows:
        if chip and row.get("beams", 1) == 1:
            cost = reading_cost(mesh, model, work, chip, row["program"] == "engine")
            row |= estimate(cost, chip, config.batch_size, mesh.size, config.dollars)
    return rows


def compiled(name: str, label: str, compile_it: Callable[[], Compiled]) -> dict[str, Any]:
    """Compiles one program and tells its memory and its collectives."""
    began = time.perf_counter()
    program = compile_it()
    held, collectives = ahead_of_time.bytes_held(program), ahead_of_time.collectives(program).total()
    seconds = round(time.perf_counter() - began, 1)
    print(f"{name:<36} {label:<8} {held / 2**30:6.2f} GiB a chip  {collectives} collectives  {seconds:6.1f} s", file=sys.stderr)
    return {
        "model": name, "program": label, "bytes_per_chip": held, "collectives": collectives,
        "kernels": ahead_of_time.kernels(program), "compile_s": seconds,
    }  # fmt: skip


def compile_reading(mesh: Mesh, model: TrOCR, batch_size: int, tokens: int, beams: int) -> Compiled:
    """`sharding.data_parallel`: each chip reads its own `batch_size` images and stops on its own."""
    work = sharding.Read(GenerateConfig(tokens, num_beams=beams), HALF, HALF)
    rows = batch_size * mesh.size
    images = shaped(mesh, jax.ShapeDtypeStruct((rows, *model.config.encoder.image_size, 3), jnp.uint8), PartitionSpec("data"))
    limits = shaped(mesh, jax.ShapeDtypeStruct((rows,), jnp.int32), PartitionSpec("data"))
    placed = shaped(mesh, model, PartitionSpec())
    return sharding.data_parallel.lower(placed, images, None, limits, work, mesh).compile()


def compile_engine(mesh: Mesh, model: TrOCR, batch_size: int, tokens: int) -> Compiled:
    """The engine's `advance` on every chip, each with `batch_size` slots of its own."""
    state = jax.eval_shape(lambda: device.empty(model, batch_size * mesh.size, tokens))
    data = PartitionSpec("data")
    specs = jax.tree.map(lambda _: data, state)
    cache = jax.tree.map(lambda _: PartitionSpec(None, "data"), state.cache)  # [L,B,...]
    specs = type(state)(**{**vars(specs), "cache": cache})
    advance = jax.shard_map(
        lambda model, state: device.advance(model, state, GenerateConfig(tokens)), mesh=mesh,
        in_specs=(PartitionSpec(), specs), out_specs=(specs, PartitionSpec(None, "data")), check_vma=False,
    )  # fmt: skip
    placed = jax.tree.map(lambda x, spec: shaped(mesh, x, spec), state, specs)
    return jax.jit(advance, donate_argnums=1).lower(shaped(mesh, model, PartitionSpec()), placed).compile()


def shaped(mesh: Mesh, tree: Any, spec: PartitionSpec) -> Any:
    """Shapes with a place on the mesh."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), tree)


if __name__ == "__main__":
    raise SystemExit(program("trocr_jax.serve.tpu"))
