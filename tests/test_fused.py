"""A TPU's attention kernels, run by Pallas' interpreter: what can be seen of them without a TPU. That they compile: test_tpu."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from reference import random_config
from test_layers import normal
from test_packaged import EXAMPLES, ROOT

from trocr_jax import Reader, TrOCR, sharding
from trocr_jax.generation import packed
from trocr_jax.network import attention, fused
from trocr_jax.network.decoder_layer import DecoderLayer, StepLayer


@pytest.fixture
def interpreted(monkeypatch):
    """Counts the kernels of every program that is traced."""
    calls = []

    def counted(kernel, *arguments):
        calls.append(kernel.__name__)
        return kernel(*arguments, interpret=True)

    for kernel in (fused.attend_to_itself, fused.attend_to_tokens):
        monkeypatch.setattr(fused, kernel.__name__, partial(counted, kernel))
    return calls


@pytest.mark.parametrize("head", [32, 64, 128])
@pytest.mark.parametrize("tokens", [259, 64])
def test_heads_attend_each_to_itself(head, tokens):
    q, k, v = (2 * normal((2, tokens, 256), seed) for seed in range(3))
    found = fused.attend_to_itself(q, k, v, head, interpret=True)
    np.testing.assert_allclose(found, fused._by_heads(q, k, v, head), atol=2e-5)


@pytest.mark.parametrize("queries", [8, 64])
def test_queries_attend_to_image_tokens(queries):
    query, memory = normal((3, queries, 128), 0) / 4, normal((3, 59, 128), 1)
    found = fused.attend_to_tokens(query, memory, interpret=True)
    np.testing.assert_allclose(found, fused._by_products(query, memory), atol=2e-5)


def test_scores_whose_exponentials_are_infinite():
    query, memory = 100 * normal((1, 8, 128), 0), normal((1, 59, 128), 1)
    found = fused.attend_to_tokens(query, memory, interpret=True)
    np.testing.assert_allclose(found, fused._by_products(query, memory), atol=1e-4)


def half(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def as_near_to_float32(found, plain, exact) -> bool:
    """The two ways round to bfloat16 in other places: by root mean square one may be no farther off than the other."""
    far, near = (float(jnp.sqrt(jnp.mean((x.astype(jnp.float32) - exact) ** 2))) for x in (found, plain))
    assert found.dtype == plain.dtype == jnp.bfloat16 and 0 < near < 0.02
    return far < 1.2 * near


def test_attention_that_is_fused_is_the_same(interpreted):
    module, x = attention.Attention(128, 2, dtype=jnp.float32, rngs=nnx.Rngs(0)), normal((2, 70, 128), 0)
    narrow = half(module)
    found, plain = attention.for_one_device(narrow, "tpu")(half(x)), narrow(half(x))
    assert interpreted == ["attend_to_itself"]
    assert as_near_to_float32(found, plain, jax.tree.map(lambda x: x.astype(jnp.float32), narrow)(half(x)))


def test_teacher_forcing_has_no_kernels(interpreted):
    """None looks at a causal mask, at the image through keys and values, or drops anything out."""
    module = attention.for_one_device(half(attention.Attention(128, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))), "tpu")
    x, memory = (normal((2, 70, 128), seed).astype(jnp.bfloat16) for seed in range(2))
    for asked in ({"causal": True}, {"memory": memory}, {"key": jax.random.key(0)}):
        module(x, **asked)
    assert not interpreted


@pytest.mark.parametrize("beams", [1, 3])
def test_a_step_that_is_fused_is_the_same(interpreted, beams):
    config = replace(random_config("A", 1).decoder, hidden_size=64, num_heads=4)
    layer = half(DecoderLayer(config, 128, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    given = half((normal((2, 4 * beams, 128), 0) / 4, normal((2, 70, 128), 1)))
    found, plain = (StepLayer.of(each)._context(*given) for each in (attention.for_one_device(layer, "tpu"), layer))
    assert interpreted == ["attend_to_tokens"]
    assert as_near_to_float32(found, plain, fused._by_products(*(x.astype(jnp.float32) for x in given)))


@pytest.mark.parametrize("beams", [1, 3])
def test_pictures_are_read_the_same(interpreted, beams):
    """From end to end in bfloat16."""
    pictures = [str(ROOT / "examples" / name) for name in ("sum.png", "print-1.png")]
    reader = Reader.from_pretrained(dtype="bfloat16")
    expected = reader.read(pictures, num_beams=beams)
    assert not interpreted
    reader.model = attention.for_one_device(reader.model, "tpu")
    found = reader.read(pictures, num_beams=beams)
    assert set(interpreted) == {"attend_to_itself", "attend_to_tokens"}
    assert [line.text for line in found] == [line.text for line in expected] == ["$1,249.99", EXAMPLES["print-1.png"]]


@pytest.mark.parametrize(("changes", "takes"), [
    ({}, True), ({"dtype": jnp.float32}, False), ({"tokens": fused.MOST_TOKENS + 1}, False), ({"size": 192}, False),
    ({"head": 96}, False), ({"head": 32}, True),
])  # fmt: skip
def test_what_a_kernel_does_not_take_is_done_the_plain_way(changes, takes):
    asked = {"dtype": jnp.bfloat16, "tokens": 70, "size": 384, "head": 64} | changes
    x = jnp.zeros((2, asked["tokens"], asked["size"]), asked["dtype"])
    assert fused.fits_itself(x, asked["head"]) is takes
    if "head" not in changes:
        assert fused.fits_tokens(x, x) is takes


def off_by_a_tenth(query, memory):
    return (1.1 * fused._by_products(query, memory)).astype(query.dtype)


def nowhere(query, memory):
    return fused._by_products(query, memory).at[-1, 3].set(jnp.nan)


def with_what_was_there_before(query, memory):
    return fused._by_products(query, memory) + 0 * query[:1]


@pytest.mark.parametrize(("kernel", "reason"), [
    (partial(fused.attend_to_tokens, interpret=True), None), (fused.attend_to_tokens, "ValueError: Only interpret mode"),
    (off_by_a_tenth, "its results are off by 0.1"), (nowhere, "its results are off by inf"),
    (with_what_was_there_before, "its results are off by inf"),
])  # fmt: skip
def test_on_a_tpu_a_kernel_is_tried_before_it_is_used(monkeypatch, kernel, reason):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    fused._tried.cache_clear()
    monkeypatch.setattr(fused, "attend_to_tokens", kernel)
    query, memory = (jnp.zeros((5, rows, 128), jnp.bfloat16) for rows in (16, 70))
    if reason is None:
        assert fused.fits_tokens(query, memory)
    else:
        with pytest.warns(UserWarning, match=rf"the kernel for a TPU's attention cannot be used here \({reason}"):
            assert not fused.fits_tokens(query, memory)
    fused._tried.cache_clear()


def settings_of(model: TrOCR) -> set[bool]:
    return {part.fused for _, part in nnx.iter_modules(model) if isinstance(part, attention.Attention)}


@pytest.mark.parametrize(("backend", "expected"), [("tpu", {True}), ("cpu", {False}), ("gpu", {False})])
def test_only_what_is_packed_for_a_tpu_has_kernels(monkeypatch, backend, expected):
    model = TrOCR.abstract(random_config("A", 1))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    made = jax.eval_shape(lambda model: packed.model_of(packed.pack(model)), model)
    assert settings_of(made) == expected and settings_of(model) == {False}


def test_no_mesh_but_one_of_tpus_has_kernels(monkeypatch):
    """That one of TPUs has them where weights are copied: test_tpu."""
    asked = []
    monkeypatch.setattr(sharding, "for_one_device", lambda model, platform: asked.append(platform) or model)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    model = TrOCR.abstract(random_config("A", 1))
    rows = jax.ShapeDtypeStruct((1, 5, model.config.memory_size), jnp.float32)
    work = sharding.Decode(sharding.GenerateConfig(max_new_tokens=2))
    for program in (sharding.data_parallel, sharding.partitioned):
        program.trace(model, rows, None, jax.ShapeDtypeStruct((1,), jnp.int32), work, mesh)
    assert asked == ["cpu"]
