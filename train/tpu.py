"""Compiles the training step for a TPU that this machine need not have: memory per chip, and what chips send each other.

libtpu compiles for a described topology on any machine. What it prints are compiler figures, not measurements.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m trocr_jax.train.tpu --topology v5e:2x2
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled

from trocr_jax import ahead_of_time
from trocr_jax.chips import Chip, chip_of, estimate
from trocr_jax.cli import program
from trocr_jax.config import PRESETS
from trocr_jax.model import TrOCR
from trocr_jax.terminal import check_known

from . import mesh as meshes
from .config import OptimizerConfig
from .optimizer import make_optimizer
from .parameters import named
from .step import StepConfig, make_step, new_state


@dataclass(frozen=True)
class Config:
    """What to compile.

    Attributes:
        topology: as libtpu names it: v5e:2x2, v5e:16x16, v6e:2x2, v5p:2x2x1, ...
        models: presets.
        batch_size: lines a chip.
        tokens: how many tokens a label has.
        remat: compute activations twice instead of keeping them.
        fsdp: cut the state over the chips.
        dollars: price of a chip an hour; by default its list price.
    """

    topology: str = "v5e:2x2"
    models: tuple[str, ...] = ("microsoft/trocr-base-stage1", "microsoft/trocr-large-stage1")
    batch_size: int = 8
    tokens: int = 64
    remat: bool = True
    fsdp: bool = False
    dollars: float | None = None


def run(config: Config) -> int:
    """Prints a row a model, then a JSON line."""
    check_known("model", config.models, PRESETS)
    chip, mesh = known_chip(config.topology), ahead_of_time.tpu_mesh(config.topology)
    rows = [measure(mesh, name, chip, config) for name in config.models]
    print(json.dumps({"topology": config.topology, "chips": mesh.size, "batch_per_chip": config.batch_size, "programs": rows}))
    return 0


def known_chip(topology: str) -> Chip | None:
    """The chip of a topology; None where its rates are not known, and stderr says so."""
    try:
        return chip_of(topology)
    except ValueError as error:
        print(f"{error}; rows have no estimates", file=sys.stderr)
        return None


def measure(mesh: Mesh, name: str, chip: Chip | None, config: Config) -> dict[str, Any]:
    """Compiles one step in bfloat16 with float32 masters and tells what the compiler says of it; no estimates without a chip."""
    began = time.perf_counter()
    program = compile_step(mesh, name, config)
    held, collectives = ahead_of_time.bytes_held(program), ahead_of_time.collectives(program)
    seconds = round(time.perf_counter() - began, 1)
    row = {"model": name, "bytes_per_chip": held, "collectives": dict(collectives), "compile_s": seconds}
    if chip:
        row |= estimate(ahead_of_time.cost(program, chip), chip, config.batch_size, mesh.size, config.dollars)
    said = ", ".join(f"{count} {kind}" for kind, count in collectives.items()) or "no collectives"
    print(f"{name:<32} {held / 2**30:6.2f} GiB a chip  {said}  {seconds:6.1f} s", file=sys.stderr)
    return row


def compile_step(mesh: Mesh, name: str, config: Config) -> Compiled:
    """The step of training, with shapes in place of numbers."""
    model = PRESETS[name]
    parameters = named(TrOCR.abstract(model))
    step_config = StepConfig(model, frozenset(parameters), dtype="bfloat16", remat=config.remat)
    optimizer = make_optimizer(OptimizerConfig(), 1000, {})
    shapes = jax.eval_shape(lambda p: new_state(step_config, p, {}, optimizer, 0), parameters)
    shardings = meshes.state_shardings(shapes, mesh, config.fsdp)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    rows, cut = config.batch_size * mesh.size, NamedSharding(mesh, PartitionSpec(meshes.AXIS))
    images = jax.ShapeDtypeStruct((rows, *model.encoder.image_size, 3), jnp.uint8, sharding=cut)
    labels = jax.ShapeDtypeStruct((rows, config.tokens), jnp.int32, sharding=cut)
    step: Any = make_step(optimizer, step_config, (shardings, meshes.replicated(mesh)))
    return step.lower(state, images, labels).compile()


if __name__ == "__main__":
    raise SystemExit(program("trocr_jax.train.tpu"))
