"""Multi-head attention: the projections, and scaled dot products in the way that is quickest for a device and a size.

Letters: B batch, T query length, S key length, D width, N heads, H head dim. Arrays are [B, T, N, H].
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from . import fused
from .flash import flash_attention, has_flash_attention
from .layers import Array, Dtype, dropout, linear, softmax_dtype

M = TypeVar("M", bound=nnx.Module)


class Attention(nnx.Module):
    """Multi-head attention over projections of queries [B,T,D] and memory [B,S,E] (Vaswani et al., 2017)."""

    def __init__(
        self, size: int, num_heads: int, *, memory_size: int | None = None, qkv_bias: bool = True, dropout: float = 0.0,
        dtype: Dtype, rngs: nnx.Rngs,
    ):  # fmt: skip
        memory_size = size if memory_size is None else memory_size
        self.num_heads, self.dropout, self.plain, self.fused = num_heads, dropout, False, False
        self.query = linear(size, size, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.key = linear(memory_size, size, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.value = linear(memory_size, size, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = linear(size, size, dtype=dtype, rngs=rngs)

    def heads(self, x: Array) -> Array:
        """[..., D] -> [..., N, H]"""
        return x.reshape(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)

    def __call__(self, x: Array, memory: Array | None = None, *, causal: bool = False, key: Array | None = None) -> Array:
        """x [B,T,D] attends to memory [B,S,E] (to itself without one) -> [B,T,D]."""
        memory = x if memory is None else memory
        q, k, v = self.query(x), self.key(memory), self.value(memory)
        if self.fused and memory is x and not causal and key is None and fused.fits_itself(q, q.shape[-1] // self.num_heads):
            return self.out(fused.attend_to_itself(q, k, v, q.shape[-1] // self.num_heads))
        y = attend(*map(self.heads, (q, k, v)), causal=causal, dropout_rate=self.dropout, key=key, plain=self.plain)
        return self.out(y.reshape(x.shape))


def plain_attention(module: M) -> M:
    """The module with a GPU's own kernel turned off: XLA does not cut that over heads, nor batch its gradient, nor export it."""
    return _with(module, plain=True)


def for_one_device(module: M, platform: str) -> M:
    """The module for reading on one device, or inside of `shard_map` or `pmap`: on a TPU with the kernels of `fused` and a cache
    of `kv_cache.FlatLayerCache`, neither of which XLA can cut over heads.
    """
    return _with(module, fused=True) if platform == "tpu" else module


def _with(module: M, **settings: bool) -> M:
    """The module, the same but for settings of its attention."""
    changed = jax.tree.map(lambda parameter: parameter, module)
    for _, part in nnx.iter_modules(changed):
        if isinstance(part, Attention):
            for name, value in settings.items():
                setattr(part, name, value)
    return changed


def attend(
    q: Array, k: Array, v: Array, *, causal: bool = False, dropout_rate: float = 0.0, key: Array | None = None,
    plain: bool = False,
) -> Array:  # fmt: skip
    """Scaled dot-product attention, q [B,T,N,H] over k, v [B,S,N,H] -> [B,T,N,H].

    Args:
        key: weights are dropped out when there is one.
        plain: do not use a GPU's own kernel, see `plain_attention`.
    """
    whole = not causal and (key is None or dropout_rate == 0.0)
    if whole and q.shape[1] * k.shape[1] >= SCORES_TO_SPLIT:
        on_cuda = _attend_at_once if plain or not has_flash_attention(q, k) else flash_attention
        return jax.lax.platform_dependent(q, k, v, cpu=_attend_head_by_head, cuda=on_cuda, default=_attend_at_once)
    return _attend_at_once(q, k, v, causal, dropout_rate, key)


SCORES_TO_SPLIT = 1 << 16
"""T x S from which a CPU takes the heads one by one, as the scores of one head stay in its cache and those of all do not, and
an NVIDIA GPU its own kernel.
"""


def _attend_at_once(
    q: Array, k: Array, v: Array, causal: bool = False, dropout_rate: float = 0.0, key: Array | None = None
) -> Array:
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=softmax_dtype(q)) * q.shape[-1] ** -0.5
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(q.dtype), dropout_rate, key)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


def _attend_head_by_head(q: Array, k: Array, v: Array) -> Array:
    """`attend` one head at a time; the backward pass computes the weights again, which costs less than keeping them."""
    B, T, N, H = q.shape
    heads = tuple(x.transpose(0, 2, 1, 3).reshape(B * N, x.shape[1], H) for x in (q, k, v))
    return jax.lax.map(jax.checkpoint(_attend_one_head), heads).reshape(B, N, T, H).transpose(0, 2, 1, 3)


def _attend_one_head(qkv: tuple[Array, Array, Array]) -> Array:
    """q [T,H] over k, v [S,H]; the weights' sum is divided out after the product, where it costs T x H instead of T x S."""
    q, k, v = qkv
    scores = jnp.matmul(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k.T, preferred_element_type=softmax_dtype(q))
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    return (jnp.matmul(weights.astype(q.dtype), v, preferred_element_type=softmax_dtype(q)) / total).astype(q.dtype)
