"""Where the lines of a page are, as other programs and people tell it: PAGE-XML, ALTO, hOCR or JSON. No jax here.

Files come from anywhere: XML with a document type (whose entities can grow without end or read files) is refused, and hOCR,
which is HTML, goes through a parser that knows no entities but those of characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np

MAX_LINES = 10_000
MAX_BYTES = 50_000_000
_NUMBER = r"-?\d{1,7}(?:\.\d+)?"


class PageFormatError(ValueError):
    """A file that does not tell where lines of the page are; the message says why."""


def parse_lines(content: bytes) -> list[np.ndarray]:
    """The outlines of lines, [n,2] float32 each, in the order of the file: PAGE-XML, ALTO, hOCR, or JSON.

    JSON is a list of boxes [left, top, right, bottom] or of polygons [[x, y], ...], or an object with such a list as "lines",
    whose items may also be objects with "polygon" or "box", as `page_formats.render` writes them.

    The points of a quadrilateral are top left, top right, bottom right, bottom left, as the writing runs: a line from top to
    bottom begins at the right. Counter-clockwise ones are turned round, still from their first point, as no line is a mirror
    image.

    Raises:
        PageFormatError: none of these, damaged, dangerous, or without a line.
    """
    if len(content) > MAX_BYTES:
        raise PageFormatError(f"the file of lines is larger than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise PageFormatError("a file of lines must be UTF-8") from None
    found = list(_parser(text)(text))
    if not found:
        raise PageFormatError("the file has no lines")
    if len(found) > MAX_LINES:
        raise PageFormatError(f"the file has more than {MAX_LINES} lines")
    return [_checked(points) for points in found]


def _parser(text: str) -> Any:
    if text[:1] in ("[", "{"):
        return _from_json
    if re.search(r"<html|ocr_page|ocr_line", text[:100_000], re.IGNORECASE) and "<PcGts" not in text and "<alto" not in text:
        return _from_hocr
    if text.startswith("<"):
        return _from_xml
    raise PageFormatError("a file of lines must be PAGE-XML, ALTO, hOCR or JSON")


def _checked(points: Any) -> np.ndarray:
    """A box or polygon as [n,2]; a box becomes a quadrilateral."""
    try:
        array = np.asarray(points, np.float32)
    except (TypeError, ValueError):
        raise PageFormatError("a line must be a box or a polygon of numbers") from None
    if array.shape == (4,):
        (left, right), (top, bottom) = np.sort(array[[0, 2]]), np.sort(array[[1, 3]])
        array = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
    if array.ndim != 2 or array.shape[1] != 2 or not 3 <= len(array) <= 10_000 or not np.isfinite(array).all():
        raise PageFormatError("a line must be [left, top, right, bottom] or a polygon [[x, y], ...] of at least three points")
    if (np.ptp(array, axis=0) < 1).any() or np.abs(array).max() > 1e6:
        raise PageFormatError("a line has no area, or lies far outside of any page")
    return clockwise(array)


def clockwise(points: np.ndarray) -> np.ndarray:
    """A quadrilateral [4,2] whose points go round clockwise on the page, from the same first one; other polygons as they are."""
    x, y = (points - points[0]).astype(float).T
    area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum()
    return points[[0, 3, 2, 1]] if len(points) == 4 and area < 0 else points


def _from_json(text: str) -> Iterator[Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise PageFormatError("the file of lines is not valid JSON") from None
    items = content.get("lines") if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise PageFormatError('a JSON file of lines must be a list, or an object with a list as "lines"')
    for item in items:
        yield item.get("polygon", item.get("box")) if isinstance(item, dict) else item


def _from_xml(text: str) -> Iterator[Any]:
    return map(outline, text_lines(xml_root(text)))


def xml_root(text: str) -> ElementTree.Element:
    """The root of a PAGE or ALTO file.

    Raises:
        PageFormatError: not well-formed, or it declares a document type.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise PageFormatError("the XML declares a document type, which PAGE and ALTO do not have")
    try:
        return ElementTree.fromstring(text.encode())
    except (ElementTree.ParseError, ValueError):
        raise PageFormatError("not well-formed XML") from None


def text_lines(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """PAGE and ALTO give the lines of a page the same name."""
    return (element for element in root.iter() if tag(element) == "TextLine")


def outline(line: ElementTree.Element) -> list[Any]:
    """A polygon of points (x, y) or a box [left, top, right, bottom] of a PAGE or ALTO line: the line's own, not its words'.

    Raises:
        PageFormatError: it has none.
    """
    for parent, name, points in ((line, "Coords", "points"), (_child(line, "Shape"), "Polygon", "POINTS")):
        if found := _pairs(_child(parent, name).get(points, "")):
            return found
    try:
        left, top, width, height = (float(line.get(name, "")) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
    except ValueError:
        raise PageFormatError("a TextLine has neither a polygon nor HPOS, VPOS, WIDTH and HEIGHT") from None
    return [left, top, left + width, top + height]


def _child(parent: ElementTree.Element, name: str) -> ElementTree.Element:
    """The first child of this name, or an empty one."""
    return next((child for child in parent if tag(child) == name), ElementTree.Element(name))


def tag(element: ElementTree.Element) -> str:
    """The element's name without its namespace, which differs between versions of the formats."""
    return str(element.tag).rpartition("}")[2]


def _pairs(text: str) -> list[tuple[float, float]]:
    """ "1,2 3,4" or "1 2 3 4" -> points."""
    numbers = [float(x) for x in re.findall(_NUMBER, text)]
    return list(zip(numbers[::2], numbers[1::2], strict=False))


class _Hocr(HTMLParser):
    """Collects the outlines of lines."""

    CLASSES = frozenset(("ocr_line", "ocr_header", "ocr_caption", "ocr_textfloat", "ocrx_line"))

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if not self.CLASSES & set((values.get("class") or "").split()):
            return
        title = values.get("title") or ""
        polygon = re.search(rf"\bpoly((?:\s+{_NUMBER})+)", title)
        box = re.search(rf"\bbbox\s+({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})", title)
        if not polygon and not box:
            raise PageFormatError("a line of the hOCR file has no bbox")
        self.found.append(_pairs(polygon[1]) if polygon else [float(x) for x in box.groups()] if box else None)


def _from_hocr(text: str) -> Iterator[Any]:
    parser = _Hocr()
    parser.feed(text)
    parser.close()
    yield from parser.found
