"""Where words stand in a line: between gaps of the ink, held to lines drawn with words at known places."""

import itertools
import json
import re

import numpy as np
import pages
import pytest
from PIL import Image, ImageDraw, ImageFont

from trocr_jax import Reader
from trocr_jax.line import Line, Word
from trocr_jax.page import read_page
from trocr_jax.pages import words
from trocr_jax.pages.formats import PageLine, render
from trocr_jax.pages.words import InkColumns, by_characters, ink_columns, place_words

PRINTED = "The quick brown fox", "jumps, it seems"
SENTENCES = (
    "the quick brown fox jumps over a lazy dog", "1,350 parcels (or more) on Friday", "I. i, ii, iii. WWW MMM", "village",
    "a b c d e f g h i j k l m", "Illinois will fill illicit mills",
)  # fmt: skip


def of_text(text: str) -> Line:
    return Line(text=text, words=tuple(Word(m[0], m.start(), m.end(), 1.0) for m in re.finditer(r"\S+", text)))


def drawn(text: str, font_number: int, size: int = 32) -> tuple[Image.Image, np.ndarray]:
    """A line's picture, and the first and last column [n,2] of each of its words, in shares of the width."""
    font = ImageFont.truetype(pages.fonts()[font_number], size)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (int(right - left) + 40, int(bottom - top) + 16), (236, 232, 224))
    ImageDraw.Draw(image).text((20 - left, 8 - top), text, font=font, fill=(40, 30, 60))
    places = []
    for match in re.finditer(r"\S+", text):
        word = Image.new("L", image.size)
        ImageDraw.Draw(word).text((20 - left + font.getlength(text[: match.start()]), 8 - top), match[0], font=font, fill=255)
        first, _, last, _ = word.getbbox() or (0, 0, 0, 0)
        places.append((first, last))
    return image, np.array(places) / image.width


def overlap(places, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of intervals."""
    found = np.array(places)
    common = np.minimum(found[:, 1], truth[:, 1]) - np.maximum(found[:, 0], truth[:, 0])
    return np.clip(common, 0, None) / (np.maximum(found[:, 1], truth[:, 1]) - np.minimum(found[:, 0], truth[:, 0]))


@pytest.mark.parametrize("font", range(len(pages.fonts())))
@pytest.mark.parametrize("text", SENTENCES)
def test_words_are_found_where_they_were_drawn(text, font):
    image, truth = drawn(text, font)
    assert overlap(place_words(of_text(text), ink_columns(image)), truth).min() > 0.7


def worn(image: Image.Image, damage: str) -> Image.Image:
    if damage == "ruled":
        ImageDraw.Draw(image).line((0, image.height - 12, image.width, image.height - 12), fill=(150, 150, 160), width=2)
    if damage == "noisy":
        noise = np.random.default_rng(0).normal(0, 40, (image.height, image.width, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if damage == "light on dark":
        image = Image.fromarray(255 - np.asarray(image))
    return image.resize((4 * image.width, 4 * image.height)) if damage == "large" else image


@pytest.mark.parametrize("damage", ["ruled", "noisy", "light on dark", "large"])
def test_damage_moves_no_word(damage):
    text = SENTENCES[0]
    image, truth = drawn(text, 0)
    assert overlap(place_words(of_text(text), ink_columns(worn(image, damage))), truth).min() > 0.8


@pytest.mark.parametrize("marks", ["left", "right", "left and right"])
@pytest.mark.parametrize("mark", [(0, 0, 3, 50), (2, 20, 6, 24)], ids=["the side of a frame", "a speck"])
def test_marks_at_the_ends_of_a_line_are_no_words(mark, marks):
    text, (image, truth) = SENTENCES[0], drawn(SENTENCES[0], 0)
    wider = Image.new("RGB", (image.width + 160, image.height), image.getpixel((0, 0)))
    wider.paste(image, (80, 0))
    left, top, right, bottom = mark
    for side in marks.split(" and "):
        first, last = (left, right) if side == "left" else (wider.width - 1 - right, wider.width - 1 - left)
        ImageDraw.Draw(wider).rectangle((first, top, last, bottom), fill="black")
    assert overlap(place_words(of_text(text), ink_columns(wider)), (truth * image.width + 80) / wider.width).min() > 0.8


@pytest.mark.parametrize("text", ["1      the quick brown", "the quick brown       1", "I       saw       l"])
def test_a_sign_that_stands_apart_is_a_word(text):
    image, truth = drawn(text, 0)
    assert overlap(place_words(of_text(re.sub(" +", " ", text)), ink_columns(image)), truth).min() > 0.7


def test_a_text_with_mistakes_still_has_its_words_in_their_places():
    image, truth = drawn("the quick brown fox jumps over a lazy dog", 1)
    assert overlap(place_words(of_text("tbe quiok brovn fx jumpss ovor a lqzy dog."), ink_columns(image)), truth).min() > 0.8


def test_words_run_from_left_to_right_without_overlap():
    image, _ = drawn(SENTENCES[0], 0)
    for text in ("a", "a b", "of a text that the picture does not show, and of more words", SENTENCES[1]):
        flat = [edge for place in place_words(of_text(text), ink_columns(image)) for edge in place]
        assert flat == sorted(flat) and 0 <= flat[0] and flat[-1] <= 1


def test_more_words_than_gaps_stand_by_their_characters_within_the_ink():
    ink = InkColumns(((20, 40), (45, 80)), width=100, height=30)
    assert place_words(of_text("xx xx xx"), ink) == pytest.approx(np.array([[20, 36], [42, 58], [64, 80]]) / 100, abs=0.03)


def test_no_words_have_no_places_and_no_ink_shares_the_picture_out():
    blank = ink_columns(Image.new("RGB", (60, 20), "white"))
    assert blank == InkColumns((), 60, 20)
    assert place_words(Line(), blank) == ()
    assert place_words(of_text("xx xx"), blank) == by_characters(of_text("xx xx")) == ((0.0, 4 / 9), (5 / 9, 1.0))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3000, 2)])
def test_pictures_of_any_size_have_columns(size):
    ink = ink_columns(Image.new("RGB", size, "black"))
    assert ink.runs == () and place_words(of_text("a b"), ink)


@pytest.mark.parametrize("seed", range(30))
def test_of_all_choices_of_gaps_the_best_is_taken(seed):
    """Held to trying all of them."""
    rng = np.random.default_rng(seed)
    gaps = int(rng.integers(1, 9))
    worth = rng.normal(size=(int(rng.integers(0, gaps + 1)), gaps))

    def of(chosen) -> float:
        return float(sum(worth[row, gap] for row, gap in enumerate(chosen)))

    chosen = words._best(worth)
    assert list(chosen) == sorted(set(chosen)) and len(chosen) == len(worth)
    assert of(chosen) == pytest.approx(max(map(of, itertools.combinations(range(gaps), len(worth)))))


@pytest.mark.parametrize("wide", [1, 2, 4])
def test_columns_far_apart_move_no_word(wide):
    """As a row of a table, or a page's head with a number at its other end."""
    text = "a few words in front".replace(" in ", " " * 8 * wide + "in ") + " " * 4 * wide + "12"
    image, truth = drawn(text, 0)
    assert overlap(place_words(of_text(re.sub(" +", " ", text)), ink_columns(image)), truth).min() > 0.8


@pytest.fixture(scope="module")
def page():
    found = read_page(Reader.from_pretrained(), pages.printed(*PRINTED))
    assert [line.line.text for line in found.lines] == list(PRINTED)
    return found


def starts_of(text: str) -> list[float]:
    font = ImageFont.truetype(pages.fonts()[0], 32)
    return [60 + font.getlength(text[: match.start()]) for match in re.finditer(r"\S+", text)]


def test_a_page_that_was_read_has_the_places_of_its_words(page):
    lines = json.loads(render(page, "json", "x.png"))["lines"]
    for line, text in zip(lines, PRINTED, strict=True):
        assert [word["box"][0] for word in line["words"]] == pytest.approx(starts_of(text), abs=4)


@pytest.mark.parametrize("left", [0, -400])
def test_an_outline_that_reaches_over_the_border_moves_no_word(left):
    image = pages.printed(*PRINTED)
    polygon = np.array([[left, 30], [500, 30], [500, 110], [left, 110]], float)
    (found,) = read_page(Reader.from_pretrained(), image, [polygon]).lines
    assert [box[0][0] for box in words_of(found)] == pytest.approx(starts_of(found.line.text), abs=4)


@pytest.mark.parametrize("form", ["hocr", "alto", "page"])
def test_documents_have_the_same_boxes(page, form):
    texts = [outline for found in page.lines for outline in words_of(found)]
    document = render(page, form, "x.png")
    for (left, top), (right, _), (_, bottom), _ in texts:
        expected = {
            "hocr": f"bbox {left} {top} {right} {bottom}",
            "alto": f'HPOS="{left}" VPOS="{top}" WIDTH="{right - left}" HEIGHT="{bottom - top}"',
            "page": f"{left},{top} {right},{top}",
        }[form]
        assert expected in document


def words_of(found: PageLine):
    from trocr_jax.pages import formats

    return [outline for _, _, outline in formats.words(found)]
