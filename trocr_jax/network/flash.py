"""Attention that never writes its scores out: cuDNN's flash attention (Dao et al., 2022), on NVIDIA GPUs that have it.

Written out, the float32 scores of one 384 x 384 image are 16 MB a layer, eighteen times its queries, and are moved several
times. Used in bfloat16 and float16, from Ampere (compute capability 8.0) on; anything else takes the plain way. It has gradients,
but neither forward derivatives nor a batch of gradients (`vmap`), and is not exported: `attention.plain_attention` turns it off.

Letters: B batch, T query length, S key length, N heads, H head dim.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.backend import get_backend

from .trial import works

Array = jax.Array
KERNEL = "cudnn"


@jax.custom_vjp
def flash_attention(q: Array, k: Array, v: Array) -> Array:
    """Scaled dot-product attention, q [B,T,N,H] over k, v [B,S,N,H] -> [B,T,N,H]."""
    return jax.nn.dot_product_attention(q, k, v, implementation=KERNEL)


def _even(q: Array, k: Array, v: Array) -> Array:
    """`flash_attention` with T and S padded to even numbers, the only ones that jax differentiates cuDNN's attention for."""
    (B, T), S = q.shape[:2], k.shape[1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    queries, keys = jnp.full(B, T, jnp.int32), jnp.full(B, S, jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=queries, key_value_seq_lengths=keys, implementation=KERNEL
    )[:, :T]  # fmt: skip


def _backward(pull: Any, gradient: Array) -> tuple[Array, Array, Array]:
    return pull(gradient)


flash_attention.defvjp(lambda q, k, v: jax.vjp(_even, q, k, v), _backward)


def has_flash_attention(q: Array, k: Array) -> bool:
    """Whether this process computes on a GPU that has a kernel for such queries and keys; a warning says why not."""
    if jax.default_backend() != "gpu" or "cuda" not in get_backend().platform_version:
        return False
    return q.dtype in (jnp.bfloat16, jnp.float16) and _tried(q.shape[1:], k.shape[1], q.dtype)


@cache
def _tried(query: tuple[int, int, int], S: int, dtype: Any) -> bool:
    """On one row of random numbers, forward and backward."""
    return works("cuDNN's attention", partial(_try, query, S, dtype))


def _try(query: tuple[int, int, int], S: int, dtype: Any) -> float:
    """The worst difference on random inputs whose scores are below zero, so that a padding key that is not masked would show."""
    memory = (S, *query[1:])
    q, k, v = (np.random.default_rng(i).standard_normal((1, *shape)) for i, shape in enumerate((query, memory, memory)))
    given = ((q + 1).astype(dtype), (k - 1).astype(dtype), v.astype(dtype))
    with jax.default_device(jax.local_devices(backend=jax.default_backend())[0]):
        return float(_worst_difference(*given))


@jax.jit
def _worst_difference(q: Array, k: Array, v: Array) -> Array:
    """The output's and the gradients' largest distance from the plain way's in float32, as a share of their largest value."""
    plain = partial(jax.nn.dot_product_attention, implementation="xla")
    found, pull = jax.vjp(flash_attention, q, k, v)
    expected, derived = jax.vjp(plain, *(x.astype(jnp.float32) for x in (q, k, v)))
    pairs = zip((found, *pull(expected.astype(q.dtype))), (expected, *derived(expected)), strict=True)
    distances = (jnp.abs(a.astype(jnp.float32) - b) / jnp.abs(b).max() for a, b in pairs)
    return jnp.stack([jnp.where(jnp.isnan(distance), jnp.inf, distance).max() for distance in distances]).max()
