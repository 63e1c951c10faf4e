"""What happens to the scores of the next token before one is chosen, as transformers' logits processors do it.

Letters: B rows, V vocabulary, T places for tokens (the start token included). Scores are [B,V] float32. How far rows are is one
number for all of them, [], or one a row, [B].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..config import TrOCRConfig
from ..network.layers import Array
from .config import GenerateConfig


def process(
    scores: Array, tokens: Array, states: Array, produced: Array, config: GenerateConfig, model_config: TrOCRConfig
) -> Array:
    """Rules that forbid tokens, on scores [B,V] of rows whose tokens [B,T] begin with the start token.

    The constraint, in whose states [B] the rows are, has the last word.
    """
    ruled = scores
    if config.no_repeat_ngram_size:
        ruled = forbid_repeated_ngrams(ruled, tokens, produced + 1, config.no_repeat_ngram_size)
    if config.min_new_tokens:
        ruled = forbid_end_before(ruled, produced, config.min_new_tokens, model_config.eos_token_id)
    return config.constraint.restrict(scores, ruled, states) if config.constraint else ruled


def advance_constraint(states: Array, tokens: Array, config: GenerateConfig) -> Array:
    """The states of the constraint after tokens, both of the same shape. Rows begin in state 0, where they stay without one."""
    return config.constraint.after(states, tokens) if config.constraint else states


def forbid_end_before(scores: Array, produced: Array, minimum: int, eos_token_id: int) -> Array:
    """No end token until `minimum` tokens were produced, [] or [B]."""
    ends = jnp.arange(scores.shape[-1]) == eos_token_id
    return jnp.where(ends & (jnp.asarray(produced)[..., None] < minimum), -jnp.inf, scores)


def forbid_repeated_ngrams(scores: Array, tokens: Array, length: Array, n: int) -> Array:
    """No token that would complete an n-gram already in the row.

    Args:
        scores: [B,V]
        tokens: [B,T], of which the first `length` are set.
        length: [] or [B] int
    """
    B, T = tokens.shape
    if n > T:
        return scores
    rows, length = jnp.arange(B)[:, None], jnp.broadcast_to(length, B)[:, None]
    starts = jnp.arange(T - n + 1)
    repeats = starts + n - 1 < length
    for j in range(n - 1):
        recent = jnp.take_along_axis(tokens, length - (n - 1) + j, axis=1, mode="clip")
        repeats &= tokens[:, j : j + T - n + 1] == recent
    banned = jnp.zeros(scores.shape, bool).at[rows, tokens[:, n - 1 :]].max(repeats)
    return jnp.where(banned & (length >= n), -jnp.inf, scores)


def keep_top_k(scores: Array, k: int) -> Array:
    """Only the k highest scores; equals of the k-th stay."""
    threshold = jax.lax.top_k(scores, min(k, scores.shape[-1]))[0][:, -1:]
    return jnp.where(scores < threshold, -jnp.inf, scores)


def keep_top_p(scores: Array, p: float | Array) -> Array:
    """Only the fewest tokens whose probabilities reach p together (nucleus, Holtzman et al., 2020); always the best one."""
    ascending = jnp.argsort(scores, axis=-1)
    cumulative = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(scores, ascending, axis=-1), axis=-1), axis=-1)
    drop = (cumulative <= 1.0 - p).at[:, -1].set(False)
    dropped = jnp.zeros(scores.shape, bool).at[jnp.arange(scores.shape[0])[:, None], ascending].set(drop)
    return jnp.where(dropped, -jnp.inf, scores)
