"""The ink of a page: what differs from its paper, in any colour, darker or lighter. Arrays are [height, width]."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from ..pixels import ink
from . import paper
from .sheet import on_sheet

SMOOTH = 0.7  # pixels, before ink is told from paper
NOISE = 5.0  # times the median difference between a pixel and its paper: what is further off is not noise
SHARE = 0.3  # of the darkest ink around: what differs less is blur, or shows through
TWO_TONES = 0.6  # of the variance; for noise it is 0.02, as little of that lies beyond NOISE


def find_ink(image: Image.Image) -> np.ndarray | None:
    """RGB or L image -> bool [height, width]; None where nothing looks written."""
    channels = _unlike([np.asarray(channel) for channel in image.split()])
    papers = [paper.sample(channel) for channel in channels]
    difference = _difference(channels, papers)
    marks = _marks(difference)
    written = not ink.is_blank(image) or _has_two_tones(difference, marks) and _has_no_specks(marks)
    return on_sheet(marks, difference, papers) if written else None


def _marks(difference: np.ndarray) -> np.ndarray:
    """What differs from the paper by more than noise, and than the blur of what differs most around."""
    most = ndimage.maximum_filter(difference, paper.window(difference.shape))
    return difference > np.maximum(SHARE * most, max(paper.FAINTEST, NOISE * float(np.median(difference))))


def _unlike(channels: list[np.ndarray]) -> list[np.ndarray]:
    """The first channel, and the others where they differ from it: for a grey page one channel will do."""
    first, *others = channels
    return [first, *(channel for channel in others if not np.array_equal(channel, first))]


def _difference(channels: list[np.ndarray], papers: list[np.ndarray]) -> np.ndarray:
    """uint8 [H,W] each -> grey levels by which each pixel differs from its paper, in the channel that shows most; float32."""
    shape = channels[0].shape
    pairs = zip(channels, papers, strict=True)
    return reduce(np.maximum, (np.abs(_smooth(channel) - paper.enlarged(around, shape)) for channel, around in pairs))


def _smooth(channel: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(channel.astype(np.float32), SMOOTH)


def _has_two_tones(difference: np.ndarray, marks: np.ndarray) -> bool:
    """Whether differences from the paper [H,W] are ink or nothing, by the share of their variance between the two (Otsu, 1979).

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
    return bool(area[area >= paper.SPECK].sum() > 0.9 * area.sum())
