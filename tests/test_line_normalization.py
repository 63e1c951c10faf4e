"""Text line normalisation: what arithmetic can undo, the model never sees."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from trocr_jax.flags import SEVERAL_LINES
from trocr_jax.pixels import line_cutting, line_normalization
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.pixels.line_normalization import normalize_line
from trocr_jax.prepared import prepare, used_width

HEIGHT, WIDTH = 32, 512


def draw(text="Hamburg 27, quote", size=40, margin=(10, 10), paper=255, ink=0):
    """A line with (sideways, up and down) margins in pixels."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("L", (int(right - left) + 2 * margin[0], int(bottom - top) + 2 * margin[1]), paper)
    ImageDraw.Draw(picture).text((margin[0] - left, margin[1] - top), text, fill=ink, font=font)
    return picture


def normal(picture):
    return normalize_line(picture.convert("RGB"), HEIGHT, WIDTH).astype(float)


def likeness(a, b):
    """Correlation of the writing of two normalised lines, stretched to one width: rasters of two sizes differ by pixels."""

    def writing(pixels):
        inked = np.flatnonzero((pixels < 128).any(axis=(0, 2)))
        part = pixels[:, inked[0] : inked[-1] + 1, 0].astype(np.uint8)
        return np.asarray(Image.fromarray(part).resize((256, HEIGHT), Image.Resampling.BILINEAR), float)

    return np.corrcoef(writing(a).ravel(), writing(b).ravel())[0, 1]


ALIKE = 0.85  # a rotated line is levelled by shearing, which leaves its letters slanted by the angle; another line is below 0.6


@pytest.fixture(scope="module")
def plain():
    return normal(draw())


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("light on dark", draw(paper=20, ink=230)),
        ("little contrast", draw(paper=150, ink=95)),
        ("loose above and below", draw(margin=(10, 60))),
        ("lost in a high picture", draw(margin=(10, 500))),
        ("lost and tilted", draw(margin=(20, 500)).rotate(2, Image.Resampling.BICUBIC, fillcolor=255)),
        ("loose sideways", draw(margin=(200, 10))),
        ("another size", draw(size=80, margin=(20, 20))),
        ("tilted", draw(margin=(20, 30)).rotate(2, Image.Resampling.BICUBIC, expand=True, fillcolor=255)),
        ("on coloured paper", ImageOps.colorize(draw(), (40, 0, 90), (200, 230, 170))),
    ],
)
def test_the_same_line_gives_the_same_pixels(plain, name, picture):
    assert likeness(plain, normal(picture)) > ALIKE, name


@pytest.mark.parametrize("left", [0, 500, 3000])
@pytest.mark.parametrize("angle", [-4, 0, 3])
def test_paper_beside_the_line_changes_nothing(plain, angle, left):
    """Far from the left edge a levelled line once left the picture; amid much paper ink was too rare to tell how dark it is."""
    line = draw(margin=(20, 30)).rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=255)
    wide = Image.new("L", (left + line.width, line.height), 255)
    wide.paste(line, (left, 0))
    assert likeness(plain, normal(wide)) > ALIKE - 0.05 * abs(angle > 2)
    assert np.abs(normal(wide) - normal(line)).mean() < 2


def test_another_line_gives_other_pixels(plain):
    assert likeness(plain, normal(draw("Bremen 1932, apply"))) < 0.6


def test_light_that_falls_off_along_the_line(plain):
    line = np.asarray(draw(paper=220), np.float32)
    shaded = line * np.linspace(1, 0.45, line.shape[1])[None]
    assert likeness(plain, normal(Image.fromarray(shaded.astype(np.uint8)))) > ALIKE


def test_what_a_crop_shows_of_the_lines_above_and_below_is_left_out(plain):
    picture = draw(margin=(10, 8))
    stray = np.asarray(draw("HEMLINE 18", margin=(10, 0)).crop((0, 0, picture.width, 6)))
    rows = np.asarray(picture).copy()
    rows[:6], rows[-6:] = stray, stray[::-1]
    pixels = normal(Image.fromarray(rows))
    assert likeness(plain, pixels) > ALIKE
    assert (pixels[[0, 1, -2, -1]] > 200).all()


@pytest.mark.parametrize("text", ["i", "- ° -"])
def test_what_no_border_cuts_through_belongs_to_the_line(text):
    """A dot or an accent with paper above it once passed for the foot of the line above, and was wiped out."""
    writing = line_normalization.find_writing(draw(text, margin=(10, 20)).convert("RGB"))
    assert line_normalization._between_neighbours(writing.rows, True, True) != (-np.inf, np.inf), "what it would be at a border"
    assert line_normalization._between_neighbours(writing.rows, *writing.cut) == (-np.inf, np.inf)


@pytest.mark.parametrize("sigma", [5, 10, 15, 20])
@pytest.mark.parametrize("margin", [10, 20])
def test_noise_does_not_make_the_writing_smaller(margin, sigma):
    """Its edges lie in every row, and counted as strokes once halved the scale of the line."""
    picture = draw(paper=170, ink=90, margin=(margin, margin))
    noise = np.random.default_rng(0).normal(0, sigma, (picture.height, picture.width))
    noisy = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    assert width_of_writing(normal(noisy)) == pytest.approx(width_of_writing(normal(picture)), rel=0.05)


def width_of_writing(pixels):
    inked = np.flatnonzero((pixels[..., 0] < 100).sum(0) > 3)  # more than specks
    return int(inked[-1] - inked[0])


def test_ink_is_dark_paper_white_and_the_rest_of_the_width_white(plain):
    assert plain.shape == (HEIGHT, WIDTH, 3)
    assert plain.min() < 30
    assert (plain[:, -50:] == 255).all()
    assert (plain[..., 0] == plain[..., 1]).all()


def test_a_long_line_is_squeezed_not_cut():
    pixels = normal(draw("All of this long text must still be there when it has been squeezed into the width, end."))
    inked = np.flatnonzero((pixels < 200).any(axis=(0, 2)))
    assert inked[0] < 12 and WIDTH - 12 < inked[-1] < WIDTH


@pytest.mark.parametrize("rows", [(1000.0, np.inf), (-np.inf, -50.0), (2.5, 7.5), (-np.inf, np.inf)])
def test_rows_of_a_tilted_line_may_lie_outside_of_the_picture(rows):
    picture = Image.new("L", (60, 20), 200)
    cut = line_normalization._cut(picture, rows, (5, 50), 10.0, 8.0, (HEIGHT, WIDTH))
    assert cut.height == HEIGHT and bool(np.asarray(cut).any()) == (rows in ((2.5, 7.5), (-np.inf, np.inf)))


def test_the_width_of_the_writing_is_told():
    short, long = normal(draw("12")).astype(np.uint8), normal(draw()).astype(np.uint8)
    assert used_width(np.full((HEIGHT, WIDTH, 3), 255, np.uint8)) == 0
    assert 0 < used_width(short) < used_width(long) == used_width(np.stack([short, long]))
    assert (long[:, used_width(long) :] == 255).all() and long[:, used_width(long) - 1].min() < 255


@pytest.mark.parametrize("texts", [["Hamburg 27, quote"], ["Hamburg 27, quote", "Bremen 1932, apply"]])
@pytest.mark.parametrize("size", [20, 30, 90])  # the largest is averaged down, which another look is for
def test_preparing_a_line_tells_whether_there_are_several(texts, size):
    picture = Image.new("L", (size * 9, int(size * 1.5 * len(texts)) + 10), 240)
    for row, text in enumerate(texts):
        ImageDraw.Draw(picture).text((5, 5 + 1.5 * size * row), text, fill=30, font=ImageFont.load_default(size))
    processor = ImageProcessor(height=HEIGHT, width=WIDTH, fit="line")
    assert prepare(np.asarray(picture), processor).flags == ((SEVERAL_LINES,) if len(texts) > 1 else ())


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 3), (1, 400), (400, 1), (5000, 3), (7, 3000), (1_000_000, 1)])
@pytest.mark.parametrize("fill", [0, 255, "noise"])
def test_any_picture_gives_pixels(size, fill):
    if fill == "noise":
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1], np.uint8))
    else:
        picture = Image.new("L", size, fill)
    pixels = normalize_line(picture.convert("RGB"), HEIGHT, WIDTH)
    assert pixels.shape == (HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8


def test_the_processor_says_so_in_its_json_and_reads_it_back():
    processor = ImageProcessor(height=HEIGHT, width=WIDTH, fit="line", trimmed=True)
    again = ImageProcessor.from_hf(processor.to_hf(), (HEIGHT, WIDTH))
    picture = draw().convert("RGB")
    assert again == processor
    assert (again(picture) == normalize_line(picture, HEIGHT, WIDTH)).all()


LONG = "All of this long text must still be there, cut between words, when it has been taken apart for the model's image, end."


@pytest.mark.parametrize("text", [LONG, LONG[:60], LONG.replace(" ", "")])
@pytest.mark.parametrize("sigma", [0, 12])
def test_a_long_line_comes_in_pieces_that_hold_all_of_it(text, sigma):
    picture = np.asarray(draw(text, paper=200, ink=60), np.float32)
    noisy = picture + np.random.default_rng(0).normal(0, sigma, picture.shape)
    writing = line_normalization.find_writing(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    pieces, continues = zip(*writing.pieces(HEIGHT, WIDTH), strict=True)
    whole = 255 - writing.pixels(HEIGHT, 10 * WIDTH).astype(int)
    assert len(pieces) >= 2 and all(piece.shape == (HEIGHT, WIDTH, 3) for piece in pieces)
    assert sum((255 - piece.astype(int)).sum() for piece in pieces) == whole.sum(), "no ink is lost, none is there twice"
    assert continues == (False, *[" " not in text] * (len(pieces) - 1))


def test_a_line_is_cut_between_words():
    writing = line_normalization.find_writing(draw(LONG))
    line = np.asarray(writing._line(HEIGHT, 10 * WIDTH))
    cuts = line_cutting.cuts(line, WIDTH)
    assert len(cuts) >= 3 and not line[:, [column + side for column in cuts for side in (-2, 0, 2)]].any()


def test_a_short_line_is_one_piece_and_an_endless_one_has_a_limit():
    (piece,) = line_normalization.find_writing(draw("Hamburg")).pieces(HEIGHT, WIDTH)
    assert not piece.continues and (piece.pixels == normal(draw("Hamburg"))).all()
    endless = Image.fromarray(np.tile(np.asarray(draw("ab")), (1, 300)))
    assert len(line_normalization.find_writing(endless).pieces(HEIGHT, WIDTH)) == line_cutting.MOST_PIECES / 2


@pytest.mark.parametrize("gap", [100, 600, 2000])
def test_a_wide_gap_is_no_end_of_the_line(gap):
    """Its pieces begin with ink, and none is empty."""
    left, right = draw("Chapter One"), draw("17")
    line = Image.new("L", (left.width + gap + right.width, left.height), 255)
    line.paste(left)
    line.paste(right, (left.width + gap, left.height - right.height))
    pieces = line_normalization.find_writing(line).pieces(HEIGHT, WIDTH)
    assert 2 <= len(pieces) <= line_cutting.MOST_PIECES
    assert all((piece.pixels[:, :20] < 128).any() and not piece.continues for piece in pieces)


def underlined(text, thickness, rough, size=40):
    """A line above a rule whose edges are `rough` pixels off at random, as a typewriter's."""
    picture, rng = np.asarray(draw(text, size, margin=(10, 20))).copy(), np.random.default_rng(0)
    below = int(np.flatnonzero((picture < 128).any(1))[-1]) + 3
    for column in range(10, picture.shape[1] - 10):
        top = below + int(rng.integers(0, rough + 1))
        picture[top : top + thickness + int(rng.integers(0, rough + 1)), column] = 0
    return Image.fromarray(picture)


def test_a_rough_underline_does_not_make_the_writing_smaller(plain):
    """A fourth of all stroke edges are on it."""
    text = "Hamburg 27, quote"
    smooth, rough = (used_width(normal(underlined(text, 4, off)).astype(np.uint8)) for off in (0, 2))
    assert abs(rough - smooth) < 0.12 * smooth


def test_an_underlined_line_is_cut_between_words():
    pieces = line_normalization.find_writing(underlined(LONG, 3, 0)).pieces(HEIGHT, WIDTH)
    assert len(pieces) >= 2 and not any(piece.continues for piece in pieces), "the rule fills the spaces between words"


@pytest.mark.parametrize("rules", [1, 2, 3])
@pytest.mark.parametrize("height", [30, 96, 400])
def test_a_form_line_without_writing_is_a_picture_too(height, rules):
    """Nothing is left where its rules are no ink."""
    picture = np.full((height, 3000), 255, np.uint8)
    for top in np.linspace(height // 4, 3 * height // 4, rules).astype(int):
        picture[top : top + 2, 20:-20] = 0
    assert prepare(Image.fromarray(picture), ImageProcessor(height=HEIGHT, width=WIDTH, fit="line")).error is None


def test_the_frame_of_a_cell_is_no_letter(plain):
    framed = draw(margin=(30, 25))
    ImageDraw.Draw(framed).rectangle((6, 3, framed.width - 7, framed.height - 4), outline=0, width=2)
    assert likeness(plain, normal(framed)) > ALIKE
    assert not (normal(framed) < 190).all(0).any(), "no stroke from top to bottom"


def test_bars_of_a_text_stay():
    """They are no higher than other letters."""
    tallest = (normal(draw("| Hamburg |", margin=(10, 40))) < 128).sum(0)[:, 0]
    width = np.flatnonzero(tallest)[-1] + 1
    assert tallest[:8].max() > 15 and tallest[width - 4 : width].max() > 15
