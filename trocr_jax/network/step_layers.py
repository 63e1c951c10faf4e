"""The decoder's layers as decoding steps read them: for every kind of device the layout that it need not copy at each step.

Letters: B rows, images, P cached positions, S image tokens, E their width, D width, V vocabulary.
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
    """All layers one by one, for a CPU or a GPU, which would copy what a scan slices.

    Attributes:
        layers: in order.
        head: [V,D], the transposed kernel of an untied head, where these layers have transposed kernels, too; else None.
    """

    layers: list[StepLayer]
    head: Array | None = None

    def __call__(self, x: Array, memory: Array, cache: KVCache, position: Array) -> tuple[Array, KVCache]:
        """One token a row, x [B,D], through all layers, with memory [images,S,E] -> [B,D] and the cache."""
        for index, layer in enumerate(self.layers):
            x, cache = layer(x, memory, cache, jnp.int32(index), position)
        return x, cache

    def transposed(self, head: Array | None) -> Unrolled:
        """The layers with transposed kernels, for `layers.matmul_few_rows`, and with an untied head's [D,V] transposed, too."""
        return Unrolled([layer.transposed() for layer in self.layers], None if head is None else head.T)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepLayers:
    """All layers in every layout; the device that a program is compiled for picks its own.

    Attributes:
        stacked: for a scan.
        on_cpu: with transposed kernels where those are faster.
        on_gpu: one by one.
    """

    stacked: StepLayer
    on_cpu: Unrolled
    on_gpu: Unrolled

    @classmethod
    def of(cls, layers: Any, head: Array | None) -> StepLayers:
        """Lays out stacked `DecoderLayer`s, and the kernel [D,V] of the head if it is not tied to the embedding."""
        stacked = jax.vmap(StepLayer.of)(layers)
        count, size = layers.mlp_norm.scale.shape
        single = Unrolled([jax.tree.map(lambda p, i=i: p[i], stacked) for i in range(count)])
        transposes = size >= TRANSPOSED_FROM and layers.mlp.fc1.kernel.dtype == jnp.float32
        return cls(stacked, single.transposed(head) if transposes else single, single)

    @property
    def head(self) -> Array | None:
        """The head's transposed kernel [V,D], or None, see `Unrolled`."""
        return self.on_cpu.head

    def only_for(self, backend: str) -> Unrolled | None:
        """What one kind of device reads, if that is worth keeping beside the model: a TPU reads what is there already."""
        return {"cpu": self.on_cpu, "gpu": self.on_gpu}.get(backend)

    def __call__(self, x: Array, memory: Array, cache: KVCache, position: Array) -> tuple[Array, KVCache]:
        """One token a row through all layers, see `Unrolled`."""
        ways = {"cpu": self.on_cpu, "cuda": self.on_gpu, "rocm": self.on_gpu, "default": self._scan}
        return jax.lax.platform_dependent(x, memory, cache, position, **ways)

    def _scan(self, x: Array, memory: Array, cache: KVCache, position: Array) -> tuple[Array, KVCache]:
        def body(carry: tuple[Array, KVCache], xs: tuple[StepLayer, Array]) -> tuple[tuple[Array, KVCache], None]:
            layer, index = xs
            return layer(carry[0], memory, carry[1], index, position), None

        return jax.lax.scan(body, (x, cache), (self.stacked, jnp.arange(cache.keys.shape[0])))[0]
