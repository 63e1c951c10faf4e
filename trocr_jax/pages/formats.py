"""A page that was read, as other programs want it: JSON, hOCR, ALTO 4, PAGE-XML 2019, plain text. No jax here.

Confidences go with the texts. The boxes of words are approximate, see `words`: TrOCR says nothing of places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from ..line import Line, one_line, to_json
from .words import Share, by_characters

Format = Literal["text", "json", "hocr", "alto", "page"]
DOCUMENTS = ("hocr", "alto", "page")
"""Formats in which two documents in a row are not a document."""
Points = tuple[tuple[int, int], ...]
ALTO = "http://www.loc.gov/standards/alto/ns-v4#"
PAGE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"
XHTML = "http://www.w3.org/1999/xhtml"
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 has no place for them


@dataclass(frozen=True)
class PageLine:
    """A line on a page.

    Attributes:
        points: its outline, clockwise from the top left as the writing runs.
        line: what was read there.
        places: where each of its words stands, in shares of the line's width; by default by its characters.
    """

    points: Points
    line: Line
    places: tuple[Share, ...] = ()

    @property
    def box(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the outline."""
        return bounds(self.points)


@dataclass(frozen=True)
class Page:
    """A page: its size in pixels, its lines in reading order, and the degrees, counter-clockwise, that it was turned by to be
    read: 0, 90, 180 or 270. Sizes and outlines are of the page as it came.
    """

    width: int
    height: int
    lines: tuple[PageLine, ...]
    turned: int = 0


def bounds(points: Points) -> tuple[int, int, int, int]:
    """left, top, right, bottom around points; none is negative."""
    xs, ys = zip(*points, strict=True)
    return max(0, min(xs)), max(0, min(ys)), max(0, max(xs)), max(0, max(ys))


def render(page: Page, form: Format, name: str, page_number: int = 1, created: datetime | None = None) -> str:
    """A page as text of one of the formats, ending in a newline.

    Args:
        name: the image's file name; in XML, what XML cannot hold of it is written as Python does: \\udcff for the byte ff.
        page_number: the page's number in that file, which hOCR and ALTO state.
        created: for PAGE-XML; by default now.
    """
    if form == "text":
        return "".join(f"{one_line(line.line.text)}\n" for line in page.lines)
    if form == "json":
        return to_json(to_dict(page, name)) + "\n"
    if form == "page":
        return _xml(_page_xml(page, name, created or datetime.now(UTC)), PAGE)
    return _xml(_alto(page, name, page_number), ALTO) if form == "alto" else _xml(_hocr(page, name, page_number), XHTML)


def to_dict(page: Page, name: str) -> dict[str, Any]:
    """A page as a dict to write as JSON."""
    lines = [with_boxes(line, line.line.to_dict()) for line in page.lines]
    return {"path": name, "width": page.width, "height": page.height, "turned": page.turned, "lines": lines}


def with_boxes(found: PageLine, line: dict[str, Any]) -> dict[str, Any]:
    """A dict of its Line, with the outline, the box around it, and a box in each word."""
    boxes = (list(bounds(outline)) for _, _, outline in words(found))
    of_words = [{**word, "box": box} for word, box in zip(line["words"], boxes, strict=True)]
    return {"polygon": [list(point) for point in found.points], "box": list(found.box), **line, "words": of_words}


def words(found: PageLine) -> Iterator[tuple[str, float, Points]]:
    """Text, confidence and approximate outline of every word."""
    corners = np.asarray(found.points, float)
    if len(corners) != 4:
        left, top, right, bottom = found.box
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    places = found.places or by_characters(found.line)
    for word, (a, b) in zip(found.line.words, places, strict=True):
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


def _valid(name: str) -> str:
    """A file's name, which without the characters that XML cannot hold might be another file's."""
    return _ILLEGAL.sub(lambda character: character[0].encode("unicode_escape").decode(), name)


def _around(page: Page) -> tuple[int, int, int, int]:
    """The box around all lines, or around the page where there are none."""
    if not page.lines:
        return 0, 0, page.width, page.height
    return bounds(tuple(point for line in page.lines for point in line.points))


def _page_xml(page: Page, name: str, created: datetime) -> ElementTree.Element:
    root = ElementTree.Element("PcGts")
    metadata, stamp = _add(root, "Metadata"), created.isoformat(timespec="seconds")
    for tag, text in (("Creator", "trocr-jax"), ("Created", stamp), ("LastChange", stamp)):
        _add(metadata, tag, text)
    sheet = _add(root, "Page", imageFilename=_valid(name), imageWidth=page.width, imageHeight=page.height)
    if not page.lines:
        return root
    left, top, right, bottom = _around(page)
    region = _add(sheet, "TextRegion", id="region")
    if page.turned:
        region.set("orientation", str(180 - (180 + page.turned) % 360))  # clockwise, above -180 and up to 180
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
    """Points as PAGE and ALTO write them; neither allows negative numbers."""
    return " ".join(f"{max(0, x)},{max(0, y)}" for x, y in points)


def _alto(page: Page, name: str, page_number: int) -> ElementTree.Element:
    root = ElementTree.Element("alto")
    description = _add(root, "Description")
    _add(description, "MeasurementUnit", "pixel")
    _add(_add(description, "sourceImageInformation"), "fileName", _valid(name))
    software = _add(_add(description, "Processing", ID="reading"), "processingSoftware")
    _add(software, "softwareName", "trocr-jax")
    layout = _add(root, "Layout")
    sheet = _add(layout, "Page", ID="page", PHYSICAL_IMG_NR=page_number, WIDTH=page.width, HEIGHT=page.height)
    space = _add(sheet, "PrintSpace", **_place((0, 0, page.width, page.height)))
    if not page.lines:
        return root
    block = _add(space, "TextBlock", ID="block", **_place(_around(page)))
    if page.turned:
        block.set("ROTATION", str(_text_angle(page)))
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


def _text_angle(page: Page) -> int:
    """Degrees counter-clockwise by which the writing on the page as it came is turned; 90 runs from bottom to top."""
    return -page.turned % 360


def _place(box: tuple[int, int, int, int]) -> dict[str, Any]:
    left, top, right, bottom = box
    return {"HPOS": left, "VPOS": top, "WIDTH": right - left, "HEIGHT": bottom - top}


def _hocr(page: Page, name: str, page_number: int) -> ElementTree.Element:
    root = ElementTree.Element("html")
    head = _add(root, "head")
    _add(head, "title", _valid(name))
    _add(head, "meta", name="ocr-system", content="trocr-jax")
    _add(head, "meta", name="ocr-capabilities", content="ocr_page ocr_carea ocr_line ocrx_word")
    image = _valid(name.replace("\\", "/").replace('"', "'"))
    title = f'image "{image}"; bbox 0 0 {page.width} {page.height}; ppageno {page_number - 1}'
    area = _add(_add(root, "body"), "div", class_="ocr_page", id="page", title=title)
    if page.lines:
        area = _add(area, "div", class_="ocr_carea", id="area", title=_bbox(_around(page)))
    for number, line in enumerate(page.lines):
        outline = _joined(line.points).replace(",", " ")
        angle = f"textangle {_text_angle(page)}; " if page.turned else ""
        title = f"{_bbox(line.box)}; poly {outline}; {angle}x_conf {100 * line.line.confidence:.2f}"
        element = _add(area, "span", class_="ocr_line", id=f"line{number}", title=title)
        for place, (text, confidence, points) in enumerate(words(line)):
            word_title = f"{_bbox(bounds(points))}; x_wconf {round(100 * confidence)}"
            word = _add(element, "span", text, class_="ocrx_word", id=f"line{number}word{place}", title=word_title)
            word.tail = " "
    return root


def _bbox(box: tuple[int, int, int, int]) -> str:
    return f"bbox {box[0]} {box[1]} {box[2]} {box[3]}"
