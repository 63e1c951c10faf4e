"""Programs side by side on a CPU."""

import threading

import jax
import jax.numpy as jnp
import pytest

from trocr_jax.cores import usable_cores
from trocr_jax.lanes import MOST, Lanes


def test_dispatches_from_threads_in_turn():
    lanes = Lanes()
    names = [lanes.dispatch(lambda: threading.current_thread().name) for _ in range(2 * MOST)]
    assert threading.current_thread().name not in names
    assert names[:MOST] == names[MOST:] and len(set(names)) == min(MOST, usable_cores())


def test_a_result_and_an_error_come_back():
    assert Lanes().dispatch(jax.jit(jnp.add), 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        Lanes().dispatch(lambda: 1 // 0)


def test_an_accelerator_is_filled_by_the_caller(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert Lanes().dispatch(threading.current_thread) is threading.current_thread()
