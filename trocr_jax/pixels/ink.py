"""Two cheap looks at an RGB image before a model reads it: is there ink at all, and is there more than one line of it?

A line model answers every image with fluent text, so a blank image and a whole paragraph give text that nobody wrote.
Both answers are careful: doubt means "there is ink" and "it is one line", so that a warning is worth reading. Neither
asks what colour the paper is: they hold for dark on light, light on dark, coloured, noisy and unevenly lit images.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

import numpy as np
from PIL import Image, ImageChops

_ROWS = 256  # images are averaged down to fewer than twice as many rows
_SLOPES = np.tan(np.radians(np.arange(-5.0, 5.5, 0.5))).astype(np.float32)
_EDGES = 1000  # as many show the tilt of a line
_HALF = 127  # of 255
_FULL = 0.85  # of the columns inked: letters leave more paper in every row, unless they are bold and blurred
_THIN = 0.2  # of the rows with ink
_APART = 4.5  # heights of small letters between two lines, with a line left out
_SHARES = 4  # of the tiles: the first with a stroke spares the others


def is_blank(image: Image.Image) -> bool:
    """Whether no part of an RGB image shows anything like writing: solid, shaded, ruled or pure noise.

    Neighbouring pixels of a stroke agree, those of noise do not. Looks for strokes at full and, since noise averages
    away and strokes do not, at half size.
    """
    return _blank(_plane(image))


def _blank(plane: np.ndarray) -> bool:
    plane = plane.astype(np.float32)
    return not (_has_strokes(plane) or _has_strokes(_half(plane)))


def _half(plane: np.ndarray) -> np.ndarray:
    height, width = (side // 2 for side in plane.shape)
    return plane[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))


def looks_like_several_lines(image: Image.Image) -> bool:
    """Whether an RGB image shows two or more lines of writing, level or tilted by up to 5 degrees.

    Counts changes of brightness along each row, which rules, frames and shadows hardly have, after undoing the tilt
    that makes that profile most uneven. Lines are runs of rows with many changes, alike in height, with an almost empty
    gap between them.
    """
    return look(image)[1]


def look(image: Image.Image) -> tuple[bool, bool]:
    """Both looks at an RGB image, or its most varied channel, for little more than the price of one: (blank, several lines)."""
    plane = _plane(image)
    blank = _blank(plane)  # the few chance changes of noise clump into anything
    return blank, not blank and _several_lines(plane, image.size)


def _several_lines(plane: np.ndarray, size: tuple[int, int]) -> bool:
    if not may_hold_several_lines(size):
        return False
    rows, columns = _changes(plane)
    return bool(rows.size) and holds_several_lines(rows - packing_slope(rows, columns, _SLOPES) * columns)


def may_hold_several_lines(size: tuple[int, int]) -> bool:
    """Whether a picture of (width, height) can show more than one line: each of two would be twice as long for its height."""
    width, height = size
    return height >= 16 and width <= 40 * height


def holds_several_lines(rows: np.ndarray) -> bool:
    """The same from the rows of all stroke edges of a picture, less its tilt."""
    return _lines(_profile(np.rint(rows).astype(np.int64))) > 1


def packing_slope(rows: np.ndarray, columns: np.ndarray, slopes: np.ndarray) -> float:
    """Rows that writing falls a column: of the slopes the one that packs stroke edges at (rows, columns) into the fewest rows.

    A few hundred edges show the same as all of them, for a fraction of the time.
    """
    stride = len(rows) // _EDGES + 1
    places = np.outer(-slopes, columns[::stride]) + rows[::stride]
    np.rint(places, out=places)
    first = places.min()
    height = int(places.max() - first) + 1
    places += (height * np.arange(len(slopes), dtype=np.float32) - first)[:, None]
    counts = np.bincount(places.ravel().astype(np.intp), minlength=height * len(slopes))
    counts = counts.reshape(len(slopes), height)  # large where the picture is very wide: squared without a copy
    return float(slopes[np.einsum("ij,ij->i", counts, counts).argmax()])


def _plane(image: Image.Image) -> np.ndarray:
    """RGB or L image to uint8 [height, width]: its most varied channel, averaged to fewer than 2 * _ROWS rows."""
    factor = max(image.height // _ROWS, 1)
    return np.asarray(varied_channel(image.reduce(factor) if factor > 1 else image))


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


def _has_strokes(plane: np.ndarray) -> bool:
    """Whether some tile of about 32 x 32 pixels of [H, W] has neighbours that agree by more than faintly and by chance.

    What is left of a pixel after its row's and its column's mean is free of shading and of straight rules; agreement is
    the mean product of neighbours.
    """
    if min(plane.shape) < 4:
        return False
    tiles = _tiles(plane, 32)
    return any(_show_strokes(tiles[start::_SHARES]) for start in range(min(_SHARES, len(tiles))))


def _show_strokes(tiles: np.ndarray) -> bool:
    """The same of tiles [n,h,w]."""
    rows = tiles.mean(-1, keepdims=True)
    tiles = tiles - (rows - rows.mean(-2, keepdims=True)) - tiles.mean(-2, keepdims=True)
    pixels = tiles.shape[-1] * tiles.shape[-2]
    variance = np.einsum("tij,tij->t", tiles, tiles) / pixels
    across = np.einsum("tij,tij->t", tiles[..., 1:], tiles[..., :-1]) / pixels
    down = np.einsum("tij,tij->t", tiles[..., 1:, :], tiles[..., :-1, :]) / pixels
    agreement = (across + down) / 2
    faint = 1.5**2  # squared grey levels: contrast 20 in thin strokes passes, what JPEG does to shading does not
    chance = 4.0 * variance / np.sqrt(2 * pixels)
    return bool(((agreement > faint) & (agreement > chance)).any())


def _tiles(plane: np.ndarray, side: int) -> np.ndarray:
    """[H, W] to [tiles, h, w] with h, w of at least `side` where there are as many, less a rest at the far edges."""
    down, across = max(plane.shape[0] // side, 1), max(plane.shape[1] // side, 1)
    h, w = plane.shape[0] // down, plane.shape[1] // across
    return plane[: down * h, : across * w].reshape(down, h, across, w).swapaxes(1, 2).reshape(-1, h, w)


def _changes(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns where brightness changes along a row by more than noise and part of the strongest change."""
    steps = steps_along_rows(plane)
    noise, strongest = quantiles(steps, 0.5, 0.99)
    return places_of(steps > max(16, 4 * noise, 0.3 * strongest))


def places_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of what is true in [height, width]: `np.nonzero`, which takes three times as long."""
    places, width = np.flatnonzero(mask), max(mask.shape[1], 1)
    rows = places // width
    return rows, places - width * rows


def steps_along_rows(levels: np.ndarray) -> np.ndarray:
    """How much neighbours but one in a row differ: uint8 [height, width] -> uint8 [height, width - 2]."""
    left, right = levels[:, :-2], levels[:, 2:]
    return np.maximum(left, right) - np.minimum(left, right)


def without_specks(levels: np.ndarray) -> np.ndarray:
    """Medians of three, of uint8 [height, width] first along the columns, then along the rows: noise goes, strokes stay."""
    settled = levels.copy()
    settled[1:-1] = _middle_of(levels[:-2], levels[1:-1], levels[2:])
    settled[:, 1:-1] = _middle_of(*(settled[:, start : start + settled.shape[1] - 2] for start in range(3)))
    return settled


def _middle_of(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    return np.maximum(np.minimum(first, second), np.minimum(np.maximum(first, second), third))


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


def _profile(rows: np.ndarray) -> np.ndarray:
    """Row numbers of changes to their count in each row, smoothed over three rows."""
    return np.convolve(np.bincount(rows - rows.min()), np.ones(3) / 3)


def _lines(profile: np.ndarray) -> int:
    """How many runs of rows look like lines of writing."""
    used = np.sort(profile[profile > 0])
    full = float(used[round(0.9 * (len(used) - 1))])
    found = runs(profile > 0.35 * full)
    tallest = max(end - start for start, end in found)
    kept = [(start, end) for start, end in found if end - start >= max(4, 0.5 * tallest)]
    gaps = [profile[end:start] for (_, end), (start, _) in zip(kept, kept[1:], strict=False)]
    clear = [0.3 * tallest <= len(gap) <= _APART * tallest and gap.min() < 0.12 * full for gap in gaps]
    return 1 + clear.count(True)
