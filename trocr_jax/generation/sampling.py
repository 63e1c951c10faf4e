"""Greedy decoding and sampling.

Letters: B rows (images x samples), P places for tokens, S image tokens, E their width, V vocabulary.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ..config import TrOCRConfig
from ..model import TrOCR
from ..network.kv_cache import KVCache
from ..network.layers import Array
from ..network.mesh_axes import varying
from ..network.step_layers import StepLayers, Unrolled
from . import processors
from .config import GenerateConfig
from .loop import put, run, whole_chunks, widths
from .processors import advance_constraint, process
from .result import Generation, finalize

N = TypeVar("N", int, np.ndarray)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The carry of greedy decoding and sampling.

    Attributes:
        tokens: [B,P+1] int32, the start token first.
        logprobs: [B,P] float32
        done: [B] bool
        position: [] int32, tokens produced so far.
        states: [B] int32, the constraint's states.
        cache: self-attention of the tokens so far.
    """

    tokens: Array
    logprobs: Array
    done: Array
    position: Array
    states: Array
    cache: KVCache


def image_seed(index: N, seed: Any) -> N:
    """The seed, below 2**32, of image `index` in a call with `seed`: Knuth's multiplicative hash, which keeps them apart.

    Args:
        index: one, or an array [B] of uint64, which the product needs.
        seed: any integer, see `small_seed`.
    """
    return (index * 2654435761 + small_seed(seed)) % 2**32


def small_seed(seed: Any) -> int:
    """Any integer, a numpy or JAX scalar too, as the seed below 2**32 that stands for it. Raises ValueError for anything else."""
    try:
        return operator.index(seed) % 2**32  # those scalars have no room for 2**32 themselves
    except TypeError:
        raise ValueError(f"seed must be a whole number, not {seed!r:.80}") from None


def sample(
    model: TrOCR, layers: StepLayers | Unrolled, memory: Array, config: GenerateConfig, seeds: Array | None, limits: Array
) -> Generation:
    """memory [B,S,E], seeds [B] for sampling, limits [B] of new tokens -> Generation."""
    R, model_config = config.num_return_sequences, model.config
    rows = memory.shape[0] * R
    keys = None
    if seeds is not None:
        keys = jax.vmap(sample_key)(jnp.repeat(seeds, R), jnp.tile(jnp.arange(R), memory.shape[0]))
    places, most = whole_chunks(config.max_new_tokens), jnp.repeat(limits, R)
    state = varying(_start(model, rows, places, most <= 0), model, memory, keys)

    def step(state: State) -> State:
        current = jax.lax.dynamic_index_in_dim(state.tokens, state.position, axis=1, keepdims=False)
        scores, cache = model.decoder.step(current, memory, state.cache, state.position, layers)
        scores = scores.astype(jnp.float32)
        token = choose(
            process(scores, state.tokens, state.states, state.position, config, model_config), config, keys, state.position
        )
        logprob = jnp.take_along_axis(jax.nn.log_softmax(scores, axis=-1), token[:, None], axis=1)[:, 0]
        token = jnp.where(state.done, model_config.pad_token_id, token)
        done = state.done | (token == model_config.eos_token_id) | (state.position + 1 >= most)
        return State(
            tokens=put(state.tokens, token, state.position + 1),
            logprobs=put(state.logprobs, jnp.where(state.done, 0.0, logprob), state.position),
            done=done, position=state.position + 1, states=advance_constraint(state.states, token, config), cache=cache,
        )  # fmt: skip

    return _result(run(step, state, places), limits, config, model_config)


def _start(model: TrOCR, rows: int, places: int, done: Array) -> State:
    tokens = jnp.full((rows, places + 1), model.config.pad_token_id, jnp.int32)
    return State(
        tokens=tokens.at[:, 0].set(model.config.decoder_start_token_id),
        logprobs=jnp.zeros((rows, places), jnp.float32), done=done, position=jnp.int32(0),
        states=jnp.zeros(rows, jnp.int32), cache=model.decoder.init_cache(rows, widths(places)[0]),
    )  # fmt: skip


def _result(state: State, limits: Array, config: GenerateConfig, model_config: TrOCRConfig) -> Generation:
    T, shape = config.max_new_tokens, (len(limits), config.num_return_sequences, config.max_new_tokens)
    tokens, logprobs = state.tokens[:, 1 : T + 1].reshape(shape), state.logprobs[:, :T].reshape(shape)
    return finalize(tokens, logprobs, logprobs.sum(-1), limits, model_config)


def choose(scores: Array, config: GenerateConfig, keys: Array | None, position: Array) -> Array:
    """Next token [B] int32 from scores [B,V]: the best one, or one drawn with keys [B]."""
    if not config.do_sample or keys is None:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return jax.vmap(lambda row, key: draw(row, key, position, config.temperature, config.top_k, config.top_p))(scores, keys)


def sample_key(seed: Array, number: Array) -> Array:
    """The random key of sample `number` of an image with a seed, however many samples there are."""
    return jax.random.fold_in(jax.random.key(seed), number)


def draw(scores: Array, key: Array, position: Array, temperature: float | Array, top_k: int, top_p: float | Array) -> Array:
    """The token [] int32 that a row with such a key draws at a position, from scores [V]."""
    scores = (scores - scores.max())[None] / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)  # or the best is infinite
    if top_k:
        scores = processors.keep_top_k(scores, top_k)
    if isinstance(top_p, Array) or top_p < 1.0:
        scores = processors.keep_top_p(scores, top_p)
    return jax.random.categorical(jax.random.fold_in(key, position), scores[0]).astype(jnp.int32)
