"""What every way of decoding shares: its options, its result, and the compiled loop.

Letters: B images, R returned sequences an image, T new tokens, P places (T rounded up to whole chunks), V vocabulary.

The loop is a `while_loop` whose body scans STEPS_PER_CHUNK steps: the exit test is made once a chunk, and the loop ends when
every row has ended. A step reads all of the cache, so the cache begins NARROW places wide and a second loop goes on with a wider
one: most lines never need it. Buffers of tokens hold the start token at place 0, so that place t + 1 is the t-th new token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import jax
import jax.numpy as jnp

from ..config import NEW_TOKENS, TrOCRConfig
from ..network.kv_cache import KVCache
from ..network.layers import Array
from . import processors
from .constraint import Constraint


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
_NUMBERS = {"int": Integral, "float": Real}


@dataclass(frozen=True)
class GenerateConfig:
    """How to decode. The defaults are greedy decoding; names and meanings are those of transformers' `generate`.

    Attributes:
        max_new_tokens: T, the end token counted and the start token not.
        min_new_tokens: no end token before so many.
        num_beams: 1 is greedy or sampling, more is beam search.
        num_return_sequences: R, at most num_beams; without beams, so many samples.
        do_sample: draw the next token; needs seeds.
        temperature, top_k, top_p: shape the distribution that is drawn from; top_k 0 and top_p 1 leave it, top_p 0
            leaves the best token alone.
        length_penalty: beam scores are sum of log-probabilities / length ** length_penalty.
        early_stopping: beam search ends an image when K sequences have ended (True), when no better one is likely (False),
            or when none is possible ("never").
        no_repeat_ngram_size: forbid repeating n-grams of this size; 0 is off. It also forbids "000" at 2: rarely wise for OCR.
        constraint: what the text may be, as `patterns.constraint` makes it of a regular expression; transformers' is a function,
            `prefix_allowed_tokens_fn`. A text that max_new_tokens ends may be no more than the beginning of an allowed one.
    """

    max_new_tokens: int = NEW_TOKENS
    min_new_tokens: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram_size: int = 0
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), _NUMBERS.get(str(field.type))
            if kind and (isinstance(value, bool) or not isinstance(value, kind)):
                raise ValueError(f"{field.name} must be a number, {field.type}, not {value!r:.80}")
        if not isinstance(self.do_sample, bool):
            raise ValueError(f"do_sample must be True or False, not {self.do_sample!r:.80}")
        if not isinstance(self.constraint, Constraint | None):
            raise ValueError(f"constraint must be a Constraint, as patterns.constraint makes it, not {self.constraint!r:.80}")
        checks = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "min_new_tokens must lie between 0 and max_new_tokens": 0 <= self.min_new_tokens <= self.max_new_tokens,
            "num_beams must be at least 1": self.num_beams >= 1,
            "temperature must be a number above 0": self.temperature > 0 and _finite(self.temperature),
            "length_penalty must be a finite number": _finite(self.length_penalty),
            "top_k must be 0 (off) or more": self.top_k >= 0,
            "top_p must lie between 0 and 1": 0 <= self.top_p <= 1,
            "no_repeat_ngram_size must be 0 (off) or more": self.no_repeat_ngram_size >= 0,
            "early_stopping must be True, False or 'never'": isinstance(self.early_stopping, bool)
            or self.early_stopping == "never",
            "beam search does not sample: set num_beams or do_sample": not (self.do_sample and self.num_beams > 1),
            "num_return_sequences must lie between 1 and num_beams, unless do_sample": self.num_return_sequences
            in (range(1, 1 + self.num_beams) if not self.do_sample else range(1, 1 << 16)),
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)

    def check_positions(self, most: int) -> None:
        """Raises ValueError where a checkpoint with so many decoder positions cannot write so many tokens."""
        if self.max_new_tokens > most:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, but this checkpoint has {most} decoder positions")

    @classmethod
    def from_hf(cls, settings: dict[str, Any], positions: int) -> GenerateConfig:
        """From settings as `generation_files.read_settings` gives them, for a decoder of so many positions, which is the most.
        Where they give no length our own default holds: transformers' own of 20 tokens cuts ordinary lines.

        Raises ValueError for values of a wrong type or out of range.
        """
        names = ("num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size")
        known = {name: settings[name] for name in names if settings.get(name) is not None}
        longest = min(_without_start(settings, "max_new_tokens", "max_length") or cls.max_new_tokens, positions)
        shortest = min(_without_start(settings, "min_new_tokens", "min_length"), longest)
        return cls(max_new_tokens=longest, min_new_tokens=shortest, **known)


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


def nothing(config: GenerateConfig) -> Generation:
    """A Generation of no images, B = 0."""
    shape = (0, config.num_return_sequences)
    of_tokens, whole, real = (*shape, config.max_new_tokens), jnp.int32, jnp.float32
    tokens, logprobs = jnp.zeros(of_tokens, whole), jnp.zeros(of_tokens, real)
    return Generation(tokens, logprobs, jnp.zeros(shape, whole), jnp.zeros(shape, real), jnp.zeros(shape, bool))


def _finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number that no float holds
        return False


def _without_start(settings: dict[str, Any], of_new: str, of_all: str) -> int:
    """Tokens by a setting that counts new ones, or by an older one that counts the start token too; 0 where neither is set."""
    try:
        return int(settings.get(of_new) or max((settings.get(of_all) or 0) - 1, 0))
    except (TypeError, ValueError):
        raise ValueError(f"{of_new} and {of_all} must be numbers of tokens") from None


def finalize(tokens: Array, logprobs: Array, scores: Array, limits: Array, ids: TrOCRConfig) -> Generation:
    """Lengths and ends of finished buffers [B,R,T] that may hold limits [B] tokens: what follows becomes padding."""
    places, limits = jnp.arange(tokens.shape[-1], dtype=jnp.int32), limits[:, None]
    ends = (tokens == ids.eos_token_id) & (places < limits[..., None])
    finished = ends.any(-1)
    lengths = jnp.where(finished, jnp.argmax(ends, axis=-1).astype(jnp.int32) + 1, limits)
    real = places < lengths[..., None]
    return Generation(jnp.where(real, tokens, ids.pad_token_id), jnp.where(real, logprobs, 0.0), lengths, scores, finished)


def process(scores: Array, tokens: Array, states: Array, produced: Array, config: GenerateConfig, ids: TrOCRConfig) -> Array:
    """Rules that forbid tokens, on scores [B,V] of rows whose tokens [B,P+1] begin with the start token.

    The constraint, in whose states [B] the rows are, has the last word.
    """
    ruled = scores
    if config.no_repeat_ngram_size:
        ruled = processors.forbid_repeated_ngrams(ruled, tokens, produced + 1, config.no_repeat_ngram_size)
    if config.min_new_tokens:
        ruled = processors.forbid_end_before(ruled, produced, config.min_new_tokens, ids.eos_token_id)
    return config.constraint.restrict(scores, ruled, states) if config.constraint else ruled


def follow(states: Array, tokens: Array, config: GenerateConfig) -> Array:
    """The states of the constraint after tokens, both of the same shape. Rows begin in state 0, where they stay without one."""
    return config.constraint.after(states, tokens) if config.constraint else states


def put(buffer: Array, column: Array, place: Array) -> Array:
    """buffer [..., P] with column [...] written at the last axis' place."""
    return jax.lax.dynamic_update_index_in_dim(buffer, column, place, axis=buffer.ndim - 1)


def whole_chunks(tokens: int) -> int:
    """P: places for so many tokens, rounded up to whole chunks, so that no step writes past the buffers."""
    return math.ceil(tokens / STEPS_PER_CHUNK) * STEPS_PER_CHUNK


def bucket(count: int) -> int:
    """The batch that so many images are filled up to: 1, 2, 4, 8, ..."""
    return 1 << (count - 1).bit_length()


def run(step: Callable[[S], S], state: S, places: int) -> S:
    """Steps until all are done, of whom none takes more than P steps; the state's cache has the first of the `widths`."""
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
