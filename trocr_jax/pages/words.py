"""Where the words of a line stand in its picture: what the model does not say, the ink does. No jax here.

Of the gaps in the ink as many part words as the text has spaces: those that are wide, and near to where the spaces of the text
would lie if its characters stood side by side. Shares are of the width of the line's picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from PIL import Image

from ..line import Line
from ..pixels.line_normalization import ink_of
from ..pixels.strokes import INKED, averaged, rule_rows, runs, settle

Share = tuple[float, float]
"""From where to where, 0 to 1."""

_AWAY = 0.1  # heights of a gap's width that a gap loses by being one height from where it is expected; four times it by two
_SPACE = 0.4  # heights: the width of a space
_MARK = 0.2  # heights: narrower ink at an end of a line is a mark, and no word of several letters,
_APART = 0.8  # heights: where it is farther from the next
_NARROW = frozenset(" .,:;'`\"!|()[]-ijlIftr")  # characters half as wide as others


@dataclass(frozen=True)
class InkColumns:
    """Where the picture of a line has ink, seen from above.

    Attributes:
        runs: the first column of each run of columns with ink, and the one behind its last; from the left.
        width, height: of the picture that they are counted in.
    """

    runs: tuple[tuple[int, int], ...]
    width: int
    height: int


def ink_columns(image: Image.Image) -> InkColumns:
    """Of the RGB image of a line. Specks of noise and rules, which would fill the gaps, are no ink."""
    channel, _ = averaged(image)
    ink, _, _ = settle(ink_of(channel))
    marks = ink >= INKED
    inked = np.asarray(marks[~rule_rows(np.uint8(255) * marks)].any(0))  # rules are often paler than writing
    return InkColumns(tuple(runs(inked)), width=ink.shape[1], height=ink.shape[0])


def place_words(line: Line, ink: InkColumns) -> tuple[Share, ...]:
    """Where each word of a line stands. Where the ink has fewer gaps than the text, by the widths of its characters."""
    if not line.words:
        return ()
    if not ink.runs:
        return by_characters(line)
    runs = _without_marks(ink, line)
    left, length, shares = runs[0][0], runs[-1][1] - runs[0][0], by_characters(line)
    gaps = np.array([(last, first) for (_, last), (first, _) in pairwise(runs)]).reshape(-1, 2)
    if len(gaps) < len(shares) - 1:
        return tuple(((left + length * first) / ink.width, (left + length * last) / ink.width) for first, last in shares)
    between = gaps[_best_gaps(gaps - left, length, shares, ink.height)]
    edges = [edge / ink.width for edge in (left, *between.ravel().tolist(), left + length)]
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def _without_marks(ink: InkColumns, line: Line) -> tuple[tuple[int, int], ...]:
    """The runs less a speck, or the side of a frame, at either end; a word of one sign may be as narrow, and as far apart."""
    found = ink.runs
    if len(line.words[0].text) > 1 and len(found) > 1 and _is_mark(found[0], found[1][0] - found[0][1], ink.height):
        found = found[1:]
    if len(line.words[-1].text) > 1 and len(found) > 1 and _is_mark(found[-1], found[-1][0] - found[-2][1], ink.height):
        found = found[:-1]
    return found


def _is_mark(run: tuple[int, int], gap: int, height: int) -> bool:
    return run[1] - run[0] < _MARK * height and gap > _APART * height


def by_characters(line: Line) -> tuple[Share, ...]:
    """Where each word of a line would stand if the text filled the picture."""
    ends = [0.0, *accumulate(0.5 if character in _NARROW else 1.0 for character in line.text)]
    return tuple((ends[word.start] / ends[-1], ends[word.end] / ends[-1]) for word in line.words)


def _best_gaps(gaps: np.ndarray, length: int, words: Sequence[Share], height: int) -> Sequence[int]:
    """Which of gaps [G,2] in so many columns lie between words, of which each is expected at a share of them: together the best.

    A gap of columns in a table says nothing of where characters stand: places are counted as if none were wider than a space.
    """
    widths = gaps[:, 1] - gaps[:, 0]
    more = np.maximum(widths - _SPACE * height, 0)
    places = gaps.mean(1) - more.cumsum() + more / 2
    spaces = (length - more.sum()) * np.array([(last + first) / 2 for (_, last), (first, _) in pairwise(words)])
    return _best(widths / height - _AWAY * ((places - spaces[:, None]) / height) ** 2)


def _best(worth: np.ndarray) -> Sequence[int]:
    """Of worth [n,G], n <= G, the columns to choose, one a row and each behind the one before, to be worth the most."""
    total, before = np.zeros(worth.shape[1] + 1), []
    for own in worth:  # total[g]: the most that the spaces so far are worth in the first g gaps
        reached = np.append(-np.inf, total[:-1] + own)
        total = np.maximum.accumulate(reached)
        before.append(np.maximum.accumulate(np.where(reached == total, np.arange(len(total)), 0)))
    chosen, last = [], worth.shape[1]
    for best in reversed(before):
        chosen.append(int(best[last]) - 1)
        last = chosen[-1]
    return chosen[::-1]
