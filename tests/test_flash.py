"""Attention by a GPU's own kernel: what can be seen of it without a GPU, with jax's plain attention in the kernel's place."""

import jax
import jax.numpy as jnp
import pytest
from test_layers import normal, same_gradients

from trocr_jax import flash, layers

QUERY, MEMORY = (2, 259, 3, 8), (2, 257, 3, 8)


@pytest.fixture
def plain_kernel(monkeypatch):
    """Traced anew, so that no program keeps the kernel it was traced with."""
    monkeypatch.setattr(flash, "KERNEL", "xla")
    monkeypatch.setattr(flash, "_worst_difference", flash._worst_difference.__wrapped__)
    flash._tried.cache_clear()
    yield
    flash._tried.cache_clear()


def test_odd_lengths_and_their_gradients(plain_kernel):
    given = 3 * normal(QUERY, 0), normal(MEMORY, 1), normal(MEMORY, 2)
    same_gradients(flash.flash_attention, layers._attend_at_once, given)


def test_no_kernel_without_a_gpu():
    assert not flash.usable(normal(QUERY, 0).astype(jnp.bfloat16), normal(MEMORY, 1).astype(jnp.bfloat16))


def test_a_kernel_that_works_is_found_while_a_program_is_traced(plain_kernel):
    found = []

    @jax.jit
    def program(x):
        found.append(flash._tried(QUERY[1:], MEMORY[1], jnp.dtype(jnp.float32)))
        return x

    program(1.0)
    assert found == [True]


def test_a_kernel_that_fails_is_said_and_not_used():
    """jax asks for cuDNN's version first, which a machine without it has not."""
    flash._tried.cache_clear()
    with pytest.warns(UserWarning, match="cuDNN's attention cannot be used here .*the plain one is slower"):
        assert not flash._tried(QUERY[1:], MEMORY[1], jnp.dtype(jnp.bfloat16))


def test_a_kernel_that_is_wrong_is_said_and_not_used(plain_kernel, monkeypatch):
    monkeypatch.setattr(flash, "flash_attention", lambda q, k, v: 1.1 * layers._attend_at_once(q, k, v))
    with pytest.warns(UserWarning, match="its results are off by 0.1"):
        assert not flash._tried(QUERY[1:], MEMORY[1], jnp.dtype(jnp.float32))


@pytest.mark.parametrize(("platform", "expected"), [("cuda", True), ("tpu", False), ("cpu", False), ("rocm", False)])
def test_only_cuda_programs_have_the_kernel(platform, expected, monkeypatch):
    monkeypatch.setattr(layers, "usable", lambda q, k: True)
    monkeypatch.setattr(layers, "flash_attention", lambda q, k, v: jnp.sinh(q))
    given = normal(QUERY, 0), normal(MEMORY, 1), normal(MEMORY, 2)
    program = jax.jit(lambda *qkv: layers.attend(*qkv)).trace(*given).lower(lowering_platforms=(platform,)).as_text()
    assert ("sinh" in program) is expected
