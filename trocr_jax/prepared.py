"""An image on its way to the device: its pixels and what can be said of it without the model. No jax: it runs anywhere."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from . import images
from .flags import CONTINUES, NO_TEXT, SEVERAL_LINES, SEVERAL_PAGES
from .pixels import ink
from .pixels.image_processor import ImageProcessor
from .pixels.line_normalization import Writing, find_writing
from .pixels.strokes import varied_channel


@dataclass(frozen=True)
class Prepared:
    """An image ready for the device, or why it is not; of a line that is too long for one image, the first piece.

    Attributes:
        pixels: uint8 [height,width,3].
        flags: NO_TEXT or SEVERAL_LINES, and SEVERAL_PAGES where a file has more pages than the one that is read; CONTINUES of
            a further piece that begins amid a word.
        error: why there are no pixels.
        aspect: width over height of the writing, where the preparation finds it, else of the picture: by which the length of
            the text can be guessed.
        rest: the other pieces of the line, in order.
    """

    pixels: np.ndarray | None
    flags: tuple[str, ...] = ()
    error: str | None = None
    aspect: float = 0.0
    rest: tuple[Prepared, ...] = ()

    @property
    def pieces(self) -> tuple[Prepared, ...]:
        """All images that the device reads for this one; `line.joined` puts their lines together."""
        return self, *self.rest


def prepare(source: Any, processor: ImageProcessor, max_pixels: int = images.MAX_PIXELS) -> Prepared:
    """Prepares any image that `images.load` takes; never raises for what an image holds."""
    try:
        image = images.load(source, max_pixels)
        prepared = _prepare_line(image, processor) if processor.fit == "line" else _prepare_picture(image, processor)
    except images.ImageError as error:
        return Prepared(None, error=str(error))
    except Exception as error:  # ours: it costs this image, not the million around it, and its text is not for clients
        logging.getLogger(__name__).exception("an image could not be prepared")
        return Prepared(None, error=f"the image could not be prepared ({type(error).__name__})")
    return _with_flag(prepared, SEVERAL_PAGES) if images.FIRST_OF_SEVERAL in image.info else prepared


def _with_flag(prepared: Prepared, flag: str) -> Prepared:
    return replace(prepared, flags=(*prepared.flags, flag), rest=tuple(_with_flag(piece, flag) for piece in prepared.rest))


def _prepare_picture(image: Image.Image, processor: ImageProcessor) -> Prepared:
    blank, several = ink.look(image)
    return Prepared(processor(image), _flags(blank, several), aspect=image.width / image.height)


def _prepare_line(image: Image.Image, processor: ImageProcessor) -> Prepared:
    """Prepares a line for a model that reads normalised ones: most of what finds writing also shows if it is several lines."""
    channel = varied_channel(image)
    writing = find_writing(channel)
    blank = ink.is_blank(channel)
    flags = _flags(blank, not blank and _several_lines(channel, writing))
    first, *rest = (
        Prepared(pixels, flags + (CONTINUES,) * continues, aspect=used_width(pixels) / processor.height)
        for pixels, continues in writing.pieces(processor.height, processor.width)
    )
    return replace(first, rest=tuple(rest))


def _several_lines(channel: Image.Image, writing: Writing) -> bool:
    if len(writing.ink) < channel.height:  # too coarse to count lines, or a part
        return ink.looks_like_several_lines(channel)
    return bool(writing.rows.size) and ink.may_hold_several_lines(channel.size) and ink.holds_several_lines(writing.rows)


def _flags(blank: bool, several: bool) -> tuple[str, ...]:
    return (NO_TEXT,) if blank else (SEVERAL_LINES,) if several else ()


def used_width(pixels: np.ndarray) -> int:
    """Columns of uint8 pixels [...,height,width,3] of normalised lines up to the last that is not white in all of them."""
    used = np.flatnonzero(pixels[..., 0].min(axis=tuple(range(pixels.ndim - 2))) < 255)
    return int(used[-1]) + 1 if used.size else 0
