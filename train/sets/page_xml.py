"""Lines of PAGE-XML and ALTO files: the boxes and texts of their TextLine elements, cut out of the page images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from trocr_jax.pages.outlines import NoOutlineError, PageFormatError, outline, tag, text_lines, xml_root

from .records import Crops, SourceError, inside, read_text

Box = tuple[int, int, int, int]


def lines(files: list[Path]) -> Crops:
    """The lines of all files that have a place and a text; images are looked for beside the XML. Says how many lack one.

    Raises:
        SourceError: a file is neither PAGE nor ALTO, does not measure in pixels, or its image is missing.
    """
    rows = [row for file in files for row in _page(file)]
    kept = [(image, box, text) for image, box, text in rows if box and text.strip()]
    if len(kept) < len(rows):
        blank = sum(not text.strip() for *_, text in rows)
        left_out = f"{blank} without a text and {len(rows) - len(kept) - blank} without a place"
        print(f"{files[0].parent}: {left_out} of {len(rows)} lines left out", file=sys.stderr)
    return Crops(kept)


def _page(file: Path) -> list[tuple[Path, Box | None, str]]:
    try:
        return _rows(file, xml_root(read_text(file)))
    except PageFormatError as error:
        raise SourceError(f"{file}: {error}") from None


def _rows(file: Path, root: ElementTree.Element) -> list[tuple[Path, Box | None, str]]:
    named = _image_name(root)
    image = inside(file.parent.resolve(), Path(named.replace("\\", "/")).name) if named else file
    if not image.is_file() or image == file:
        raise SourceError(f"{file}: its page image {named!a} is not beside it")
    text_of: Callable[[ElementTree.Element], str] = _alto_text if any(tag(e) == "String" for e in root.iter()) else _page_text
    return [(image, _box(line), text_of(line)) for line in text_lines(root)]


def _image_name(root: ElementTree.Element) -> str:
    for element in root.iter():
        if tag(element) == "Page" and element.get("imageFilename"):
            return str(element.get("imageFilename"))
        if tag(element) == "fileName" and element.text:
            return element.text.strip()
    return ""


def _box(line: ElementTree.Element) -> Box | None:
    """The box around the line's outline, in whole pixels; None where the file gives none."""
    try:
        points = np.reshape(outline(line), (-1, 2)).astype(int)
    except NoOutlineError:
        return None
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def _page_text(line: ElementTree.Element) -> str:
    """PAGE: the line's own text, or that of the words inside it."""
    return _equivalent(line) or " ".join(filter(None, (_equivalent(word) for word in line if tag(word) == "Word")))


def _equivalent(element: ElementTree.Element) -> str:
    """The element's own reading (TextEquiv) with the lowest index, which PAGE calls the main one; empty where it has none."""
    readings = sorted((child for child in element if tag(child) == "TextEquiv"), key=_index)
    texts = [child.text or "" for reading in readings for child in reading if tag(child) == "Unicode"]
    return texts[0] if texts else ""


def _index(reading: ElementTree.Element) -> int:
    try:
        return int(reading.get("index", 0))
    except ValueError:
        raise PageFormatError(f"the index of a TextEquiv is {reading.get('index', '')[:20]!a}, not a number") from None


def _alto_text(line: ElementTree.Element) -> str:
    """ALTO: words as String elements, with spaces between, and as HYP the hyphen that ends the last."""
    text = " ".join(child.get("CONTENT", "") for child in line if tag(child) == "String")
    return text + "".join(child.get("CONTENT", "") for child in line if tag(child) == "HYP")
