"""Ink without what is ruled or framed: long strokes, and the sides of boxes to write in. Arrays are [height, width]."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

FIELD = 20  # pixels of paper at least between the sides of a box to write in or to tick
THICK = 6  # pixels at most of such a side


def without_fields(marks: np.ndarray) -> np.ndarray:
    """Level ink without the sides of boxes to write in or to tick that are too short for rules: they pass for letters."""
    labelled: Any = ndimage.label(~marks)
    kept, beyond = marks.copy(), THICK + 1
    for place in ndimage.find_objects(labelled[0]):
        if any(part.stop - part.start < FIELD or part.start < beyond for part in place):
            continue
        around = tuple(slice(part.start - beyond, part.stop + beyond) for part in place)
        if all(map(_is_side, _sides(marks[around]))):
            for turn, side in enumerate(_sides(kept[around])):
                if side.shape[1] < _rule_length(marks, axis=1 - turn % 2):
                    side[side[:, beyond:-beyond].mean(1) > 0.5] = False
    return kept


def _sides(around: np.ndarray) -> list[np.ndarray]:
    """Views of the four sides of paper and THICK + 1 pixels around, from that far outside to 3 pixels inside."""
    return [np.rot90(around, turn)[: THICK + 4] for turn in range(4)]


def _is_side(side: np.ndarray) -> bool:
    """Whether it is a straight and thin line: paper inside, ink at the edge, and no more of it farther out."""
    middle = side[:, THICK + 1 : -THICK - 1]
    return bool(middle[-1].mean() < 0.1 and middle[THICK - 1 : THICK + 2].any(0).mean() > 0.95 and middle[0].mean() < 0.5)


def _rule_length(marks: np.ndarray, axis: int) -> int:
    """Pixels along an axis from which on a stroke is a rule."""
    return max(40, marks.shape[axis] // 12)


def without_rules(marks: np.ndarray) -> np.ndarray:
    """Level ink without long thin strokes, whose pixels go where no letter crosses them."""
    for axis in (1, 0):
        length = _rule_length(marks, axis)
        joined = ndimage.binary_closing(marks, np.ones((1, 5) if axis else (5, 1)))
        long = ndimage.binary_opening(joined, np.ones((1, length) if axis else (length, 1)))
        if long.any():
            thick = ndimage.binary_opening(long, np.ones((9, 9)))  # a picture, not a rule
            rule = ndimage.binary_dilation(np.greater(long, thick), np.ones((3, 1) if axis else (1, 3)))
            crossed = ndimage.binary_opening(marks, np.ones((6, 1) if axis else (1, 6)))
            marks = marks & np.logical_or(crossed, np.logical_not(rule))
    return marks
