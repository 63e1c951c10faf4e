"""Text line detection: the lines of a scanned page by classical means, no weights, no jax; skew, several columns, ruled paper.

    ink        told from its paper and from what the sheet lies on: `binarization`, on a page of at most WORKING pixels a side
    level      turned so, and without rules: `deskew`
    runs       of letters side by side, large and small ones: `letters`
    order      cut off running heads and feet, cut at gutters, else at the widest gap between lines, until none is left; read
               what is left from top to bottom

A line is a quadrilateral on the page as it came, [4,2] float32 x and y in pixels: top left, top right, bottom right, bottom
left, as the writing runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .binarization import find_ink
from .deskew import level
from .letters import ALIKE, Boxes, Connected, find_runs

WORKING = 2200  # pixels of the longer side that lines are looked for on
MOST_LINES = 4000  # on a page, or cells of its tables; what has more is a picture, and the images of its lines would fill memory
GUTTER = 1.1  # letters' heights between columns
ROWS = 4, 2  # lines on both sides of a gutter, and of one that is twice as wide: spaces of a typewriter can be in line
APART = 4.0, 1.6  # letters' heights, and lines' distances, at least, of paper between a running head and columns
PITCH = 8  # lines, at most, show how far lines are from each other
POINT = 0.01  # square heights of ink: what has less is no point
BEFORE, AFTER, ABOVE = 1.2, 1.5, 0.3  # heights of letters from a line to the middle of a point: a typewriter's is far off
LOW = 0.6  # heights of letters: points, commas, quotation marks and accents are lower
SMALLER = 0.8, 3.0  # heights of letters: what is lower, and less wide, inside of their line is part of it, or a gap in them


class LineBox(NamedTuple):
    """A box on the level ink, and the height of the letters in it."""

    left: float
    top: float
    right: float
    bottom: float
    size: float

    def shares_height(self, other: LineBox) -> bool:
        """Whether letters are of about the same size, and more than half of the lower one's height is common to both."""
        shared = min(self.bottom, other.bottom) - max(self.top, other.top)
        alike = max(self.size, other.size) < ALIKE * min(self.size, other.size)
        return alike and shared > 0.5 * min(self.bottom - self.top, other.bottom - other.top)

    def grown(self, left: float, top: float, right: float, bottom: float) -> LineBox:
        """The box, enlarged so that it holds this one, too."""
        return LineBox(min(self.left, left), min(self.top, top), max(self.right, right), max(self.bottom, bottom), self.size)

    def with_margin(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom with a little paper around."""
        margin = 0.25 * self.size
        return self.left - margin, self.top - margin, self.right + margin, self.bottom + margin


def find_lines(image: Image.Image) -> list[np.ndarray]:
    """The lines of an RGB page in reading order, as quadrilaterals [4,2]. An empty page has none, nor has a picture."""
    scale = min(1.0, WORKING / max(image.size))
    size = [max(1, round(side * scale)) for side in image.size]
    marks = find_ink(image.resize(size, Image.Resampling.BOX) if scale < 1 else image)
    if marks is None:
        return []
    levelled, angle = level(marks)
    back = _way_back(marks.shape, levelled.shape, angle, scale)
    return [back(line.with_margin()) for line in _lines(levelled)]


def _way_back(before: tuple[int, ...], after: tuple[int, ...], angle: float, scale: float) -> Any:
    """Function from a box on the level ink to its quadrilateral [4,2] on the page."""
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[cosine, -sine], [sine, cosine]])

    def back(box: tuple[float, float, float, float]) -> np.ndarray:
        left, top, right, bottom = box
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        middle = np.array([after[1], after[0]]) / 2
        return (((corners - middle) @ turn.T + np.array([before[1], before[0]]) / 2) / scale).astype(np.float32)

    return back


def _lines(marks: np.ndarray) -> list[LineBox]:
    """The lines on level ink, in reading order; none of a picture."""
    runs, ink = find_runs(marks)
    blocks = _ordered(runs, GUTTER * float(np.median(runs.size))) if len(runs) else ()
    lines = list(itertools.islice(_whole(itertools.chain.from_iterable(map(_merged, blocks)), ink), MOST_LINES + 1))
    return _outermost(lines) if len(lines) <= MOST_LINES else []


def _ordered(runs: Boxes, gutter: float) -> Iterator[Boxes]:
    """Blocks in reading order: left of a gutter before right of it, but for running heads and feet; above a gap before below."""
    waiting = [runs]
    while waiting:
        block = waiting.pop()
        first = _left_of_gutter(block, gutter)
        first = _above_gap(block) if first is None else _beside_head_or_foot(block, first)
        if first is None:
            yield block
        else:
            waiting += [block[np.logical_not(first)], block[first]]


def _left_of_gutter(block: Boxes, width: float) -> np.ndarray | None:
    """Which pieces stand left of the widest gutter; None where there is none with several lines on both sides."""
    gutter = _widest_gap(block.left, block.right)
    if gutter is None or gutter[0] < width:
        return None
    left = block.right <= gutter[1]
    rows = ROWS[gutter[0] >= 2 * width]
    return left if _has_rows(block[left], rows) and _has_rows(block[np.logical_not(left)], rows) else None


def _beside_head_or_foot(block: Boxes, left: np.ndarray) -> np.ndarray:
    """Which pieces stand above the first gap across a block, or the last, where one line is far from all others; else `left`."""
    widths, places = _gaps(block.top, block.bottom)
    for i in (0, -1) if widths.size else ():
        above = block.bottom <= places[i]
        alone = above if i == 0 else np.logical_not(above)
        if widths[i] <= APART[0] * np.median(block.size) or _has_rows(block[alone], 2):
            continue
        if widths[i] > APART[1] * _pitch(block[np.logical_not(alone)]):
            return above
    return left


def _pitch(block: Boxes) -> float:
    """The distance from line to line in a block, less where its columns are not in line; 0 of one line."""
    lines = _merged(block, enough=PITCH)
    return float(np.median(np.diff([(line.top + line.bottom) / 2 for line in lines]))) if len(lines) > 1 else 0.0


def _above_gap(block: Boxes) -> np.ndarray | None:
    gap = _widest_gap(block.top, block.bottom)
    return None if gap is None else block.bottom <= gap[1]


def _has_rows(runs: Boxes, rows: int) -> bool:
    """Whether runs make at least this many lines, one under the other."""
    return len(_merged(runs, enough=rows)) >= rows


def _widest_gap(starts: np.ndarray, ends: np.ndarray) -> tuple[float, float] | None:
    """Width of the widest gap, and where it begins."""
    widths, places = _gaps(starts, ends)
    return (float(widths.max()), float(places[np.argmax(widths)])) if widths.size else None


def _gaps(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Widths of the stretches that no interval covers between the first and the last, and where they begin."""
    order = np.argsort(starts)
    covered = np.maximum.accumulate(ends[order])[:-1]
    widths = starts[order][1:] - covered
    return widths[widths > 0], covered[widths > 0]


def _merged(runs: Boxes, enough: float = np.inf) -> list[LineBox]:
    """Lines from top to bottom: runs that share more than half of the lower one's height are one. Stops at `enough`
    lines."""
    lines: list[LineBox] = []
    for i in np.argsort(runs.top + runs.bottom):
        if len(lines) >= enough:
            break
        run = LineBox(*runs[i : i + 1].around(), float(runs.size[i]))
        for place, line in enumerate(lines):
            if line.shares_height(run):
                lines[place] = line.grown(*run[:4])
                break
        else:
            lines.append(run)
    return sorted(lines, key=lambda line: line.top + line.bottom)


def _whole(lines: Iterable[LineBox], ink: Connected) -> Iterator[LineBox]:
    """Lines grown by the points, commas and accents beside them; what is one speck alone is dropped."""
    x, y = (ink.boxes.left + ink.boxes.right) / 2, (ink.boxes.top + ink.boxes.bottom) / 2
    for line in lines:
        size = line.size
        if line.right - line.left < size and line.bottom - line.top < 0.6 * size:
            continue
        near = (x > line.left - BEFORE * size) & (x < line.right + AFTER * size)
        near &= (y > line.top - ABOVE * size) & (y < line.bottom + ABOVE * size)
        near &= (ink.boxes.height <= LOW * size) & (ink.area >= POINT * size * size)
        yield line.grown(*ink.boxes[near].around()) if near.any() else line


def _outermost(lines: list[LineBox]) -> list[LineBox]:
    """Lines without small ones inside of others: commas and quotation marks, which make runs too, and gaps in bold letters."""
    left, top, right, bottom, size = np.array(lines).reshape(-1, 5).T
    lower, narrower = (share * size for share in SMALLER)
    kept = []
    for line in lines:
        inside = (left <= line.left) & (top <= line.top) & (right >= line.right) & (bottom >= line.bottom)
        if not (inside & (line.size < lower) & (line.right - line.left < narrower)).any():
            kept.append(line)
    return kept
