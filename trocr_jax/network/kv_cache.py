"""Self-attention's keys and values of the tokens decoded so far, in the layout that a device's steps read best.

Letters: B rows, N heads, P positions, H head dim, D the width N x H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from .layers import Array, Dtype, softmax_dtype


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """One layer's. Heads before positions: the order that a step multiplies them in, or a CPU would transpose all of it.

    Attributes:
        keys: [B,N,P,H]
        values: [B,N,P,H]
    """

    keys: Array
    values: Array
    axis_of_positions: ClassVar[int] = 2

    @classmethod
    def empty(cls, rows: int, heads: int, positions: int, size: int, dtype: Dtype) -> Self:
        """Zeros for heads of this size."""
        shape = (rows, heads, positions, size)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @property
    def positions(self) -> int:
        """How many it has room for."""
        return self.keys.shape[self.axis_of_positions]

    def rows(self, indices: Array) -> Self:
        """The cache of rows [B'] picked by index: beams that swap places."""
        return type(self)(self.keys[indices], self.values[indices])

    def widened(self, positions: int) -> Self:
        """The cache with room for this many positions, which are no fewer than it has."""
        room = [(0, 0)] * self.keys.ndim
        room[self.axis_of_positions] = (0, positions - self.positions)
        return type(self)(jnp.pad(self.keys, room), jnp.pad(self.values, room))

    def written(self, key: Array, value: Array, position: Array) -> Self:
        """With key and value [B,N,H] at a position, one for all rows or one a row [B] (the engine's slots)."""
        return type(self)(self._put(self.keys, key, position), self._put(self.values, value, position))

    def attend(self, query: Array, position: Array) -> Array:
        """Queries [B,N,H] against the positions 0..position -> [B,N,H]."""
        scores = jnp.einsum("bnh,bnph->bnp", query, self.keys, preferred_element_type=softmax_dtype(query))
        return jnp.einsum("bnp,bnph->bnh", _weights(scores, query, position), self.values)

    @staticmethod
    def _put(cache: Array, new: Array, position: Array) -> Array:
        if position.ndim:
            return cache.at[jnp.arange(new.shape[0]), :, position].set(new)
        return _put_slice(cache, new[:, :, None], 0, 0, position, 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlatLayerCache(LayerCache):
    """One layer's, heads side by side, for a TPU: those of 64 alone would fill half of its registers of 128.

    A row's query is one row of a matrix, and such products a TPU does number by number, without its matrix units. Here the
    queries of all heads are the rows, each zero but for its own head's columns.

    Attributes:
        keys: [B,P,D]
        values: [B,P,D]
    """

    axis_of_positions: ClassVar[int] = 1

    @classmethod
    def empty(cls, rows: int, heads: int, positions: int, size: int, dtype: Dtype) -> Self:
        shape = (rows, positions, heads * size)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def attend(self, query: Array, position: Array) -> Array:
        B, N, H = query.shape
        own = jnp.eye(N, dtype=bool)[:, :, None]
        queries = jnp.where(own, query[:, None], 0).reshape(B, N, N * H)
        scores = jnp.einsum("bnd,bpd->bnp", queries, self.keys, preferred_element_type=softmax_dtype(query))
        weights = _weights(scores, query, position)
        sums = jnp.einsum("bnp,bpd->bnd", weights, self.values, preferred_element_type=softmax_dtype(query))
        return jnp.where(own, sums.reshape(B, N, N, H), 0).sum(axis=1).astype(query.dtype)

    @staticmethod
    def _put(cache: Array, new: Array, position: Array) -> Array:
        new = new.reshape(new.shape[0], -1)
        if position.ndim:
            return cache.at[jnp.arange(new.shape[0]), position].set(new)
        return _put_slice(cache, new[:, None], 0, position, 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Every layer's, each in arrays of its own: a slice of one array for all is copied at every step.

    Attributes:
        layers: in order.
    """

    layers: tuple[LayerCache, ...]

    @property
    def positions(self) -> int:
        """How many it has room for."""
        return self.layers[0].positions

    def rows(self, indices: Array) -> KVCache:
        """See `LayerCache.rows`."""
        return KVCache(tuple(layer.rows(indices) for layer in self.layers))

    def widened(self, positions: int) -> KVCache:
        """See `LayerCache.widened`."""
        return KVCache(tuple(layer.widened(positions) for layer in self.layers))


def _put_slice(cache: Array, new: Array, *start: Any) -> Array:
    return jax.lax.dynamic_update_slice(cache, new, [jnp.asarray(place, jnp.int32) for place in start])


def _weights(scores: Array, query: Array, position: Array) -> Array:
    """Softmax of unscaled scores [B,N,P] over the positions 0..position, in the dtype of the queries [B,N,H]."""
    seen = jnp.arange(scores.shape[-1], dtype=position.dtype) <= position[..., None]
    scores = jnp.where(jnp.atleast_2d(seen)[:, None], scores * query.shape[-1] ** -0.5, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1).astype(query.dtype)
