"""Ink: blank images and paragraphs are told from single lines, whatever the paper, light, noise and tilt."""

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from trocr_jax.pixels.ink import is_blank, looks_like_several_lines

LINES = [
    "The quick brown fox jumps over",
    "gypsy jjj qqq (f) {y} [p] _g_",
    "iiii jjj äöü ÄÖÜ é ñ ; : % å",
    "EEE ZZZ FFF BBB SSS HHH TTT",
    "TOTAL EUR 1,234.50",
    "minimum ---- no. 2024-11-22",
    "a = b + c / 7",
    "Ag",
    "7",
]


def page(texts: list[str], size: float = 40, ink=(20, 20, 30), paper=(245, 240, 230), leading: float = 1.25) -> Image.Image:
    font = ImageFont.load_default(size)
    width = int(max(font.getlength(text) for text in texts) + size)
    image = Image.new("RGB", (width, int(size * (1.5 + leading * (len(texts) - 1)))), paper)
    for row, text in enumerate(texts):
        ImageDraw.Draw(image).text((size / 2, size * (0.1 + leading * row)), text, fill=ink, font=font)
    return image


def noisy(image: Image.Image, sigma: float, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, sigma, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def shaded(image: Image.Image, down: float, across: float) -> Image.Image:
    light = np.linspace(-down, down, image.height)[:, None, None] + np.linspace(-across, across, image.width)[:, None]
    return Image.fromarray(np.clip(np.asarray(image) + light, 0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


# --- blank ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 30, 30), (245, 240, 230)])
@pytest.mark.parametrize("size", [(384, 48), (1, 1), (3, 200), (30000, 20), (20, 3000), (1200, 900)])
def test_solid_colours_are_blank(size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    image = Image.new("RGB", size, colour)
    assert is_blank(image)
    assert not looks_like_several_lines(image)


@pytest.mark.parametrize("sigma", [1, 5, 15, 40, 90])
@pytest.mark.parametrize("size", [(384, 48), (60, 20), (1200, 90), (700, 800)])
def test_noise_is_blank(size: tuple[int, int], sigma: float) -> None:
    for seed, level in product(range(5), (255, 128, 0)):
        image = noisy(Image.new("RGB", size, (level,) * 3), sigma, seed)
        assert is_blank(image)
        assert not looks_like_several_lines(image)


def test_uniform_and_salt_and_pepper_noise_is_blank() -> None:
    rng = np.random.default_rng(0)
    assert is_blank(Image.fromarray(rng.integers(0, 256, (48, 384, 3)).astype(np.uint8)))
    specks = np.where(rng.random((48, 384, 1)) < 0.03, 0, 255).astype(np.uint8).repeat(3, 2)
    assert is_blank(Image.fromarray(specks))


def test_shading_rules_and_edges_are_blank() -> None:
    image = shaded(Image.new("RGB", (400, 50), (128,) * 3), 60, 60)
    assert is_blank(image) and is_blank(as_jpeg(image, 70))
    for box in ((0, 40, 400, 42), (30, 0, 33, 50), (0, 0, 400, 5)):
        ruled = Image.new("RGB", (400, 50), "white")
        ruled.paste("black", box)
        assert is_blank(ruled)


@pytest.mark.parametrize("text", [*LINES, ".", "-", "l", ",", "x"])
@pytest.mark.parametrize("size", [14, 40, 120])
@pytest.mark.parametrize("ink, paper", [(0, 255), (255, 0), (90, 160)])
def test_writing_is_not_blank(text: str, size: int, ink: int, paper: int) -> None:
    image = page([text], size, (ink,) * 3, (paper,) * 3)
    assert not is_blank(image)
    assert not is_blank(shaded(image, 20, 20))


@pytest.mark.parametrize("text", LINES)
@pytest.mark.parametrize("size", [14, 40, 120])
def test_faint_writing_is_not_blank(text: str, size: int) -> None:
    assert not is_blank(page([text], size, (215,) * 3, (235,) * 3))
    assert not is_blank(page([text], size, (60,) * 3, (40,) * 3))


@pytest.mark.parametrize("text", LINES)
def test_noisy_blurred_and_coloured_writing_is_not_blank(text: str) -> None:
    for seed in range(5):
        assert not is_blank(noisy(page([text]), 60, seed))
    assert not is_blank(page([text]).filter(ImageFilter.GaussianBlur(3)))
    assert not is_blank(page([text], ink=(255, 0, 0), paper=(0, 130, 0)))  # the same grey


def test_one_word_on_a_large_empty_sheet_is_not_blank() -> None:
    sheet = Image.new("RGB", (2400, 400), "white")
    sheet.paste(page(["ok"], 40, paper=(255, 255, 255)), (1700, 300))
    assert not is_blank(sheet)


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", LINES)
@pytest.mark.parametrize("size", [14, 30, 72])
def test_a_single_line_is_one_line(text: str, size: int) -> None:
    for dark, angle in product((True, False), (-5, 0, 1.5)):
        ink, paper = ((20, 20, 30), (245, 240, 230)) if dark else ((240,) * 3, (30, 30, 40))
        image = page([text], size, ink, paper).rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
        for variant in (image, noisy(image, 12), shaded(image, 30, 30), image.filter(ImageFilter.GaussianBlur(1))):
            assert not looks_like_several_lines(variant)


@pytest.mark.parametrize("text", LINES)
def test_rules_underlines_and_frames_are_no_second_line(text: str) -> None:
    image = page([text])
    draw = ImageDraw.Draw(image)
    for y, width in ((2, 2), (image.height - 3, 3), (46, 2)):
        draw.line([(0, y), (image.width, y)], fill=(20, 20, 30), width=width)
        assert not looks_like_several_lines(image)
        assert not looks_like_several_lines(image.rotate(2, expand=True, fillcolor=(245, 240, 230)))
    draw.rectangle([0, 0, image.width - 1, image.height - 1], outline=(20, 20, 30), width=3)
    assert not looks_like_several_lines(image)
    struck = page(["struck out words"])
    ImageDraw.Draw(struck).line([(0, 30), (struck.width, 30)], fill=(20, 20, 30), width=2)
    assert not looks_like_several_lines(struck)


@pytest.mark.parametrize("count", [2, 3, 8, 20])
@pytest.mark.parametrize("leading", [1.15, 1.5, 2.5])
def test_paragraphs_are_several_lines(count: int, leading: float) -> None:
    texts = [LINES[row % 2] if row % 3 else "Lorem ipsum dolor sit amet, TOTAL 12.50" for row in range(count)]
    for dark, angle in product((True, False), (-4, 0, 1.5)):
        ink, paper = ((20, 20, 30), (245, 240, 230)) if dark else ((240,) * 3, (30, 30, 40))
        image = page(texts, 32, ink, paper, leading)
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
        for variant in (image, noisy(image, 12), shaded(image, 20, 20), as_jpeg(image, 60)):
            assert looks_like_several_lines(variant), (count, dark, angle)


@pytest.mark.parametrize("size", [26, 60, 110])
def test_a_scanned_page_is_several_lines_and_a_line_amid_as_much_paper_is_one(size: int) -> None:
    """On so many rows that lines run together once these are averaged."""
    rows = [LINES[row % 2] for row in range(50)]
    image = page(rows, size, leading=1.3)
    assert image.height > 1600 and looks_like_several_lines(image) and looks_like_several_lines(noisy(image, 2))
    sheet = Image.new("RGB", image.size, (245, 240, 230))
    sheet.paste(page([LINES[0]], size), (0, image.height // 2))
    for sigma in (0, 2, 4, 8, 16):
        assert not looks_like_several_lines(noisy(sheet, sigma)), sigma
