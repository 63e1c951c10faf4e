"""Text line normalisation: any crop of a printed line -> dark ink on white paper, level, and always of the same height.

A small model should not spend its capacity on what arithmetic undoes: colour and contrast of ink and paper, shading, tilt, and
how loosely somebody cut the line out. Recognisers have normalised lines ever since there are any; the public TrOCR
checkpoints do not (they stretch the image), so this is only for checkpoints whose preprocessor says `"fit": "line"`.

Height and place of the writing come from mean and spread of the rows of all vertical stroke edges. Both change smoothly: one
more descender moves them a little, where a bounding box would jump. Arrays are [height, width].
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .ink import packing_slope, quantile, steps_along_rows, varied_channel

_ROWS = 96  # images are averaged down to fewer than twice as many rows
_REACH = 3.3  # rows kept on either side of the middle of the writing, in standard deviations of its stroke edges
_VALLEY = 0.25  # of the edges of the fullest row; what lies between two lines has fewer
_SLOPES = np.tan(np.radians(np.arange(-4.5, 5.0, 0.5)))
_PARTS = 1000  # of a line, each with a paper of its own: a picture of one row of pixels would have millions
_LEAST_CONTRAST = 24  # grey levels; less is noise or JPEG, and is not made louder


def normalize_line(image: Image.Image, height: int, width: int) -> np.ndarray:
    """RGB image of one line -> uint8 [height, width, 3]: writing at the left, white where the line ends.

    A line that is too long for the width is squeezed into it.
    """
    factor = max(image.height // _ROWS, 1)
    ink = ink_of(varied_channel(image.reduce(factor) if factor > 1 else image))
    rows, columns = _edges(ink)
    page = np.full((height, width), 255, np.uint8)
    if not rows.size:
        return _rgb(page)
    slope = packing_slope(rows, columns, _SLOPES)
    rows = rows - slope * columns
    first, last = _between_neighbours(rows)
    own = (rows >= first) & (rows <= last)
    middle, spread = _writing(rows[own])
    kept = columns[own & (np.abs(rows - middle) < _REACH * spread)]
    left, right = int(kept.min()), int(kept.max()) + 1
    line = _cut(_level(ink, slope, first, last), middle, _REACH * spread, left, right, height, width)
    page[:, : line.shape[1]] = 255 - line
    return _rgb(page)


def ink_of(channel: Image.Image) -> np.ndarray:
    """Grey levels -> ink, uint8 0..255, whatever the colours and the light: the rarer end of the levels is the ink."""
    difference = np.asarray(channel, np.float32) - _paper(channel)
    if np.vdot(difference * difference, difference) < 0:  # of a skewed spread the longer end
        difference = -difference
    difference = np.maximum(difference, 0)
    full = max(quantile(difference.astype(np.uint8), 0.975), _LEAST_CONTRAST)
    return np.minimum(difference * np.float32(255 / full), 255).astype(np.uint8)


def _paper(channel: Image.Image) -> np.ndarray:
    """Grey level of the paper [1, width]: the median around each column, for light that falls off along the line."""
    levels = np.asarray(channel)
    height, width = levels.shape
    ends = np.linspace(0, width, min(max(width // (3 * height), 1), _PARTS) + 1).astype(int).tolist()
    parts = list(zip(ends, ends[1:], strict=False))
    medians = [quantile(levels[:, left:right], 0.5) for left, right in parts]
    return np.interp(np.arange(width), [(left + right - 1) / 2 for left, right in parts], medians)[None].astype(np.float32)


def _edges(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of stroke edges: where the ink changes along a row. Rules and shadows hardly do."""
    steps = steps_along_rows(ink)
    rows, columns = np.nonzero(steps > max(64, 4 * quantile(steps, 0.5)))
    return rows.astype(np.float32), (columns + 1).astype(np.float32)


def _writing(rows: np.ndarray) -> tuple[float, float]:
    """Middle and spread of the rows of the edges, leaving out what lies apart, such as specks."""
    middle, spread = float(np.median(rows)), float(rows.std()) + 0.5
    for _ in range(3):
        near = rows[np.abs(rows - middle) < 2.5 * spread]
        middle, spread = float(near.mean()), float(near.std()) + 0.5
    return middle, spread


def _between_neighbours(rows: np.ndarray) -> tuple[float, float]:
    """The first and last row less the parts of other lines at the upper and lower border, which a crop often cuts through."""
    first_row = float(rows.min())
    counts = np.bincount(np.rint(rows - first_row).astype(np.int64))
    density = np.convolve(counts, np.ones(3) / 3, "same")
    turns = np.flatnonzero(np.diff(np.concatenate([[0], density > _VALLEY * density.max(), [0]])))
    runs = list(zip(turns[::2].tolist(), turns[1::2].tolist(), strict=True))
    first, last = max(runs, key=lambda run: float(density[run[0] : run[1]].sum()))
    low, high = -np.inf, np.inf
    if (start := runs[0])[1] < first and start[0] <= 2:
        low = first_row + start[1] + int(density[start[1] : first].argmin())
    if (end := runs[-1])[0] > last and end[1] >= len(density) - 2:
        high = first_row + last + int(density[last : end[0]].argmin())
    return low, high


def _level(ink: np.ndarray, slope: float, first: float, last: float) -> Image.Image:
    """The ink between the rows first and last as an L image, every column moved up by what the line has fallen there."""
    picture = Image.fromarray(ink)
    if slope:
        picture = picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 0, slope, 1, 0), Image.Resampling.BILINEAR)
    top, bottom = np.clip((np.ceil(first), np.floor(last) + 1), 0, picture.height)
    level = Image.new("L", picture.size)
    level.paste(picture.crop((0, int(top), picture.width, int(bottom))), (0, int(top)))
    return level


def _cut(picture: Image.Image, middle: float, reach: float, left: int, right: int, height: int, width: int) -> np.ndarray:
    """The rows middle +- reach and the columns of the writing with a little paper around, scaled to uint8 [height, <= width]."""
    margin = int(0.25 * reach) + 1
    room = int(reach) + margin + 2
    canvas = Image.new("L", (picture.width + 2 * room, picture.height + 2 * room))
    canvas.paste(picture, (room, room))
    box = (left - margin + room, middle + 0.5 - reach + room, right + margin + room, middle + 0.5 + reach + room)
    top, bottom = max(box[1], 0.0), min(box[3], float(canvas.height))
    scaled = min(max(round((box[2] - box[0]) * height / (bottom - top)), 1), width)
    return np.asarray(canvas.resize((scaled, height), Image.Resampling.BILINEAR, (box[0], top, box[2], bottom)))


def _rgb(page: np.ndarray) -> np.ndarray:
    return np.repeat(page[:, :, None], 3, axis=2)
