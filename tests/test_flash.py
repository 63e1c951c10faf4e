"""Attention by a GPU's own kernel: what can be seen of it without a GPU, with jax's plain attention in the kernel's place."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from test_layers import normal, same_gradients

from trocr_jax.network import attention, flash

QUERY, MEMORY = (2, 259, 3, 8), (2, 257, 3, 8)


@pytest.fixture
def plain_kernel(monkeypatch):
    """Traced anew, so that no program keeps the kernel it was traced with."""
    monkeypatch.setattr(flash, "KERNEL", "xla")
    forget()
    yield
    forget()


def forget() -> None:
    flash._tried.cache_clear()
    jax.clear_caches()


def test_odd_lengths_and_their_gradients(plain_kernel):
    given = 3 * normal(QUERY, 0), normal(MEMORY, 1), normal(MEMORY, 2)
    same_gradients(flash.flash_attention, attention._attend_at_once, given)


def test_a_gpu_has_the_kernel_and_nothing_else():
    """With JAX_PLATFORMS=cuda on an Ampere or newer; the suite as it is runs on a CPU."""
    image = jnp.zeros((1, 577, 12, 64), jnp.bfloat16)
    assert flash.has_flash_attention(image, image) is (jax.default_backend() == "gpu")
    assert not flash.has_flash_attention(image.astype(jnp.float32), image.astype(jnp.float32))


def in_a_scan(f, x):
    return jax.lax.scan(lambda x, _: (f(x), None), x, length=2)[0]


def on_every_device(f, x):
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)(x)


def by_pmap(f, x):
    return jax.pmap(f)(jnp.repeat(x[None], jax.device_count(), axis=0))[0]


@pytest.mark.parametrize("run", [
    pytest.param(lambda f, x: f(x), id="plain"),
    pytest.param(lambda f, x: jax.jit(f)(x), id="jit"),
    pytest.param(lambda f, x: jax.grad(jax.checkpoint(f))(x), id="grad of checkpoint"),
    pytest.param(in_a_scan, id="scan"),
    pytest.param(on_every_device, id="shard_map"),
    pytest.param(lambda f, x: jax.jit(lambda x: on_every_device(lambda x: in_a_scan(f, x), x))(x), id="scan in shard_map"),
    pytest.param(by_pmap, id="pmap"),
])  # fmt: skip
def test_a_kernel_that_works_is_found_while_a_program_is_traced(plain_kernel, run):
    found = []

    def program(x):
        found.append(tried())
        return x

    x = jnp.float32(1.0)
    with jax.transfer_guard_host_to_device("disallow" if run in (in_a_scan, on_every_device) else "allow"):
        run(program, x)
    assert set(found) == {True}


def fail(q, k, v):
    raise RuntimeError("no such engine\nand more")


@pytest.mark.parametrize(("kernel", "reason"), [
    (fail, "RuntimeError: no such engine"),
    (lambda q, k, v: 1.1 * attention._attend_at_once(q, k, v), "its results are off by 0.1"),
    (lambda q, k, v: attention._attend_at_once(q, k, v).at[0, 3].set(jnp.nan), "its results are off by inf"),
])  # fmt: skip
def test_a_kernel_that_fails_or_is_wrong_is_said_and_not_used(plain_kernel, monkeypatch, kernel, reason):
    monkeypatch.setattr(flash, "flash_attention", kernel)
    with pytest.warns(UserWarning, match=rf"cuDNN's attention cannot be used here \({reason}\); the plain one is slower"):
        assert not tried()


def test_a_kernel_that_looks_beyond_the_lengths_is_found_out(plain_kernel, monkeypatch):
    """Gradients rely on them: 577 image tokens are filled up to 578."""
    whole = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, implementation, **_: whole(q, k, v))
    with pytest.warns(UserWarning, match="its results are off by"):
        assert not tried()


def tried() -> bool:
    return flash._tried(QUERY[1:], MEMORY[1], jnp.dtype(jnp.float32))


def test_weights_that_are_cut_have_the_plain_attention(monkeypatch):
    """XLA cannot cut the kernel over heads."""
    monkeypatch.setattr(attention, "has_flash_attention", lambda q, k: True)
    monkeypatch.setattr(attention, "flash_attention", lambda q, k, v: jnp.sinh(q))
    module = attention.Attention(16, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    programs = [
        jax.jit(lambda m, x: m(x)).trace(m, normal((1, 300, 16), 0)).lower(lowering_platforms=("cuda",)).as_text()
        for m in (module, attention.plain_attention(module))
    ]
    assert ["sinh" in program for program in programs] == [True, False]


@pytest.mark.parametrize(("platform", "expected"), [("cuda", True), ("tpu", False), ("cpu", False), ("rocm", False)])
def test_only_cuda_programs_have_the_kernel(platform, expected, monkeypatch):
    monkeypatch.setattr(attention, "has_flash_attention", lambda q, k: True)
    monkeypatch.setattr(attention, "flash_attention", lambda q, k, v: jnp.sinh(q))
    given = normal(QUERY, 0), normal(MEMORY, 1), normal(MEMORY, 2)
    program = jax.jit(lambda *qkv: attention.attend(*qkv)).trace(*given).lower(lowering_platforms=(platform,)).as_text()
    assert ("sinh" in program) is expected
