"""Compiles the reading programs for an H100 that this machine need not have: memory, and each loop's kernels and bytes a round.

XLA's plugin for CUDA (`pip install 'trocr-jax[cuda]'`) compiles for a described GPU on any machine. Without one it cannot try
kernels out: products are cuBLAS's here, where a GPU would choose between those and Triton's, and nothing was run or timed.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from trocr_jax import ahead_of_time, program_text
from trocr_jax.cli import program
from trocr_jax.config import PRESETS
from trocr_jax.generation.packed import pack
from trocr_jax.model import TrOCR
from trocr_jax.network import attention
from trocr_jax.terminal import check_known

from . import tpu

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  device_memory_size: 84978434048  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
}
platform_name: "CUDA"  device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }  runtime_version { major: 13 }
"""
"""An H100 as XLA's `GpuTargetConfigProto`; figures from NVIDIA's data sheet for the SXM5 and its CUDA programming guide."""


@dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = ("microsoft/trocr-base-handwritten", "microsoft/trocr-large-handwritten")
    """Presets."""
    batch_size: int = 256
    """Images, or slots of the engine."""
    tokens: int = 20
    """Most new tokens."""
    beams: tuple[int, ...] = (1, 4)
    """Each compiled on its own; 1 is greedy."""
    engine: bool = False
    """Compile the step of the continuous engine too."""


def run(config: Config) -> int:
    """Prints a row a program and a row a loop, then a JSON line."""
    check_known("model", config.models, PRESETS)
    mesh = described_mesh()
    attention.has_flash_attention = lambda q, k: q.dtype.itemsize == 2  # there is no GPU here to try cuDNN's attention on
    programs = [row for name in config.models for row in measure(mesh, name, config)]
    print(json.dumps({"gpu": "H100, described", "batch_size": config.batch_size, "programs": programs}))
    return 0


def described_mesh() -> Mesh:
    """A mesh of one described H100. Comes before anything else of jax, which reads these settings once.

    Raises:
        ValueError: jax has no plugin for CUDA here.
    """
    from jax.experimental import topologies

    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_triton_gemm=false"
    jax.config.update("jax_platforms", "cuda,cpu")
    try:
        devices = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=H100).devices
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"jax cannot compile for CUDA here: pip install 'trocr-jax[cuda]' ({error})") from None
    return ahead_of_time.data_mesh(devices)


def measure(mesh: Mesh, name: str, config: Config) -> list[dict[str, Any]]:
    """A model's programs in bfloat16, and what is in them."""
    model = TrOCR.abstract(PRESETS[name], jnp.bfloat16)
    size = (config.batch_size, config.tokens)
    compilations = {
        "greedy" if beams == 1 else f"{beams} beams": partial(tpu.compile_reading, mesh, model, *size, beams)
        for beams in config.beams
    }
    if config.engine:
        compilations["engine"] = partial(tpu.compile_engine, mesh, jax.eval_shape(partial(pack, backend="gpu"), model), *size)
    return [described(name, label, compile_it()) for label, compile_it in compilations.items()]


def described(name: str, label: str, program: Any) -> dict[str, Any]:
    """Memory and loops of one program."""
    held = ahead_of_time.bytes_held(program)
    print(f"{name:<36} {label:<8} {held / 2**30:6.2f} GiB", file=sys.stderr)
    found = program_text.loops(program_text.parse(program.as_text()))
    loops = [loop(source, round_) for source, round_ in found if len(round_) > 3]
    return {"model": name, "program": label, "bytes": held, "loops": loops}


def loop(source: str, round_: list[program_text.Kernel]) -> dict[str, Any]:
    """One round of a loop: a layer of the encoder, or a step of the decoder."""
    moved = sum(kernel.bytes for kernel in round_)
    print(f"    {len(round_):4d} kernels {moved / 1e6:10,.1f} MB a round of {source}", file=sys.stderr)
    return {"source": source, "kernels": len(round_), "bytes": moved}


if __name__ == "__main__":
    raise SystemExit(program("trocr_jax.serve.gpu"))
