"""The ink of a page: told from its paper and from what the sheet lies on, turned level, and without its rules.

Paper is what most of the pixels around are: it may be of any colour, shaded, a dark band in a table, or a page on a dark desk.
Ink is what differs from it, in any colour, darker or lighter. A desk, a scanner's lid and the black corners of a page that was
turned are paper of their own, which reaches the border of the image and on which nothing is written. Arrays are
[height, width].
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
JUMP = FAINTEST  # between the paper of neighbouring samples: shading changes less from one to the next
BARE = 7  # samples around one of ink that must be of one paper: nearer to another, it may be the edge itself
FEW = 3  # letters: fewer pieces of ink may be anything
ROUNDED = 4  # to the window what the median is wrong by at the corners of a sheet: in theory 0.21 of it
SPECK = 6  # pixels of ink: what has fewer is no letter
TWO_TONES = 0.6  # of the variance; of noise it is 0.02, as little of it lies beyond NOISE
STEEPEST = 5.0  # degrees
FIELD = 20  # pixels of paper at least between the sides of a box to write in or to tick
THICK = 6  # pixels at most of such a side
PIXELS = 200_000  # of ink, at most, show the tilt of a page


def find_ink(image: Image.Image) -> np.ndarray | None:
    """RGB or L image -> bool [height, width]; None where nothing looks written."""
    channels = _unlike([np.asarray(channel) for channel in image.split()])
    papers = [_paper(channel) for channel in channels]
    difference = _difference(channels, papers)
    marks = _marks(difference)
    written = not ink.is_blank(image) or _has_two_tones(difference, marks) and _has_no_specks(marks)
    return _on_sheet(marks, difference, papers) if written else None


def _marks(difference: np.ndarray) -> np.ndarray:
    """What differs from the paper by more than noise, and than the blur of what differs most around."""
    most = ndimage.maximum_filter(difference, _window(difference.shape))
    return difference > np.maximum(SHARE * most, max(FAINTEST, NOISE * float(np.median(difference))))


def _unlike(channels: list[np.ndarray]) -> list[np.ndarray]:
    """Of a grey page one channel will do."""
    first, *others = channels
    return [first, *(channel for channel in others if not np.array_equal(channel, first))]


def _difference(channels: list[np.ndarray], papers: list[np.ndarray]) -> np.ndarray:
    """uint8 [H,W] each -> grey levels by which each pixel differs from its paper, in the channel that shows most; float32."""
    shape = channels[0].shape
    pairs = zip(channels, papers, strict=True)
    return reduce(np.maximum, (np.abs(_smooth(channel) - _enlarged(paper, shape)) for channel, paper in pairs))


def _smooth(channel: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(channel.astype(np.float32), SMOOTH)


def _paper(channel: np.ndarray) -> np.ndarray:
    """Samples [h,w] of the median around every pixel: a mean would bend where paper of one colour meets another."""
    around = _window(channel.shape) // _step(channel.shape) | 1
    return ndimage.median_filter(channel[_sampled(channel.shape)], around, mode="nearest")


def _enlarged(paper: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Samples of the paper to float32 [H,W]."""
    return np.asarray(Image.fromarray(paper).resize((shape[1], shape[0]), Image.Resampling.BILINEAR), np.float32)


def _sampled(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Where the samples of the paper are."""
    step = _step(shape)
    first = min(step // 2, *(side - 1 for side in shape))
    return slice(first, None, step), slice(first, None, step)


def _step(shape: tuple[int, ...]) -> int:
    """Pixels from one sample of the paper to the next."""
    return max(_window(shape) // SAMPLES, 1)


def _window(shape: tuple[int, ...]) -> int:
    least, parts = AROUND
    return max(least, min(shape) // parts)


def _on_sheet(marks: np.ndarray, difference: np.ndarray, papers: list[np.ndarray]) -> np.ndarray:
    """Marks [H,W] without those beside the sheet, and without its edge, which the paper's samples miss by a little."""
    region = _regions(papers)
    beside = _at_border(~_written(marks, difference, region)[region])
    if not beside.any():
        return marks
    outside = _nearest(beside, marks.shape)
    touching = marks & ndimage.maximum_filter(outside, 2 * _step(marks.shape) + 1)
    around = 2 * (_window(marks.shape) // ROUNDED) + 1
    near = marks & ndimage.maximum_filter(outside, around, mode="constant", cval=True)  # the border, too: wedges end thin there
    edge: Any = ndimage.binary_propagation(touching, np.ones((3, 3)), mask=near)
    return marks & ~(outside | edge)


def _written(marks: np.ndarray, difference: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Which of the stretches of paper is the sheet, or has as clear pieces of ink as that, several: bool [stretches]."""
    inside = ndimage.minimum_filter(region, BARE) == ndimage.maximum_filter(region, BARE)
    place = _nearest(np.where(inside, region, 0), marks.shape)
    area, strength, place = _pieces(marks & (place > 0), difference, place)
    count = np.bincount(region.ravel()).size
    ink, pieces, clearness = (np.bincount(place, weight, count) for weight in (area * strength, None, strength))
    mean = clearness / np.maximum(pieces, 1)  # of pieces, not of pixels: of a pen on a desk it is that of the desk
    sheet = np.lexsort((np.bincount(region.ravel()), ink))[-1]  # without ink the largest
    written = (pieces >= FEW) & (mean > SHARE * mean[sheet])
    written[sheet] = True
    return written


def _pieces(marks: np.ndarray, difference: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area, mean difference from the paper, and place (that of a pixel) of connected ink, [n] each, specks left out.

    So is what the image's border cuts: it may be the thin end of a black corner.
    """
    labelled: Any = ndimage.label(marks, np.ones((3, 3)))
    number = labelled[0][marks]
    area = np.bincount(number, minlength=labelled[1] + 1)
    strength = np.bincount(number, difference[marks], labelled[1] + 1) / np.maximum(area, 1)
    where = np.zeros(labelled[1] + 1, int)
    where[number] = place[marks]
    area[labelled[0][_border(marks)]] = 0
    large = area >= SPECK
    return area[large], strength[large], where[large]


def _nearest(samples: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Samples [h,w] of any type to [H,W]."""
    return np.asarray(Image.fromarray(samples).resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def _regions(papers: list[np.ndarray]) -> np.ndarray:
    """The number of the stretch of one paper, shaded or not, that each sample lies in, [h,w].

    They grow from where neighbours are alike on all sides, over the smallest steps (Falcao et al., 2004, image foresting
    transform): one sample between two papers joins neither.
    """
    steepest = reduce(np.maximum, (ndimage.maximum_filter(paper, 3) - ndimage.minimum_filter(paper, 3) for paper in papers))
    seeds: Any = ndimage.label(steepest < JUMP)
    return ndimage.watershed_ift(max(papers, key=np.std), seeds[0])


def _at_border(mask: np.ndarray) -> np.ndarray:
    """What of a mask [h,w] is connected to its border."""
    return np.asarray(ndimage.binary_propagation(mask & _border(mask), mask=mask))


def _border(mask: np.ndarray) -> np.ndarray:
    """The outermost rows and columns of [h,w]."""
    border = np.ones_like(mask)
    border[1:-1, 1:-1] = False
    return border


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
