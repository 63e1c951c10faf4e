"""The compiled loop of every way of decoding.

Letters: P places (new tokens rounded up to whole chunks).

The loop is a `while_loop` whose body scans STEPS_PER_CHUNK steps: the exit test is made once a chunk, and the loop ends when
every row has ended. A step reads all of the cache, so the cache begins NARROW places wide and a second loop goes on with a wider
one: most lines never need it. Buffers of tokens hold the start token at place 0, so that place t + 1 is the t-th new token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import jax.numpy as jnp

from ..network.kv_cache import KVCache
from ..network.layers import Array


class Carry(Protocol):
    """What `run` knows of a state, a dataclass: which rows are done [B], the steps so far [], and the cache."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def done(self) -> Array: ...
    @property
    def position(self) -> Array: ...
    @property
    def cache(self) -> KVCache: ...


S = TypeVar("S", bound=Carry)

STEPS_PER_CHUNK = 4
"""Steps between two exit tests, which the device makes by itself; `device.STEPS` is another number, between looks of the host."""
NARROW, WIDER = 32, 4
"""Places of the cache at first, and how many times as wide the next one is: each width is one more loop to compile."""


def put(buffer: Array, column: Array, place: Array) -> Array:
    """buffer [..., P] with column [...] written at the last axis' place."""
    return jax.lax.dynamic_update_index_in_dim(buffer, column, place, axis=buffer.ndim - 1)


def whole_chunks(tokens: int) -> int:
    """P: places for so many tokens, rounded up to whole chunks, so that no step writes past the buffers."""
    return math.ceil(tokens / STEPS_PER_CHUNK) * STEPS_PER_CHUNK


def run(step: Callable[[S], S], state: S, places: int) -> S:
    """Runs steps until every row is done, at most P of them. The state's cache has the first of the `widths`."""
    for width in widths(places):
        state = replace(state, cache=state.cache.widened(width))
        state = jax.lax.while_loop(partial(_going, width=width), partial(chunk, step), state)
    return state


def _going(state: Carry, width: int) -> Array:
    return ~jnp.all(state.done) & (state.position < width)


def chunk(step: Callable[[S], S], state: S) -> S:
    """STEPS_PER_CHUNK steps."""
    return jax.lax.scan(lambda state, _: (step(state), None), state, length=STEPS_PER_CHUNK)[0]


def widths(places: int) -> list[int]:
    """The widths that a cache for so many places has one after the other."""
    narrower = itertools.takewhile(lambda width: width * WIDER <= places, (NARROW * WIDER**n for n in itertools.count()))
    return [*narrower, places]
