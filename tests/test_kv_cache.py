"""Both layouts of the cache do the same, and what each of them promises about its arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_layers import normal

from trocr_jax.network.kv_cache import FlatLayerCache, KVCache, LayerCache

ROWS, HEADS, PLACES, SIZE = 3, 4, 5, 8
KINDS = (LayerCache, FlatLayerCache)


def token(seed: int):
    """Key, value and query [B,N,H] of a step."""
    return (normal((ROWS, HEADS, SIZE), seed + n) for n in (0, 100, 200))


def attended(keys_of, values_of, query, position):
    """By hand: softmax over the positions so far of each row and head."""
    out = np.zeros((ROWS, HEADS, SIZE))
    for row, head in np.ndindex(ROWS, HEADS):
        last = int(np.broadcast_to(position, ROWS)[row])
        keys, values = (np.stack([each[place][row, head] for place in range(last + 1)]) for each in (keys_of, values_of))
        weights = np.exp(keys @ query[row, head] / np.sqrt(SIZE))
        out[row, head] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_attends_to_what_was_written(kind):
    cache, keys, values = kind.empty(ROWS, HEADS, PLACES, SIZE, jnp.float32), [], []
    for place in range(3):
        key, value, query = token(10 * place)
        keys.append(key), values.append(value)
        cache = cache.written(key, value, jnp.int32(place))
        found = cache.attend(query, jnp.int32(place))
        np.testing.assert_allclose(found, attended(keys, values, query, place), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_at_positions_of_their_own(kind):
    cache, position = kind.empty(ROWS, HEADS, PLACES, SIZE, jnp.float32), jnp.array([0, 2, 1])
    key, value, query = token(0)
    keys, values = [jnp.zeros_like(key)] * 3, [jnp.zeros_like(value)] * 3
    for row, place in enumerate(position):
        keys[place] = keys[place].at[row].set(key[row])
        values[place] = values[place].at[row].set(value[row])
    found = cache.written(key, value, position).attend(query, position)
    np.testing.assert_allclose(found, attended(keys, values, query, position), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_wider_and_with_rows_swapped_it_holds_the_same(kind):
    cache, order = kind.empty(ROWS, HEADS, PLACES, SIZE, jnp.float32), jnp.array([2, 0, 2, 1])
    key, value, query = token(0)
    narrow = KVCache((cache, cache.written(key, value, jnp.int32(0))))
    wide = narrow.widened(9).rows(order)
    assert (narrow.positions, wide.positions) == (PLACES, 9)
    assert [type(layer) for layer in wide.layers] == [kind, kind] and not wide.layers[0].keys.any()
    np.testing.assert_allclose(wide.layers[1].attend(query[order], jnp.int32(0)), value[order], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_one_head_s_overflow_is_no_other_s(kind):
    """The flat layout multiplies every query with the columns of all heads."""
    key, value, query = token(0)
    cache = kind.empty(ROWS, HEADS, PLACES, SIZE, jnp.float32).written(key, value.at[:, 1].set(jnp.inf), jnp.int32(0))
    found = cache.attend(query.at[:, 1].set(jnp.nan), jnp.int32(0))
    others = np.arange(HEADS) != 1
    np.testing.assert_allclose(found[:, others], value[:, others], rtol=1e-6)


def test_half_precision_keeps_its_dtype_and_float32_scores():
    key, value, query = (x.astype(jnp.bfloat16) for x in token(0))
    found = []
    for kind in KINDS:
        cache = kind.empty(ROWS, HEADS, PLACES, SIZE, jnp.bfloat16)
        for place in range(3):
            cache = cache.written(key * (place + 1), value + place, jnp.int32(place))
        text = str(jax.make_jaxpr(lambda cache: cache.attend(query, jnp.int32(2)))(cache))
        assert "preferred_element_type=float32" in text
        found.append(cache.attend(query, jnp.int32(2)))
    assert found[0].dtype == found[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in found), atol=2e-2)
