"""The letters of a page: connected ink, and the runs that pieces of it make side by side, words as a rule.

Lengths are in pixels of the level ink, or in heights of letters. Print of several sizes may stand on a page.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from scipy import ndimage

from .paper import SPECK

ORDINARY = 0.45, 3.5  # least and most height of letters that need no others beside them, for the typical one of the page
FEWEST = 3  # letters side by side of any other size: fewer may be anything
LEAST = 7  # pixels: runs of another size whose letters are all lower are dirt, or leaders
FLATTEST = 0.6  # of that height: small letters have two thirds of the tall ones' and more
LOWEST = 3  # pixels: no letter is lower
DOT = 3, 2  # pixels of ink, and of height: the points of small print have no more
WORD = 40  # width of letters that touch each other, for their height
MOST = 0.05  # of the ink that one connected piece counts for at most: the frame of a page must not pass for its typical letter
ALIKE = 3.0  # times the height of the lower one of two letters side by side
LINK = 1.5  # heights to the next letter of a run
SOLID = 0.48  # thickness over height: bold print has a third; drops, dots and corners have half and more
MOST_LETTERS = 60_000  # a newspaper's page has fewer; what has more is a picture


@dataclass(frozen=True)
class Boxes:
    """Rectangles on the level ink, [n] float each; `size` is the median height of the letters in each."""

    left: np.ndarray
    top: np.ndarray
    right: np.ndarray
    bottom: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, index: Any) -> Boxes:
        return Boxes(*(getattr(self, field.name)[index] for field in fields(self)))

    @property
    def height(self) -> np.ndarray:
        return self.bottom - self.top

    @property
    def width(self) -> np.ndarray:
        return self.right - self.left

    def around(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom of all of them."""
        return float(self.left.min()), float(self.top.min()), float(self.right.max()), float(self.bottom.max())


@dataclass(frozen=True)
class Connected:
    """Connected ink, [n] each: its boxes, how many pixels it has, and whether it is solid, as no letter is."""

    boxes: Boxes
    area: np.ndarray
    solid: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> Connected:
        return Connected(self.boxes[index], self.area[index], self.solid[index])


def find_runs(marks: np.ndarray) -> tuple[Boxes, Connected]:
    """Level ink, bool [H,W] -> runs of letters side by side; and all that is connected, letters, points or neither."""
    ink = _connected(marks)
    large = ink[(ink.area >= SPECK) & (ink.boxes.height >= LOWEST)]
    least, most = (bound * _typical_height(large) for bound in ORDINARY)
    high = min(least, LEAST)
    letters = large[(large.boxes.height > FLATTEST * high) & (large.boxes.width < WORD * large.boxes.height)]
    tall = letters.boxes.height > high
    letters = replace(letters, solid=letters.solid & tall)  # blurred strokes fill half of a lower one's height
    if len(letters) > MOST_LETTERS or 2 * letters.solid.sum() >= tall.sum():  # a picture, or nothing
        return ink.boxes[:0], ink
    runs, count, tallest = _runs(letters)
    several = (count >= FEWEST) & (tallest > high)
    return runs[several | (runs.size > least) & (runs.size < most)], ink


def _connected(marks: np.ndarray) -> Connected:
    labelled: Any = ndimage.label(marks, np.ones((3, 3)))
    labels, count = labelled
    slices: Any = ndimage.find_objects(labels)
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    sides = np.array([(x.start, y.start, x.stop, y.stop, 0) for y, x in slices], float).reshape(-1, 5)
    boxes = Boxes(*sides.T)
    solid = _thickness(marks, labels, count) > SOLID * boxes.height
    return Connected(boxes, area, solid)[(area >= DOT[0]) & (boxes.height >= DOT[1])]


def _thickness(marks: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Side of the largest square inside each of the labelled pieces of ink, [count]."""
    depth, most = np.asarray(ndimage.distance_transform_cdt(marks, "chessboard")), np.zeros(count + 1, int)
    np.maximum.at(most, labels[marks], depth[marks])
    return 2 * most[1:] - 1


def _typical_height(ink: Connected) -> float:
    """Height of the piece that a typical pixel of ink is in, as specks outnumber letters on a noisy page; 0 without ink."""
    if not len(ink):
        return 0.0
    order = np.argsort(ink.boxes.height)
    shares = np.cumsum(np.minimum(ink.area, MOST * ink.area.sum())[order])
    return float(ink.boxes.height[order][np.searchsorted(shares, shares[-1] / 2)])


def _runs(letters: Connected) -> tuple[Boxes, np.ndarray, np.ndarray]:
    """Boxes around letters side by side, where most of them are not solid, how many each holds, and the tallest's height."""
    run = _linked(letters.boxes)
    order = np.lexsort((letters.boxes.height, run))
    letters, first = letters[order], np.flatnonzero(np.diff(run[order], prepend=-1))
    low, high, boxes = np.minimum.reduceat, np.maximum.reduceat, letters.boxes
    sides = low(boxes.left, first), low(boxes.top, first), high(boxes.right, first), high(boxes.bottom, first)
    count, tallest = np.diff(first, append=len(letters)), high(boxes.height, first)
    letterlike = np.add.reduceat(letters.solid.astype(int), first) <= count / 2
    return Boxes(*sides, boxes.height[first + count // 2])[letterlike], count[letterlike], tallest[letterlike]


def _linked(letters: Boxes) -> np.ndarray:
    """The run of each letter, [n] int: each is linked to the nearest one at its right that lies as high and is as large."""
    order = np.argsort(letters.left)
    letters, height = letters[order], letters.height[order]
    group = np.arange(len(letters))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = int(group[i])
        return i

    for i in range(len(letters)):
        reach = letters.right[i] + LINK * ALIKE**0.5 * height[i]
        others = np.arange(i + 1, np.searchsorted(letters.left, reach, side="right"))
        lower, higher = np.minimum(height[i], height[others]), np.maximum(height[i], height[others])
        shared = np.minimum(letters.bottom[i], letters.bottom[others]) - np.maximum(letters.top[i], letters.top[others])
        near = letters.left[others] - letters.right[i] < LINK * np.sqrt(lower * higher)
        fits = others[near & (shared > 0.45 * lower) & (higher < ALIKE * lower)]
        if fits.size:
            group[root(i)] = root(int(fits[0]))
    runs = np.empty(len(letters), int)
    runs[order] = [root(i) for i in range(len(letters))]
    return runs
