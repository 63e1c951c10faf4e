"""The paper of a page around every pixel, from samples of it.

Paper is what most of the pixels around are: it may be of any colour, shaded, a dark band in a table, or a page on a dark desk.
Arrays are [height, width].
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

AROUND = 41, 30  # pixels at least, and parts of the shorter side: the window that shows the paper; strokes fill less than half
SAMPLES = 10  # of the window, in each direction
FAINTEST = 16  # grey levels between ink and paper
SPECK = 6  # pixels of ink: what has fewer is no letter


def sample(channel: np.ndarray) -> np.ndarray:
    """Samples [h,w] of the median around every pixel: a mean would bend where paper of one colour meets another."""
    around = window(channel.shape) // step(channel.shape) | 1
    return ndimage.median_filter(channel[_sampled(channel.shape)], around, mode="nearest")


def enlarged(paper: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Samples of the paper, enlarged to float32 [H,W]."""
    return np.asarray(Image.fromarray(paper).resize((shape[1], shape[0]), Image.Resampling.BILINEAR), np.float32)


def _sampled(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Where the samples of the paper are."""
    apart = step(shape)
    first = min(apart // 2, *(side - 1 for side in shape))
    return slice(first, None, apart), slice(first, None, apart)


def step(shape: tuple[int, ...]) -> int:
    """Pixels from one sample of the paper to the next."""
    return max(window(shape) // SAMPLES, 1)


def window(shape: tuple[int, ...]) -> int:
    """Side in pixels of the window that shows the paper."""
    least, parts = AROUND
    return max(least, min(shape) // parts)
