"""Text line detection: the lines of a scanned page by classical means, no weights, no jax; skew, several columns, ruled paper.

    binarise   ink against its neighbourhood (Sauvola and Pietikainen, 2000), on a page scaled to at most WORKING pixels a side
    level      the angle at which the rows of ink are most uneven; the ink is turned level, and rules are taken out of it
    link       letters to their right neighbours of the same height: pieces of lines
    order      cut at gutters, else at the widest gap between lines, until neither is left; read what is left from top to bottom

A line is a quadrilateral on the page as it came, [4,2] float32 x and y in pixels: top left, top right, bottom right, bottom
left, as the writing runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from . import ink

WORKING = 2200  # pixels of the longer side that lines are looked for on
SMOOTH = 0.7  # pixels, before ink is told from paper
SPECK = 6  # pixels of ink: what has fewer is no letter
STEEPEST = 5.0  # degrees
LINK = 1.5  # letters' heights to the next letter of a line
GUTTER = 1.1  # letters' heights between columns
SOLID = 0.48  # thickness over height of the median letter: bold print has a third, drops and dots have half and more
MOST_LETTERS = 60_000  # of a newspaper's page are fewer; what has more is a picture
TWO_TONES = 0.6  # of the variance; no threshold through a bell curve explains more than 2 / pi, and noise has less ink


@dataclass(frozen=True)
class Boxes:
    """Rectangles on the level ink, [n] float each."""

    left: np.ndarray
    top: np.ndarray
    right: np.ndarray
    bottom: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, index: Any) -> Boxes:
        return Boxes(self.left[index], self.top[index], self.right[index], self.bottom[index])

    @property
    def height(self) -> np.ndarray:
        return self.bottom - self.top

    @property
    def width(self) -> np.ndarray:
        return self.right - self.left

    def around(self) -> tuple[float, float, float, float]:
        """left, top, right, bottom of all of them."""
        return float(self.left.min()), float(self.top.min()), float(self.right.max()), float(self.bottom.max())


def find_lines(image: Image.Image) -> list[np.ndarray]:
    """The lines of an RGB page in reading order, as quadrilaterals [4,2]. An empty page has none."""
    scale = min(1.0, WORKING / max(image.size))
    small = image.convert("L").resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    gray = np.asarray(small, np.float32)
    marks = binarise(gray)
    if ink.is_blank(image) and not (has_two_tones(gray, marks) and has_no_specks(marks)):
        return []
    angle = skew(marks)
    level = without_rules(_turned(marks, angle))
    back = _way_back(marks.shape, level.shape, angle, scale)
    return [back(box) for box in _lines(level)]


def binarise(gray: np.ndarray) -> np.ndarray:
    """[H,W] grey levels to bool ink, whichever of paper and ink is darker, under uneven light."""
    if np.median(gray) < 128:
        gray = 255.0 - gray
    gray = ndimage.gaussian_filter(gray, SMOOTH)
    size = max(15, min(gray.shape) // 30 | 1)
    mean = ndimage.uniform_filter(gray, size)
    deviation = np.sqrt(np.maximum(ndimage.uniform_filter(gray * gray, size) - mean * mean, 0.0))
    return (gray < mean * (1 + 0.2 * (deviation / 128 - 1))) & (gray < mean - 20)


def has_two_tones(gray: np.ndarray, marks: np.ndarray) -> bool:
    """Whether [H,W] grey levels are ink and paper, by the share of their variance that lies between the two (Otsu, 1979).

    A dense table whose rows are two or three pixels high once it is averaged looks blank to `ink`; noise has one tone.
    """
    share = marks.mean()
    if not 0 < share < 1:
        return False
    gray = ndimage.gaussian_filter(gray, SMOOTH)
    between = share * (1 - share) * (gray[marks].mean() - gray[~marks].mean()) ** 2
    return bool(between > TWO_TONES * gray.var())


def has_no_specks(marks: np.ndarray) -> bool:
    """Whether nine tenths of the ink [H,W] are in pieces as large as letters: noise that has two tones, as a fax's, is not."""
    labelled: Any = ndimage.label(marks, np.ones((3, 3)))
    area = np.bincount(labelled[0].ravel())[1:]
    return bool(area[area >= SPECK].sum() > 0.9 * area.sum())


def skew(marks: np.ndarray) -> float:
    """Degrees, counter-clockwise positive as PIL turns, by which the page must be turned to be level."""
    rows, columns = np.nonzero(marks)
    if rows.size < 50:
        return 0.0
    if rows.size > 200_000:
        kept = np.random.default_rng(0).choice(rows.size, 200_000, replace=False)
        rows, columns = rows[kept], columns[kept]

    def sharpness(angle: float) -> float:
        level = np.rint(rows - columns * np.tan(np.radians(angle))).astype(np.int64)
        return float(np.square(np.bincount(level - level.min()).astype(float)).sum())

    coarse = max(np.arange(-STEEPEST, STEEPEST + 0.25, 0.25), key=sharpness)
    return float(max(np.arange(coarse - 0.25, coarse + 0.26, 0.05), key=sharpness))


def without_rules(marks: np.ndarray) -> np.ndarray:
    """Level ink without long thin strokes, whose pixels go where no letter crosses them."""
    for axis in (1, 0):
        length = max(40, marks.shape[axis] // 12)
        joined = ndimage.binary_closing(marks, np.ones((1, 5) if axis else (5, 1)))
        long = ndimage.binary_opening(joined, np.ones((1, length) if axis else (length, 1)))
        if long.any():
            thick = ndimage.binary_opening(long, np.ones((9, 9)))  # a picture, not a rule
            rule = ndimage.binary_dilation(np.greater(long, thick), np.ones((3, 1) if axis else (1, 3)))
            crossed = ndimage.binary_opening(marks, np.ones((6, 1) if axis else (1, 6)))
            marks = marks & np.logical_or(crossed, np.logical_not(rule))
    return marks


def _turned(marks: np.ndarray, angle: float) -> np.ndarray:
    turned = Image.fromarray(marks.astype(np.uint8) * 255).rotate(angle, Image.Resampling.BILINEAR, expand=True)
    return np.asarray(turned) > 127


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


def _lines(marks: np.ndarray) -> Iterator[tuple[float, float, float, float]]:
    """Boxes of the lines on level ink, in reading order."""
    letters, small = _letters(marks)
    if not 0 < len(letters) <= MOST_LETTERS:
        return
    height = float(np.median(letters.height))
    pieces = _pieces(letters, height)
    found = [line for block in _ordered(pieces, height) for line in _merged(block)]
    for left, top, right, bottom in _with_points(found, small, height):
        margin = 0.25 * height
        yield left - margin, top - margin, right + margin, bottom + margin


def _letters(marks: np.ndarray) -> tuple[Boxes, Boxes]:
    """What may be letters, and what is smaller: points, commas, specks."""
    labelled: Any = ndimage.label(marks, np.ones((3, 3)))
    labels, count = labelled
    slices: Any = ndimage.find_objects(labels)
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    sides = np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices], float).reshape(-1, 4)
    boxes = Boxes(*sides.T)
    real = (area >= SPECK) & (boxes.height >= 3)
    boxes, area = boxes[real], area[real]
    if not len(boxes):
        return boxes, boxes
    # specks outnumber letters on a noisy page: the typical height is that of the typical pixel of ink
    order = np.argsort(boxes.height)
    typical = float(boxes.height[order][np.searchsorted(np.cumsum(area[order]), area.sum() / 2)])
    letter = (boxes.height > 0.45 * typical) & (boxes.height < 3.5 * typical) & (boxes.width < 40 * typical)
    point = (boxes.height <= 0.45 * typical) & (area >= 0.01 * typical * typical)
    if letter.any() and np.median(_thickness(marks, labels, count)[real][letter] / boxes.height[letter]) > SOLID:
        return boxes[:0], boxes[:0]
    return boxes[letter], boxes[point]


def _thickness(marks: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Side of the largest square inside each of the labelled pieces of ink, [count]."""
    depth, most = np.asarray(ndimage.distance_transform_cdt(marks, "chessboard")), np.zeros(count + 1, int)
    np.maximum.at(most, labels[marks], depth[marks])
    return 2 * most[1:] - 1


def _pieces(letters: Boxes, height: float) -> Boxes:
    """Runs of letters side by side: each linked to the nearest one at its right that lies as high."""
    order = np.argsort(letters.left)
    letters = letters[order]
    group = np.arange(len(letters))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = int(group[i])
        return i

    for i in range(len(letters)):
        others = np.arange(i + 1, np.searchsorted(letters.left, letters.right[i] + LINK * height, side="right"))
        shared = np.minimum(letters.bottom[i], letters.bottom[others]) - np.maximum(letters.top[i], letters.top[others])
        fits = others[shared > 0.45 * np.minimum(letters.height[i], letters.height[others])]
        if fits.size:
            near = fits[np.argmin(letters.left[fits])]
            group[root(i)] = root(int(near))
    roots = np.array([root(i) for i in range(len(letters))])
    together = np.argsort(roots, kind="stable")
    first = np.flatnonzero(np.diff(roots[together], prepend=-1))
    low, high = np.minimum.reduceat, np.maximum.reduceat
    letters = letters[together]
    return Boxes(low(letters.left, first), low(letters.top, first), high(letters.right, first), high(letters.bottom, first))


def _ordered(pieces: Boxes, height: float) -> Iterator[Boxes]:
    """Blocks in reading order: left of a gutter before right of it, above a gap before below it."""
    waiting = [pieces]
    while waiting:
        block = waiting.pop()
        first = _left_of_gutter(block, GUTTER * height)
        first = _above_gap(block) if first is None else first
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
    return left if _has_rows(block[left]) and _has_rows(block[np.logical_not(left)]) else None


def _above_gap(block: Boxes) -> np.ndarray | None:
    gap = _widest_gap(block.top, block.bottom)
    return None if gap is None else block.bottom <= gap[1]


def _has_rows(pieces: Boxes) -> bool:
    """Whether pieces make several lines, one under the other."""
    return len(_merged(pieces, enough=2)) >= 2


def _widest_gap(starts: np.ndarray, ends: np.ndarray) -> tuple[float, float] | None:
    """Width of the widest stretch that no interval covers between the first and the last, and where it begins."""
    order = np.argsort(starts)
    covered = np.maximum.accumulate(ends[order])[:-1]
    gaps = starts[order][1:] - covered
    if not gaps.size or gaps.max() <= 0:
        return None
    return float(gaps.max()), float(covered[np.argmax(gaps)])


def _merged(pieces: Boxes, enough: float = np.inf) -> list[tuple[float, float, float, float]]:
    """Lines from top to bottom: pieces that share more than half of the lower one's height are one. Stops at `enough` lines."""
    lines: list[tuple[float, float, float, float]] = []
    for i in np.argsort(pieces.top + pieces.bottom):
        if len(lines) >= enough:
            break
        left, top, right, bottom = pieces[i : i + 1].around()
        for place, (a, b, c, d) in enumerate(lines):
            if min(d, bottom) - max(b, top) > 0.5 * min(d - b, bottom - top):
                lines[place] = min(a, left), min(b, top), max(c, right), max(d, bottom)
                break
        else:
            lines.append((left, top, right, bottom))
    return sorted(lines, key=lambda box: box[1] + box[3])


def _with_points(
    lines: list[tuple[float, float, float, float]], small: Boxes, height: float
) -> Iterator[tuple[float, float, float, float]]:
    """Lines grown by the points, commas and accents beside them; what is one speck alone is dropped."""
    for left, top, right, bottom in lines:
        if right - left < height and bottom - top < 0.6 * height:
            continue
        middle = (small.left + small.right) / 2, (small.top + small.bottom) / 2
        near = (middle[0] > left - 0.7 * height) & (middle[0] < right + 0.7 * height)
        near &= (middle[1] > top - 0.3 * height) & (middle[1] < bottom + 0.3 * height)
        yield _boxes([(left, top, right, bottom), *([small[near].around()] if near.any() else [])]).around()


def _boxes(rows: list[tuple[float, float, float, float]]) -> Boxes:
    return Boxes(*np.array(rows, float).reshape(-1, 4).T)
