"""The sheet of a page, told from what it lies on.

A desk, a scanner's lid and the black corners of a page that was turned are paper of their own, which reaches the border of the
image and on which nothing is written. Arrays are [height, width].
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from .paper import FAINTEST, SPECK, step, window

JUMP = FAINTEST  # between the paper of neighbouring samples: shading changes less from one to the next
BARE = 7  # samples around one of ink that must be of one paper: nearer to another, it may be the edge itself
FEW = 3  # letters: fewer pieces of ink may be anything
CLEAR = 0.3  # of the clearness of the sheet's ink: what shows less is grain
ROUNDED = 4  # to the window what the median is wrong by at the corners of a sheet: in theory 0.21 of it


def on_sheet(marks: np.ndarray, difference: np.ndarray, papers: list[np.ndarray]) -> np.ndarray:
    """Marks [H,W] without those beside the sheet, and without its edge, which the paper's samples miss by a little."""
    region = _regions(papers)
    beside = _at_border(~_written(marks, difference, region)[region])
    if not beside.any():
        return marks
    outside = _nearest(beside, marks.shape)
    touching = marks & ndimage.maximum_filter(outside, 2 * step(marks.shape) + 1)
    around = 2 * (window(marks.shape) // ROUNDED) + 1
    near = marks & ndimage.maximum_filter(outside, around, mode="constant", cval=True)  # the border, too: wedges end thin there
    edge: Any = ndimage.binary_propagation(touching, np.ones((3, 3)), mask=near)
    return marks & ~(outside | edge)


def _written(marks: np.ndarray, difference: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Which of the stretches of paper is the sheet, or has several pieces of ink about as clear as its: bool [stretches]."""
    inside = ndimage.minimum_filter(region, BARE) == ndimage.maximum_filter(region, BARE)
    place = _nearest(np.where(inside, region, 0), marks.shape)
    area, strength, place = _pieces(marks & (place > 0), difference, place)
    count = np.bincount(region.ravel()).size
    ink, pieces, clearness = (np.bincount(place, weight, count) for weight in (area * strength, None, strength))
    mean = clearness / np.maximum(pieces, 1)  # over pieces, not pixels: with a pen on the desk it is still the desk's
    sheet = np.lexsort((np.bincount(region.ravel()), ink))[-1]  # the largest where there is no ink
    written = (pieces >= FEW) & (mean > CLEAR * mean[sheet])
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
