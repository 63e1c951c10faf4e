"""Layers that keep less for their backward pass have the gradients of the plain expression."""

import jax
import jax.numpy as jnp
import numpy as np

from trocr_jax.network import attention, layers


def normal(shape, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def same_gradients(function, plain, inputs) -> None:
    cotangent = normal(jax.eval_shape(plain, *inputs).shape, 9)
    (out, pull), (expected, derived) = jax.vjp(jax.jit(function), *inputs), jax.vjp(plain, *inputs)
    for a, b in zip((out, *pull(cotangent)), (expected, *derived(cotangent)), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_attention_head_by_head():
    q, k, v = normal((2, 300, 3, 8), 0), normal((2, 260, 3, 8), 1), normal((2, 260, 3, 8), 2)
    assert q.shape[1] * k.shape[1] >= attention.SCORES_TO_SPLIT
    same_gradients(attention.attend, attention._attend_at_once, (3 * q, k, v))


def test_attention_has_forward_derivatives_too():
    """Of gradients, for those who need a Hessian's products."""
    q, k, v = (normal((1, 260, 1, 4), seed) for seed in range(3))

    def gradient(q):
        return jax.grad(lambda q: jnp.sum(attention.attend(q, k, v) ** 2))(q)

    def plain(q):
        return jax.grad(lambda q: jnp.sum(attention._attend_at_once(q, k, v) ** 2))(q)

    (_, found), (_, expected) = jax.jvp(gradient, (q,), (v,)), jax.jvp(plain, (q,), (v,))
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(jnp.abs(expected).max()))


def test_the_exact_gelu():
    same_gradients(layers.exact_gelu, lambda x: jax.nn.gelu(x, approximate=False), (3 * normal((4, 50), 0),))


def test_the_backward_pass_of_float32_is_as_precise_as_the_forward_pass():
    """On TPUs; the context is over when the backward pass is traced."""

    def loss(x, kernel):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(layers.dot_general(x, kernel, (((1,), (0,)), ((), ()))))

    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(normal((3, 4), 0), normal((4, 6), 1)))
    assert program.count("dot_general[") == program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 3
