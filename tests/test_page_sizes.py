"""Pages with print of several sizes: the small one is no dirt beside the large one, points are none the less no letters."""

import numpy as np
import pages
import pytest
from PIL import Image, ImageDraw, ImageFont

from trocr_jax.pages.line_detection import find_lines


def font(stem: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(next(path for path in pages.fonts() if path.stem == stem)), size)


def column(pen: ImageDraw.ImageDraw, left: int, right: int, bottom: int, font: ImageFont.FreeTypeFont) -> list[np.ndarray]:
    """Lines of as many words as there is room for, and where they are."""
    rng, quads = np.random.default_rng(0), []
    for top in range(20, bottom - int(font.size), round(1.45 * font.size)):
        text = pages._sentence(font, right - left, rng)
        a, b, c, d = pages._write(pen, left, top, text, font)
        quads.append(np.array([[a, b], [c, b], [c, d], [a, d]], float))
    return quads


@pytest.mark.parametrize("size", [11, 12, 13])
@pytest.mark.parametrize("stem", ["DejaVuSans", "DejaVuSerif"])
def test_small_print_beside_large_print_stays_whole(stem, size):
    """Its small letters are six pixels high and seven."""
    image = Image.new("RGB", (800, 500), "white")
    pen = ImageDraw.Draw(image)
    quads = column(pen, 20, 450, 500, font("DejaVuSans", 30)) + column(pen, 500, 780, 300, font(stem, size))
    found = find_lines(image)
    assert pages.found_in_order(quads, found) == len(quads) == len(found)


def test_leaders_are_neither_lines_nor_make_a_picture_of_their_page():
    """Of points as high as small letters of other print are."""
    image, letters = Image.new("RGB", (900, 400), "white"), font("DejaVuSansMono", 24)
    pen = ImageDraw.Draw(image)
    for row, text in enumerate(["Of boats", "Of the river", "Of parcels", "Of the village", "Of foxes"]):
        pen.text((40, 40 + 60 * row), f"{text} {(48 - len(text)) * '.'} {17 * row + 12}", font=letters, fill="black")
    found = find_lines(image)
    assert len(found) == 10 and all(np.ptp(line[:, 0]) < 260 for line in found)
