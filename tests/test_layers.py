"""Layers that keep less for their backward pass have the gradients of the plain expression."""

from dataclasses import replace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from reference import random_config
from transformers.activations import ACT2FN

from trocr_jax.network import attention, encoder, layers
from trocr_jax.network.decoder_layer import DecoderLayer
from trocr_jax.network.encoder import EncoderLayer


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


@pytest.mark.parametrize("how", [{"causal": True}, {"dropout_rate": 0.5, "key": jax.random.key(3)}], ids=["causal", "dropout"])
def test_attention_over_many_tokens_leaves_out_what_over_few_it_does(how):
    """The ways that are quicker for many tokens know neither."""
    q, k, v = (normal((1, 300, 2, 4), seed) for seed in range(3))
    found, expected = attention.attend(q, k, v, **how), attention._attend_at_once(q, k, v, **how)
    np.testing.assert_array_equal(found, expected)
    assert float(jnp.abs(found - attention._attend_at_once(q, k, v)).max()) > 0.1


def test_attention_head_by_head_bears_scores_whose_exponentials_are_infinite():
    q, k, v = (normal((1, 260, 2, 8), seed) for seed in range(3))
    found, expected = attention.attend(100 * q, k, v), attention._attend_at_once(100 * q, k, v)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("attend", [attention.attend, attention._attend_at_once])
def test_attention_in_bfloat16_rounds_neither_scores_nor_their_sums(attend):
    """Scores as wide as 50, which bfloat16 has in steps of a quarter."""
    q, k, v = (factor * normal((1, 260, 2, 8), seed).astype(jnp.bfloat16) for seed, factor in enumerate((10, 1, 1)))
    exact = attention._attend_at_once(*(x.astype(jnp.float32) for x in (q, k, v)))
    found = attend(q, k, v)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.03)


@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["reading", "training"])
def test_images_of_many_tokens_one_by_one(key, monkeypatch):
    """A CPU takes them so when it reads; and gradients are those of all at once either way."""
    monkeypatch.setattr(encoder, "_image_by_image", Mock(wraps=encoder._image_by_image))
    layer = EncoderLayer(random_config("A", 1).encoder, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = normal((2, encoder.TOKENS_APART, layer.attention.query.in_features), 0)
    same_gradients(lambda x: layer(x, key), layer.together, (x,))
    assert encoder._image_by_image.called == (key is None)


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


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activations_are_those_that_transformers_has_by_the_name(name):
    x = np.linspace(-6, 6, 400, dtype=np.float32)
    np.testing.assert_allclose(layers.ACTIVATIONS[name](jnp.asarray(x)), ACT2FN[name](torch.from_numpy(x)), atol=2e-6)


def test_dropout_drops_its_share_and_leaves_the_mean():
    out = np.asarray(layers.dropout(jnp.ones(100_000), 0.2, jax.random.key(0)))
    assert set(np.unique(out)) == {0, np.float32(1.25)}
    assert abs((out == 0).mean() - 0.2) < 4 * (0.2 * 0.8 / 100_000) ** 0.5


@pytest.mark.parametrize("site", ["attention", ""])
def test_each_dropout_of_an_encoder_layer_has_a_key(site):
    config = random_config("A", 1).encoder
    layer = EncoderLayer(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    drops_only_at(site, layer, normal((2, 5, config.hidden_size), 0))


@pytest.mark.parametrize("site", ["self_attention", "cross_attention", "mlp", ""])
def test_each_dropout_of_a_decoder_layer_has_a_key(site):
    config = replace(random_config("A", 1).decoder, dropout=0.0)
    layer = DecoderLayer(config, 24, dtype=jnp.float32, rngs=nnx.Rngs(0))
    drops_only_at(site, layer, normal((2, 5, config.hidden_size), 0), normal((2, 7, 24), 1))


def drops_only_at(site: str, layer: nnx.Module, *inputs: jax.Array) -> None:
    plain = layer(*inputs, jax.random.key(0))
    part = getattr(layer, site) if site else layer
    assert part.dropout == 0
    part.dropout = 0.5
    assert float(jnp.abs(layer(*inputs, jax.random.key(0)) - plain).max()) > 1e-4


def test_the_backward_pass_of_float32_is_as_precise_as_the_forward_pass():
    """On TPUs; the context is over when the backward pass is traced."""

    def loss(x, kernel):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(layers.dot_general(x, kernel, (((1,), (0,)), ((), ()))))

    program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(normal((3, 4), 0), normal((4, 6), 1)))
    assert program.count("dot_general[") == program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 3
