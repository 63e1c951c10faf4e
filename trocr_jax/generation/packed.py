"""A model made ready for the programs once, instead of in every call of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import jax

from ..model import TrOCR
from ..network.attention import for_one_device
from ..network.layers import Array
from ..network.step_layers import StepLayers, Unrolled


class Structure:
    """How a pytree is put together again, compared by identity: comparing it in full would cost what `Packed` saves."""

    def __init__(self, treedef: Any):
        self.treedef = treedef


structure = cache(Structure)
"""One Structure for equal pytrees, so that readers and engines share compiled programs."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A model ready for the programs, as a plain list of its arrays: an NNX module is taken apart in Python, which at every
    call costs as much as half a decoding step of a small model.
    """

    leaves: list[Array]
    structure: Structure = field(metadata={"static": True})


def pack(model: TrOCR, backend: str | None = None) -> Packed:
    """Lays the decoder's layers out once, which inside a program would be copied at every call; the device then holds them twice.
    On a TPU it has the kernels of `network.fused`, so that a program of it is for one device.

    Args:
        backend: the kind of device, by default the one that JAX uses.
    """
    backend = backend or jax.default_backend()
    model = for_one_device(model, backend)
    layers = _laid_out(model, backend)
    leaves, treedef = jax.tree.flatten((model, layers))
    return Packed(leaves, structure(treedef))


@partial(jax.jit, static_argnames="backend")
def _laid_out(model: TrOCR, backend: str) -> Unrolled:
    return model.decoder.step_layers().only_for(backend)


def unpack(model: TrOCR | Packed) -> tuple[TrOCR, StepLayers | Unrolled]:
    """The model, and the decoder's layers for its steps: those laid out beside it, or all layouts; inside a program."""
    if isinstance(model, TrOCR):
        return model, model.decoder.step_layers()
    return jax.tree.unflatten(model.structure.treedef, model.leaves)


def model_of(model: TrOCR | Packed) -> TrOCR:
    """The model alone; inside a program."""
    return model if isinstance(model, TrOCR) else unpack(model)[0]
