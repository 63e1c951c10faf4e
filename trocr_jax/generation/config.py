"""How to decode, as options that are fixed in a compiled program."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal

from ..config import NEW_TOKENS
from .constraint import Constraint

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
