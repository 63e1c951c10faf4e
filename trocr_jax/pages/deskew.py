"""A page turned level."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..pixels.strokes import packing_slope
from .rules import without_fields, without_rules

STEEPEST = 5.0  # degrees
PIXELS = 200_000  # of ink, at most, show the tilt of a page


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
    """The one of the angles, in degrees, that packs ink into the fewest rows."""
    slopes = np.tan(np.radians(angles)).astype(np.float32)
    return float(np.degrees(np.arctan(packing_slope(rows, columns, slopes, PIXELS))))


def _turned(marks: np.ndarray, angle: float) -> np.ndarray:
    turned = Image.fromarray(marks.astype(np.uint8) * 255).rotate(angle, Image.Resampling.BILINEAR, expand=True)
    return np.asarray(turned) > 127
