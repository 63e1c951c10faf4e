"""A scanned page: its lines are found (`line_detection`) or given, cut out level, and read in order.

from trocr_jax import Reader
from trocr_jax.page import read_page

for found in read_page(Reader.from_pretrained(), "scan.png").lines:
    print(found.box, found.line.text)

`cut_out` gives the image of a line, to look at it or to train on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw

from . import images
from .line import Line
from .pages.formats import Page, PageLine, Points
from .pages.line_detection import find_lines
from .pages.orientation import TURNS, find_turned
from .pages.outlines import PageFormatError, clockwise
from .pages.words import InkColumns, ink_columns, place_words
from .pixels.image_processor import ImageProcessor
from .prepared import Prepared, prepare

LOST = 0.9
"""The probability of a page's typical token below which its text is not believed: for upright print it is 0.96 and more, for
print on its side, upside down or mirrored 0.88 at most."""
SURER = 3
"""How many times less surprising (-log p) a token must be where a page is turned the right way; on drawn pages 10 and more."""
SAMPLE = 8
"""Lines of a turned page that are read to see whether it can be read that way."""
EVIDENCE = 16
"""Tokens that these lines must have together: a sign or two may look like a letter whichever way they are turned."""


class LineReader(Protocol):
    """What a page is read with: a `Reader`, which is not imported here, as it needs jax."""

    def read(self, source: Iterator[Image.Image], /, **options: Any) -> list[Line]: ...


def read_page(reader: LineReader, source: Any, polygons: Sequence[np.ndarray] | None = None, **options: Any) -> Page:
    """Finds the lines of a page and reads them in order, columns one after the other.

    Where hardly any line can be read, the page is also read at quarter and half turns, as it may be on its side or upside down.

    Args:
        reader: a `Reader`, or whatever reads line images as it does.
        source: the page as a path, bytes, a PIL image or an array.
        polygons: the lines where they are known, in reading order: [n,2] x and y each, as `pages.outlines.parse_lines` gives
            them from another program's file; by default lines are found here.
        options: as for `Reader.read` (batch_size, num_beams, ...).

    Returns:
        A Page: its width and height in pixels and its lines, each with the outline on the page as it came and the Line read
        there; `pages.formats.render` writes it. A page without writing has no lines.

    Raises:
        images.ImageError: the page cannot be read.
        PageFormatError: a polygon is none, lies outside of the page, or is far larger than it.
    """
    image = images.load(source)
    if polygons is not None:
        given = [_on_page(polygon, image.size, f"line {number}") for number, polygon in enumerate(polygons, 1)]
        return _read(reader, image, given, options)
    outlines = find_lines(image)
    found = _read(reader, image, outlines, options)
    return _turned(reader, image, outlines, found, options) if is_lost(found) else found


def is_lost(page: Page) -> bool:
    """Whether hardly any of a page's lines could be read."""
    return _sureness(page) < LOST


def _sureness(page: Page) -> float:
    """The probability of a token in the typical line; 1 where nothing was read. Lines of torn signs are short, thus likely."""
    lines = [[token.logprob for token in found.line.tokens] for found in page.lines if found.line.tokens]
    return math.exp(median(map(fmean, lines))) if lines else 1.0


def _turned(reader: LineReader, image: Image.Image, upright: list[np.ndarray], found: Page, options: dict[str, Any]) -> Page:
    """The page read as one of its turns where that is clearly surer, else as it was found."""
    outlines = {0: upright, **{degrees: find_turned(image, degrees) for degrees in TURNS}}
    free = options | {"pattern": None, "constraint": None}  # text that is forced to match tells nothing about the page
    samples = {degrees: _read(reader, image, _some(lines), free) for degrees, lines in outlines.items()}
    known = [degrees for degrees in TURNS if sum(len(each.line.tokens) for each in samples[degrees].lines) >= EVIDENCE]
    best = max(known, key=lambda degrees: _sureness(samples[degrees]), default=0)
    if not best or _sureness(samples[best]) < _sureness(samples[0]) ** (1 / SURER):
        return found
    return replace(_read(reader, image, outlines[best], options), turned=best)


def _some(outlines: list[np.ndarray]) -> list[np.ndarray]:
    """A few of the outlines, spread over the whole page."""
    return outlines[:: max(1, len(outlines) // SAMPLE)][:SAMPLE]


def _read(reader: LineReader, image: Image.Image, outlines: list[np.ndarray], options: dict[str, Any]) -> Page:
    ink: list[InkColumns] = []

    def lines() -> Iterator[Image.Image]:  # as they are read: together they may be larger than memory
        for outline in outlines:
            line = _cut(image, outline)
            ink.append(_ink(image, outline, line))
            yield line

    found = reader.read(lines(), **options)
    return _layout(image, outlines, ink).page(found)


@dataclass(frozen=True)
class Layout:
    """A page's width and height in pixels, and of its lines in reading order the outlines and where there is ink in them."""

    width: int
    height: int
    outlines: tuple[Points, ...]
    ink: tuple[InkColumns, ...]

    def page(self, lines: Sequence[Line]) -> Page:
        """The page with what was read in each outline."""
        each = zip(self.outlines, lines, self.ink, strict=True)
        found = tuple(PageLine(outline, line, place_words(line, ink)) for outline, line, ink in each)
        return Page(self.width, self.height, found)


def prepare_page(
    image: Image.Image, processor: ImageProcessor, admit: Callable[[int], object] = lambda count: None
) -> tuple[Layout, list[Prepared]]:
    """The lines of an RGB page ready for the device, as `read_page` reads them.

    Args:
        admit: told the number of lines before they are cut out and take memory; what it raises is raised here.
    """
    found = find_lines(image)
    admit(len(found))
    ink, lines = [], []
    for quad in found:
        line = _cut(image, quad)
        ink.append(_ink(image, quad, line))
        lines.append(prepare(line, processor))
    return _layout(image, found, ink), lines


def cut_out(image: Image.Image, polygon: np.ndarray) -> Image.Image:
    """The line image of a polygon [n,2] on a page in any mode, upright by its EXIF tag as `read_page` reads it: a quadrilateral
    made level; of other shapes the box, painted over outside of them.

    Raises:
        images.ImageError: the page cannot be read.
        PageFormatError: it is no polygon, lies outside of the page, or is far larger than it.
    """
    page = image if images.is_loaded(image) else images.load(image)
    return _cut(page, _on_page(polygon, page.size))


def _cut(image: Image.Image, outline: np.ndarray) -> Image.Image:
    if len(outline) != 4:
        return _masked(image, outline)
    corners = outline[[0, 3, 2, 1]].ravel().tolist()
    return image.transform(_size(outline), Image.Transform.QUAD, corners, Image.Resampling.BICUBIC, fillcolor=_paper(image))


def _size(quad: np.ndarray) -> tuple[int, int]:
    """Width and height of a quadrilateral made level."""
    width, height = (np.linalg.norm(quad[corner] - quad[0]) for corner in (1, 3))
    return max(1, round(float(width))), max(1, round(float(height)))


def _on_page(polygon: Any, page: tuple[int, int], name: str = "a line") -> np.ndarray:
    """A polygon [n,2] as an outline on a page of (width, height), float, a quadrilateral clockwise.

    Raises PageFormatError for one that is not on the page, or would take far more memory than it.
    """
    outline = np.asarray(polygon, float)
    if outline.ndim != 2 or outline.shape[1] != 2 or len(outline) < 3:
        raise PageFormatError(f"{name} must be a polygon of at least three points, [n,2], not of shape {list(outline.shape)}")
    outline = clockwise(outline)
    low, high = outline.min(0), outline.max(0)
    where = f"{name} at x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
    on_page = np.minimum(np.ceil(high), page) - np.maximum(np.floor(low), 0)
    if not (on_page > 0).all():  # NaN is not, either
        raise PageFormatError(f"{where} lies outside of the page of {page[0]} x {page[1]} pixels")
    larger = (high - low > 2 * np.array(page)).any()
    most = min(4 * np.prod(page, dtype=float), images.MAX_PIXELS)
    if larger or len(outline) == 4 and np.prod(_size(outline), dtype=float) > most:
        raise PageFormatError(f"{where} is far larger than the page of {page[0]} x {page[1]} pixels")
    return outline


def _masked(image: Image.Image, polygon: np.ndarray) -> Image.Image:
    low = np.maximum(np.floor(polygon.min(0)), 0).astype(int)
    high = np.minimum(np.ceil(polygon.max(0)), image.size).astype(int)
    mask = Image.new("1", tuple(high - low))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in polygon - low], fill=1)
    line = Image.new("RGB", mask.size, _paper(image))
    line.paste(image.crop((*low, *high)), mask=mask)
    return line


def _paper(image: Image.Image) -> tuple[int, ...]:
    """Roughly the commonest colour of an RGB page: the median of 1,024 pixels, as every line asks and all of them take long."""
    pixels = np.asarray(image.resize((32, 32), Image.Resampling.NEAREST), np.uint8).reshape(-1, 3)
    return tuple(int(channel) for channel in np.median(pixels, axis=0))


def _ink(image: Image.Image, outline: np.ndarray, line: Image.Image) -> InkColumns:
    """Where there is ink along an outline as it is reported, which ends where the page does; `line` was cut out by all of it."""
    inside = _inside(image, outline)
    return ink_columns(line if (inside == outline).all() else _cut(image, inside))


def _inside(image: Image.Image, outline: np.ndarray) -> np.ndarray:
    return np.clip(outline, 0, image.size)


def _layout(image: Image.Image, outlines: Sequence[np.ndarray], ink: Sequence[InkColumns]) -> Layout:
    """The outlines [n,2] as reported: whole pixels on the page, although a line may be cut out from beyond its border."""
    inside = (np.rint(_inside(image, outline)).astype(int).tolist() for outline in outlines)
    return Layout(image.width, image.height, tuple(tuple((x, y) for x, y in outline) for outline in inside), tuple(ink))
