"""The device side of continuous batching: a fixed number of slots, each decoding one line, and the three programs that move them.

`encode` turns images into image tokens, `insert` puts rows of those into free slots, `advance` runs STEPS decoding steps for
all slots at once. Slots are at different positions; a slot that is done stands still until another line is inserted.
Which line is in which slot is the host's business (`slot_jobs`).

Letters: B slots, n rows of a bucket, S image tokens, E their width, P places for tokens, k steps, A alternatives, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ..config import TrOCRConfig
from ..generation.config import GenerateConfig
from ..generation.packed import Packed, model_of, unpack
from ..generation.processors import advance_constraint, process
from ..generation.sampling import draw, sample_key
from ..model import TrOCR, normalize
from ..network.kv_cache import KVCache
from ..network.layers import Array
from ..network.step_layers import StepLayers, Unrolled

STEPS = 4
"""k, steps between two looks of the host. A line that ends holds its slot for up to k - 1 more, and a stream grows by k tokens.
Not `loop.STEPS_PER_CHUNK`, after which nothing leaves the device.
"""
MAX_ALTERNATIVES = 20
"""Largest number of likeliest tokens that a job can ask for at each step."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """The state of all slots.

    Attributes:
        memory: [B,S,E] image tokens.
        tokens: [B,P+1] int32, the start token first.
        position: [B] int32, tokens produced so far.
        limit: [B] int32, most tokens to produce.
        done: [B] bool
        states: [B] int32, the constraint's states.
        keys: [B] random keys.
        temperature: [B] float32; 0 takes the best token.
        top_p: [B] float32
        cache: self-attention keys and values.
    """

    memory: Array
    tokens: Array
    position: Array
    limit: Array
    done: Array
    states: Array
    keys: Array
    temperature: Array
    top_p: Array
    cache: KVCache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Settings:
    """What `insert` writes beside the image tokens, one entry a row.

    Attributes:
        slot: [n] int32, where to; B or more is nowhere (rows that only fill the bucket, or were inserted before).
        limit: [n] int32
        seed: [n] uint32
        sample: [n] int32, which of a seed's draws.
        temperature: [n] float32
        top_p: [n] float32
    """

    slot: Array | np.ndarray
    limit: Array | np.ndarray
    seed: Array | np.ndarray
    sample: Array | np.ndarray
    temperature: Array | np.ndarray
    top_p: Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Progress:
    """What k steps produced; after a row's end, padding.

    Attributes:
        tokens: [k,B] int32
        logprobs: [k,B] float32, the model's log-probabilities, before temperature and top-p.
        best: [k,B,A] int32, the likeliest tokens, best first; A is MAX_ALTERNATIVES or 0.
        best_logprobs: [k,B,A] float32
    """

    tokens: Array
    logprobs: Array
    best: Array
    best_logprobs: Array


def empty(model: TrOCR | Packed, slots: int, places: int) -> Slots:
    """B slots of P places, all done."""
    model = model_of(model)
    config = model.config
    vector = partial(jnp.zeros, (slots,))
    return Slots(
        memory=jnp.zeros((slots, config.encoder.num_tokens, config.memory_size), model.dtype),
        tokens=jnp.full((slots, places + 1), config.pad_token_id, jnp.int32),
        position=vector(jnp.int32), limit=vector(jnp.int32), done=jnp.ones(slots, bool),
        states=vector(jnp.int32), keys=jax.random.split(jax.random.key(0), slots),
        temperature=vector(jnp.float32), top_p=jnp.ones(slots, jnp.float32),
        cache=model.decoder.init_cache(slots, places),
    )  # fmt: skip


@partial(jax.jit, static_argnames=("mean", "std"))
def encode(model: TrOCR | Packed, images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """uint8 images [n,height,width,C] -> image tokens [n,S,E]."""
    return model_of(model).encode(normalize(images, mean, std))


@partial(jax.jit, static_argnames=("config",), donate_argnames=("slots",))
def insert(slots: Slots, memory: Array, settings: Settings, config: TrOCRConfig) -> Slots:
    """Starts a line in each slot that `settings` names, from the image tokens [n,S,E] of the same row."""
    place, n = settings.slot, memory.shape[0]
    keys = jax.vmap(sample_key)(jnp.asarray(settings.seed), jnp.asarray(settings.sample))
    start = jnp.full((n, slots.tokens.shape[1]), config.pad_token_id, jnp.int32).at[:, 0].set(config.decoder_start_token_id)
    new = {
        "memory": memory, "tokens": start, "position": jnp.zeros(n, jnp.int32), "limit": settings.limit,
        "done": jnp.zeros(n, bool), "states": jnp.zeros(n, jnp.int32), "keys": keys, "temperature": settings.temperature,
        "top_p": settings.top_p,
    }  # fmt: skip
    return replace(slots, **{name: getattr(slots, name).at[place].set(rows, mode="drop") for name, rows in new.items()})


@partial(jax.jit, static_argnames=("rules", "sort"), donate_argnames=("slots",))
def advance(model: TrOCR | Packed, slots: Slots, rules: GenerateConfig, sort: bool = False) -> tuple[Slots, Progress]:
    """STEPS decoding steps of every slot.

    Args:
        rules: static; of these the rules that forbid tokens are used, and top_k.
        sort: static; whether any slot draws or wants alternatives: then the vocabulary is sorted for every slot.
    """
    model, layers = unpack(model)
    return jax.lax.scan(lambda slots, _: _step(model, layers, slots, rules, sort), slots, length=STEPS)


def _step(model: TrOCR, layers: StepLayers | Unrolled, slots: Slots, rules: GenerateConfig, sort: bool) -> tuple[Slots, Progress]:
    model_config, rows = model.config, jnp.arange(slots.done.shape[0])
    scores, cache = model.decoder.step(slots.tokens[rows, slots.position], slots.memory, slots.cache, slots.position, layers)
    scores = scores.astype(jnp.float32)
    logprobs = jax.nn.log_softmax(scores, axis=-1)
    token = _choose(process(scores, slots.tokens, slots.states, slots.position, rules, model_config), slots, rules.top_k, sort)
    token = jnp.where(slots.done, model_config.pad_token_id, token)
    position = jnp.where(slots.done, slots.position, slots.position + 1)
    best_logprobs, best = jax.lax.top_k(logprobs, min(MAX_ALTERNATIVES, logprobs.shape[-1]) if sort else 0)
    progress = Progress(token, jnp.take_along_axis(logprobs, token[:, None], axis=1)[:, 0], best.astype(jnp.int32), best_logprobs)
    tokens = slots.tokens.at[rows, position].set(jnp.where(slots.done, slots.tokens[rows, position], token))
    done = slots.done | (token == model_config.eos_token_id) | (position >= slots.limit)
    states = advance_constraint(slots.states, token, rules)
    slots = replace(slots, tokens=tokens, position=position, done=done, states=states, cache=cache)
    return slots, progress


def _choose(scores: Array, slots: Slots, top_k: int, draws: bool) -> Array:
    """Next tokens [B]: the best ones, or, in slots with a temperature, drawn ones."""
    best = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    if not draws:
        return best

    warm = slots.temperature > 0
    temperature = jnp.where(warm, slots.temperature, 1.0)
    drawn = jax.vmap(partial(draw, top_k=top_k))(scores, slots.keys, slots.position, temperature, top_p=slots.top_p)
    return jnp.where(warm, drawn, best)
