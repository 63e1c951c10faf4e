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
    """All devices of all hosts, or the first so many, along "data"; or as `axes` says, "data=4,model=2".

    Raises:
        ValueError: there are not so many, or `axes` is no mesh.
    """
    available = jax.devices()
    if axes:
        return sharding.make_mesh(axes, available)
    if devices and devices > len(available):
        raise ValueError(f"--devices {devices}, but there are {len(available)}")
    return sharding.make_mesh({sharding.DATA: devices or len(available), sharding.MODEL: 1}, available)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh, cut: bool) -> Any:
    """A sharding for every array of a state.

    Args:
        state: arrays under the parameters' names, as often as there are (masters, averages, moments of the optimizer).
        cut: over "data" as well, along the largest axis that it divides and "model" has not taken (ZeRO-3).
    """

    def place(path: Any, x: Any) -> NamedSharding:
        name = str(getattr(path[-1], "key", ""))
        axes = list(sharding.sharding_of(name, x.shape, mesh, sharding.default_rules(mesh)).spec)
        sizes = [n if axis is None and n % mesh.shape[AXIS] == 0 else 0 for n, axis in zip(x.shape, axes, strict=True)]
        if cut and any(sizes) and x.size >= SMALL:
            axes[int(np.argmax(sizes))] = AXIS
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(place, state)


def own_rows(mesh: Mesh, batch_size: int) -> range:
    """The rows of every global batch that this host puts on its devices.

    Raises:
        ValueError: the batch cannot be cut evenly.
    """
    parts = mesh.shape[AXIS]
    if batch_size % parts:
        raise ValueError(f"--batch-size {batch_size} must be a multiple of the {parts} devices that it is cut over")
    devices = mesh.devices.reshape(parts, -1)
    places = [i for i, row in enumerate(devices) if any(device.process_index == jax.process_index() for device in row)]
    each = batch_size // parts
    return range(places[0] * each, (places[-1] + 1) * each)


def global_array(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """This host's rows as its part of the global batch."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), rows)
