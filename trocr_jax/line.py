"""What reading an image gives: the text, how sure the model is of it, and everything a caller may want to check."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

from .flags import CONTINUES, NO_TEXT, REPETITION, UNLIKELY

SEEN = math.log(0.01)
"""The log-probability below which a token makes its text UNLIKELY. One below it is in none of 1,800 drawn lines that the packaged
model read freely, in 10 of 1,132 that were read right while held to their pattern, and in 149 of 150 that are not dates and were
held to a pattern for dates.
"""

_TAIL = 200  # characters that can repeat themselves: the search takes the cube of the length of what it looks at
_REPEATED_END = re.compile(r"(.{2,}?)\1{3,}$|(\S)\2{11,}$|(\b\w+\b)(?:\W+\3\b){3,}$")
"""A line that ends in the same piece four times, one sign a dozen times, or one word four times: how a lost decoder babbles."""


@dataclass(frozen=True)
class Token:
    """One token of the vocabulary: its id, the text it adds, and its log-probability."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Word:
    """A run of characters without spaces, text[start:end] of the line, and the probability of all its tokens."""

    text: str
    start: int
    end: int
    confidence: float


@dataclass(frozen=True)
class Line:
    """The text of one image.

    Attributes:
        text: what was read; empty where there was an error or no ink.
        confidence: the model's probability of exactly this text and its end, the product over all tokens, 0 to 1.
        tokens: as generated, the end token included; a line that was read in pieces has one for each piece.
        words: with their confidences.
        finish_reason: "stop", or "length" when the token budget cut the line; None with an error.
        flags: "no_text" (a blank image), "repetition", "several_lines" (TrOCR reads one line), "several_pages" (a TIFF,
            of which the first is read), "unlikely" (a pattern, ban or draw made it say what the model does not see).
        error: why the image could not be read, else None.
        alternatives: the next best readings, where `num_return_sequences` asked for more than one.
    """

    text: str = ""
    confidence: float = 0.0
    tokens: tuple[Token, ...] = ()
    words: tuple[Word, ...] = ()
    finish_reason: Literal["stop", "length"] | None = "stop"
    flags: tuple[str, ...] = ()
    error: str | None = None
    alternatives: tuple[Line, ...] = ()

    @classmethod
    def failed(cls, error: str, flags: tuple[str, ...] = ()) -> Line:
        """The Line of an image that could not be read."""
        return cls(finish_reason=None, flags=flags, error=error)

    def to_dict(self, *names: str) -> dict[str, Any]:
        """The fields of these names in this order, or all of them, as JSON would have them: dicts and lists."""
        return {name: _plain(getattr(self, name)) for name in names or vars(self)}


def _plain(value: Any) -> Any:
    """A Line's field without classes and tuples."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {name: _plain(field) for name, field in vars(value).items()} if isinstance(value, Line | Token | Word) else value


NO_NUMBERS = "the model gave no numbers (NaN): check its weights, and that they fit the dtype"


def to_json(value: dict[str, Any]) -> str:
    """One line of JSON; in ASCII where a name in it is not UTF-8, whose bytes are surrogates in Python and no text elsewhere."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if re.search("[\ud800-\udfff]", text) else text


def one_line(text: str) -> str:
    """A text without what breaks lines or columns: a result is one row, whatever the model wrote."""
    return re.sub(r"[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]", " ", text)


def line_from_tokens(
    text: str, ids: list[int], logprobs: list[float], spans: list[tuple[int, int]], finished: bool, flags: tuple[str, ...] = ()
) -> Line:
    """A Line from token ids, their log-probabilities and the span of characters that each gave to the text."""
    tokens = tuple(Token(i, text[a:b], p) for i, (a, b), p in zip(ids, spans, logprobs, strict=True))
    return Line(
        text=text,
        confidence=_probability(logprobs),
        tokens=tokens,
        words=tuple(_word(match, spans, logprobs) for match in re.finditer(r"\S+", text)),
        finish_reason="stop" if finished else "length",
        flags=flags + tuple(_doubts(text, logprobs)),
    )


def _doubts(text: str, logprobs: list[float]) -> Iterator[str]:
    """Flags of a text that the model may have been lost in."""
    if _REPEATED_END.search(text[-_TAIL:]):
        yield REPETITION
    if min(logprobs, default=0.0) < SEEN:
        yield UNLIKELY


def _word(match: re.Match[str], spans: list[tuple[int, int]], logprobs: list[float]) -> Word:
    start, end = match.span()
    own = [p for (a, b), p in zip(spans, logprobs, strict=True) if a < end and b > start]
    return Word(match[0], start, end, _probability(own))


def _probability(logprobs: list[float]) -> float:
    return min(1.0, math.exp(math.fsum(logprobs)))


def joined(pieces: Sequence[Line], *, drawn: bool = False) -> Line:
    """The Line of a picture that was read in pieces: their texts with what is `between` them, and all their tokens.

    Its alternatives are the most probable combinations, as many as the piece with the most has. For lines that were `drawn`
    at random they are the first draws of all pieces, the second draws of all, and so on.
    """
    return reduce(_with_draws if drawn else _with_alternatives, pieces)


def between(flags: Sequence[str]) -> str:
    """What stands in a text before a further piece of the same line that has these flags."""
    return "" if CONTINUES in flags else " "


def _with_draws(line: Line, rest: Line) -> Line:
    first, *others = map(_followed, (line, *line.alternatives), (rest, *rest.alternatives))
    return replace(first, alternatives=tuple(others))


def _with_alternatives(line: Line, rest: Line) -> Line:
    best, *others = itertools.starmap(_followed, itertools.product((line, *line.alternatives), (rest, *rest.alternatives)))
    count = max(len(line.alternatives), len(rest.alternatives))
    return replace(best, alternatives=tuple(sorted(others, key=lambda other: -other.confidence)[:count]))


def _followed(line: Line, rest: Line) -> Line:
    """A line and its continuation as one line without alternatives. A blank part adds nothing; the whole is blank only where both
    are. Where one part could not be read the whole has no text: half a text would pass for a whole one.
    """
    of_pieces = {CONTINUES, NO_TEXT} - (set(line.flags) & set(rest.flags))
    flags = tuple(f for f in dict.fromkeys(line.flags + rest.flags) if f not in of_pieces)
    if error := line.error or rest.error:
        return Line.failed(error, flags)
    if not (line.tokens and rest.tokens):
        return replace(line if line.tokens else rest, flags=flags, alternatives=())
    separator = between(rest.flags) if line.text and rest.text else ""
    start = len(line.text) + len(separator)
    words = tuple(replace(word, start=start + word.start, end=start + word.end) for word in rest.words)
    return Line(
        text=line.text + separator + rest.text,
        confidence=line.confidence * rest.confidence,
        tokens=line.tokens + rest.tokens,
        words=line.words + words if separator else _run_together(line.words, words),
        finish_reason="stop" if line.finish_reason == rest.finish_reason == "stop" else "length",
        flags=flags,
    )


def _run_together(words: tuple[Word, ...], others: tuple[Word, ...]) -> tuple[Word, ...]:
    """The words of two texts with no space between them: the last of one and the first of the other are one where they touch."""
    if not (words and others) or words[-1].end < others[0].start:
        return words + others
    (*before, last), (first, *after) = words, others
    whole = Word(last.text + first.text, last.start, first.end, last.confidence * first.confidence)
    return *before, whole, *after
