"""Pages of lines as other programs write and read them: JSON, hOCR, ALTO 4, PAGE-XML 2019, plain text. No jax here.

`parse_lines` takes the places of lines from any of them; `render` writes a page that was read, with confidences. The boxes of
words are approximate: TrOCR says nothing of places, so a line is shared out by the number of its characters.

Files come from anywhere: XML with a document type (whose entities can grow without end or read files) is refused, and hOCR,
which is HTML, goes through a parser that knows no entities but those of characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import numpy as np

from .line import Line, one_line

Format = Literal["text", "json", "hocr", "alto", "page"]
FORMATS = get_args(Format)
DOCUMENTS = ("hocr", "alto", "page")
"""Formats of which two in a row are none."""
Points = tuple[tuple[int, int], ...]
ALTO = "http://www.loc.gov/standards/alto/ns-v4#"
PAGE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"
XHTML = "http://www.w3.org/1999/xhtml"
MAX_LINES = 10_000
MAX_BYTES = 50_000_000
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 has no place for them
_NUMBER = r"-?\d{1,7}(?:\.\d+)?"


class PageFormatError(ValueError):
    """A file that does not tell where lines of the page are; the message says why."""


@dataclass(frozen=True)
class PageLine:
    """A line on a page: its outline, clockwise from the top left as the writing runs, and what was read there."""

    points: Points
    line: Line

    @property
    def box(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the outline."""
        return bounds(self.points)


@dataclass(frozen=True)
class Page:
    """A page of so many pixels with its lines in reading order."""

    width: int
    height: int
    lines: tuple[PageLine, ...]


def bounds(points: Points) -> tuple[int, int, int, int]:
    """left, top, right, bottom around points; none is negative."""
    xs, ys = zip(*points, strict=True)
    return max(0, min(xs)), max(0, min(ys)), max(0, max(xs)), max(0, max(ys))


def parse_lines(content: bytes) -> list[np.ndarray]:
    """The outlines of lines, [n,2] float32 each, in the order of the file: PAGE-XML, ALTO, hOCR, or JSON.

    JSON is a list of boxes [left, top, right, bottom] or of polygons [[x, y], ...], or an object with such a list as "lines",
    whose items may also be objects with "polygon" or "box", as `render` writes them.

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
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise PageFormatError("the XML declares a document type, which PAGE and ALTO do not have")
    try:
        root = ElementTree.fromstring(text.encode())
    except (ElementTree.ParseError, ValueError):
        raise PageFormatError("not well-formed XML") from None
    for line in (element for element in root.iter() if _tag(element) == "TextLine"):
        yield _page_outline(line) or _alto_outline(line)


def _page_outline(line: ElementTree.Element) -> Any:
    coords = next((child for child in line if _tag(child) == "Coords"), None)
    return None if coords is None else _pairs(coords.get("points", ""))


def _alto_outline(line: ElementTree.Element) -> Any:
    """Its polygon, where the line's own shape has one, else its box."""
    shape = next((child for child in line if _tag(child) == "Shape"), None)
    polygon = None if shape is None else next((child for child in shape if _tag(child) == "Polygon"), None)
    if polygon is not None and (points := _pairs(polygon.get("POINTS", ""))):
        return points
    try:
        left, top, width, height = (float(line.get(name, "")) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
    except ValueError:
        raise PageFormatError("a TextLine has neither a polygon nor HPOS, VPOS, WIDTH and HEIGHT") from None
    return [left, top, left + width, top + height]


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


def _tag(element: ElementTree.Element) -> str:
    """Without the namespace, which differs between versions of the formats."""
    return str(element.tag).rpartition("}")[2]


def render(page: Page, form: Format, name: str, page_number: int = 1, created: datetime | None = None) -> str:
    """A page as text of one of the formats, ending in a newline.

    Args:
        name: the image's file name.
        page_number: in that file, which hOCR and ALTO tell.
        created: for PAGE-XML; by default now.
    """
    if form == "text":
        return "".join(f"{one_line(line.line.text)}\n" for line in page.lines)
    if form == "json":
        return json.dumps(to_dict(page, name), ensure_ascii=False) + "\n"
    if form == "page":
        return _xml(_page_xml(page, name, created or datetime.now(UTC)), PAGE)
    return _xml(_alto(page, name, page_number), ALTO) if form == "alto" else _xml(_hocr(page, name, page_number), XHTML)


def to_dict(page: Page, name: str) -> dict[str, Any]:
    """As JSON would have it."""
    lines = [{"polygon": line.points, "box": line.box, **line.line.to_dict()} for line in page.lines]
    return {"path": name, "width": page.width, "height": page.height, "lines": lines}


def words(line: PageLine) -> Iterator[tuple[str, float, Points]]:
    """Text, confidence and approximate outline of every word."""
    total = max(1, len(line.line.text))
    corners = np.asarray(line.points, float)
    if len(corners) != 4:
        left, top, right, bottom = line.box
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    for word in line.line.words:
        a, b = word.start / total, word.end / total
        (p, q), (s, r) = ((u + a * (v - u), u + b * (v - u)) for u, v in ((corners[0], corners[1]), (corners[3], corners[2])))
        yield word.text, word.confidence, tuple((round(x), round(y)) for x, y in (p, q, r, s))


def _xml(root: ElementTree.Element, namespace: str) -> str:
    root.set("xmlns", namespace)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _add(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: Any) -> ElementTree.Element:
    """A child; characters that XML cannot hold are left out."""
    values = {name.strip("_"): _ILLEGAL.sub("", str(value)) for name, value in attributes.items()}
    child = ElementTree.SubElement(parent, tag, values)
    child.text = None if text is None else _ILLEGAL.sub("", text)
    return child


def _around(page: Page) -> tuple[int, int, int, int]:
    """The box of all lines; of the page where there are none."""
    if not page.lines:
        return 0, 0, page.width, page.height
    return bounds(tuple(point for line in page.lines for point in line.points))


def _page_xml(page: Page, name: str, created: datetime) -> ElementTree.Element:
    root = ElementTree.Element("PcGts")
    metadata, stamp = _add(root, "Metadata"), created.isoformat(timespec="seconds")
    for tag, text in (("Creator", "trocr-jax"), ("Created", stamp), ("LastChange", stamp)):
        _add(metadata, tag, text)
    sheet = _add(root, "Page", imageFilename=name, imageWidth=page.width, imageHeight=page.height)
    if not page.lines:
        return root
    left, top, right, bottom = _around(page)
    region = _add(sheet, "TextRegion", id="region")
    _add(region, "Coords", points=_joined(((left, top), (right, top), (right, bottom), (left, bottom))))
    for number, line in enumerate(page.lines):
        element = _add(region, "TextLine", id=f"line{number}")
        _add(element, "Coords", points=_joined(line.points))
        for place, (text, confidence, outline) in enumerate(words(line)):
            word = _add(element, "Word", id=f"line{number}word{place}")
            _add(word, "Coords", points=_joined(outline))
            _add(_add(word, "TextEquiv", conf=f"{confidence:.4f}"), "Unicode", text)
        _add(_add(element, "TextEquiv", conf=f"{line.line.confidence:.4f}"), "Unicode", line.line.text)
    return root


def _joined(points: Points) -> str:
    """As PAGE and ALTO have it; neither knows negative numbers."""
    return " ".join(f"{max(0, x)},{max(0, y)}" for x, y in points)


def _alto(page: Page, name: str, page_number: int) -> ElementTree.Element:
    root = ElementTree.Element("alto")
    description = _add(root, "Description")
    _add(description, "MeasurementUnit", "pixel")
    _add(_add(description, "sourceImageInformation"), "fileName", name)
    software = _add(_add(description, "Processing", ID="reading"), "processingSoftware")
    _add(software, "softwareName", "trocr-jax")
    layout = _add(root, "Layout")
    sheet = _add(layout, "Page", ID="page", PHYSICAL_IMG_NR=page_number, WIDTH=page.width, HEIGHT=page.height)
    space = _add(sheet, "PrintSpace", **_place((0, 0, page.width, page.height)))
    if not page.lines:
        return root
    block = _add(space, "TextBlock", ID="block", **_place(_around(page)))
    for number, line in enumerate(page.lines):
        element = _add(block, "TextLine", ID=f"line{number}", **_place(line.box))
        _add(_add(element, "Shape"), "Polygon", POINTS=_joined(line.points))
        found = list(words(line)) or [("", line.line.confidence, line.points)]
        for place, (text, confidence, outline) in enumerate(found):
            if place:
                _add(element, "SP")
            where = _place(bounds(outline))
            _add(element, "String", ID=f"line{number}word{place}", CONTENT=text, WC=f"{confidence:.4f}", **where)
    return root


def _place(box: tuple[int, int, int, int]) -> dict[str, Any]:
    left, top, right, bottom = box
    return {"HPOS": left, "VPOS": top, "WIDTH": right - left, "HEIGHT": bottom - top}


def _hocr(page: Page, name: str, page_number: int) -> ElementTree.Element:
    root = ElementTree.Element("html")
    head = _add(root, "head")
    _add(head, "title", name)
    _add(head, "meta", name="ocr-system", content="trocr-jax")
    _add(head, "meta", name="ocr-capabilities", content="ocr_page ocr_carea ocr_line ocrx_word")
    image = name.replace("\\", "/").replace('"', "'")
    title = f'image "{image}"; bbox 0 0 {page.width} {page.height}; ppageno {page_number - 1}'
    area = _add(_add(root, "body"), "div", class_="ocr_page", id="page", title=title)
    if page.lines:
        area = _add(area, "div", class_="ocr_carea", id="area", title=_bbox(_around(page)))
    for number, line in enumerate(page.lines):
        outline = _joined(line.points).replace(",", " ")
        title = f"{_bbox(line.box)}; poly {outline}; x_conf {100 * line.line.confidence:.2f}"
        element = _add(area, "span", class_="ocr_line", id=f"line{number}", title=title)
        for place, (text, confidence, points) in enumerate(words(line)):
            word_title = f"{_bbox(bounds(points))}; x_wconf {round(100 * confidence)}"
            word = _add(element, "span", text, class_="ocrx_word", id=f"line{number}word{place}", title=word_title)
            word.tail = " "
    return root


def _bbox(box: tuple[int, int, int, int]) -> str:
    return f"bbox {box[0]} {box[1]} {box[2]} {box[3]}"
