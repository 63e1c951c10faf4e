"""Text line normalisation: any crop of a printed line -> dark ink on white paper, level, and always of the same height.

A small model should not spend its capacity on what arithmetic undoes: colour and contrast of ink and paper, shading, tilt, and
how loosely somebody cut the line out. Recognisers have normalised lines ever since there are any; the public TrOCR
checkpoints do not (they stretch the image), so this is only for checkpoints whose preprocessor says `"fit": "line"`.

A line that is too long for the model's image can be had in pieces (`line_cutting`).

Height and place of the writing come from mean and spread of the rows of all vertical stroke edges. Both change smoothly: one
more descender moves them a little, where a bounding box would jump. Arrays are [height, width].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

from . import line_cutting
from .strokes import INKED, averaged, packing_slope, places_of, quantiles, quantiles_of, rule_rows, runs, settle

_FILLED = 2 / 3  # of a picture's height: a line with so much around is not looked at again
_REACH = 3.3  # rows kept on either side of the middle of the writing, in standard deviations of its stroke edges
_VALLEY = 0.25  # of the edges of the fullest row; what lies between two lines has fewer
_SLOPES = np.tan(np.radians(np.arange(-4.5, 5.0, 0.5))).astype(np.float32)
_PARTS = 1000  # of a line, each with a paper of its own: a picture of one row of pixels would have millions
_WALL = 8  # columns at either end
_ROUGH = 0.18  # of all stroke edges, on rules: smooth ones have up to 0.15 where letters stand on them, rough ones from 0.22 on
_RULE_LENGTH = 4  # heights of what is written
_LEAST_CONTRAST = 24  # grey levels; less is noise or JPEG, and is not made louder


def normalize_line(image: Image.Image, height: int, width: int) -> np.ndarray:
    """RGB image of one line, or its most varied channel -> uint8 [height, width, 3]: writing at the left, white behind it.

    A line that is too long for the width is squeezed into it.
    """
    return find_writing(image).pixels(height, width)


class Piece(NamedTuple):
    """A line, or a piece of it: uint8 pixels [height, width, 3], and whether it begins amid a word of the piece before."""

    pixels: np.ndarray
    continues: bool


@dataclass(frozen=True)
class Writing:
    """What a picture shows of writing: all that a look for second lines and the pixels of the line need.

    Attributes:
        ink: uint8 [height, width] of the picture or the part of it that is around the writing, averaged down where that is high.
        rows, columns: of its stroke edges, the rows less the tilt.
        slope: rows that the writing falls a column.
        pivot: the column around which the tilt is undone, amid the writing: far from it, what is levelled leaves the picture.
        cut: whether the upper and the lower border of the picture cut through writing.
    """

    ink: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    slope: float
    pivot: float
    cut: tuple[bool, bool]

    def pixels(self, height: int, width: int) -> np.ndarray:
        """uint8 [height, width, 3], see `normalize_line`."""
        return _on_paper(self._line(height, width), width)

    def pieces(self, height: int, width: int) -> list[Piece]:
        """The line in order, as `line_cutting` cuts it at its natural scale; a short one whole, as `pixels`."""
        line = self._line(height, round(line_cutting.LONGEST * width))
        parts = line_cutting.parts(np.asarray(line), width)
        return [Piece(_on_paper(line.crop((first, 0, last, height)), width), continues) for first, last, continues in parts]

    def _line(self, height: int, width: int) -> Image.Image:
        """Its ink as an L image of the height, at most so wide; a single column where there is none."""
        if not self.rows.size:
            return Image.new("L", (1, height))
        level = _level(self.ink, self.slope, self.pivot)
        rows, columns = self.rows, self.columns
        first, last = _between_neighbours(rows, *self.cut)
        if math.isfinite(first) or math.isfinite(last):
            own = (rows >= first) & (rows <= last)
            rows, columns = rows[own], columns[own]
        rows, columns = _without_rules(rows, columns, np.asarray(level))
        middle, spread = _middle_and_spread(rows)
        kept = columns[np.abs(rows - middle) < _REACH * spread]
        left, right = int(kept.min()), int(kept.max()) + 1
        line = _cut(level, (first, last), (left, right), middle, _REACH * spread, (height, width))
        return _without_walls(line)


def _without_walls(line: Image.Image) -> Image.Image:
    """Less the sides of a frame, as of a table's cell: strokes at either end from above all letters to below all of them."""
    ink = np.asarray(line)
    walls = np.flatnonzero(ink.min(0) > INKED)
    if not walls.size:
        return line
    paper = np.flatnonzero(ink[np.logical_not(rule_rows(ink))].max(0, initial=0) <= INKED)
    after, before = paper[paper > walls[0]], paper[paper < walls[-1]]
    left = int(after[0]) if walls[0] < _WALL and after.size else 0
    right = int(before[-1]) + 1 if walls[-1] >= line.width - _WALL and before.size else line.width
    return line.crop((left, 0, right, line.height)) if left < right else line


def _on_paper(line: Image.Image, width: int) -> np.ndarray:
    """Ink as an L image -> uint8 [height, width, 3]: at the left, with paper behind."""
    page = Image.new("L", (width, line.height), 255)
    page.paste(ImageChops.invert(line))
    return np.asarray(Image.merge("RGB", (page, page, page)))


def find_writing(image: Image.Image) -> Writing:
    """RGB image, or its most varied channel -> the writing in it.

    Of a line that fills little of a high picture too few rows are left once that is averaged down: there it looks again.
    """
    writing, factor = _writing(image)
    if factor == 1:
        return writing
    first, last = (factor * row for row in _around(writing))
    if last - first > _FILLED * image.height:
        return writing
    return _writing(image.crop((0, max(first, 0), image.width, min(last, image.height))))[0]


def _writing(image: Image.Image) -> tuple[Writing, int]:
    """What the averaged image shows of writing, and how many rows are one there."""
    channel, factor = averaged(image)
    ink = ink_of(channel)
    rows, columns = _edges(ink)
    slope = packing_slope(rows, columns, _SLOPES) if rows.size else 0.0
    pivot = float(np.median(columns)) if rows.size else 0.0
    cut = bool((rows <= 1).any()), bool((rows >= len(ink) - 2).any())
    return Writing(ink, rows - np.float32(slope) * (columns - np.float32(pivot)), columns, slope, pivot, cut), factor


def _around(writing: Writing) -> tuple[int, int]:
    """The rows in which the line is, tilt and all, with as much again above and below; they may lie outside of the picture."""
    if not writing.rows.size:
        return 0, len(writing.ink)
    middle, spread = _middle_and_spread(writing.rows)
    own = np.abs(writing.rows - middle) < _REACH * spread
    fallen = writing.rows[own] + writing.slope * (writing.columns[own] - writing.pivot)
    return math.floor(fallen.min() - _REACH * spread), math.ceil(fallen.max() + _REACH * spread) + 1


def ink_of(channel: Image.Image) -> np.ndarray:
    """Grey levels -> ink, uint8 0..255, whatever the colours and the light: the rarer end of the levels is the ink."""
    difference = np.asarray(channel, np.float32) - _paper(channel)
    if np.vdot(difference * difference, difference) < 0:  # of a skewed spread the longer end
        difference = -difference
    np.maximum(difference, 0, out=difference)
    full = max(*quantiles(_inked(difference.astype(np.uint8)), 0.975), _LEAST_CONTRAST)
    difference *= np.float32(255 / full)
    return np.minimum(difference, 255, out=difference).astype(np.uint8)


def _inked(levels: np.ndarray) -> np.ndarray:
    """The part of uint8 [height, width] around all ink: however much paper is about it, ink keeps its share."""
    box = Image.fromarray(levels >= _LEAST_CONTRAST).getbbox()
    if not box:
        return levels
    left, top, right, bottom = box
    return levels[top:bottom, left:right]


def _paper(channel: Image.Image) -> np.ndarray:
    """Grey level of the paper, [1, width] or [1, 1]: the median around each column, for light that falls off along the line."""
    width, height = channel.size
    count = min(max(width // (3 * height), 1), _PARTS)
    parts = [(width * part // count, width * (part + 1) // count) for part in range(count)]
    medians = [quantiles_of(channel.crop((left, 0, right, height)), 0.5)[0] for left, right in parts]
    if len(medians) == 1:
        return np.array(medians, np.float32)[None]
    return np.interp(np.arange(width), [(left + right - 1) / 2 for left, right in parts], medians)[None].astype(np.float32)


def _edges(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of stroke edges: where the ink changes along a row. Rules and shadows hardly do.

    Noise has some in every row: with them writing would pass for taller than it is, and be scaled down too far.
    """
    _, steps, noise = settle(ink)
    rows, columns = places_of(steps > max(64, 4 * noise))
    return rows.astype(np.float32), (columns + 1).astype(np.float32)


def _middle_and_spread(rows: np.ndarray) -> tuple[float, float]:
    """Middle and spread of the rows of the edges, leaving out what lies apart, such as specks."""
    half = len(rows) // 2
    middle, spread = float(np.partition(rows, half)[half]), _spread(rows, rows.mean())
    for _ in range(3):
        near = rows[np.abs(rows - middle) < 2.5 * spread]
        middle = float(near.mean())
        spread = _spread(near, middle)
    return middle, spread


def _spread(rows: np.ndarray, mean: float) -> float:
    """Standard deviation in rows, never 0."""
    off = rows - np.float32(mean)
    return float(np.sqrt(np.vdot(off, off) / len(off))) + 0.5


def _between_neighbours(rows: np.ndarray, cut_above: bool, cut_below: bool) -> tuple[float, float]:
    """The first and last row less the parts of other lines at the upper and lower border, where the crop cuts through writing."""
    first_row = float(rows.min())
    counts = np.bincount(np.rint(rows - first_row).astype(np.int64))
    density = np.convolve(counts, np.ones(3) / 3, "same")
    found = runs(density > _VALLEY * density.max())
    first, last = max(found, key=lambda run: float(density[run[0] : run[1]].sum()))
    low, high = -np.inf, np.inf
    if cut_above and (start := found[0])[1] < first and start[0] <= 2:
        low = first_row + start[1] + int(density[start[1] : first].argmin())
    if cut_below and (end := found[-1])[0] > last and end[1] >= len(density) - 2:
        high = first_row + last + int(density[last : end[0]].argmin())
    return low, high


def _without_rules(rows: np.ndarray, columns: np.ndarray, ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stroke edges less those of rough rules in level ink [height, width], as of a typewriter, on which a fourth of all are.

    Smooth rules have few, and models are trained on lines that are measured with them.
    """
    left, right = int(columns.min()), int(columns.max()) + 1
    if right - left < _RULE_LENGTH * (rows.max() - rows.min()):  # a letter may have a bar as long as itself
        return rows, columns
    rule = rule_rows(ink[:, left:right])
    if not rule.any():
        return rows, columns
    off = np.logical_not(rule)[np.clip(np.rint(rows), 0, len(ink) - 1).astype(np.intp)]
    return (rows[off], columns[off]) if 0 < off.mean() < 1 - _ROUGH else (rows, columns)


def _level(ink: np.ndarray, slope: float, pivot: float) -> Image.Image:
    """The ink as an L image, every column moved up by what the line has fallen there since the pivot."""
    picture = Image.fromarray(ink)
    if not slope:
        return picture
    return picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 0, slope, 1, -slope * pivot), Image.Resampling.BILINEAR)


def _cut(
    picture: Image.Image, rows: tuple[float, float], columns: tuple[int, int], middle: float, reach: float, size: tuple[int, int]
) -> Image.Image:
    """The rows middle +- reach and the columns of the writing with a little paper around, scaled to [height, <= width] of `size`.

    What is not between the first and the last of `rows` belongs to other lines and becomes paper.
    """
    height, width = size
    margin = int(0.25 * reach) + 1
    room = int(reach) + margin + 2
    # levelled rows of a tilted line can lie above or below the picture
    first = math.ceil(min(max(rows[0], 0), picture.height))
    last = math.floor(min(max(rows[1], -1), picture.height - 1)) + 1
    own = picture.crop((0, first, picture.width, last)) if last - first < picture.height else picture
    canvas = Image.new("L", (picture.width + 2 * room, picture.height + 2 * room))
    canvas.paste(own, (room, room + first))
    left, right = columns[0] - margin + room, columns[1] + margin + room
    top, bottom = (room + middle + 0.5 + side for side in (-reach, reach))
    top, bottom = max(top, 0.0), min(bottom, float(canvas.height))
    scaled = min(max(round((right - left) * height / (bottom - top)), 1), width)
    return canvas.resize((scaled, height), Image.Resampling.BILINEAR, (left, top, right, bottom))
