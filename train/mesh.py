"""Where state and batches lie: a mesh of all devices, batches cut over "data", the state copied to all or cut as well.

The state is cut over "model" by the library's rules (tensor parallel), over "data" by size (FSDP), or by both. By size, since
`sharding.FSDP` names one axis of a parameter and leaves it whole where the devices do not divide that, as 50,265 tokens.

The compiler makes the communication from the placement; the same program runs on one device and on many hosts.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trocr_jax import sharding

AXIS = sharding.DATA
SMALL = 2**14  # numbers; what is smaller is not worth cutting


def make_mesh(devices: int | None = None, axes: str | None = None) -> Mesh:
    """All devices of all hosts, or only the first ones, along "data"; or as `axes` says, "data=4,model=2".

    Raises:
        ValueError: there are not so many, `axes` is no mesh, or a host is left without a device.
    """
    available = jax.devices()
    if devices and devices > len(available):
        raise ValueError(f"--devices {devices}, but there are {len(available)}")
    mesh = sharding.make_mesh(axes or {sharding.DATA: devices or len(available), sharding.MODEL: 1}, available)
    idle = sorted({*range(jax.process_count())} - {device.process_index for device in mesh.devices.flat})
    if idle:  # said on all hosts, so that none waits for another
        raise ValueError(
            f"none of the mesh's {mesh.size} devices is on host {', '.join(map(str, idle))}: use all, or fewer hosts"
        )
    return mesh


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh, cut: bool) -> Any:
    """A sharding for every array of a state.

    Args:
        state: arrays under the parameters' names, once for each kind (masters, averages, moments of the optimizer).
        cut: whether to cut over "data" as well, along the largest axis that it divides and "model" has not taken (ZeRO-3).
    """

    def place(path: Any, x: Any) -> NamedSharding:
        name = str(getattr(path[-1], "key", ""))
        axes = list(sharding.sharding_of(name, x.shape, mesh, sharding.default_rules(mesh)).spec)
        sizes = [n if axis is None and n % mesh.shape[AXIS] == 0 else 0 for n, axis in zip(x.shape, axes, strict=True)]
        if cut and any(sizes) and x.size >= SMALL:
            axes[int(np.argmax(sizes))] = AXIS
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(place, state)


def own_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of every global batch that this host puts on its devices, in order.

    Not always neighbours: on a TPU the mesh follows the wires between the chips, which lead from one host to another and back.

    Raises:
        ValueError: the batch cannot be cut evenly.
    """
    parts = mesh.shape[AXIS]
    if batch_size % parts:
        raise ValueError(f"--batch-size {batch_size} must be a multiple of the {parts} devices that it is cut over")
    places = NamedSharding(mesh, PartitionSpec(AXIS)).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for place in places if place for row in range(batch_size)[place[0]]})


def global_array(mesh: Mesh, rows: np.ndarray, batch_size: int) -> jax.Array:
    """This host's rows, those of `own_rows`, as its part of the global batch."""
    place = {row: i for i, row in enumerate(own_rows(mesh, batch_size))}
    each = batch_size // mesh.shape[AXIS]

    def part(index: Any) -> np.ndarray:
        first = place[index[0].start or 0]
        return rows[first : first + each]

    return jax.make_array_from_callback((batch_size, *rows.shape[1:]), NamedSharding(mesh, PartitionSpec(AXIS)), part)
