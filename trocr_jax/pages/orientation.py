"""Pages that stand on their side or their head: their lines, as they lie on the page as it came. No jax here."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .line_detection import find_lines

TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""Degrees counter-clockwise that a page may have to be turned by to stand upright."""


def find_turned(image: Image.Image, degrees: int) -> list[np.ndarray]:
    """`find_lines` on the page turned by one of TURNS; the quadrilaterals [4,2], on the page as it came, begin where lines do."""
    return [_back(outline, image.size, degrees) for outline in find_lines(image.transpose(TURNS[degrees]))]


def _back(outline: np.ndarray, size: tuple[int, int], degrees: int) -> np.ndarray:
    """Points [n,2] of a turned page on the page of this width and height."""
    (width, height), (x, y) = size, outline.T
    places = {90: (width - y, x), 180: (width - x, height - y), 270: (y, height - x)}
    return np.stack(places[degrees], axis=1)
