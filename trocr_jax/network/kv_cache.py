"""Self-attention's keys and values of the tokens decoded so far, in the layout that a device's steps read best.

Letters: L layers, B rows, N heads, P positions, H head dim, D the width N x H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from .layers import Array, Dtype, softmax_dtype


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Heads before positions: the order that a step multiplies them in, or a CPU would transpose all of it.

    Attributes:
        keys: [L,B,N,P,H]
        values: [L,B,N,P,H]
    """

    keys: Array
    values: Array
    axis_of_positions: ClassVar[int] = 3

    @classmethod
    def empty(cls, layers: int, rows: int, heads: int, positions: int, size: int, dtype: Dtype) -> Self:
        """Zeros for heads of this size."""
        shape = (layers, rows, heads, positions, size)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    @property
    def positions(self) -> int:
        """How many it has room for."""
        return self.keys.shape[self.axis_of_positions]

    def rows(self, indices: Array) -> Self:
        """The cache of rows [B'] picked by index: beams that swap places."""
        return type(self)(self.keys[:, indices], self.values[:, indices])

    def widened(self, positions: int) -> Self:
        """The cache with room for this many positions, which are no fewer than it has."""
        room = [(0, 0)] * self.keys.ndim
        room[self.axis_of_positions] = (0, positions - self.positions)
        return type(self)(jnp.pad(self.keys, room), jnp.pad(self.values, room))

    def written(self, key: Array, value: Array, layer: Array, position: Array) -> Self:
        """With key and value [B,N,H] at a layer and position, one for all rows or one a row [B] (the engine's slots)."""
        return type(self)(self._put(self.keys, key, layer, position), self._put(self.values, value, layer, position))

    def attend(self, query: Array, layer: Array, position: Array) -> Array:
        """Queries [B,N,H] against positions 0..position of a layer -> [B,N,H]."""
        keys, values = self.keys[layer], self.values[layer]
        scores = jnp.einsum("bnh,bnph->bnp", query, keys, preferred_element_type=softmax_dtype(query))
        return jnp.einsum("bnp,bnph->bnh", _weights(scores, query, position), values)

    @staticmethod
    def _put(cache: Array, new: Array, layer: Array, position: Array) -> Array:
        if position.ndim:
            return cache.at[layer, jnp.arange(new.shape[0]), :, position].set(new)
        return _put_slice(cache, new[None, :, :, None], layer, 0, 0, position, 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FlatKVCache(KVCache):
    """Heads side by side, for a TPU: those of 64 alone would fill half of its registers of 128.

    A row's query is one row of a matrix, and such products a TPU does by multiplying and adding up number by number, without its
    matrix units. Here the queries of all heads are the rows, each zero but for its own head's columns.

    Attributes:
        keys: [L,B,P,D]
        values: [L,B,P,D]
    """

    axis_of_positions: ClassVar[int] = 2

    @classmethod
    def empty(cls, layers: int, rows: int, heads: int, positions: int, size: int, dtype: Dtype) -> Self:
        shape = (layers, rows, positions, heads * size)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def attend(self, query: Array, layer: Array, position: Array) -> Array:
        B, N, H = query.shape
        keys, values, own = self.keys[layer], self.values[layer], jnp.eye(N, dtype=bool)[:, :, None]
        queries = jnp.where(own, query[:, None], 0).reshape(B, N, N * H)
        scores = jnp.einsum("bnd,bpd->bnp", queries, keys, preferred_element_type=softmax_dtype(query))
        weights = _weights(scores, query, position)
        sums = jnp.einsum("bnp,bpd->bnd", weights, values, preferred_element_type=softmax_dtype(query))
        return jnp.where(own, sums.reshape(B, N, N, H), 0).sum(axis=1).astype(query.dtype)

    @staticmethod
    def _put(cache: Array, new: Array, layer: Array, position: Array) -> Array:
        new = new.reshape(new.shape[0], -1)
        if position.ndim:
            return cache.at[layer, jnp.arange(new.shape[0]), position].set(new)
        return _put_slice(cache, new[None, :, None], layer, 0, position, 0)


def _put_slice(cache: Array, new: Array, layer: Array, *start: Any) -> Array:
    places = [jnp.asarray(place, jnp.int32) for place in (layer, *start)]
    return jax.lax.dynamic_update_slice(cache, new, places)


def _weights(scores: Array, query: Array, position: Array) -> Array:
    """Softmax of unscaled scores [B,N,P] over the positions 0..position, in the dtype of the queries [B,N,H]."""
    seen = jnp.arange(scores.shape[-1], dtype=position.dtype) <= position[..., None]
    scores = jnp.where(jnp.atleast_2d(seen)[:, None], scores * query.shape[-1] ** -0.5, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1).astype(query.dtype)
