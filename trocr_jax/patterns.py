"""Regular expressions that a text is held to: dates, plates, numbers, the words of a list.

A pattern becomes an automaton over the tokens of a tokenizer, however they cut the text up, which decoding then follows with
any number of beams. outlines-core makes it; its syntax is that of Rust's regex crate.
"""

from __future__ import annotations

import importlib
from typing import Any

from .generation.constraint import Constraint
from .tokens import Tokenizer

END = b"\0"
"""Follows every text while its automaton is made, and stands for the end token: outlines-core 0.2.14 does not go on after what
could have been the end, as in `1(,50)?`, unless the next token alone makes it a whole text again.
"""
_ENDED = -1  # beside outlines-core's states


def constraint(pattern: str, tokenizer: Tokenizer) -> Constraint:
    """The constraint for a regular expression that the whole of every text must match.

    Patterns are trusted: one that counts to a million takes gigabytes.

    Raises:
        ValueError: this is no regular expression, or needs what no automaton can do; the tokenizer cannot write its texts; it is
            too large; or outlines-core is not installed.
    """
    check(pattern)
    name, begin = f"the pattern {pattern!r:.80}", " " if tokenizer.drops_first_space else ""
    end, tokens = tokenizer.size, {piece: ids for piece, ids in tokenizer.by_bytes.items() if END not in piece}
    try:
        index = _index(f"{begin}(?:{pattern})", {**tokens, END: [end]})
    except ValueError:
        raise ValueError(f"{name}: the tokenizer has no tokens for some of its texts") from None
    ends, transitions, eos = index.get_final_states(), index.get_transitions(), tokenizer.eos_token_id
    edges = [(state, token, target) for state, row in transitions.items() for token, target in row.items() if token < end]
    edges += [(state, eos, _ENDED) for state, row in transitions.items() if row.get(end) in ends]
    return Constraint.from_edges(name, edges, index.get_initial_state(), _ENDED)


def check(pattern: str) -> None:
    """Checks a pattern as far as possible without a tokenizer. Raises ValueError as `constraint` does."""
    own, every = _outlines(), {bytes([byte]): [byte] for byte in range(256)}
    try:
        own.Index(pattern, own.Vocabulary(256, every))  # without brackets around it, which might mend one too many
        _index(f"(?:{pattern})", every)
    except ValueError:
        raise ValueError(
            f"the pattern {pattern!r:.80} is no regular expression, or none that can be followed token by token. It stands for "
            "the whole text: ^, $ and \\b have no place in it, nor have looking around and backward references. Brackets and "
            "other signs that mean themselves have a \\ before them"
        ) from None


def _index(pattern: str, tokens: dict[bytes, list[int]]) -> Any:
    """outlines-core's automaton for a pattern followed by END, over tokens by their bytes."""
    own, eos = _outlines(), max(map(max, tokens.values())) + 1  # an id of its own, which END makes needless
    return own.Index(f"{pattern}\\x00", own.Vocabulary(eos, tokens))


def _outlines() -> Any:
    try:
        return importlib.import_module("outlines_core")
    except ModuleNotFoundError:
        raise ValueError("a pattern needs the Python package 'outlines_core': pip install 'trocr-jax[pattern]'") from None
