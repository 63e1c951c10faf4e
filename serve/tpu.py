"""Compiles the decoding programs for a TPU that is not there: memory a chip, and that the chips do not wait for each other.

libtpu compiles for a described topology on any machine. What it prints are compiler figures, not measurements.
"""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from trocr_jax.config import PRESETS
from trocr_jax.decoding import GenerateConfig, read_pixels
from trocr_jax.model import TrOCR

HALF = (0.5, 0.5, 0.5)
COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(")


@dataclass(frozen=True)
class Config:
    topology: str = "v5e:1x1"
    """As libtpu names it: v5e:1x1, v5e:2x2, v5e:4x4, v6e:2x2, v5p:2x2x1, ..."""
    models: tuple[str, ...] = ("microsoft/trocr-base-handwritten", "microsoft/trocr-large-handwritten")
    """Presets."""
    batch_size: int = 64
    """Images a chip."""
    tokens: int = 64
    """Most new tokens."""
    beams: tuple[int, ...] = (1, 4)
    """Each compiled on its own; 1 is greedy."""


def run(config: Config) -> int:
    """Prints a row a program, then a JSON line."""
    mesh = topology_mesh(config.topology)
    programs = [measure(mesh, name, beams, config) for name in config.models for beams in config.beams]
    print(
        json.dumps({"topology": config.topology, "chips": mesh.size, "batch_per_chip": config.batch_size, "programs": programs})
    )
    return 0


def topology_mesh(name: str) -> Mesh:
    """The chips of a topology as a mesh over "data"."""
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def measure(mesh: Mesh, name: str, beams: int, config: Config) -> dict[str, Any]:
    """Compiles one data-parallel reading program in bfloat16 and tells what the compiler says of it."""
    began = time.perf_counter()
    program = compile_reading(mesh, TrOCR.abstract(PRESETS[name], jnp.bfloat16), beams, config)
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes
    row = {
        "model": name, "beams": beams, "bytes_per_chip": held, "collectives": len(COLLECTIVE.findall(program.as_text())),
        "compile_s": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    print(
        f"{name:<36} beams {beams}  {held / 2**30:6.2f} GiB a chip  {row['collectives']} collectives  {row['compile_s']:6.1f} s",
        file=sys.stderr,
    )
    return row


def compile_reading(mesh: Mesh, model: TrOCR, beams: int, config: Config) -> Any:
    """`read_pixels` under shard_map over "data", replicated weights: each chip reads its own images and stops on its own."""
    options = GenerateConfig(config.tokens, num_beams=beams)
    reading = jax.shard_map(
        partial(_read, options), mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("data")), out_specs=PartitionSpec("data"),
        check_vma=False,
    )  # fmt: skip
    everywhere, shared_out = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), model)
    shape = (config.batch_size * mesh.size, *model.config.encoder.image_size, 3)
    return jax.jit(reading).lower(placed, jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=shared_out)).compile()


def _read(options: GenerateConfig, model: TrOCR, images: jax.Array) -> Any:
    return read_pixels(model, images, options, HALF, HALF)


if __name__ == "__main__":
    import tyro

    raise SystemExit(run(tyro.cli(Config)))
