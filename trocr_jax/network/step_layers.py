"""The decoder's layers as decoding steps read them: for every kind of device the layout that it need not copy at each step.

Letters: B rows, images, S image tokens, E their width, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .decoder_layer import StepLayer
from .kv_cache import KVCache
from .layers import Array

TRANSPOSED_FROM = 512
"""The width from which a CPU's steps take float32 kernels transposed: narrower or in bfloat16 they would be no faster."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)  # by identity: JAX hashes what it calls
class Unrolled:
    """All layers one by one: what a scan slices from stacked ones would be copied at every step.

    Attributes:
        layers: in order.
        head: [V,D], the transposed kernel of an untied head, where these layers have transposed kernels, too; else None.
    """

    layers: list[StepLayer]
    head: Array | None = None

    def __call__(self, x: Array, memory: Array, cache: KVCache, position: Array) -> tuple[Array, KVCache]:
        """One token a row, x [B,D], through all layers, with memory [images,S,E] -> [B,D] and the cache."""
        caches = []
        for layer, own in zip(self.layers, cache.layers, strict=True):
            x, own = layer(x, memory, own, position)
            caches.append(own)
        return x, KVCache(tuple(caches))

    def transposed(self, head: Array | None) -> Unrolled:
        """The layers with transposed kernels, for `layers.matmul_few_rows`, and with an untied head's [D,V] transposed, too."""
        return Unrolled([layer.transposed() for layer in self.layers], None if head is None else head.T)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepLayers:
    """All layers in both layouts; the device that a program is compiled for picks its own.

    Attributes:
        on_cpu: with transposed kernels where those are faster.
        elsewhere: as they are.
    """

    on_cpu: Unrolled
    elsewhere: Unrolled

    @classmethod
    def of(cls, layers: Any, head: Array | None) -> StepLayers:
        """Lays out stacked `DecoderLayer`s, and the kernel [D,V] of the head if it is not tied to the embedding."""
        count, size = layers.mlp_norm.scale.shape
        single = Unrolled([StepLayer.of(jax.tree.map(lambda p, i=i: p[i], layers)) for i in range(count)])
        transposes = size >= TRANSPOSED_FROM and layers.mlp.fc1.kernel.dtype == jnp.float32
        return cls(single.transposed(head) if transposes else single, single)

    @property
    def head(self) -> Array | None:
        """The head's transposed kernel [V,D], or None, see `Unrolled`."""
        return self.on_cpu.head

    def only_for(self, backend: str) -> Unrolled:
        """What one kind of device reads."""
        return self.on_cpu if backend == "cpu" else self.elsewhere

    def __call__(self, x: Array, memory: Array, cache: KVCache, position: Array) -> tuple[Array, KVCache]:
        """One token a row through all layers, see `Unrolled`."""
        return jax.lax.platform_dependent(x, memory, cache, position, cpu=self.on_cpu, default=self.elsewhere)
