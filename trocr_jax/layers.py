"""What encoder and decoder share: linear maps, attention, the MLP, dropout, and running a stack of layers.

Letters: B batch, T query length, S key length, L layers, D width, N heads, H head dim, F mlp width.
Arrays are [B, T, N, H]; layer parameters are stacked on a leading axis L, so that a stack is one pytree of few leaves.

Modules are NNX modules used as immutable pytrees: they hold parameters and static settings, never a random key, and are
called inside plain jax transforms. The compute dtype is the dtype of the parameters; softmax and LayerNorm statistics are
float32 whatever it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
Dtype = Any


def exact_gelu(x: Array) -> Array:
    """The checkpoints' GELU; tanh differs by up to 5e-4. The backward pass keeps x alone, where jax would keep more."""
    return jax.checkpoint(partial(jax.nn.gelu, approximate=False), prevent_cse=False)(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": exact_gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def linear(d_in: int, d_out: int, *, bias: bool = True, std: float = 0.02, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """Linear map with kernel [d_in, d_out], normal(std) as the checkpoints were initialised."""
    init = nnx.initializers.normal(std)
    return nnx.Linear(
        d_in, d_out, use_bias=bias, kernel_init=init, dtype=dtype, param_dtype=dtype, dot_general=dot_general, rngs=rngs
    )


def dot_general(lhs: Array, rhs: Array, dimensions: Any, **options: Any) -> Array:
    """`lax.dot_general` in the operands' dtype, which a CPU multiplies twice as fast if told that the sum is float32.

    Only there: elsewhere the sum is float32 anyway, and the backward pass would move float32 instead of bfloat16.
    """

    def wide(lhs: Array, rhs: Array) -> Array:
        wanted = {**options, "preferred_element_type": softmax_dtype(lhs)}
        return jax.lax.dot_general(lhs, rhs, dimensions, **wanted).astype(lhs.dtype)

    def plain(lhs: Array, rhs: Array) -> Array:
        return jax.lax.dot_general(lhs, rhs, dimensions, **options)

    if lhs.dtype == softmax_dtype(lhs):
        return product(lhs, rhs, jax.config.jax_default_matmul_precision)  # pyright: ignore[reportAttributeAccessIssue]
    return jax.lax.platform_dependent(lhs, rhs, cpu=wide, default=plain)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, kernel: Array, precision: Any) -> Array:
    """[...,D] @ [D,F] whose kernel's gradient takes a CPU less time than the one jax derives.

    For it XLA transposes its left operand, in one loop with all that makes it, which can take longer than the product: so that is
    the narrower one here, and not always the cotangent. The precision is named because the backward pass is traced later, when a
    context that set it may be over.
    """
    return jnp.matmul(x, kernel, precision=precision)


def _product_forward(x: Array, kernel: Array, precision: Any) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, precision), (x, kernel)


def _product_backward(precision: Any, kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    (x, kernel), rows = kept, tuple(range(cotangent.ndim - 1))

    def over_rows(a: Array, b: Array) -> Array:
        return jax.lax.dot_general(a, b, ((rows, rows), ((), ())), precision=precision)

    gradient = over_rows(x, cotangent) if kernel.shape[0] < kernel.shape[1] else over_rows(cotangent, x).T
    return jnp.matmul(cotangent, kernel.T, precision=precision), gradient


product.defvjp(_product_forward, _product_backward)


def layer_norm(size: int, eps: float, *, dtype: Dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with the variance computed about the mean: E[x^2] - E[x]^2 loses the digits that parity needs."""
    return nnx.LayerNorm(size, epsilon=eps, use_fast_variance=False, dtype=dtype, param_dtype=dtype, rngs=rngs)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; the identity without a key (inference) or at rate 0."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


def split(key: Array | None, n: int) -> list[Array] | list[None]:
    """n keys, or n times None when there is no key."""
    return [None] * n if key is None else list(jax.random.split(key, n))


class Attention(nnx.Module):
    """Multi-head attention over projections of queries [B,T,D] and memory [B,S,E] (Vaswani et al., 2017)."""

    def __init__(
        self, size: int, num_heads: int, *, memory_size: int | None = None, qkv_bias: bool = True, dropout: float = 0.0,
        dtype: Dtype, rngs: nnx.Rngs,
    ):  # fmt: skip
        memory_size = size if memory_size is None else memory_size
        self.num_heads, self.dropout = num_heads, dropout
        self.query = linear(size, size, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.key = linear(memory_size, size, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.value = linear(memory_size, size, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.out = linear(size, size, dtype=dtype, rngs=rngs)

    def heads(self, x: Array) -> Array:
        """[..., D] -> [..., N, H]"""
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def __call__(self, x: Array, memory: Array | None = None, *, causal: bool = False, key: Array | None = None) -> Array:
        """x [B,T,D] attends to memory [B,S,E] (to itself without one) -> [B,T,D]."""
        memory = x if memory is None else memory
        q, k, v = self.heads(self.query(x)), self.heads(self.key(memory)), self.heads(self.value(memory))
        return self.out(attend(q, k, v, causal=causal, dropout_rate=self.dropout, key=key).reshape(x.shape))


def attend(q: Array, k: Array, v: Array, *, causal: bool = False, dropout_rate: float = 0.0, key: Array | None = None) -> Array:
    """Scaled dot-product attention, q [B,T,N,H] over k, v [B,S,N,H] -> [B,T,N,H]; weights dropped out when there is a key."""
    plain = not causal and (key is None or dropout_rate == 0.0)
    if plain and q.shape[1] * k.shape[1] >= SCORES_TO_SPLIT:
        return jax.lax.platform_dependent(q, k, v, cpu=_attend_head_by_head, default=_attend_at_once)
    return _attend_at_once(q, k, v, causal, dropout_rate, key)


SCORES_TO_SPLIT = 1 << 16
"""T x S from which a CPU takes the heads one by one: the scores of one head stay in its cache, those of all do not."""


def _attend_at_once(
    q: Array, k: Array, v: Array, causal: bool = False, dropout_rate: float = 0.0, key: Array | None = None
) -> Array:
    scores = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=softmax_dtype(q)) * q.shape[-1] ** -0.5
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(q.dtype), dropout_rate, key)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


@jax.custom_vjp
def _attend_head_by_head(q: Array, k: Array, v: Array) -> Array:
    """The same, a head at a time; the backward pass computes the weights again, which costs less than keeping them."""
    return _joined(jax.lax.map(_attend_one_head, _by_head(q, k, v)), q)


def _attend_one_head(qkv: tuple[Array, Array, Array]) -> Array:
    """The sum of the weights is divided out behind the product, where it costs T x H instead of T x S."""
    q, k, v = qkv
    weights, total = _weights(q, k)
    return (jnp.matmul(weights.astype(q.dtype), v, preferred_element_type=softmax_dtype(q)) / total).astype(q.dtype)


def _weights(q: Array, k: Array) -> tuple[Array, Array]:
    """Attention weights [T,S] before they are divided by their sums [T,1]."""
    scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    scores = jnp.matmul(q * scale, k.T, preferred_element_type=softmax_dtype(q))
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


def _attend_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    out = _attend_head_by_head(q, k, v)
    return out, (q, k, v, out)


def _attend_backward(kept: tuple[Array, ...], cotangent: Array) -> tuple[Array, ...]:
    """Cotangents of q, k and v."""

    def one(head: tuple[Array, ...]) -> tuple[Array, ...]:
        q, k, v, out, cotangent = head
        weights, total = _weights(q, k)
        weights = weights / total
        inner = jnp.sum(cotangent.astype(weights.dtype) * out.astype(weights.dtype), axis=-1, keepdims=True)
        scores = weights * (jnp.matmul(cotangent, v.T, preferred_element_type=weights.dtype) - inner)
        scores = (scores * q.shape[-1] ** -0.5).astype(q.dtype)
        return scores @ k, scores.T @ q, weights.astype(q.dtype).T @ cotangent

    return tuple(_joined(x, kept[0]) for x in jax.lax.map(one, _by_head(*kept, cotangent)))


_attend_head_by_head.defvjp(_attend_forward, _attend_backward)


def _by_head(*arrays: Array) -> tuple[Array, ...]:
    """[B,T,N,H] -> [B*N,T,H], each."""
    return tuple(x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3]) for x in arrays)


def _joined(heads: Array, like: Array) -> Array:
    """[B*N,T,H] -> [B,T,N,H]; B, N and H are those of `like`."""
    B, _, N, H = like.shape
    return heads.reshape(B, N, -1, H).transpose(0, 2, 1, 3)


def softmax_dtype(x: Array) -> Dtype:
    """float32 for anything narrower: half-precision scores lose the small weights."""
    return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32


class Mlp(nnx.Module):
    """Two linear maps with an activation between: [.., D] -> [.., F] -> [.., D]."""

    def __init__(self, size: int, hidden: int, activation: str, *, dropout: float = 0.0, dtype: Dtype, rngs: nnx.Rngs):
        self.activation, self.dropout = activation, dropout
        self.fc1 = linear(size, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, size, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        return self.fc2(dropout(ACTIVATIONS[self.activation](self.fc1(x)), self.dropout, key))


def stack(make: Callable[[nnx.Rngs], Any], count: int, rngs: nnx.Rngs) -> Any:
    """`count` modules as one, every parameter with a leading axis L."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), count))


def scan_layers(
    layers: Any, x: Array, apply: Callable[[Any, Array, Array | None], Array], *, key: Array | None = None, remat: bool = False
) -> tuple[Array, Array]:
    """Runs stacked layers in order: apply(layer, x, key) -> x. Returns the last x and all of them, [L, ...].

    The outputs of the single layers cost nothing when the caller drops them. `remat` keeps only the layers' inputs for the
    backward pass and computes the rest again.
    """
    keys = None if key is None else jax.random.split(key, jax.tree.leaves(layers)[0].shape[0])
    body = jax.checkpoint(apply) if remat else apply

    def step(carry: Array, xs: tuple[Any, Array | None]) -> tuple[Array, Array]:
        y = body(xs[0], carry, xs[1])
        return y, y

    return jax.lax.scan(step, x, (layers, keys))
