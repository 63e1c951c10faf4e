"""Programs compiled for chips that this machine need not have, from a description: their mesh, memory, messages and cost.

libtpu and XLA's plugin for CUDA do that on any machine. What comes out are the compiler's figures, not measurements.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

from . import program_text
from .chips import Chip, Cost
from .sharding import DATA

_COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def tpu_mesh(topology: str) -> Mesh:
    """The chips of a topology, as libtpu names it ("v5e:2x2"), along "data"."""
    from jax.experimental import topologies

    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    if topology.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # both cores as one device, as jax runs them; not described so by itself
    return data_mesh(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)


def data_mesh(devices: Sequence[Any]) -> Mesh:
    """Described devices along "data"."""
    return Mesh(np.array(devices), (DATA,), axis_types=(AxisType.Auto,))


def bytes_held(program: Any) -> int:
    """Memory that a compiled program takes on each chip; an output in a donated argument's place is counted once."""
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes


def collectives(program: Any) -> Counter[str]:
    """How often each kind of message between chips occurs in a compiled program."""
    return Counter(_COLLECTIVE.findall(program.as_text()))


def kernels(program: Any) -> int:
    """How many calls of kernels that are not the compiler's own a TPU's program has; one inside of a loop counts once."""
    return program.as_text().count('custom_call_target="tpu_custom_call"')


def cost(program: Any, chip: Chip, rounds: Sequence[int] = ()) -> Cost:
    """What a compiled program makes a chip do.

    It and each round of its loops take as long as the longer of two: their bytes, which may all move while something else is
    computed, and their cycles as the compiler estimates them, one kernel after the other. Of a kernel that is not the compiler's
    own it knows what that claims to compute, here done at the chip's peak.

    Args:
        rounds: see `program_text.phases`.

    Raises:
        ValueError: there is something in the program that cannot be counted.
    """
    phases = program_text.phases(program_text.parse(program.as_text()), iter(rounds))
    return sum((_once(kernels, chip) * times for times, kernels in phases), Cost())


def _once(kernels: list[program_text.Kernel], chip: Chip) -> Cost:
    moved, cycles, claimed = (sum(getattr(kernel, what) for kernel in kernels) for what in ("bytes", "cycles", "claimed"))
    return Cost(max(moved / chip.bandwidth, cycles / chip.clock + claimed / chip.flops), moved)
