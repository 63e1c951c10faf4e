"""What programs ask of the mesh that their arrays lie on."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jax.sharding import AxisType

Array = jax.Array
X = TypeVar("X")


def varying(state: X, *read: Any) -> X:
    """What a loop begins with, as varying over the mesh axes that any array in `read` varies over. Inside a `jax.shard_map` new
    buffers vary over none, and what a loop carries may not change in that.
    """

    def axes(x: Array) -> frozenset[str]:
        return jax.typeof(x).manual_axis_type.varying

    wanted = frozenset[str]().union(*map(axes, jax.tree.leaves(read)))
    return jax.tree.map(lambda x: jax.lax.pcast(x, tuple(wanted - axes(x)), to="varying"), state)


def refuse_explicit(*arrays: Any) -> None:
    """Raises ValueError where arrays lie on a mesh with Explicit axes: no operation here says where its result lies."""
    for x in jax.tree.leaves(arrays):
        if AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types:
            raise ValueError(
                "the arrays lie on a mesh with Explicit axes, jax.make_mesh's default: "
                "give it axis_types=(AxisType.Auto,) * axes, or call this through jax.sharding.auto_axes"
            )
