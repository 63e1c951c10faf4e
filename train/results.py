"""What an evaluation gives: data sets, the lines read of them, and their scores."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trocr_jax import metrics
from trocr_jax.line import Line

from .sets.records import Source

ALL = "all"  # the row of all data sets together
RISKS = (0.01, 0.02, 0.05)  # shares of wrong lines among those that are believed


@dataclass(frozen=True)
class Task:
    """A data set to read, with what was published of it."""

    name: str
    source: Source
    published: dict[str, float]


@dataclass(frozen=True)
class Reading:
    """A line as it is and as it was read; `image` is anything that `images.load` takes."""

    source: str
    name: str
    image: Any
    reference: str
    line: Line

    @property
    def scored(self) -> bool:
        """False where neither image nor text is there: an empty reading would equal an empty reference."""
        return self.line.error is None or bool(self.reference)


@dataclass(frozen=True)
class Result:
    """One pass over all data sets.

    Attributes:
        beams: 1 is greedy.
        readings: one for every line.
        scores: source -> score -> value and the ends of its interval; "all" holds all of them.
        lines_per_s: the rate of the whole pass, reading files included.
    """

    beams: int
    readings: list[Reading]
    scores: dict[str, dict[str, tuple[float, float, float]]]
    lines_per_s: float

    @cached_property
    def confidences(self) -> tuple[list[float], list[bool]]:
        """Of every line that could be read the confidence, and whether it is right to the last character."""
        read = [r for r in self.readings if r.line.error is None]
        return [r.line.confidence for r in read], [r.line.text == r.reference for r in read]

    @property
    def calibration(self) -> tuple[float, list[tuple[int, float, float]]]:
        """Expected calibration error, and its table."""
        return metrics.calibration(*self.confidences)

    @property
    def coverage(self) -> dict[float, tuple[float, float] | None]:
        """For each of RISKS from which confidence on lines can be believed, and how many of them."""
        return {risk: metrics.coverage(*self.confidences, risk) for risk in RISKS}

    @cached_property
    def confusions(self) -> Counter[tuple[str, str]]:
        """(written, read as) -> times; "" for inserted or lost. Images that cannot be read confuse no letters."""
        read = [r for r in self.readings if r.line.error is None]
        return metrics.confusions([r.line.text for r in read], [r.reference for r in read])

    @cached_property
    def counts(self) -> dict[str, int]:
        """Source -> how many lines its scores cover."""
        return {name: sum(r.scored and name in (r.source, ALL) for r in self.readings) for name in self.scores}


def unreadable(readings: Sequence[Reading]) -> list[str]:
    """What scores do not show: lines they leave out, and lines that are wrong because their image is."""
    lost = [r for r in readings if not r.scored]
    wrong = [r for r in readings if r.scored and r.line.error]
    said = [(lost, "records cannot be read, not scored"), (wrong, "images cannot be read, counted as wrong")]
    return [f"{len(found)} {what}; the first of {found[0].source}: {found[0].name}" for found, what in said if found]


def decomposed(readings: Sequence[Reading]) -> list[str]:
    """That references have accents apart from their letters, which no reading may equal however right it is."""
    found = [r for r in readings if not unicodedata.is_normalized("NFC", r.reference)]
    what = "references have accents apart from their letters: --normalize NFC compares them as readers see them"
    return [f"{len(found)} {what}; the first of {found[0].source}: {found[0].name}"] if found else []
