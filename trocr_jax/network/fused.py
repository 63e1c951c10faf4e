"""Attention that never writes its scores out, on a TPU: Pallas kernels that read queries, keys and values once.

Written out, the float32 scores of one 384 x 384 image are 16 MB a layer of the encoder and are moved several times, and a
decoding step reads the image tokens twice, for the scores and for their sum. Here a core holds all that one head, or one image,
needs. Only for reading (they have no gradients), in bfloat16, and in programs of one device or inside of `shard_map` and
`pmap`, as XLA cannot cut a kernel: `attention.for_one_device` turns them on.

Letters: B batch, S image tokens, D width, H head dim, E width of the image tokens, Q queries an image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .trial import works

Array = jax.Array
LANES = 128
"""Numbers side by side in a TPU's registers: a kernel takes as many columns, of one head or of several."""
MOST_TOKENS = 1024
"""Image tokens whose scores for one head, 4 MB, a core holds beside all else."""


def attend_to_itself(q: Array, k: Array, v: Array, head: int, *, interpret: bool = False) -> Array:
    """Self-attention of all heads of size `head`, q, k, v [B,S,D] -> [B,S,D]; see `fits_itself`."""
    from jax.experimental import pallas as pl  # with its part for TPUs a tenth of a second, which nothing else needs

    B, S, D = q.shape
    columns = pl.BlockSpec((1, S, LANES), lambda image, column: (image, 0, column))
    return pl.pallas_call(
        partial(_attend_by_heads, head=head), grid=(B, D // LANES), in_specs=[columns] * 3, out_specs=columns,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype), cost_estimate=_cost(B * S * D // head, S, head, 4 * q.nbytes),
        compiler_params=_any_order(2), interpret=interpret,
    )(q, k, v)  # fmt: skip


def attend_to_tokens(query: Array, memory: Array, *, interpret: bool = False) -> Array:
    """Softmax of query [B,Q,E] . memory [B,S,E] over S, times memory -> [B,Q,E]; memory is read once. See `fits_tokens`."""
    from jax.experimental import pallas as pl

    (B, Q, E), S = query.shape, memory.shape[1]
    queries, tokens = (pl.BlockSpec((1, rows, E), lambda image: (image, 0, 0)) for rows in (Q, S))
    return pl.pallas_call(
        _attend_once, grid=(B,), in_specs=[queries, tokens], out_specs=queries,
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        cost_estimate=_cost(B * Q, S, E, memory.nbytes + 2 * query.nbytes), compiler_params=_any_order(1),
        interpret=interpret,
    )(query, memory)  # fmt: skip


def _any_order(axes: int) -> Any:
    """No place of the grid waits for another: chips of two cores give each half of them."""
    from jax.experimental.pallas import tpu

    return tpu.CompilerParams(dimension_semantics=("parallel",) * axes)


def _cost(rows: int, S: int, size: int, moved: int) -> Any:
    """Of two products of [rows, size] and [size, S], for the compiler."""
    from jax.experimental import pallas as pl

    return pl.CostEstimate(flops=4 * rows * S * size, transcendentals=rows * S, bytes_accessed=moved)


def _attend_by_heads(q_ref: Any, k_ref: Any, v_ref: Any, out_ref: Any, *, head: int) -> None:
    """One image and LANES columns. Those of other heads are zero in the queries: cut out, one head fills a register no better."""
    q, k, v = q_ref[0], k_ref[0], v_ref[0]
    column, out = jax.lax.broadcasted_iota(jnp.int32, q.shape, 1), jnp.zeros(q.shape, jnp.float32)
    for first in range(0, LANES, head):
        own = (column >= first) & (column < first + head)
        out = jnp.where(own, _attend(jnp.where(own, q, jnp.zeros_like(q)), k, v, head**-0.5), out)
    out_ref[0] = out.astype(out_ref.dtype)


def _attend_once(query_ref: Any, memory_ref: Any, out_ref: Any) -> None:
    """All queries of one image."""
    memory = memory_ref[0]
    out_ref[0] = _attend(query_ref[0], memory, memory, 1.0).astype(out_ref.dtype)


def _attend(q: Array, k: Array, v: Array, scale: float) -> Array:
    """q [T,H], k, v [S,H] -> float32 [T,H]; the weights' sum is divided out last, of fewer numbers."""
    scores = _product(q, k, 1) * scale
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return _product(weights.astype(v.dtype), v, 0) / weights.sum(axis=-1, keepdims=True)


def _product(left: Array, right: Array, axis: int) -> Array:
    """The last axis of one with an axis of the other, in float32; of bfloat16 that is exact, whatever precision JAX was told."""
    axes = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, precision=jax.lax.Precision.DEFAULT, preferred_element_type=jnp.float32)


def fits_itself(q: Array, head: int) -> bool:
    """Whether `attend_to_itself` takes queries [B,S,D] of these heads."""
    takes = q.dtype == jnp.bfloat16 and q.shape[1] <= MOST_TOKENS and q.shape[2] % LANES == 0 and LANES % head == 0
    return takes and _tried(attend_to_itself, _by_heads, (q.shape[1:],) * 3, head)


def fits_tokens(query: Array, memory: Array) -> bool:
    """Whether `attend_to_tokens` takes queries [B,Q,E] and memory [B,S,E]."""
    takes = query.dtype == jnp.bfloat16 and memory.shape[1] <= MOST_TOKENS and memory.shape[2] % LANES == 0
    return takes and _tried(attend_to_tokens, _by_products, (query.shape[1:], memory.shape[1:]))


@cache
def _tried(kernel: Callable[..., Array], plain: Callable[..., Array], shapes: tuple[tuple[int, ...], ...], *static: int) -> bool:
    """On random numbers, on a TPU; elsewhere programs are compiled for one that is only described."""
    if jax.default_backend() != "tpu":
        return True
    return works("the kernel for a TPU's attention", partial(_try, kernel, plain, shapes, *static))


def _try(kernel: Callable[..., Array], plain: Callable[..., Array], shapes: tuple[tuple[int, ...], ...], *static: int) -> float:
    """The largest distance from the plain way in float32, as a share of the largest value.

    The row before is NaN: what is left of it in a core's memory, where 577 tokens end amid a register, may not show.
    """
    with jax.default_device(jax.local_devices()[0]):
        numbers = (np.random.default_rng(i).standard_normal((2, *shape)) for i, shape in enumerate(shapes))
        given = [jnp.asarray(array, jnp.bfloat16).at[0].set(jnp.nan) for array in numbers]
        found = kernel(*given, *static)[1:].astype(jnp.float32)
        with jax.default_matmul_precision("highest"):
            expected = plain(*(x[1:].astype(jnp.float32) for x in given), *static)
        distance = jnp.abs(found - expected).max() / jnp.abs(expected).max()
        return float(jnp.where(jnp.isnan(distance), jnp.inf, distance))


def _by_heads(q: Array, k: Array, v: Array, head: int) -> Array:
    by_heads = (x.reshape(*x.shape[:2], -1, head) for x in (q, k, v))
    return jax.nn.dot_product_attention(*by_heads).reshape(q.shape)


def _by_products(query: Array, memory: Array) -> Array:
    weights = jax.nn.softmax(jnp.einsum("bqe,bse->bqs", query, memory), axis=-1)
    return jnp.einsum("bqs,bse->bqe", weights, memory)
