"""Two cheap looks at an RGB image before a model reads it: is there ink at all, and is there more than one line of it?

A line model answers every image with fluent text, so a blank image and a whole paragraph give text that nobody wrote.
Both answers are careful: doubt means "there is ink" and "it is one line", so that a warning is worth reading. Neither
asks what colour the paper is: they hold for dark on light, light on dark, coloured, noisy and unevenly lit images.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .strokes import averaged, packing_slope, places_of, quantiles, runs, steps_along_rows

_ROWS = 256  # images are averaged down to fewer than twice as many rows
_PAGE_ROWS = 512, 1024  # for closer looks, as at pages: their lines are too close together for fewer rows
_SLOPES = np.tan(np.radians(np.arange(-5.0, 5.5, 0.5))).astype(np.float32)
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
    if blank or not may_hold_several_lines(image.size):
        return blank, False
    closer = (_plane(image, rows) for rows in _PAGE_ROWS if image.height >= rows)
    return False, _shows_several_lines(plane, 4) or any(_shows_several_lines(each, 6) for each in closer)


def _shows_several_lines(plane: np.ndarray, noises: float) -> bool:
    """Whether changes in uint8 [height, width] of `noises` times the noise lie in two lines or more."""
    rows, columns = _changes(plane, noises)
    return bool(rows.size) and holds_several_lines(rows - packing_slope(rows, columns, _SLOPES) * columns)


def may_hold_several_lines(size: tuple[int, int]) -> bool:
    """Whether a picture of (width, height) can show more than one line: each of two would be twice as long for its height."""
    width, height = size
    return height >= 16 and width <= 40 * height


def holds_several_lines(rows: np.ndarray) -> bool:
    """Whether stroke edges at these rows [n], less the tilt of the picture, are of two lines or more."""
    return _lines(_profile(np.rint(rows).astype(np.int64))) > 1


def _plane(image: Image.Image, rows: int = _ROWS) -> np.ndarray:
    """RGB or L image to uint8 [height, width]: its most varied channel, averaged to fewer than twice as many rows."""
    return np.asarray(averaged(image, rows)[0])


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
    """Whether one of the tiles [n,h,w] has such neighbours."""
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


def _changes(plane: np.ndarray, noises: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns where brightness changes along a row by more than noise and part of the strongest change."""
    steps = steps_along_rows(plane)
    noise, strongest = quantiles(steps, 0.5, 0.99)
    return places_of(steps > max(16, noises * noise, 0.3 * strongest))


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
