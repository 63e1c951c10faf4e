"""Backward passes that are written out give what jax derives from the plain expression."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trocr_jax import layers


def normal(shape, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def same_gradients(function, plain, inputs) -> None:
    cotangent = normal(jax.eval_shape(plain, *inputs).shape, 9)
    (out, pull), (expected, derived) = jax.vjp(jax.jit(function), *inputs), jax.vjp(plain, *inputs)
    for a, b in zip((out, *pull(cotangent)), (expected, *derived(cotangent)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("sizes", [(12, 40), (40, 12), (16, 16)])
def test_a_linear_map_however_wide(sizes):
    inputs = normal((3, 5, sizes[0]), 0), normal(sizes, 1)
    same_gradients(lambda x, kernel: layers.product(x, kernel, None), jnp.matmul, inputs)


def test_attention_head_by_head():
    q, k, v = normal((2, 300, 3, 8), 0), normal((2, 260, 3, 8), 1), normal((2, 260, 3, 8), 2)
    assert q.shape[1] * k.shape[1] >= layers.SCORES_TO_SPLIT
    same_gradients(layers.attend, layers._attend_at_once, (3 * q, k, v))


def test_the_exact_gelu():
    same_gradients(layers.exact_gelu, lambda x: jax.nn.gelu(x, approximate=False), (3 * normal((4, 50), 0),))


def test_the_backward_pass_of_float32_is_as_precise_as_the_forward_pass():
    """On TPUs; the context is over when the backward pass is traced."""

    def loss(x, kernel):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(layers.dot_general(x, kernel, (((1,), (0,)), ((), ()))))

    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(normal((3, 4), 0), normal((4, 6), 1)))
    assert program.count("dot_general[") == program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 3
