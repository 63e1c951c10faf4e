"""Lines of PAGE-XML and ALTO files: the boxes and texts of their TextLine elements, cut out of the page images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from trocr_jax.pages.outlines import NoOutlineError, PageFormatError, outline, tag, text_lines, xml_root

from .records import Crops, SourceError, inside, read_text

Box = tuple[int, int, int, int]


def lines(files: list[Path]) -> Crops:
    """The lines of all files that have a place and a text; images are looked for beside the XML.

    Raises:
        SourceError: a file is neither PAGE nor ALTO, does not measure in pixels, or its image is missing.
    """
    return Crops([row for file in files for row in _page(file)])


def _page(file: Path) -> list[tuple[Path, Box, str]]:
    try:
        return _rows(file, xml_root(read_text(file)))
    except PageFormatError as error:
        raise SourceError(f"{file}: {error}") from None


def _rows(file: Path, root: ElementTree.Element) -> list[tuple[Path, Box, str]]:
    named = _image_name(root)
    image = inside(file.parent.resolve(), Path(named.replace("\\", "/")).name) if named else file
    if not image.is_file() or image == file:
        raise SourceError(f"{file}: its page image {named!a} is not beside it")
    text_of: Callable[[ElementTree.Element], str] = _alto_text if any(tag(e) == "String" for e in root.iter()) else _page_text
    found = [(image, _box(line), text_of(line)) for line in text_lines(root)]
    return [(image, box, text) for image, box, text in found if box and text.strip()]


def _image_name(root: ElementTree.Element) -> str:
    for element in root.iter():
        if tag(element) == "Page" and element.get("imageFilename"):
            return str(element.get("imageFilename"))
        if tag(element) == "fileName" and element.text:
            return element.text.strip()
    return ""


def _box(line: ElementTree.Element) -> Box | None:
    """Around the line's outline, in whole pixels; None where the file does not tell it."""
    try:
        points = np.reshape(outline(line), (-1, 2)).astype(int)
    except NoOutlineError:
        return None
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def _page_text(line: ElementTree.Element) -> str:
    """PAGE: the line's own TextEquiv (words inside it have theirs)."""
    texts = [child.text for equiv in line if tag(equiv) == "TextEquiv" for child in equiv if tag(child) == "Unicode"]
    return (texts[0] or "") if texts else ""


def _alto_text(line: ElementTree.Element) -> str:
    """ALTO: words as String elements, with spaces between."""
    return " ".join(child.get("CONTENT", "") for child in line if tag(child) == "String")
