"""One image of a batch job as the device takes it: a line, or the lines of a page. No jax: this runs in decoding processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from trocr_jax import images
from trocr_jax.page import Layout, prepare_page
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.prepared import Prepared, prepare

from .places import FetchError, PlaceError, patiently, read_file

Image = str | bytes | None
"""A path, a URL or the bytes of a file; None where the record has no image."""


@dataclass(frozen=True)
class Decoded:
    """An image on its way to the device.

    Attributes:
        lines: the image itself, or the lines of a page in reading order.
        layout: a page's layout; None for a line, and for what could not be decoded, which is one line with an error.
    """

    lines: list[Prepared]
    layout: Layout | None = None

    @classmethod
    def failed(cls, error: str) -> Decoded:
        return cls([Prepared(None, error=error)])


def decode(image: Image, processor: ImageProcessor, pages: bool, root: str = "/", give_up: bool = False) -> Decoded:
    """One image as the device takes it. Any failure is in the result, but for what another try may mend.

    Args:
        root: the input's root folder, see `places.check_mounted`.

    Raises:
        FetchError: a file cannot be read now, and it is not to be given up.
        UsageError: the package of a URL's scheme is missing.
    """
    try:
        if image is None:
            return Decoded.failed("the record holds no image")
        source = patiently(partial(read_file, image, root)) if isinstance(image, str) else image
        if not pages:
            return Decoded([prepare(source, processor)])
        layout, lines = prepare_page(images.load(source), processor)
        return Decoded(lines, layout)
    except PlaceError as error:
        return Decoded.failed(error.reason)
    except FetchError as error:
        if give_up:
            return Decoded.failed(error.reason)
        raise FetchError(error.place, error.reason, f"{error.remedy}; --give-up stores it as an error") from None
    except images.ImageError as error:
        return Decoded.failed(str(error))
