"""The ink of a page: told from its paper, turned level, and without its rules.

Paper is what most of the pixels around are: it may be of any colour, shaded, a dark band in a table, or a page on a dark desk.
Ink is what differs from it, in any colour, darker or lighter. Arrays are [height, width].
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from ..pixels import ink
from ..pixels.strokes import packing_slope

SMOOTH = 0.7  # pixels, before ink is told from paper
AROUND = 41, 30  # pixels at least, and parts of the shorter side: the window that tells the paper; strokes fill less than half
SAMPLES = 10  # of the window, in each direction
FAINTEST = 16  # grey levels between ink and paper
NOISE = 5.0  # times the median difference between a pixel and its paper: so far off is no noise
SHARE = 0.3  # of the darkest ink around: what differs less is blur, or shows through
SPECK = 6  # pixels of ink: what has fewer is no letter
TWO_TONES = 0.6  # of the variance; of noise it is 0.02, as little of it lies beyond NOISE
STEEPEST = 5.0  # degrees
FIELD = 20  # pixels of paper at least between the sides of a box to write in or to tick
THICK = 6  # pixels at most of such a side
PIXELS = 200_000  # of ink, at most, show the tilt of a page


def find_ink(image: Image.Image) -> np.ndarray | None:
    """RGB or L image -> bool [height, width]; None where nothing looks written."""
    difference = _difference([np.asarray(channel) for channel in image.split()])
    marks = _marks(difference)
    written = not ink.is_blank(image) or _has_two_tones(difference, marks) and _has_no_specks(marks)
    return marks if written else None


def _marks(difference: np.ndarray) -> np.ndarray:
    """What differs from the paper by more than noise, and than the blur of what differs most around."""
    most = ndimage.maximum_filter(difference, _window(difference.shape))
    return difference > np.maximum(SHARE * most, max(FAINTEST, NOISE * float(np.median(difference))))


def _difference(channels: list[np.ndarray]) -> np.ndarray:
    """uint8 [H,W] each -> grey levels by which each pixel differs from its paper, in the channel that shows most; float32."""
    first, *others = channels
    unlike = [first, *(channel for channel in others if not np.array_equal(channel, first))]  # of a grey page one will do
    return reduce(np.maximum, (np.abs(_smooth(channel) - _paper(channel)) for channel in unlike))


def _smooth(channel: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(channel.astype(np.float32), SMOOTH)


def _paper(channel: np.ndarray) -> np.ndarray:
    """The median around every pixel, from some of them: a mean would bend where paper of one colour meets another."""
    window = _window(channel.shape)
    step = max(window // SAMPLES, 1)
    first = min(step // 2, *(side - 1 for side in channel.shape))
    around = ndimage.median_filter(channel[first::step, first::step], window // step | 1, mode="nearest")
    return np.asarray(Image.fromarray(around).resize(channel.shape[::-1], Image.Resampling.BILINEAR), np.float32)


def _window(shape: tuple[int, ...]) -> int:
    least, parts = AROUND
    return max(least, min(shape) // parts)


def _has_two_tones(difference: np.ndarray, marks: np.ndarray) -> bool:
    """Whether differences from the paper [H,W] are of ink and none, by the share of their variance between the two (Otsu, 1979).

    A dense table whose rows are two or three pixels high once it is averaged looks blank to `pixels.ink`; noise has one tone.
    """
    share = marks.mean()
    if not 0 < share < 1:
        return False
    between = share * (1 - share) * (difference[marks].mean() - difference[~marks].mean()) ** 2
    return bool(between > TWO_TONES * difference.var())


def _has_no_specks(marks: np.ndarray) -> bool:
    """Whether nine tenths of the ink [H,W] are in pieces as large as letters: noise that has two tones, as a fax's, is not."""
    labelled: Any = ndimage.label(marks, np.ones((3, 3)))
    area = np.bincount(labelled[0].ravel())[1:]
    return bool(area[area >= SPECK].sum() > 0.9 * area.sum())


def level(marks: np.ndarray) -> tuple[np.ndarray, float]:
    """Ink turned level and without its rules, and the degrees it was turned by."""
    angle = skew(marks)
    return without_rules(without_fields(_turned(marks, angle))), angle


def skew(marks: np.ndarray) -> float:
    """Degrees, counter-clockwise positive as PIL turns, by which the page must be turned to be level."""
    rows, columns = (places.astype(np.float32) for places in np.nonzero(marks))
    if rows.size < 50:
        return 0.0
    coarse = _levelling(rows, columns, np.arange(-STEEPEST, STEEPEST + 0.25, 0.25))
    return _levelling(rows, columns, np.arange(coarse - 0.25, coarse + 0.26, 0.05))


def _levelling(rows: np.ndarray, columns: np.ndarray, angles: np.ndarray) -> float:
    """Of the degrees those that pack ink into the fewest rows."""
    slopes = np.tan(np.radians(angles)).astype(np.float32)
    return float(np.degrees(np.arctan(packing_slope(rows, columns, slopes, PIXELS))))


def _turned(marks: np.ndarray, angle: float) -> np.ndarray:
    turned = Image.fromarray(marks.astype(np.uint8) * 255).rotate(angle, Image.Resampling.BILINEAR, expand=True)
    return np.asarray(turned) > 127


def without_fields(marks: np.ndarray) -> np.ndarray:
    """Level ink without the sides of boxes to write in or to tick that are no rules for their length: they pass for letters."""
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
