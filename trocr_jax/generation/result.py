"""What decoding gives.

Letters: B images, R returned sequences an image, T new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ..config import TrOCRConfig
from ..network.layers import Array
from .config import GenerateConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generation:
    """What `generate` returns, the best sequence of an image first.

    Attributes:
        tokens: [B,R,T] int32 without the start token; pad after the end.
        logprobs: [B,R,T] float32, the model's log-probability of each token (before temperature, top-k, top-p and
            whatever forbids tokens); 0 after the end.
        lengths: [B,R] int32, tokens up to and with the end token; 0 where a search found fewer than R sequences to be possible.
        scores: [B,R] float32, the beam score, or the sum of the log-probabilities without beams.
        finished: [B,R] bool, ended with the end token and not by length.
    """

    tokens: Array
    logprobs: Array
    lengths: Array
    scores: Array
    finished: Array


def empty_generation(config: GenerateConfig) -> Generation:
    """A Generation of no images, B = 0."""
    shape = (0, config.num_return_sequences)
    of_tokens, whole, real = (*shape, config.max_new_tokens), jnp.int32, jnp.float32
    tokens, logprobs = jnp.zeros(of_tokens, whole), jnp.zeros(of_tokens, real)
    return Generation(tokens, logprobs, jnp.zeros(shape, whole), jnp.zeros(shape, real), jnp.zeros(shape, bool))


def finalize(tokens: Array, logprobs: Array, scores: Array, limits: Array, model_config: TrOCRConfig) -> Generation:
    """Lengths and ends of finished buffers [B,R,T] that may hold limits [B] tokens: what follows becomes padding."""
    places, limits = jnp.arange(tokens.shape[-1], dtype=jnp.int32), limits[:, None]
    ends = (tokens == model_config.eos_token_id) & (places < limits[..., None])
    finished = ends.any(-1)
    lengths = jnp.where(finished, jnp.argmax(ends, axis=-1).astype(jnp.int32) + 1, limits)
    real = places < lengths[..., None]
    return Generation(
        jnp.where(real, tokens, model_config.pad_token_id), jnp.where(real, logprobs, 0.0), lengths, scores, finished
    )
