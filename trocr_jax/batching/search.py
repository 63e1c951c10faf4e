"""The device side of a beam search that shares the device with slots: `decoding.generate`, cut so that both go on in turns.

Letters: n images of a bucket, S image tokens, E their width.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax

from ..config import TrOCRConfig
from ..generation import beam
from ..generation.beam import Beams, BeamState
from ..generation.config import GenerateConfig
from ..generation.loop import STEPS_PER_CHUNK, chunk, whole_chunks, widths
from ..generation.packed import Packed, model_of, unpack
from ..generation.result import Generation
from ..network.layers import Array

STEPS = STEPS_PER_CHUNK
"""Steps between two looks of the host; another number would not divide the cache's widths."""


@partial(jax.jit, static_argnames=("config",))
def begin(packed: Packed, config: GenerateConfig, limits: Array) -> BeamState:
    """A search of images with limits [n] of new tokens; those of limit 0 are done."""
    return beam.begin(model_of(packed), config, limits)


@partial(jax.jit, static_argnames=("config",), donate_argnames=("state",))
def advance(packed: Packed, memory: Array, config: GenerateConfig, state: BeamState) -> BeamState:
    """STEPS steps of all images, memory [n,S,E], in a cache that is wide enough for them (`widened`)."""
    model, layers = unpack(packed)
    return chunk(partial(beam.step, model, memory, config, layers), state)


def widened(config: GenerateConfig, state: BeamState, steps: int) -> BeamState:
    """The state with a cache for STEPS more steps after so many."""
    width = next(width for width in widths(whole_chunks(config.max_new_tokens)) if steps + STEPS <= width)
    return state if width == state.cache.positions else _widened(state, width)


@partial(jax.jit, static_argnames=("width",))
def _widened(state: BeamState, width: int) -> BeamState:
    return replace(state, cache=state.cache.widened(width))


@partial(jax.jit, static_argnames=("config", "model_config"))
def result(best: Beams, limits: Array, config: GenerateConfig, model_config: TrOCRConfig) -> Generation:
    """What was found for images that are done. Of the state only what it needs: the same program for every width of the cache."""
    return beam.result(best, limits, config, model_config)
