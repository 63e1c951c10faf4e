"""Pages as scanners and cameras give them: dark borders and desks, pale and coloured print, bands, headings, photographs."""

import numpy as np
import pages
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from trocr_jax.pages import line_detection
from trocr_jax.pages.binarization import find_ink
from trocr_jax.pages.line_detection import find_lines
from trocr_jax.pages.rules import without_fields

Drawn = tuple[Image.Image, list[np.ndarray]]


def page(**changes) -> Drawn:
    return pages.draw_page(pages.Layout(**{"noise": 4.0, "size": 24, "leading": 1.4} | changes), 3)


def in_colours(ink: tuple[int, int, int], paper: tuple[int, int, int]) -> Drawn:
    image, quads = page(noise=0.0)
    share = np.asarray(image.convert("L"), float)[..., None] / np.asarray(image).max()
    return Image.fromarray((np.array(ink) * (1 - share) + np.array(paper) * share).astype(np.uint8)), quads


def with_dark_border() -> Drawn:
    image, quads = page(columns=2)
    ImageDraw.Draw(image).rectangle((-90, -60, image.width + 99, image.height + 99), outline=(12, 12, 12), width=140)
    return image, quads


def on_a_desk() -> Drawn:
    """Darker than the paper, and more of the picture."""
    image, quads = page(tilt=2.0)
    desk = np.random.default_rng(0).normal((90, 60, 40), 6, (image.height + 900, image.width + 900, 3))
    photo = Image.fromarray(np.clip(desk, 0, 255).astype(np.uint8))
    photo.paste(image, (450, 450))
    return photo, [quad + 450 for quad in quads]


def with_a_light_band() -> Drawn:
    """Light on dark, as the head of a table."""
    image, quads = page()
    box = 60, int(quads[3][0][1]) - 8, image.width - 60, int(quads[6][3][1]) + 8
    image.paste(Image.fromarray(255 - np.asarray(image.crop(box))), box[:2])
    return image, quads


def with_a_heading(size: int) -> Drawn:
    image, quads = page(size=20)
    taller = Image.new("RGB", (image.width, image.height + 240), image.getpixel((2, 2)))
    taller.paste(image, (0, 240))
    pen, font = ImageDraw.Draw(taller), ImageFont.truetype(str(pages.fonts()[0]), size)
    left, top, right, bottom = pen.textbbox((100, 90), "A big heading", font=font)
    pen.text((100, 90), "A big heading", font=font, fill=(30, 30, 30))
    heading = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    return taller, [heading, *(quad + [0, 240] for quad in quads)]


@pytest.mark.parametrize(
    ("draw", "surplus"),
    [
        (lambda: in_colours((215, 215, 215), (250, 250, 250)), 0),
        (lambda: in_colours((255, 220, 0), (255, 255, 255)), 0),
        (lambda: in_colours((255, 120, 120), (150, 160, 160)), 0),  # as light as the paper
        (lambda: in_colours((120, 200, 255), (40, 40, 90)), 0),
        (with_dark_border, 4),  # its corners
        (on_a_desk, 5),
        (with_a_light_band, 1),
        (lambda: with_a_heading(80), 0),
        (lambda: with_a_heading(110), 1),
    ],
    ids=["pale", "yellow", "by colour alone", "light on dark", "border", "desk", "band", "heading", "large heading"],
)  # fmt: skip
def test_lines_are_found_in_order_on(draw, surplus):
    image, quads = draw()
    found = find_lines(image)
    assert pages.found_in_order(quads, found) >= 0.97 * len(quads)
    assert len(found) <= len(quads) + surplus


def test_a_small_print_under_a_large_one_keeps_its_place():
    """Of five lines with little ink between two headings with much."""
    image, quads = Image.new("RGB", (900, 800), "white"), []
    pen, large, small = ImageDraw.Draw(image), *(ImageFont.truetype(str(pages.fonts()[0]), size) for size in (120, 22))
    places = [(40, "Heading one"), *((220 + 40 * row, "five lines of small print") for row in range(5)), (480, "Heading two")]
    for top, text in places:
        font = large if "Heading" in text else small
        pen.text((40, top), text, font=font, fill="black", anchor="lt")
        box = pen.textbbox((40, top), text, font=font, anchor="lt")
        quads.append(np.array([[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]], float))
    assert pages.found_in_order(quads, find_lines(image)) == len(quads)


def test_wide_spaces_of_two_lines_above_each_other_are_no_gutter():
    """As a typewriter's can be; columns have more lines, or more paper between them."""
    image, font = Image.new("RGB", (900, 200), "white"), ImageFont.truetype(str(pages.fonts()[0]), 28)
    for top, words in ((50, ("kerrie", "enkel", "zout")), (100, ("kookte", "dezen", "uien"))):
        for left, word in zip((40, 155, 270), words, strict=True):
            ImageDraw.Draw(image).text((left, top), word, font=font, fill="black")
    assert len(find_lines(image)) == 2


def test_shading_and_noise_are_no_ink():
    light = np.linspace(250, 90, 1200)[None].repeat(900, 0) + np.random.default_rng(0).normal(0, 12, (900, 1200))
    assert find_ink(Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).convert("RGB")) is None


def test_a_photograph_between_lines_does_not_cost_them():
    image, quads = page()
    rng = np.random.default_rng(1)
    layers = [ndimage.zoom(rng.normal(size=(n, n)), 400 / n, order=1)[:400, :400] * 80 / np.sqrt(n) for n in (4, 10, 25, 50, 200)]
    picture = np.clip(120 + np.sum(layers, axis=0), 0, 255).astype(np.uint8)
    taller = Image.new("RGB", (image.width, image.height + 460), image.getpixel((2, 2)))
    taller.paste(image, (0, 460))
    taller.paste(Image.fromarray(picture).convert("RGB"), (300, 40))
    assert pages.found_in_order([quad + [0, 460] for quad in quads], find_lines(taller)) >= 0.97 * len(quads)


def test_what_has_too_many_lines_is_a_picture(monkeypatch):
    """The image of every line is kept until all are read: of tens of thousands they would fill memory."""
    image, quads = page()
    monkeypatch.setattr(line_detection, "MOST_LINES", len(quads))
    assert len(find_lines(image)) == len(quads)
    monkeypatch.setattr(line_detection, "MOST_LINES", len(quads) - 1)
    assert find_lines(image) == []


def written(texts: list[str], stem: str, size: int) -> Drawn:
    """One text under the other, and where the ink of each is."""
    image, quads = Image.new("RGB", (900, 60 + 2 * size * len(texts)), "white"), []
    font = ImageFont.truetype(str(next(path for path in pages.fonts() if path.stem == stem)), size)
    for row, text in enumerate(texts):
        before = np.asarray(image)
        ImageDraw.Draw(image).text((40, 30 + 2 * size * row), text, font=font, fill="black")
        rows, columns = np.nonzero((np.asarray(image) < before - 99.0).any(2))
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        quads.append(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float))
    return image, quads


@pytest.mark.parametrize("stem", ["DejaVuSans", "DejaVuSansMono"])
@pytest.mark.parametrize("size", [16, 20, 26, 32])
def test_marks_at_the_end_of_a_line_are_of_it(stem, size):
    """Points of few pixels, commas nearly as high as small letters, quotation marks, and what a typewriter puts far off."""
    image, quads = written(["Dear Mr. Smith,", "Sum total 12:", "He said no.", "return x;", "Oh dear!", "name = 'x'"], stem, size)
    found = find_lines(image)
    assert len(found) == len(quads)
    for quad, line in zip(quads, found, strict=True):
        assert line[:, 0].min() < quad[:, 0].min() + 1 and line[:, 0].max() > quad[:, 0].max() - 1


@pytest.mark.parametrize("size", [60, 72, 110])
def test_gaps_inside_bold_letters_are_no_lines(size):
    image, _ = page(size=24, noise=0.0)
    taller = Image.new("RGB", (image.width, image.height + 300), image.getpixel((2, 2)))
    taller.paste(image, (0, 300))
    font = ImageFont.truetype(str(next(path for path in pages.fonts() if path.stem == "DejaVuSerif-Bold")), size)
    ImageDraw.Draw(taller).text((100, 120), "Harbour News", font=font, fill=(10, 10, 10))
    assert sum(line[:, 1].mean() < 380 for line in find_lines(taller)) == 1


def with_head_and_foot(far: int) -> Drawn:
    """Two columns; a line of two words so many pixels above them, which the gutter parts, and a number below."""
    image, quads = page(columns=2, noise=0.0)
    taller = Image.new("RGB", (image.width, image.height + 200), image.getpixel((2, 2)))
    taller.paste(image, (0, 100))
    pen, font = ImageDraw.Draw(taller), ImageFont.truetype(str(pages.fonts()[0]), 24)
    for left, top, text in ((100, 190 - far, "Harbour"), (1050, 190 - far, "May"), (900, image.height + 90, "17")):
        pen.text((left, top), text, font=font, fill=(20, 20, 20))
    return taller, [quad + [0, 100] for quad in quads]


def test_a_running_head_comes_before_the_columns_and_a_foot_after_them():
    image, quads = with_head_and_foot(far=90)
    found = find_lines(image)
    assert [place for place, line in enumerate(found) if line[:, 1].mean() < 180] == [0]
    assert found[-1][:, 1].mean() > image.height - 130
    assert pages.found_in_order(quads, found[1:-1]) == len(quads) == len(found) - 2


def test_the_first_line_of_columns_is_no_running_head():
    image, _ = with_head_and_foot(far=36)
    assert sum(line[:, 1].mean() < 200 for line in find_lines(image)) == 2


def test_the_sides_of_boxes_to_write_in_or_to_tick_are_no_letters():
    image, font = Image.new("RGB", (1240, 900), "white"), ImageFont.truetype(str(pages.fonts()[0]), 24)
    pen, left = ImageDraw.Draw(image), []
    for row, text in enumerate(["Robinson", "Margaret", "Orchard Lane", "Bristol", "Phone"]):
        pen.rectangle((360, 60 + 100 * row, 1100, 120 + 100 * row), outline="black", width=2)
        pen.text((390, 76 + 100 * row), text, font=font, fill="black")
        left.append(390)
    for row, text in enumerate(["I agree to the terms", "Send me the newsletter"]):
        pen.rectangle((360, 600 + 60 * row, 390, 630 + 60 * row), outline="black", width=2)
        pen.text((415, 600 + 60 * row), text, font=font, fill="black")
        left.append(415)
    found = find_lines(image)
    assert len(found) == len(left)
    assert all(abs(line[0, 0] - at) < 12 for line, at in zip(found, left, strict=True)), "without the boxes"


def test_the_paper_inside_of_large_letters_is_no_box_to_write_in():
    image, font = Image.new("RGB", (1240, 300), "white"), ImageFont.truetype(str(pages.fonts()[0]), 90)
    ImageDraw.Draw(image).text((60, 80), "DOOR PORD BQ08", font=font, fill="black")
    marks = find_ink(image)
    assert marks is not None and (without_fields(marks) == marks).all()
