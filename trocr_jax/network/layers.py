"""What encoder and decoder share: linear maps, LayerNorm, the MLP, dropout, and running a stack of layers.

Letters: B batch, L layers, D width, F mlp width.
Layer parameters are stacked on a leading axis L, so that a stack is one pytree of few leaves.

Modules are NNX modules used as immutable pytrees: they hold parameters and static settings, never a random key, and are
called inside plain jax transforms. The compute dtype is the dtype of the parameters, also after `jax.tree.map` has cast them;
softmax and LayerNorm statistics are float32 whatever it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
Dtype = Any
M = TypeVar("M", bound=nnx.Module)
T = TypeVar("T", bound=tuple[Any, ...])
W = TypeVar("W", nnx.Linear, nnx.Embed)


def precision(dtype: Dtype) -> Any:
    """A scope in which float32 means float32, unless JAX was told another precision; by default TPUs and GPUs use fewer bits.

    Encoder and decoder open it by themselves; products outside of them that count as much need it, too.
    """
    return jax.default_matmul_precision(asked_precision() or ("highest" if dtype == jnp.float32 else "default"))


def asked_precision() -> str | None:
    """The precision of products that JAX was told, by its settings or JAX_DEFAULT_MATMUL_PRECISION."""
    return getattr(jax.config, "jax_default_matmul_precision", None)


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
    made = nnx.Linear(d_in, d_out, use_bias=bias, kernel_init=init, param_dtype=dtype, dot_general=dot_general, rngs=rngs)
    return in_the_parameters_dtype(made)


def embedding(count: int, size: int, *, std: float = 0.02, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Embed:
    """Table [count, size], normal(std) as the checkpoints were initialised."""
    return in_the_parameters_dtype(
        nnx.Embed(count, size, embedding_init=nnx.initializers.normal(std), param_dtype=dtype, rngs=rngs)
    )


def in_the_parameters_dtype(module: W) -> W:
    """The module, computing in whatever dtype its parameters have when it is called. Flax keeps the one that it was made with, so
    that a model whose parameters were cast would go on in the old one.
    """
    module.dtype, module.param_dtype = None, None  # nor may models that differ in nothing else differ as pytrees
    module.promote_dtype = _to_parameters
    return module


def _to_parameters(arrays: T, /, *, dtype: Dtype = None, inexact: bool = True) -> T:
    """(input, kernel, bias or None), (query, table) or (table,) -> the same in the dtype of kernel or table."""
    own = arrays[min(1, len(arrays) - 1)].dtype
    return cast(T, tuple(None if x is None else jnp.asarray(x, own) for x in arrays))


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
        return plain(lhs, rhs)
    return jax.lax.platform_dependent(lhs, rhs, cpu=wide, default=plain)


def matmul_few_rows(x: Array, kernel: Array) -> Array:
    """x [B,in] by a transposed kernel [out,in] -> [B,out].

    With the kernel on the left a CPU takes 0.55 to 0.8 of the time. XLA would put it back on the right if it saw that the
    result is transposed: hence the barrier.
    """
    product = jax.lax.dot_general(kernel, x, (((1,), (1,)), ((), ())), preferred_element_type=softmax_dtype(x))
    return jax.lax.optimization_barrier(product).T.astype(x.dtype)


def transpose_kernels(module: M) -> M:
    """The module with the kernels of its linear maps transposed to [out,in], for `matmul_few_rows`."""
    transposed = jax.tree.map(lambda parameter: parameter, module)
    for _, part in nnx.iter_modules(transposed):
        if isinstance(part, nnx.Linear):
            part.kernel = nnx.Param(part.kernel[...].T)
            part.dot_general = _dot_transposed
    return transposed


def _dot_transposed(x: Array, kernel: Array, dimensions: Any, **options: Any) -> Array:
    """What `nnx.Linear` calls; a function of this module, since equal modules have to have the same one."""
    return matmul_few_rows(x, kernel)


class LayerNorm(nnx.Module):
    """LayerNorm in the dtype of x (Ba et al., 2016). Its backward pass keeps x alone, where jax would keep three arrays of its
    size, in float32.
    """

    def __init__(self, size: int, epsilon: float, *, dtype: Dtype):
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(size, dtype)), nnx.Param(jnp.zeros(size, dtype))

    def __call__(self, x: Array) -> Array:
        """[...,D] -> [...,D]"""
        return jax.checkpoint(self._normalize, prevent_cse=False)(x)

    def widened(self) -> LayerNorm:
        """The same with parameters of the dtype that it computes in."""
        return jax.tree.map(lambda parameter: parameter.astype(softmax_dtype(parameter)), self)

    def _normalize(self, x: Array) -> Array:
        wide = x.astype(softmax_dtype(x))
        mean = wide.mean(axis=-1, keepdims=True)
        scale, bias = (parameter[...].astype(wide.dtype) for parameter in (self.scale, self.bias))
        return ((wide - mean) * (jax.lax.rsqrt(_variance(x, wide, mean) + self.epsilon) * scale) + bias).astype(x.dtype)


def _variance(x: Array, wide: Array, mean: Array) -> Array:
    """About the mean: E[x^2] - E[x]^2 loses digits that parity needs. Half precision lacks those, and is read once less."""
    if wide.dtype == x.dtype:
        return jnp.square(wide - mean).mean(axis=-1, keepdims=True)
    return jnp.maximum(jnp.square(wide).mean(axis=-1, keepdims=True) - jnp.square(mean), 0)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; the identity without a key (inference) or at rate 0."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


def split(key: Array | None, n: int) -> list[Array] | list[None]:
    """n keys, or n times None when there is no key."""
    return [None] * n if key is None else list(jax.random.split(key, n))


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


class Keys:
    """All that flax's layers ask of `nnx.Rngs`, with the same keys. Its own counts in variables, which inside of a program takes
    longer than all else that makes a layer.
    """

    def __init__(self, key: Array):
        self._key, self._count = key, itertools.count()

    def params(self) -> Array:
        """Another key at every call."""
        return jax.random.fold_in(self._key, next(self._count))


def keys(key: Array) -> nnx.Rngs:
    """Keys, as flax has them typed."""
    return cast(nnx.Rngs, Keys(key))


def stack(make: Callable[[nnx.Rngs], Any], count: int, rngs: nnx.Rngs) -> Any:
    """`count` modules as one, every parameter with a leading axis L."""
    return jax.vmap(lambda key: make(keys(key)))(jax.random.split(rngs.params(), count))


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
