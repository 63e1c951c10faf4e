"""Where the lines of a page are, as other programs and people state it: PAGE-XML, ALTO, hOCR or JSON. No jax here.

Files come from anywhere: XML with a document type (whose entities can grow without end or read files) is refused, and of hOCR,
which is HTML, only complete start tags are looked at: html.parser takes minutes for a file of tags that never end.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator
from html import unescape
from typing import Any
from xml.etree import ElementTree

import numpy as np

MAX_LINES = 10_000
MAX_BYTES = 50_000_000
_FARTHEST = 1e6
_OUTSIDE = "a line has no area, or lies far outside of any page"
_NUMBER = r"-?\d{1,7}(?:\.\d+)?"
_HOCR_LINES = frozenset(("ocr_line", "ocr_header", "ocr_caption", "ocr_textfloat", "ocrx_line"))

# Both take time in proportion to the text, whatever it is: what has no end there takes all the rest (\Z), a start tag is given
# up at the next "<", and nothing that was matched is given back (the possessive quantifiers, with a +).
_TAG = re.compile(
    r"""<!--.*?(?:-->|\Z) | <(script|style)\b[^<>]*+(?<!/)>.*?(?:</\1|\Z)
    | <[a-z](?P<attributes>(?:[^<>=]++|=\s*+(?:"[^"<]*+"|'[^'<]*+')?)*+)>""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_ATTRIBUTE = re.compile(r"""(?<=[\s"'/])([^\s=>"'/]++)\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>]++))""")


class PageFormatError(ValueError):
    """A file that does not say where the lines of a page are; the message says why."""


class NoOutlineError(PageFormatError):
    """A line whose place the file does not give."""


def parse_lines(content: bytes) -> list[np.ndarray]:
    """The outlines of lines, [n,2] float32 each, in the order of the file: PAGE-XML, ALTO, hOCR, or JSON.

    JSON is a list of boxes [left, top, right, bottom] or of polygons [[x, y], ...], or an object with such a list as "lines",
    whose items may also be objects with "polygon" or "box", as `formats.render` writes them.

    The points of a quadrilateral are top left, top right, bottom right, bottom left, as the writing runs: a line from top to
    bottom begins at the right. Counter-clockwise ones are turned round, still from their first point, as no line is a mirror
    image.

    Raises:
        PageFormatError: none of these, damaged, dangerous, or without a line; of a line that is wrong its number, from 1.
    """
    if len(content) > MAX_BYTES:
        raise PageFormatError(f"the file of lines is larger than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise PageFormatError("a file of lines must be UTF-8") from None
    items, place = _parser(text)
    found = list(items(text))
    if not found:
        raise PageFormatError("the file has no lines")
    if len(found) > MAX_LINES:
        raise PageFormatError(f"the file has more than {MAX_LINES} lines")
    return [_placed(number, item, place) for number, item in enumerate(found, 1)]


def _parser(text: str) -> tuple[Callable[[str], Iterable[Any]], Callable[[Any], Any]]:
    """What finds the lines in such a text, and what finds the place of one of them."""
    if text[:1] in ("[", "{"):
        return _json_lines, _json_outline
    if re.search(r"<html|ocr_page|ocr_line", text[:100_000], re.IGNORECASE) and "<PcGts" not in text and "<alto" not in text:
        return _hocr_lines, _hocr_outline
    if text.startswith("<"):
        return _xml_lines, outline
    raise PageFormatError("a file of lines must be PAGE-XML, ALTO, hOCR or JSON")


def _placed(number: int, item: Any, place: Callable[[Any], Any]) -> np.ndarray:
    points = None
    try:
        points = place(item)
        return _checked(points)
    except PageFormatError as error:
        values = "" if points is None else f": {reprlib.repr(points)}"
        raise PageFormatError(f"line {number}: {error}{values}") from None


def _checked(points: Any) -> np.ndarray:
    """A box or polygon as [n,2]; a box becomes a quadrilateral."""
    try:
        array = np.asarray(points, float)
    except (TypeError, ValueError):
        raise PageFormatError("a line must be a box or a polygon of numbers") from None
    except OverflowError:
        raise PageFormatError(_OUTSIDE) from None
    if array.shape == (4,):
        (left, right), (top, bottom) = np.sort(array[[0, 2]]), np.sort(array[[1, 3]])
        array = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if array.ndim != 2 or array.shape[1] != 2 or not 3 <= len(array) <= 10_000 or not np.isfinite(array).all():
        raise PageFormatError("a line must be [left, top, right, bottom] or a polygon [[x, y], ...] of at least three points")
    if (np.ptp(array, axis=0) < 1).any() or np.abs(array).max() > _FARTHEST:
        raise PageFormatError(_OUTSIDE)
    return clockwise(array.astype(np.float32))


def clockwise(points: np.ndarray) -> np.ndarray:
    """A quadrilateral [4,2] whose points go round clockwise on the page, from the same first one; other polygons as they are."""
    x, y = (points - points[0]).astype(float).T
    area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum()
    return points[[0, 3, 2, 1]] if len(points) == 4 and area < 0 else points


def _json_lines(text: str) -> list[Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise PageFormatError("the file of lines is not valid JSON") from None
    items = content.get("lines") if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise PageFormatError('a JSON file of lines must be a list, or an object with a list as "lines"')
    return items


def _json_outline(item: Any) -> Any:
    return item.get("polygon", item.get("box")) if isinstance(item, dict) else item


def _xml_lines(text: str) -> Iterator[ElementTree.Element]:
    return text_lines(xml_root(text))


def xml_root(text: str) -> ElementTree.Element:
    """The root of a PAGE or ALTO file.

    Raises:
        PageFormatError: not well-formed, it declares a document type, or it does not measure in pixels.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise PageFormatError("the XML declares a document type, which PAGE and ALTO do not have")
    try:
        root = ElementTree.fromstring(text.encode())
    except (ElementTree.ParseError, ValueError):
        raise PageFormatError("not well-formed XML") from None
    except LookupError:
        raise PageFormatError("the XML declares an encoding that nobody knows") from None
    _check_unit(root)
    return root


def _check_unit(root: ElementTree.Element) -> None:
    """ALTO may also have tenths of millimetres (mm10) and 1200ths of an inch (inch1200), but no resolution to go with them."""
    for unit in ((element.text or "").strip() for element in root.iter() if tag(element) == "MeasurementUnit"):
        if unit.lower() not in ("", "pixel"):
            raise PageFormatError(f"the ALTO file measures in {unit[:20]!a}; its MeasurementUnit must be pixel")


def text_lines(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """The lines of a page, which PAGE and ALTO call by the same name."""
    return (element for element in root.iter() if tag(element) == "TextLine")


def outline(line: ElementTree.Element) -> list[Any]:
    """A polygon of points (x, y) or a box [left, top, right, bottom] of a PAGE or ALTO line: the line's own, not its words'.

    Raises:
        NoOutlineError: it has none.
        PageFormatError: it has one that cannot be on a page.
    """
    for parent, name, points in ((line, "Coords", "points"), (_child(line, "Shape"), "Polygon", "POINTS")):
        if found := _pairs(_child(parent, name).get(points, "")):
            return found
    place = [line.get(name) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT")]
    if None in place:
        raise NoOutlineError("a TextLine has neither a polygon nor HPOS, VPOS, WIDTH and HEIGHT")
    left, top, width, height = map(_length, place)
    return [left, top, left + width, top + height]


def _length(text: str | None) -> float:
    """A number of pixels; raises PageFormatError for what is not one, such as NaN, or is more than any page has."""
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not abs(value) <= _FARTHEST:
        raise PageFormatError(f"HPOS, VPOS, WIDTH or HEIGHT of a TextLine is {(text or '')[:20]!a}, not a number of pixels")
    return value


def _child(parent: ElementTree.Element, name: str) -> ElementTree.Element:
    """The first child of this name, or an empty one."""
    return next((child for child in parent if tag(child) == name), ElementTree.Element(name))


def tag(element: ElementTree.Element) -> str:
    """The element's name without its namespace, which differs between versions of the formats."""
    return str(element.tag).rpartition("}")[2]


def _pairs(text: str) -> list[tuple[float, float]]:
    """ "1,2 3,4" or "1 2 3 4" -> points."""
    try:
        numbers = [float(number) for number in text.replace(",", " ").split()]
        return list(zip(numbers[::2], numbers[1::2], strict=True))
    except ValueError:
        raise PageFormatError(f"the points of a line are {text[:20]!a}..., not pairs of numbers") from None


def _hocr_lines(text: str) -> Iterator[str]:
    """The titles of the lines, which say where they are."""
    for skipped_or_tag in _TAG.finditer(text):
        values = dict(_attributes(skipped_or_tag["attributes"] or ""))
        if _HOCR_LINES & set(values.get("class", "").split()):
            yield values.get("title", "")


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    for name, double, single, bare in _ATTRIBUTE.findall(text):
        if name.lower() in ("class", "title"):
            try:
                yield name.lower(), unescape(double or single or bare)
            except ValueError:  # the number of a character has thousands of digits
                raise PageFormatError(f"a {name.lower()} in the hOCR file has a damaged character reference") from None


def _hocr_outline(title: str) -> list[Any]:
    if polygon := re.search(rf"\bpoly((?:\s+{_NUMBER})+)", title):
        return _pairs(polygon[1])
    if box := re.search(rf"\bbbox\s+({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})", title):
        return [float(x) for x in box.groups()]
    raise PageFormatError("a line of the hOCR file has no bbox")
