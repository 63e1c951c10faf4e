"""Text line normalisation: any crop of a printed line -> dark ink on white paper, level, and always of the same height.

A small model should not spend its capacity on what arithmetic undoes: colour and contrast of ink and paper, shading, tilt, and
how loosely somebody cut the line out. Recognisers have normalised lines ever since there are any; the public TrOCR
checkpoints do not (they stretch the image), so this is only for checkpoints whose preprocessor says `"fit": "line"`.

Height and place of the writing come from mean and spread of the rows of all vertical stroke edges. Both change smoothly: one
more descender moves them a little, where a bounding box would jump. Arrays are float32 [height, width].
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_ROWS = 96  # images are averaged down to fewer than twice as many rows
_REACH = 3.3  # rows kept on either side of the middle of the writing, in standard deviations of its stroke edges
_VALLEY = 0.25  # of the edges of the fullest row; what lies between two lines has fewer
_SLOPES = np.tan(np.radians(np.arange(-4.5, 5.0, 0.5)))
_LEAST_CONTRAST = 24.0  # grey levels; less is noise or JPEG, and is not made louder


def normalize_line(image: Image.Image, height: int, width: int) -> np.ndarray:
    """RGB image of one line -> uint8 [height, width, 3]: writing at the left, white where the line ends.

    A line that is too long for the width is squeezed into it.
    """
    factor = max(image.height // _ROWS, 1)
    gray = _varied_channel(image.reduce(factor) if factor > 1 else image)
    ink = ink_of(gray)
    rows, columns = _edges(ink)
    page = np.full((height, width), 255, np.uint8)
    if not rows.size:
        return _rgb(page)
    slope = _slope(rows, columns)
    rows = rows - slope * columns
    first, last = _between_neighbours(rows)
    own = (rows >= first) & (rows <= last)
    middle, spread = _writing(rows[own])
    kept = columns[own & (np.abs(rows - middle) < _REACH * spread)]
    left, right = int(kept.min()), int(kept.max()) + 1
    line = _cut(_level(ink, slope, first, last), middle, _REACH * spread, left, right, height, width)
    page[:, : line.shape[1]] = 255 - line
    return _rgb(page)


def ink_of(gray: np.ndarray) -> np.ndarray:
    """Grey levels -> share of ink, 0..1, whatever the colours and the light: the rarer end of the levels is the ink."""
    paper = _paper(gray)
    difference = gray - paper
    if np.mean(difference**3) < 0:
        difference = -difference
    full = max(float(np.percentile(difference, 97.5)), _LEAST_CONTRAST)
    return np.clip(difference / full, 0, 1).astype(np.float32)


def _varied_channel(image: Image.Image) -> np.ndarray:
    """The channel of an RGB image in which ink and paper differ most."""
    planes = [np.asarray(channel, np.float32) for channel in image.split()]
    return max(planes, key=lambda plane: float(plane.var()))


def _paper(gray: np.ndarray) -> np.ndarray:
    """Grey level of the paper [1, width]: the median around each column, for light that falls off along the line."""
    height, width = gray.shape
    count = max(width // (3 * height), 1)
    parts = np.array_split(np.arange(width), count)
    levels = [float(np.median(gray[:, part[0] : part[-1] + 1])) for part in parts]
    return np.interp(np.arange(width), [part.mean() for part in parts], levels)[None].astype(np.float32)


def _edges(ink: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of stroke edges: where the ink changes along a row. Rules and shadows hardly do."""
    steps = np.abs(ink[:, 2:] - ink[:, :-2])
    if not steps.size:
        return np.empty(0), np.empty(0)
    rows, columns = np.nonzero(steps > max(0.25, 4.0 * float(np.median(steps))))
    return rows.astype(np.float32), (columns + 1).astype(np.float32)


def _slope(rows: np.ndarray, columns: np.ndarray) -> float:
    """Rows that the line falls a column: of those tried the one that packs the edges into the fewest rows."""

    def packed(slope: float) -> float:
        places = np.rint(rows - slope * columns).astype(np.int64)
        return float(np.square(np.bincount(places - places.min())).sum())

    return float(max(_SLOPES, key=packed))


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
    picture = Image.fromarray((ink * 255).astype(np.uint8))
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
