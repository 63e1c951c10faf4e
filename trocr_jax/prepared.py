"""An image on its way to the device: its pixels and what can be said of it without the model. No jax: it runs anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import images, ink

NO_TEXT = "no_text"
SEVERAL_LINES = "several_lines"


@dataclass(frozen=True)
class Prepared:
    """An image ready for the device, or why it is not.

    Attributes:
        pixels: uint8 [height,width,3].
        flags: NO_TEXT or SEVERAL_LINES.
        error: why there are no pixels.
        aspect: width over height of the writing, where the preparation finds it, else of the picture: by which the length of
            the text can be guessed.
    """

    pixels: np.ndarray | None
    flags: tuple[str, ...] = ()
    error: str | None = None
    aspect: float = 0.0


def prepare(source: Any, processor: images.ImageProcessor, max_pixels: int = images.MAX_PIXELS) -> Prepared:
    """Any image that `images.load` takes; never raises for what an image holds."""
    try:
        image = images.load(source, max_pixels)
    except images.ImageError as error:
        return Prepared(None, error=str(error))
    size = image.size
    if processor.fit == "line":  # looks at one channel as well
        image = ink.varied_channel(image)
    blank, several = ink.look(image)
    flags = (NO_TEXT,) if blank else (SEVERAL_LINES,) if several else ()
    pixels = processor(image)
    aspect = used_width(pixels) / pixels.shape[0] if processor.fit == "line" else size[0] / size[1]
    return Prepared(pixels, flags, aspect=aspect)


def used_width(pixels: np.ndarray) -> int:
    """Columns of uint8 pixels [...,height,width,3] of normalised lines up to the last that is not white in all of them."""
    used = np.flatnonzero(pixels[..., 0].min(axis=tuple(range(pixels.ndim - 2))) < 255)
    return int(used[-1]) + 1 if used.size else 0
