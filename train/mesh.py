"""Where state and batches lie: a mesh of all devices, batches cut over it, the state copied to all or cut as well.

The compiler makes the communication from the placement; the same program runs on one device and on many hosts.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
SMALL = 2**14  # numbers; what is smaller is not worth cutting


def make_mesh(devices: int = 0) -> Mesh:
    """All devices of all hosts, or the first so many, along one axis.

    Raises:
        ValueError: there are not so many.
    """
    available = jax.devices()
    if devices > len(available):
        raise ValueError(f"--devices {devices}, but there are {len(available)}")
    chosen = available[: devices or None]
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh, cut: bool) -> Any:
    """A sharding for every array of a state: copied to all devices, or its largest divisible axis cut over them (ZeRO-3)."""

    def place(x: Any) -> NamedSharding:
        sizes = [size if size % mesh.size == 0 else 0 for size in x.shape]
        if not cut or not any(sizes) or x.size < SMALL:
            return replicated(mesh)
        axis = int(np.argmax(sizes))
        return NamedSharding(mesh, PartitionSpec(*[AXIS if i == axis else None for i in range(x.ndim)]))

    return jax.tree.map(place, state)


def own_rows(mesh: Mesh, batch_size: int) -> range:
    """The rows of every global batch that this host puts on its devices.

    Raises:
        ValueError: the batch cannot be cut evenly.
    """
    if batch_size % mesh.size:
        raise ValueError(f"--batch-size {batch_size} must be a multiple of the {mesh.size} devices")
    places = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    each = batch_size // mesh.size
    return range(places[0] * each, (places[-1] + 1) * each)


def global_array(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """This host's rows as its part of the global batch."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), rows)
