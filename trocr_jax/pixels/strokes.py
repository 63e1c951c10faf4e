"""What strokes of writing show of themselves: their edges, the tilt that packs these into few rows, and rules.

Neither asks what colour the paper is. Arrays are [height, width]; edges are two arrays, of their rows and of their columns.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

import numpy as np
from PIL import Image, ImageChops

INKED = 64
"""Levels of ink, 0 to 255, from which a place is written on."""

_ROWS = 96  # show the strokes of one line
_NOISE = 8  # grey levels by which half of all neighbours differ; on clean paper it is 0
_EDGES = 1000  # as many show the tilt of a line
_HALF = 127  # of 255
_FULL = 0.85  # of the columns inked: letters leave more paper in every row, unless they are bold and blurred
_THIN = 0.2  # of the rows with ink


def varied_channel(image: Image.Image) -> Image.Image:
    """The channel of an RGB image in which ink and paper differ most; an image of one channel is that."""
    if image.mode == "L":
        return image
    first, *others = image.split()
    if all(ImageChops.difference(first, other).getbbox() is None for other in others):  # a grey image, as most scans are
        return first
    return max(first, *others, key=_variance)


def _variance(channel: Image.Image) -> float:
    """Of the grey levels of one channel, from its histogram, which is quicker than from its pixels."""
    counts, levels = np.array(channel.histogram(), np.float64), np.arange(256.0)
    mean = (counts @ levels) / counts.sum()
    return float(counts @ np.square(levels - mean) / counts.sum())


def averaged(image: Image.Image, rows: int = _ROWS) -> tuple[Image.Image, int]:
    """The most varied channel of an image, averaged to fewer than twice as many rows; and how many of its rows are one there."""
    factor = max(image.height // rows, 1)
    return varied_channel(image.reduce(factor) if factor > 1 else image), factor


def steps_along_rows(levels: np.ndarray) -> np.ndarray:
    """How much neighbours but one in a row differ: uint8 [height, width] -> uint8 [height, width - 2]."""
    left, right = levels[:, :-2], levels[:, 2:]
    return np.maximum(left, right) - np.minimum(left, right)


def settle(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """uint8 [height, width], without specks where it is noisy; its steps along rows; and the median of these, its noise."""
    steps = steps_along_rows(levels)
    if (noise := quantiles(steps, 0.5)[0]) >= _NOISE:
        levels = _without_specks(levels)
        steps = steps_along_rows(levels)
        noise = quantiles(steps, 0.5)[0]
    return levels, steps, noise


def _without_specks(levels: np.ndarray) -> np.ndarray:
    """Medians of three, of uint8 [height, width] first along the columns, then along the rows: noise goes, strokes stay."""
    settled = levels.copy()
    settled[1:-1] = _middle_of(levels[:-2], levels[1:-1], levels[2:])
    settled[:, 1:-1] = _middle_of(*(settled[:, start : start + settled.shape[1] - 2] for start in range(3)))
    return settled


def _middle_of(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    return np.maximum(np.minimum(first, second), np.minimum(np.maximum(first, second), third))


def places_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of what is true in [height, width]: `np.nonzero`, which takes three times as long."""
    places, width = np.flatnonzero(mask), max(mask.shape[1], 1)
    rows = places // width
    return rows, places - width * rows


def packing_slope(rows: np.ndarray, columns: np.ndarray, slopes: np.ndarray, most: int = _EDGES) -> float:
    """Rows that writing falls a column: of the slopes the one that packs what is at (rows, columns) into the fewest rows.

    Args:
        rows, columns: float32 places of the stroke edges of a line, or of the ink of a page.
        most: of them that are looked at: a few hundred edges of a line show the same as all of them, for a fraction of the time.
    """
    stride = len(rows) // most + 1
    places = np.outer(-slopes, columns[::stride]) + rows[::stride]
    np.rint(places, out=places)
    first = places.min()
    height = int(places.max() - first) + 1
    places += (height * np.arange(len(slopes), dtype=np.float32) - first)[:, None]
    counts = np.bincount(places.ravel().astype(np.intp), minlength=height * len(slopes))
    counts = counts.reshape(len(slopes), height)  # large where the picture is very wide: squared without a copy
    return float(slopes[np.einsum("ij,ij->i", counts, counts).argmax()])


def rule_rows(ink: np.ndarray) -> np.ndarray:
    """Which rows of level ink [height, width] belong to a rule, bool [height]: it is full, and thin beside what is written."""
    covered = (ink > _HALF).sum(1, dtype=np.uint32)
    full = covered > _FULL * ink.shape[1]
    rule = np.zeros_like(full)
    if full.any():
        thickest = max(_THIN * np.count_nonzero(covered), 3)
        for first, last in runs(covered > _FULL / 2 * ink.shape[1]):
            if full[first:last].any() and last - first <= thickest:
                rule[max(first - 1, 0) : last + 1] = True
    return rule


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Where a mask [n] is true: the first place of every run and the one behind its last."""
    turns = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return list(zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True))


def quantiles(levels: np.ndarray, *shares: float) -> list[int]:
    """For each share the least of uint8 levels that at least so large a share of them does not pass; 0 of none.

    From their histogram: sorting is slow, and slowest where most are alike, as on paper.
    """
    return quantiles_of(Image.fromarray(levels), *shares) if levels.size else [0] * len(shares)


def quantiles_of(channel: Image.Image, *shares: float) -> list[int]:
    """The same of an image of one channel."""
    counts = list(accumulate(channel.histogram()))
    return [bisect_left(counts, share * counts[-1]) for share in shares]
