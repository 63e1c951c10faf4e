"""What happens to the scores of the next token before one is chosen, as transformers' logits processors do it.

Letters: B rows, V vocabulary, T places for tokens (the start token included). All functions take and return [B,V] float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ..network.layers import Array


def forbid_end_before(scores: Array, produced: Array, minimum: int, eos_token_id: int) -> Array:
    """No end token until `minimum` tokens were produced."""
    ends = jnp.arange(scores.shape[-1]) == eos_token_id
    return jnp.where(ends & (produced < minimum), -jnp.inf, scores)


def forbid_repeated_ngrams(scores: Array, tokens: Array, length: Array, n: int) -> Array:
    """No token that would complete an n-gram already in the row.

    Args:
        scores: [B,V]
        tokens: [B,T], of which the first `length` are set.
        length: [] int
    """
    B, T = tokens.shape
    if n > T:
        return scores
    rows = jnp.arange(B)[:, None]
    starts = jnp.arange(T - n + 1)
    repeats = jnp.broadcast_to(starts + n - 1 < length, (B, T - n + 1))
    for j in range(n - 1):
        recent = jnp.take(tokens, length - (n - 1) + j, axis=1, mode="clip")
        repeats &= tokens[:, j : j + T - n + 1] == recent[:, None]
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
