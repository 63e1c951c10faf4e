"""Programs compiled for chips that this machine need not have, from a description: their mesh, memory, messages and cost.

libtpu and XLA's plugin for CUDA do that on any machine. What comes out are the compiler's figures, not measurements.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, SingleDeviceSharding

from .chips import Chip, Cost
from .sharding import DATA

_COLLECTIVE = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def tpu_mesh(topology: str) -> Mesh:
    """The chips of a topology, as libtpu names it ("v5e:2x2"), along "data"."""
    from jax.experimental import topologies

    options = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
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


def cost(function: Callable[..., Any], shapes: tuple[Any, ...], mesh: Mesh, chip: Chip, donate: tuple[int, ...] = ()) -> Cost:
    """The cost of a function that is compiled by itself for one chip of the mesh, its arrays laid out as it likes them best: in
    a program, or in a loop's carry, they lie so from the start.

    Args:
        shapes: those of its arguments, as trees of `jax.ShapeDtypeStruct`.
        donate: arguments that come back changed, as a loop's carry does.
    """
    from jax.experimental.layout import Format, Layout

    free = Format(Layout.AUTO, SingleDeviceSharding(mesh.devices.flat[0]))
    compiled = jax.jit(function, donate_argnums=donate, in_shardings=free, out_shardings=free).lower(*shapes).compile()
    analysis: Any = compiled.cost_analysis()
    return Cost.of(analysis, chip)


def unstacked(layers: Any) -> Any:
    """The shapes of one layer, from those of stacked layers."""
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), layers)
