"""Beam search, step for step as transformers' `generate` does it (checked against 4.57 and 5.23, token for token).

Letters: B images, K beams, C = 2K candidates a step, P places for tokens, V vocabulary, S image tokens, E their width.

Each step extends the K running beams of an image by every token, takes the C best (2K, so that K still run when K end), moves
those among the first K that ended into the K best ended ones, and keeps the K best that still run.
An ended sequence scores sum of log-probabilities / length ** length_penalty, its end token counted, the start token not.
Images end on their own: what happens to an image after it is done does not change its result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ..config import TrOCRConfig
from ..model import TrOCR
from ..network.kv_cache import KVCache
from ..network.layers import Array
from ..network.mesh_axes import varying
from ..network.step_layers import StepLayers, Unrolled
from .config import GenerateConfig
from .loop import put, run, whole_chunks, widths
from .processors import advance_constraint, process
from .result import Generation, finalize

NEVER = -1.0e9  # the score of a sequence that does not exist; transformers' value, kept because sums with it decide ties


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beams:
    """Sequences of an image, the best first.

    Attributes:
        tokens: [B,n,P+1] int32, the start token first.
        logprobs: [B,n,P] float32, of each token.
        scores: [B,n] float32, sums of log-probabilities while running, with the length penalty once ended.
        ended: [B,n] bool
        states: [B,n] int32, the constraint's states.
    """

    tokens: Array
    logprobs: Array
    scores: Array
    ended: Array
    states: Array

    def pick(self, indices: Array) -> Beams:
        """The sequences at indices [B,m]."""
        return jax.tree.map(lambda x: jax.vmap(lambda row, i: row[i])(x, indices), self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamState:
    """The carry of beam search.

    Attributes:
        running: the K beams that are extended.
        best: the K best ended sequences so far.
        improvable: [B] bool, whether a running beam may still beat the worst of `best`.
        done: [B] bool
        position: [] int32, tokens produced so far.
        limits: [B] int32, most new tokens of each image.
        cache: self-attention of the running beams, rows B*K.
    """

    running: Beams
    best: Beams
    improvable: Array
    done: Array
    position: Array
    limits: Array
    cache: KVCache


def beam_search(model: TrOCR, layers: StepLayers | Unrolled, memory: Array, config: GenerateConfig, limits: Array) -> Generation:
    """memory [B,S,E], limits [B] of new tokens -> Generation with R sequences an image."""
    state = varying(begin(model, config, limits), model, memory)
    state = run(lambda s: step(model, memory, config, layers, s), state, whole_chunks(config.max_new_tokens))
    return result(state.best, limits, config, model.config)


def result(best: Beams, limits: Array, config: GenerateConfig, model_config: TrOCRConfig) -> Generation:
    """The best sequences so far: of an image that is done, those that were looked for."""
    T, R = config.max_new_tokens, config.num_return_sequences
    found = finalize(best.tokens[:, :R, 1 : T + 1], best.logprobs[:, :R, :T], best.scores[:, :R], limits, model_config)
    there = (best.ended[:, :R] & ~_repeats(found.tokens)).at[:, 0].set(True)  # also of a model that gives no numbers
    return replace(found, lengths=jnp.where(there, found.lengths, 0))


def _repeats(tokens: Array) -> Array:
    """[B,R] which of tokens [B,R,T] a better sequence equals: copies of the first beam, where too few others are possible."""
    equal = (tokens[:, :, None] == tokens[:, None]).all(-1)
    return jnp.tril(equal, -1).any(-1)


def begin(model: TrOCR, config: GenerateConfig, limits: Array) -> BeamState:
    """The state before the first step, of images with limits [B] of new tokens; the cache has the first of its `widths`."""
    images, K, model_config, P = len(limits), config.num_beams, model.config, whole_chunks(config.max_new_tokens)
    tokens = (
        jnp.full((images, K, P + 1), model_config.pad_token_id, jnp.int32).at[..., 0].set(model_config.decoder_start_token_id)
    )
    shape = (images, K)
    scores = jnp.full(shape, NEVER, jnp.float32)  # of a dtype that stays, or the first step would be another program
    nothing = Beams(tokens, jnp.zeros((*shape, P), jnp.float32), scores, jnp.zeros(shape, bool), jnp.zeros(shape, jnp.int32))
    # only the first beam counts at first, or all K would hold the same sequence
    running = replace(nothing, scores=scores.at[:, 0].set(0.0))
    cache = model.decoder.init_cache(images * K, widths(P)[0])
    return BeamState(running, nothing, jnp.ones(images, bool), limits <= 0, jnp.int32(0), limits, cache)


def step(model: TrOCR, memory: Array, config: GenerateConfig, layers: StepLayers | Unrolled, state: BeamState) -> BeamState:
    """One more token for every running beam, of memory [B,S,E]; the cache must have a place for it."""
    logprobs, cache = _next_logprobs(model, memory, config, layers, state)
    candidates, parents = _extend(state, logprobs, config, model.config.eos_token_id)
    best = _merge(state, candidates, config)
    still = candidates.scores + jnp.where(candidates.ended, NEVER, 0.0)
    scores, kept = jax.lax.top_k(still, config.num_beams)
    running = replace(candidates.pick(kept), scores=scores)
    position = state.position + 1
    improvable = state.improvable & _improvable(running.scores[:, 0], best, position, state.limits, config)
    full = best.ended.all(axis=1) & jnp.bool_(config.early_stopping is True)
    done = state.done | ~improvable | full | (position >= state.limits)
    cache = cache.rows(_rows(parents, kept))
    return _freeze(state, BeamState(running, best, improvable, done, position, state.limits, cache))


def _freeze(old: BeamState, new: BeamState) -> BeamState:
    """The new state; images that were done keep their sequences (a chunk may run past the end)."""
    best = jax.tree.map(lambda o, n: jnp.where(old.done.reshape(-1, *[1] * (n.ndim - 1)), o, n), old.best, new.best)
    return replace(new, best=best)


def _next_logprobs(
    model: TrOCR, memory: Array, config: GenerateConfig, layers: StepLayers | Unrolled, state: BeamState
) -> tuple[Array, KVCache]:
    """Processed log-probabilities [B,K,V] of the next token of every running beam."""
    B, K, P1 = state.running.tokens.shape
    tokens = state.running.tokens.reshape(B * K, P1)
    current = jax.lax.dynamic_index_in_dim(tokens, state.position, axis=1, keepdims=False)
    scores, cache = model.decoder.step(current, memory, state.cache, state.position, layers)
    logprobs = jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1)
    states = state.running.states.reshape(B * K)
    return process(logprobs, tokens, states, state.position, config, model.config).reshape(B, K, -1), cache


def _extend(state: BeamState, logprobs: Array, config: GenerateConfig, eos: int) -> tuple[Beams, Array]:
    """The C best one-token extensions of the running beams, and which beam [B,C] each came from."""
    running, position, (B, K, V) = state.running, state.position, logprobs.shape
    C = 2 * K
    # the best C of each beam, then of those: the same candidates in the same order as of all K * V, in a fraction of the sorting
    scores, tokens = jax.lax.top_k(logprobs + running.scores[..., None], min(C, V))
    scores, flat = jax.lax.top_k(scores.reshape(B, -1), C)
    parents = flat // tokens.shape[-1]
    token = jnp.take_along_axis(tokens.reshape(B, -1), flat, axis=1).astype(jnp.int32)
    chosen = jnp.take_along_axis(logprobs.reshape(B, K * V), parents * V + token, axis=1)
    picked = running.pick(parents)
    ended = (token == eos) | (position + 1 >= state.limits[:, None])
    tokens, states = put(picked.tokens, token, position + 1), advance_constraint(picked.states, token, config)
    return Beams(tokens, put(picked.logprobs, chosen, position), scores, ended, states), parents


def _merge(state: BeamState, candidates: Beams, config: GenerateConfig) -> Beams:
    """The K best ended sequences, old and new. Candidates beyond the first K only keep the search running."""
    K = config.num_beams
    ended = candidates.ended & (jnp.arange(candidates.ended.shape[1]) < K)
    closed = ~state.improvable[:, None]
    if config.early_stopping is True:
        closed |= state.best.ended.all(axis=1, keepdims=True)
    length = (state.position + 1).astype(jnp.float32)
    scores = candidates.scores / length**config.length_penalty
    scores = scores + jnp.where(closed, NEVER, 0.0) + jnp.where(ended, 0.0, NEVER)
    new = replace(candidates, scores=scores, ended=ended)
    merged = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.best, new)
    return merged.pick(jax.lax.top_k(merged.scores, K)[1])


def _improvable(best_running: Array, best: Beams, position: Array, limits: Array, config: GenerateConfig) -> Array:
    """[B] whether the best running beam, at its most hopeful length, beats the worst ended sequence."""
    longest = config.early_stopping == "never" and config.length_penalty > 0.0
    length = (limits if longest else position).astype(jnp.float32)
    worst = jnp.where(best.ended, best.scores.min(axis=1, keepdims=True), NEVER)
    return jnp.any((best_running / length**config.length_penalty)[:, None] > worst, axis=1)


def _rows(parents: Array, kept: Array) -> Array:
    """Cache rows [B*K] of the beams that go on: kept [B,K] points into candidates whose beam was parents [B,C]."""
    B, K = kept.shape
    return (jnp.take_along_axis(parents, kept, axis=1) + jnp.arange(B, dtype=jnp.int32)[:, None] * K).reshape(-1)
