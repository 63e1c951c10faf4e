"""Outlines of lines on a page: which are refused, which way round they are read; and what finding them costs."""

import json
import signal
from contextlib import contextmanager

import numpy as np
import pages
import pytest
from PIL import Image
from scipy import ndimage

from trocr_jax import images, page
from trocr_jax.line import Line
from trocr_jax.pages import letters, line_detection
from trocr_jax.pages.outlines import PageFormatError, parse_lines

QUAD = [[10, 20], [90, 20], [90, 40], [10, 40]]
ROUND = [QUAD[0], QUAD[3], QUAD[2], QUAD[1]]


class Sizes:
    """Reads of a line how large it is."""

    def read(self, lines, **options):
        return [Line(text=f"{line.width} x {line.height} {options}") for line in lines]


@pytest.mark.parametrize(
    "polygon, message",
    [
        ([[200, 200], [250, 200], [250, 230], [220, 240], [200, 230]], "outside of the page of 100 x 100"),
        ([[200, 0], [250, 0], [250, 30], [200, 30]], "x 200 to 250, y 0 to 30 lies outside"),
        ([[10, 20], [30, 20], [50, 20], [60, 20], [90, 20]], "outside of the page"),
        ([[0, 0], [np.nan, 0], [9, 9], [0, 9]], "outside of the page"),
        ([[-1, 0], [1e6, 0], [1e6, 1e6], [0, 1e6]], "far larger"),
        ([[-50, 0], [50, 0], [50, 201], [-50, 201]], "far larger"),
        ([[0, 0], [200, 200], [0, 200], [200, 0]], "far larger"),
        ([[0, 0], [201, 0], [201, 30], [9, 40], [0, 30]], "far larger"),
    ],
)
def test_lines_that_are_not_on_the_page_are_refused_before_a_pixel_is_made(polygon, message, monkeypatch):
    image = Image.new("RGB", (100, 100), "white")
    monkeypatch.setattr(Image.Image, "transform", lambda *_, **__: pytest.fail("would be made"))
    monkeypatch.setattr(page, "_masked", lambda *_: pytest.fail("would be made"))
    with pytest.raises(PageFormatError, match=message) as error:
        page.cut_out(image, np.array(polygon))
    assert "\n" not in str(error.value)


def test_lines_may_reach_over_the_edge():
    image = Image.new("RGB", (100, 40), "white")
    assert page.cut_out(image, np.array([[-20, -20], [120, -20], [120, 60], [-20, 60]])).size == (140, 80)
    assert page.cut_out(image, np.array([[80, 0], [110, 0], [110, 50], [90, 60], [80, 50]])).size == (20, 40)


def test_what_is_told_of_lines_lies_on_the_page():
    """Other programs refuse outlines that do not."""
    found = page.read_page(Sizes(), Image.new("RGB", (100, 40), "white"), [np.array([[-3, -2], [120, -2], [120, 44], [-3, 44]])])
    assert found.lines[0].points == ((0, 0), (100, 0), (100, 40), (0, 40))
    assert found.lines[0].line.text.startswith("123 x 46"), "what is read may reach over the edge"


def test_lines_found_on_a_tiny_page_may_be_larger_than_it(monkeypatch):
    """By the paper that is cut out around them; it is given lines that must not be."""
    monkeypatch.setattr(page, "find_lines", lambda _: [np.array([[-4, 1], [7, 1], [7, 9], [-4, 9]], np.float32)])
    assert page.read_page(Sizes(), Image.new("RGB", (3, 10))).lines[0].line.text.startswith("11 x 8")


def as_page_xml(points) -> bytes:
    coords = " ".join(f"{x},{y}" for x, y in points)
    return f"<PcGts><Page><TextRegion><TextLine><Coords points='{coords}'/></TextLine></TextRegion></Page></PcGts>".encode()


@pytest.mark.parametrize("write", [as_page_xml, lambda points: json.dumps([points]).encode()], ids=["PAGE-XML", "JSON"])
def test_quadrilaterals_go_round_clockwise_from_their_first_point(write):
    assert parse_lines(write(QUAD))[0].tolist() == parse_lines(write(ROUND))[0].tolist() == QUAD
    downwards = QUAD[1:] + QUAD[:1]
    assert parse_lines(write(downwards))[0].tolist() == downwards, "a line from top to bottom stays one"
    pentagon = [*ROUND, [50, 15]]
    assert parse_lines(write(pentagon))[0].tolist() == pentagon


@pytest.mark.parametrize("coords", ["0,1 1e2,1.5 100,2e1 -0.0,20", "0 1 100 1.5 100,20 0,20", "0, 1\n100,\t1.5  100 ,20 0,20"])
def test_points_are_any_numbers_in_pairs(coords):
    content = f"<PcGts><TextLine><Coords points='{coords}'/></TextLine></PcGts>".encode()
    assert parse_lines(content)[0].tolist() == [[0, 1], [100, 1.5], [100, 20], [0, 20]]


@pytest.mark.parametrize(
    "coords", ["0,1 100,1 100,20 0", "0;1 100;1 100;20", "0,1 100,1 0x64,20", "left,top right,top right,base"]
)
def test_points_that_are_no_pairs_of_numbers_are_refused(coords):
    with pytest.raises(PageFormatError, match="not pairs of numbers"):
        parse_lines(f"<PcGts><TextLine><Coords points='{coords}'/></TextLine></PcGts>".encode())


LINE = b"<span class='ocr_line' title='bbox 1 2 30 40'>"


@pytest.mark.parametrize(
    "line",
    [
        LINE, b'<SPAN id=a CLASS="x ocr_line" TITLE="image &quot;a>b.png&quot;; bbox 1 2 30 40; x_size 3"/>',
        b"<div\nclass = ocrx_line title\n=\n'bbox 1 2 30 40'>", b"<p lang='de'title='bbox 1 2 30 40'class='ocr_header'>",
        b"<p id=it's title='it&#39;s bbox 1 2 30 40' class='ocr_caption'>",
        b"<i hidden class=ocr_textfloat title='poly 1 2 30 2 30 40 1 40'>",
    ],
)  # fmt: skip
def test_hocr_is_read_as_html(line):
    page = b'<!DOCTYPE html PUBLIC "a"><html><script src="a"/>1 < 2 " ' + line + b" it's</span>"
    assert [points.tolist() for points in parse_lines(page)] == [[[1, 2], [30, 2], [30, 40], [1, 40]]]


@pytest.mark.parametrize("hidden", [b"<!-- > %s -->", b"<script>'%s'</script>", b"<STYLE a='b'>%s</style>", b"<!--%s"])
def test_what_is_no_tag_of_hocr_is_no_line(hidden):
    assert len(parse_lines(b"<html>" + LINE + hidden % LINE)) == 1


@contextmanager
def at_most(seconds: float):
    """Stops what takes more of the processor's time, a hundred times what it should."""
    before = signal.signal(signal.SIGVTALRM, lambda *_: pytest.fail(f"takes more than {seconds} seconds"))
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("part", [b"<a ", b"<!--", b"<![CDATA[", b"</", b"<script>", b"<a x='", b"<a x=", b"<"])
def test_hocr_that_never_ends_is_given_up_at_once(part):
    """html.parser looked through all the rest of the file at each of these: hours for what is here."""
    with at_most(10), pytest.raises(PageFormatError, match="no lines"):
        parse_lines(b"<html>" + part * 300_000)


@pytest.mark.parametrize("part", [b" ", b"x", b" class='", b' x="', b"=", b"a =", b"/"])
def test_a_tag_of_hocr_with_attributes_without_end_is_looked_through_once(part):
    with at_most(10):
        assert len(parse_lines(b"<html><a " + part * 300_000 + b">" + LINE)) == 1


ALTO = b'<alto><TextLine HPOS="%s" VPOS="0" WIDTH="50" HEIGHT="5"/></alto>'


@pytest.mark.parametrize(
    "content, message",
    [
        (b'<?xml version="1.0" encoding="foo"?><PcGts/>', "encoding"),
        (b"[[1" + b"0" * 400 + b",1,2,3]]", "far outside"), (b"[[0,0,1e300,9]]", "far outside"),
        (ALTO % b"NaN", "'NaN', not a number of pixels"), (ALTO % b"1e999", "'1e999', not"), (ALTO % b"1e300", "'1e300', not"),
        (ALTO % b"", "'', not a number"), (b"<html><p class='ocr_line' title='&#" + b"9" * 5000 + b"'>", "damaged character"),
    ],
)  # fmt: skip
def test_numbers_and_encodings_that_are_none_are_refused_in_a_line(content, message):
    with pytest.raises(PageFormatError, match=message) as error:
        parse_lines(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[[1,2,30,40],[5,5,5,9],[1,2,30,40]]", r"^line 2: a line has no area, .*: \[5, 5, 5, 9\]$"),
        (b'{"lines": [{"box": [1,2,30,40]}, {"box": [1,"x",3,4]}]}', r"^line 2: .* of numbers: \[1, 'x', 3, 4\]$"),
        (b"[[1,2,30,40],[1,2,3]]", r"^line 2: .* at least three points: \[1, 2, 3\]$"),
        (b"<html>" + LINE + b"<p class='ocr_line' title='x'>", "^line 2: a line of the hOCR file has no bbox$"),
        (b"<alto>" + 2 * b'<TextLine HPOS="1" VPOS="0" WIDTH="9" HEIGHT="5"/>' + b"<TextLine/></alto>", "^line 3: a TextLine "),
    ],
)  # fmt: skip
def test_of_many_lines_the_wrong_one_is_named(content, message):
    with pytest.raises(PageFormatError, match=message):
        parse_lines(content)


@pytest.mark.parametrize("space", [b"", b" xmlns='http://www.loc.gov/standards/alto/ns-v4#'"])
def test_alto_that_does_not_measure_in_pixels_is_refused(space):
    """Its lines would be cut out somewhere else."""
    written = b"<alto%s><Description><MeasurementUnit>%s</MeasurementUnit></Description>" + (ALTO % b"0").removeprefix(b"<alto>")
    assert len(parse_lines(written % (space, b" pixel\n"))) == 1
    for unit in (b"mm10", b"inch1200"):
        with pytest.raises(PageFormatError, match=f"measures in '{unit.decode()}'; its MeasurementUnit must be pixel"):
            parse_lines(written % (space, unit))


@pytest.mark.parametrize("counter", [False, True])
def test_a_line_is_never_read_as_its_mirror_image(counter):
    """A box whose corners come counter-clockwise, as another program may write them."""
    image = Image.new("RGB", (300, 100), "white")
    image.paste("black", (20, 20, 60, 40))
    corners = [[10, 10], [210, 10], [210, 60], [10, 60]]
    (line,) = parse_lines(json.dumps([[corners[0], *corners[:0:-1]] if counter else corners]).encode())
    assert (np.asarray(page.cut_out(image, line).crop((10, 10, 50, 30))) == 0).all()
    assert (np.asarray(page.cut_out(image, line[[0, 3, 2, 1]]).crop((10, 10, 50, 30))) == 0).all()


def test_boxes_with_corners_swapped_are_boxes():
    for box in ([90, 20, 10, 40], [10, 40, 90, 20], [90, 40, 10, 20]):
        assert parse_lines(json.dumps([box]).encode())[0].tolist() == QUAD


def test_a_page_may_come_as_anything_that_a_line_may(tmp_path):
    image, quads = pages.draw_page(pages.Layout(leading=6.0), 0)
    image.save(tmp_path / "scan.png")
    whole = page.read_page(Sizes(), image)
    assert len(whole.lines) == len(quads)
    for source in (tmp_path / "scan.png", str(tmp_path / "scan.png"), (tmp_path / "scan.png").read_bytes(), np.asarray(image)):
        assert page.read_page(Sizes(), source) == whole
    with pytest.raises(images.ImageError):
        page.read_page(Sizes(), b"no picture")


def test_lines_of_any_detector_are_read_as_they_are_given():
    found = page.read_page(Sizes(), Image.new("RGB", (100, 60)), [np.array(ROUND), QUAD], num_beams=2)
    assert [line.line.text for line in found.lines] == ["80 x 20 {'num_beams': 2}"] * 2
    assert found.lines[0].points == tuple(map(tuple, QUAD)), "words are placed along the outline"
    with pytest.raises(PageFormatError, match="^line 2 at x 0 to 999, y 0 to 9 is far larger"):
        page.read_page(None, Image.new("RGB", (100, 60)), [QUAD, [[0, 0], [999, 0], [999, 9], [0, 9]]])


def test_noise_as_scanners_blur_it_is_no_table():
    """It has enough ink for hundreds of lines."""
    noise = ndimage.gaussian_filter(np.random.default_rng(25).normal(0, 1, (1754, 1240)), 0.7)
    for strength in (25, 40):
        blank = np.clip(225 + strength * noise / noise.std(), 0, 255).astype(np.uint8)
        assert page.find_lines(Image.fromarray(blank).convert("RGB")) == []


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_specks_in_black_and_white_are_no_table(share):
    specks = np.random.default_rng(0).random((1754, 1240)) < share
    assert page.find_lines(Image.fromarray(np.where(specks, 0, 255).astype(np.uint8)).convert("RGB")) == []


def test_columns_are_told_apart_without_putting_all_of_a_table_into_rows(monkeypatch):
    """Each is split off from all those at its right: a hundred columns would be gone through fifty times."""
    left, top = (grid.ravel() for grid in np.meshgrid(np.arange(0.0, 4000, 40), np.arange(0.0, 3000, 30)))
    cells, seen = letters.Boxes(left, top, left + 20, top + 20, np.full(len(left), 10.0)), []
    around = letters.Boxes.around
    monkeypatch.setattr(letters.Boxes, "around", lambda self: seen.append(None) or around(self))
    assert sum(map(len, line_detection._ordered(cells, 10.0))) == len(cells) == 10_000
    assert len(seen) < 3 * len(cells)


def test_the_colour_of_the_paper_does_not_cost_every_line_a_pass_over_the_page(monkeypatch):
    """Or a page of two thousand lines takes minutes for that alone."""
    image = Image.new("RGB", (400, 300), "beige")
    monkeypatch.setattr(Image.Image, "convert", lambda *_, **__: pytest.fail("copies the page"))
    resize = Image.Image.resize

    def nearest(self, size, resample=None, **options):
        assert resample == Image.Resampling.NEAREST, "averages the page"
        return resize(self, size, resample, **options)

    monkeypatch.setattr(Image.Image, "resize", nearest)
    assert page.cut_out(image, np.array([[-9, 0], [90, 0], [90, 20], [-9, 20]])).getpixel((2, 2)) == (245, 245, 220)
