"""Pages that are photographed or scanned with what lies around the sheet: there are no lines on it, and none at its edges."""

import numpy as np
import pages
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from trocr_jax.pages.binarization import find_ink
from trocr_jax.pages.line_detection import find_lines

Drawn = tuple[Image.Image, list[np.ndarray]]


def text(pen: ImageDraw.ImageDraw, left: int, top: int, lines: int, size: int, fill: str = "black") -> list[np.ndarray]:
    font, words, quads = ImageFont.truetype(str(pages.fonts()[0]), size), " ".join(pages.WORDS), []
    for row in range(lines):
        place, line = (left, top + row * 2 * size), words[row * 11 : row * 11 + 22].strip()
        a, b, c, d = pen.textbbox(place, line, font=font)
        pen.text(place, line, font=font, fill=fill)
        quads.append(np.array([[a, b], [c, b], [c, d], [a, d]], float))
    return quads


def sheet() -> Drawn:
    image = Image.new("RGB", (500, 600), (240, 240, 235))
    return image, text(ImageDraw.Draw(image), 60, 60, 10, 22)


def tilted(image: Image.Image, quads: list[np.ndarray], degrees: float) -> Drawn:
    """As a scanner gives it: its corners are cut off, and black where there was nothing."""
    turned = image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(8, 8, 8))
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn, middle = np.array([[cosine, -sine], [sine, cosine]]), np.array(image.size) / 2
    return turned, [(quad - middle) @ turn + middle for quad in quads]


def on_wood(pen: bool = False) -> Drawn:
    """Grain is ink that differs little from its paper; a pen is one piece of it that differs much."""
    (image, quads), rng = sheet(), np.random.default_rng(0)
    image, quads = tilted(image, quads, 1.5)
    grain = ndimage.zoom(rng.normal(size=(130, 5)), (6, 160), order=1)[:780, :700, None]
    desk = Image.fromarray(np.clip((120, 85, 50) + 14 * grain + rng.normal(0, 3, (780, 700, 1)), 0, 255).astype(np.uint8))
    if pen:
        ImageDraw.Draw(desk).line((30, 700, 80, 100), fill=(20, 20, 120), width=12)
    desk.paste(image.crop((15, 15, 485, 585)), (120, 90))
    return desk, [quad + [105, 75] for quad in quads]


def on_a_lid() -> Drawn:
    image, quads = sheet()
    lid = Image.new("RGB", (700, 800), (180, 180, 178))
    lid.paste(image, (100, 100))
    return tilted(lid, [quad + 100 for quad in quads], -3)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: on_wood(), lambda: on_wood(pen=True), on_a_lid, lambda: tilted(*sheet(), 3), lambda: tilted(*sheet(), -1.5),
    ],
    ids=["desk", "desk with a pen", "lid", "corners", "thin corners"],
)  # fmt: skip
def test_beside_the_sheet_and_at_its_edges_are_no_lines(draw):
    image, quads = draw()
    found = find_lines(image)
    assert pages.found_in_order(quads, found) == len(quads) == len(found)


def test_a_blank_sheet_with_black_corners_has_no_lines():
    blank = Image.new("RGB", (500, 600), (240, 240, 235))
    assert find_lines(tilted(blank, [], 3)[0]) == []


def bars() -> Drawn:
    """A title on a dark bar at the border, text close beside another bar that is empty, and as much on the page."""
    image = Image.new("RGB", (700, 600), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, 700, 29), fill=(40, 40, 60))
    pen.rectangle((0, 30, 80, 600), fill=(60, 60, 160))
    return image, [*text(pen, 300, 6, 1, 15, "white"), *text(pen, 89, 60, 10, 22)]


def test_writing_on_another_paper_at_the_border_and_close_to_one_stays():
    image, quads = bars()
    found = find_lines(image)
    assert pages.found_in_order(quads, found) == len(quads) == len(found)
    assert all(line[0, 0] < quad[0, 0] + 3 for quad, line in zip(quads, found, strict=True)), "with their first letters"


@pytest.mark.parametrize("size", [(60, 30), (700, 900)])
def test_a_number_is_enough_where_there_is_but_one_paper(size):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((20, 5), "17", font=ImageFont.truetype(str(pages.fonts()[0]), 16), fill="black")
    marks = find_ink(image)
    assert marks is not None and marks[5:25, 20:40].any()
