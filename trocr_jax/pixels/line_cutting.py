"""Where to cut a line that is too long for a model's image: at wide gaps, between words, and amid a word only where it must be.

Letters that are squeezed further than in training are not read at all. Lines are ink, uint8 [height, n], 0 where there is paper.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from .strokes import INKED, rule_rows

_ROOMY = 3 / 4  # of the model's image: what is longer is read in pieces
_PIECE = 5 / 8  # of the model's image, on the average of a line's pieces
_SLACK = 0.3  # of a piece, by which either of its ends may move to a gap: then it fills the image
_GAP = 7  # columns; in lines of 32 rows spaces are hardly narrower
_SPACE = 5  # columns from ink to ink, that are none yet: what is farther apart are words
_AMID = 0.25  # of the ink that is usual around a column: with less, what is closer are words with noise or little space between
_WIDE = 1.5  # heights of a line: paper that is wider parts what is read apart, as in a table of contents
LONGEST = 8 * _PIECE  # of the model's images: what is longer is squeezed into so much
MOST_PIECES = 16  # of a line, as there may be as many wide gaps as cuts


class Part(NamedTuple):
    """A piece of a line: its first column, the one behind its last, and whether it begins amid a word of the piece before."""

    first: int
    last: int
    continues: bool


def parts(line: np.ndarray, width: int) -> list[Part]:
    """The pieces of a line for images of `width`, in order, without the paper at their ends, which a model takes for the end of
    the line; all of it where it is short and without wide gaps.
    """
    letters = _without_rules(line)
    inked = np.flatnonzero(letters.max(0) >= INKED)
    ends = _ends(letters, inked, width)
    if len(ends) <= 2 or not inked.size:
        return [Part(0, line.shape[1], False)]
    found, amid = [], _is_amid_a_word(letters)
    for first, last in itertools.pairwise(ends):
        start, stop = np.searchsorted(inked, (first, last)).tolist()
        if start < stop:
            left, right = max(int(inked[start]) - _GAP, first), min(int(inked[stop - 1]) + 1 + _GAP, last)
            close = inked[start] - inked[start - 1] <= _SPACE
            found.append(Part(left, right, bool(found and close and amid[first])))
    return found


def _is_amid_a_word(line: np.ndarray) -> np.ndarray:
    """For every column whether more ink is around than around a space."""
    ink = _ink_around(line)
    return ink > _AMID * np.median(ink[ink > _AMID * ink.max()])


def _ink_around(line: np.ndarray) -> np.ndarray:
    """Of as many columns as a space has, for every column the ink."""
    return np.convolve(line.sum(0, dtype=np.float32), np.ones(_GAP), "same")


def _without_rules(line: np.ndarray) -> np.ndarray:
    """An underline fills the spaces between words."""
    rule = rule_rows(line)
    return np.where(rule[:, None], 0, line) if rule.any() else line


def _ends(line: np.ndarray, inked: np.ndarray, width: int) -> list[int]:
    """The columns between which the pieces lie: wide gaps part sections, and within these there are cuts."""
    gaps = np.flatnonzero(np.diff(inked) > _WIDE * len(line))
    middles = ((inked[gaps] + inked[gaps + 1]) // 2).tolist()[: MOST_PIECES // 2 - 1]
    sections = itertools.pairwise([0, *middles, line.shape[1]])
    return [*(first + end for first, last in sections for end in (0, *cuts(line[:, first:last], width))), line.shape[1]]


def cuts(line: np.ndarray, width: int) -> list[int]:
    """The columns at which to cut a line without wide gaps: of those near equal shares the least inked."""
    length = line.shape[1]
    if length <= _ROOMY * width:
        return []
    count = math.ceil(length / (_PIECE * width))
    ink = _ink_around(line)
    share, slack = length / count, _SLACK * length / count
    starts = [int(share * number - slack) for number in range(1, count)]
    return [start + int(ink[start : start + int(2 * slack)].argmin()) for start in starts]
