"""Lines of PAGE-XML and ALTO files: the boxes and texts of their TextLine elements, cut out of the page images."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from .records import Crops, SourceError, bounds, inside, read_text

Box = tuple[int, int, int, int]


def lines(files: list[Path]) -> Crops:
    """The lines of all files that have a text; images are looked for beside the XML.

    Raises:
        SourceError: a file is neither PAGE nor ALTO, or its image is missing.
    """
    return Crops([(image, box, text) for file in files for image, box, text in _page(file)])


def _page(file: Path) -> list[tuple[Path, Box, str]]:
    root = parse(file)
    kinds = {_tag(element) for element in root.iter()}
    named = _image_name(root)
    image = inside(file.parent.resolve(), Path(named.replace("\\", "/")).name) if named else file
    if not image.is_file() or image == file:
        raise SourceError(f"{file}: its page image {named!a} is not beside it")
    read = _alto_line if "String" in kinds else _page_line
    found = [read(element) for element in root.iter() if _tag(element) == "TextLine"]
    return [(image, box, text) for box, text in (line for line in found if line) if text.strip()]


def parse(file: Path) -> ElementTree.Element:
    """The root element; a document type, with which entities blow up, is refused.

    Raises:
        SourceError: not well-formed XML.
    """
    content = read_text(file)
    if "<!DOCTYPE" in content or "<!ENTITY" in content:
        raise SourceError(f"{file}: declares a document type, which PAGE and ALTO do not have")
    try:
        return ElementTree.fromstring(content.encode())
    except ElementTree.ParseError:
        raise SourceError(f"{file}: not well-formed XML") from None


def _image_name(root: ElementTree.Element) -> str:
    for element in root.iter():
        if _tag(element) == "Page" and element.get("imageFilename"):
            return str(element.get("imageFilename"))
        if _tag(element) == "fileName" and element.text:
            return element.text.strip()
    return ""


def _page_line(line: ElementTree.Element) -> tuple[Box, str] | None:
    """PAGE: a polygon "x,y x,y ..." and the line's own TextEquiv (words inside it have theirs)."""
    coords = next((child for child in line if _tag(child) == "Coords"), None)
    texts = [child for equiv in line if _tag(equiv) == "TextEquiv" for child in equiv if _tag(child) == "Unicode"]
    points = re.findall(r"(-?\d+)(?:\.\d+)?,(-?\d+)(?:\.\d+)?", coords.get("points", "") if coords is not None else "")
    if not points or not texts:
        return None
    return bounds((int(x), int(y)) for x, y in points), texts[0].text or ""


def _alto_line(line: ElementTree.Element) -> tuple[Box, str] | None:
    """ALTO: left, top, width and height in attributes, words as String elements with spaces between."""
    try:
        left, top, width, height = (int(float(line.get(name, ""))) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
    except ValueError:
        return None
    words = [child.get("CONTENT", "") for child in line if _tag(child) == "String"]
    return (left, top, left + width, top + height), " ".join(words)


def _tag(element: ElementTree.Element) -> str:
    """The element's name without its namespace, which differs between versions of the formats."""
    return str(element.tag).rpartition("}")[2]
