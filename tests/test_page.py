"""Pages: lines found in order, read in order, written in five formats that other parsers accept, and taken from them again."""

import io
import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pages
import pytest
import tiny
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

from trocr_jax import Reader, cli, images, page
from trocr_jax.flags import SEVERAL_PAGES
from trocr_jax.line import Line, Token, Word, line_from_tokens
from trocr_jax.pages.formats import Format, Page, PageLine, render
from trocr_jax.pages.outlines import PageFormatError, parse_lines
from trocr_jax.pixels import ink


@pytest.mark.parametrize("numbers", [range(8), pytest.param(range(8, 50), marks=pytest.mark.slow)], ids=["8 pages", "42 more"])
def test_98_of_100_lines_are_found_in_order(numbers):
    drawn = found = surplus = 0
    for number in numbers:
        image, quads = pages.draw_page(pages.random_layout(number), number)
        lines = page.find_lines(image)
        drawn, found = drawn + len(quads), found + pages.found_in_order(quads, lines)
        surplus += max(0, len(lines) - len(quads))
    assert drawn > 60 * len(numbers)
    assert found >= 0.98 * drawn, f"{found} of {drawn}"
    assert surplus <= 0.01 * drawn, f"{surplus} boxes that are no lines"


def test_the_count_falls_when_lines_are_lost_moved_or_out_of_order():
    """Or the test above would prove nothing."""
    image, quads = pages.draw_page(pages.Layout(columns=2, tilt=2.0), 0)
    lines = page.find_lines(image)
    whole = pages.found_in_order(quads, lines)
    assert whole == len(quads)
    assert pages.found_in_order(quads, lines[5:]) == whole - 5
    assert pages.found_in_order(quads, lines[::-1]) == 1
    assert pages.found_in_order(quads, [line + [0, 20] for line in lines]) < whole / 2
    assert pages.found_in_order(quads, [(line + line[[1, 1, 2, 2]]) / 2 for line in lines]) == 0, "half of a line is none"


@pytest.mark.parametrize("change", [ImageOps.invert, lambda image: image.resize((2 * image.width, 2 * image.height))])
def test_light_ink_and_large_scans(change):
    image, quads = pages.draw_page(pages.Layout(columns=3, tilt=-2.0, noise=10, size=24), 1)
    changed = change(image)
    found = page.find_lines(changed)
    assert pages.found_in_order([quad * changed.width / image.width for quad in quads], found) == len(quads)


def test_pages_without_lines_have_none():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 400, 3)).astype(np.uint8))
    for image in (Image.new("RGB", (600, 400), "white"), Image.new("RGB", (1, 1)), Image.new("RGB", (3, 900), "black"), noise):
        assert page.find_lines(image) == []
    waves = np.sin(np.arange(700) / 5)
    for picture in (ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(900, 700)), 12), np.outer(waves, waves)):
        smooth = Image.fromarray(np.clip(128 + 60 * picture / picture.std(), 0, 255).astype(np.uint8)).convert("RGB")
        assert page.find_lines(smooth) == [], "drops and dots have no strokes"
    rules = Image.new("RGB", (600, 400), "white")
    rules.paste("gray", (20, 100, 580, 102))
    rules.paste("gray", (20, 200, 580, 202))
    assert page.find_lines(rules) == [], "rules are no lines of text"


def test_a_tilted_line_is_cut_out_level():
    image, quads = pages.draw_page(pages.Layout(tilt=3.0, size=30, leading=1.7), 0)
    line = np.asarray(page.cut_out(image, quads[0]).convert("L")) < 128
    left, right = (np.nonzero(part.any(1))[0].mean() for part in (line[:, :200], line[:, -200:]))
    assert line.any() and abs(left - right) < 4, "3 degrees would be 50 pixels"


def test_a_dense_table_is_no_blank_page():
    """Averaged down, its rows are two or three pixels high."""
    font, rng = ImageFont.truetype(str(pages.fonts()[0]), 20), np.random.default_rng(0)
    table = Image.new("RGB", (2480, 3508), "white")
    for top in range(28, 3508 - 28, 28):
        for column in range(24):
            ImageDraw.Draw(table).text((20 + column * 100, top), f"{rng.integers(10, 9999):,}", fill="black", font=font)
    assert ink.is_blank(table), "the case that this is about"
    assert len(page.find_lines(table)) > 50


def test_what_lies_outside_of_a_polygon_is_painted_over():
    image = Image.new("RGB", (100, 100), "white")
    image.paste("black", (40, 0, 60, 100))
    cut = page.cut_out(image, np.array([[0, 0], [50, 0], [50, 30], [20, 40], [0, 30]]))
    assert cut.size == (50, 40) and cut.getpixel((45, 39)) != (0, 0, 0) and cut.getpixel((45, 10)) == (0, 0, 0)
    with pytest.raises(ValueError, match="outside of the page"):
        page.cut_out(image, np.array([[200, 200], [250, 200], [250, 230], [220, 240], [200, 230]]))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_lines_are_cut_out_of_pages_in_any_mode(mode):
    grey = Image.new("L", (60, 40), 255)
    grey.paste(0, (20, 10, 40, 30))
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert("RGB").convert(mode)
    cut = page.cut_out(image, np.array([[10, 5], [50, 5], [50, 35], [10, 35]]))
    assert (cut.mode, cut.size) == ("RGB", (40, 30)) and cut.getpixel((2, 2)) == (255,) * 3 and cut.getpixel((20, 15))[0] < 64


def test_a_page_on_its_side_by_its_tag_is_cut_as_it_is_read():
    image, exif = Image.new("RGB", (40, 60), "white"), Image.Exif()
    image.paste("black", (10, 20, 30, 40))
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    cut = page.cut_out(Image.open(file), np.array([[0, 0], [60, 0], [60, 40], [0, 40]]))
    assert cut.size == (60, 40) and cut.getpixel((30, 20)) == (0, 0, 0)


@pytest.mark.parametrize("polygon", [[79, 83, 522, 125], [[1, 2], [3, 4]], [[[1, 2]] * 4], []])
def test_what_is_no_polygon_is_refused_by_its_shape(polygon):
    with pytest.raises(page.PageFormatError, match=r"a line must be a polygon of at least three points, \[n,2\], not of shape"):
        page.cut_out(Image.new("RGB", (600, 200)), polygon)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny.model_directory(tmp_path_factory.mktemp("page") / "model")


def read_page_of() -> Page:
    """Two lines, of which one has words that XML could trip over, and one nothing."""
    text = 'a <b> & "c"\x0b'
    words = [Word(w, text.index(w), text.index(w) + len(w), 0.75) for w in text.split()]
    line = Line(text=text, confidence=0.5, words=tuple(words))
    outlines = ((10, 20), (110, 22), (110, 42), (10, 40)), ((-2, 60), (90, 60), (90, 80), (50, 85), (-2, 80))
    return Page(200, 100, (PageLine(outlines[0], line), PageLine(outlines[1], Line())))


def tags(root, name):
    return [element for element in root.iter() if element.tag.rpartition("}")[2] == name]


def check_page(text: str) -> list[str]:
    """The order of elements and the attributes that the PAGE schema of 2019 asks for; texts of the lines."""
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15}PcGts"
    assert [e.tag.rpartition("}")[2] for e in root] == ["Metadata", "Page"]
    assert [e.tag.rpartition("}")[2] for e in root[0]] == ["Creator", "Created", "LastChange"]
    assert datetime.fromisoformat(root[0][1].text) <= datetime.now(UTC)
    assert root[1].attrib.keys() == {"imageFilename", "imageWidth", "imageHeight"}
    identifiers = [e.get("id") for name in ("TextRegion", "TextLine", "Word") for e in tags(root, name)]
    assert None not in identifiers and len(set(identifiers)) == len(identifiers)
    for element in tags(root, "TextLine") + tags(root, "Word"):
        kinds = [e.tag.rpartition("}")[2] for e in element]
        assert kinds == ["Coords", *["Word"] * (len(kinds) - 2), "TextEquiv"], kinds
        assert 0 <= float(element[-1].get("conf")) <= 1
    for coords in tags(root, "Coords"):
        points = [point.split(",") for point in coords.get("points").split(" ")]
        assert len(points) >= 3 and all(x.isdigit() and y.isdigit() for x, y in points), "the schema has no negative numbers"
    return [line[-1][0].text or "" for line in tags(root, "TextLine")]


def check_alto(text: str) -> list[str]:
    """The same for ALTO 4."""
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.loc.gov/standards/alto/ns-v4#}alto"
    assert [e.tag.rpartition("}")[2] for e in root] == ["Description", "Layout"]
    assert [e.tag.rpartition("}")[2] for e in root[0]] == ["MeasurementUnit", "sourceImageInformation", "Processing"]
    assert root[0][0].text == "pixel" and tags(root, "Page")[0].get("PHYSICAL_IMG_NR") == "1"
    for element in [e for name in ("PrintSpace", "TextBlock", "TextLine", "String") for e in tags(root, name)]:
        assert all(int(element.get(name)) >= 0 for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
    for line in tags(root, "TextLine"):
        kinds = [e.tag.rpartition("}")[2] for e in line]
        assert kinds[0] == "Shape" and kinds[1::2] == ["String"] * len(kinds[1::2]) and set(kinds[2::2]) <= {"SP"}
    assert all(0 <= float(e.get("WC")) <= 1 for e in tags(root, "String"))
    return [" ".join(e.get("CONTENT") for e in tags(line, "String")) for line in tags(root, "TextLine")]


class Hocr(HTMLParser):
    """Classes, boxes and texts of an hOCR file."""

    def __init__(self):
        super().__init__()
        self.lines, self.classes, self.boxes = [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if "class" in values:
            self.classes.append(values["class"])
            self.boxes.append([int(x) for x in values["title"].split("bbox ")[1].split(";")[0].split(" ")])
        if values.get("class") == "ocr_line":
            self.lines.append("")

    def handle_data(self, data):
        if self.lines:
            self.lines[-1] += data


def check_hocr(text: str) -> list[str]:
    ElementTree.fromstring(text)
    parser = Hocr()
    parser.feed(text)
    assert parser.classes[0] == "ocr_page" and {"ocr_carea", "ocr_line", "ocrx_word"} >= set(parser.classes[1:])
    assert all(len(box) == 4 and 0 <= box[0] <= box[2] and 0 <= box[1] <= box[3] for box in parser.boxes)
    return [" ".join(line.split()) for line in parser.lines]


@pytest.mark.parametrize("form, check", [("page", check_page), ("alto", check_alto), ("hocr", check_hocr)])
def test_documents_are_valid_and_give_the_lines_back(form, check):
    found = read_page_of()
    text = render(found, form, 'an "odd" & <name>.png')
    assert check(text) == ['a <b> & "c"', ""]
    assert ("; x_conf 50.00" in text and "; x_wconf 75" in text) == (form == "hocr"), "percent; in the others shares of one"
    outlines = parse_lines(text.encode())
    for outline, line in zip(outlines, found.lines, strict=True):
        np.testing.assert_array_equal(outline, np.maximum(line.points, 0))
    assert check(render(Page(5, 5, ()), form, "x.png")) == []


@pytest.mark.parametrize("form", ["page", "alto", "hocr"])
def test_a_name_that_xml_cannot_hold_does_not_become_another_files(form):
    assert r"caf\udce9\x01.png" in render(Page(5, 5, ()), form, os.fsdecode(b"caf\xe9\x01.png"))


def test_json_gives_the_lines_back_and_text_their_texts():
    found = read_page_of()
    outlines = parse_lines(render(found, "json", "x.png").encode())
    np.testing.assert_array_equal(outlines[1], found.lines[1].points)
    assert json.loads(render(found, "json", "x.png"))["lines"][0]["confidence"] == 0.5
    assert len(render(replace(found, lines=found.lines[1:]), "text", "x.png").splitlines()) == 1
    box = parse_lines(b"[[1, 2, 11, 22], [[0, 0], [5, 0], [5, 5]]]")
    assert box[0].tolist() == [[1, 2], [11, 2], [11, 22], [1, 22]] and box[1].shape == (3, 2)


BOMB = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><PcGts><TextLine>&b;</TextLine></PcGts>'


@pytest.mark.parametrize(
    "content, message",
    [
        (BOMB.encode(), "document type"), (b"\xff\xfe<\0", "UTF-8"), (b"", "must be PAGE-XML"), (b"hello", "must be PAGE-XML"),
        (b"<PcGts><TextLine>", "not well-formed"), (b"<PcGts/>", "no lines"), (b"[]", "no lines"), (b"{}", "must be a list"),
        (b"[1, 2]", "box or a polygon|left, top"), (b"[[1,2,3]]", "left, top"), (b'[["a","b","c","d"]]', "numbers"),
        (b"[[0,0,NaN,5]]", "left, top"), (b"[[5,5,5,9]]", "no area"), (b"[[0,0,1e30,9]]", "no area"), (b"[" * 100_000, "JSON"),
        (b"<alto><TextLine HPOS='x'/></alto>", "neither"), (b"<html><p class='ocr_line'>a</p></html>", "no bbox"),
        (b"[" + b"[0,0,5,5]," * 10_000 + b"[0,0,5,5]]", "more than 10000"),
    ],
)  # fmt: skip
def test_files_that_tell_no_lines_are_refused_in_a_line(content, message):
    with pytest.raises(PageFormatError, match=message) as error:
        parse_lines(content)
    assert "\n" not in str(error.value)


def test_words_without_places_share_their_line_by_characters():
    line = line_from_tokens("ab cd", [5, 6], [-0.1, -0.2], [(0, 2), (2, 5)], True)
    text = render(Page(100, 20, (PageLine(((0, 0), (100, 0), (100, 20), (0, 20)), line),)), "alto", "x.png")
    places = [(int(e.get("HPOS")), int(e.get("WIDTH"))) for e in tags(ElementTree.fromstring(text), "String")]
    assert places == [(0, 44), (56, 44)]  # a space is half as wide as a letter


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.png"
    image = Image.new("RGB", (700, 320), "white")
    for number, text in enumerate(("12345", "67890", "13579")):
        image.paste(tiny.draw(text).resize((430, 64)), (40, 30 + 90 * number))
    image.save(path)
    return path


def test_the_command_reads_a_page_in_every_format(directory, scan, tmp_path, capsys):
    flags = ["read", str(scan), "--page", "--model", str(directory), "--max-tokens", "4"]
    expected = Reader.from_pretrained(directory)
    image = Image.open(scan)
    texts = [line.line.text for line in page.read_page(expected, image, max_new_tokens=4).lines]
    assert len(texts) == 3
    assert cli.main(flags) == 0
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in texts)
    for form in (*get_args(Format), "tsv"):
        assert cli.main([*flags, "--format", form, "--output", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 6
    for name, check in (("scan.page.xml", check_page), ("scan.alto.xml", check_alto), ("scan.hocr", check_hocr)):
        assert len(check((tmp_path / "out" / name).read_text())) == 3
    assert cli.main([*flags, "--lines", str(tmp_path / "out" / "scan.page.xml"), "--format", "tsv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_every_page_of_a_tiff_is_read(directory, scan, tmp_path, capsys):
    """The second page is empty, the fourth damaged."""
    tiff, picture = tmp_path / "scan.tif", Image.open(scan)
    picture.save(tiff, save_all=True, append_images=[Image.new("RGB", picture.size, "white"), picture, picture])
    tiff.write_bytes(tiff.read_bytes()[:-100_000])
    flags = ["read", str(tiff), "--page", "--model", str(directory), "--max-tokens", "2"]
    assert cli.main([*flags, "--format", "tsv"]) == 1
    captured = capsys.readouterr()
    assert [row.split("\t")[0] for row in captured.out.splitlines()] == 3 * [f"{tiff}#page=1"] + 3 * [f"{tiff}#page=3"]
    assert f"{tiff}#page=2: no lines found" in captured.err
    assert f"{tiff}#page=4: the image is damaged" in captured.err and "1 of 4 pages could not be read" in captured.err
    for form in ("hocr", "alto"):
        assert cli.main([*flags, "--format", form]) == 2, "one document, several pages"
        assert cli.main([*flags, "--format", form, "--output", str(tmp_path / "out")]) == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"scan-{number}.{suffix}" for number in (1, 2, 3) for suffix in ("hocr", "alto.xml")
    }
    third = (tmp_path / "out" / "scan-3.hocr").read_text()
    assert "scan.tif&quot;" in third and "ppageno 2" in third and len(check_hocr(third)) == 3
    alto = (tmp_path / "out" / "scan-3.alto.xml").read_text()
    assert 'PHYSICAL_IMG_NR="3"' in alto and alto.count("<TextLine") == 3


def test_one_page_of_a_tiff_says_that_there_are_more(directory, scan, tmp_path):
    tiff, picture = tmp_path / "scan.tif", Image.open(scan)
    picture.save(tiff, save_all=True, append_images=[picture])
    reader = Reader.from_pretrained(directory)
    found = page.read_page(reader, tiff, max_new_tokens=2).lines
    prepared = page.prepare_page(images.load(tiff), reader.processor)[1]
    assert len(found) == len(prepared) == 3
    assert all(SEVERAL_PAGES in flags for flags in [*(x.line.flags for x in found), *(x.flags for x in prepared)])


def test_lines_that_are_not_on_the_page_cost_their_page_alone(directory, scan, tmp_path, capsys):
    """Huge ones would also ask for terabytes."""
    (tmp_path / "lines").mkdir()
    names = {
        "huge": [[0, 0, 1e6, 1e6]],
        "off": [[[900, 900], [950, 900], [960, 950], [950, 980], [900, 980]]],
        "good": [[0, 0, 700, 90]],
    }
    for name, lines in names.items():
        (tmp_path / f"{name}.png").write_bytes(scan.read_bytes())
        (tmp_path / "lines" / f"{name}.json").write_text(json.dumps(lines))
    pictures = [str(tmp_path / f"{name}.png") for name in names]
    flags = ["--page", "--lines", str(tmp_path / "lines"), "--model", str(directory), "--max-tokens", "2", "--format", "tsv"]
    code = cli.main(["read", *pictures, *flags])
    captured = capsys.readouterr()
    assert code == 1 and [row.split("\t")[0] for row in captured.out.splitlines()] == pictures[2:]
    assert re.search("huge.png: line 1 at x 0 to .* is far larger than the page of 700 x 320 pixels", captured.err)
    assert re.search("off.png: line 1 at x 900 .* lies outside of the page of 700 x 320 pixels", captured.err)


def test_two_pages_are_not_written_to_one_file(scan, tmp_path, capsys):
    other = tmp_path / "scan.tif"
    Image.open(scan).save(other)
    assert cli.main(["read", str(scan), str(other), "--page", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(scan) in error and str(other) in error and "would both be written to" in error


def test_the_command_tells_what_is_wrong_and_goes_on(directory, scan, tmp_path, capsys):
    def said(*flags: str) -> tuple[int, str, str]:
        code = cli.main(["read", *flags, "--model", str(directory), "--max-tokens", "2"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    blank = tmp_path / "blank.png"
    Image.new("RGB", (300, 300), "white").save(blank)
    assert said(str(scan), "--format", "alto")[0] == 2
    assert said(str(scan), str(blank), "--page", "--format", "alto")[0] == 2
    code, _, error = said(str(scan), "--page", "--lines", str(tmp_path / "none.xml"))
    assert code == 2 and "no such file" in error
    (tmp_path / "bad.png").write_bytes(b"no picture")
    code, out, error = said(str(tmp_path / "bad.png"), str(scan), "--page", "--format", "json")
    rows = [json.loads(row) for row in out.splitlines()]
    assert code == 1 and "error" in rows[0] and len(rows[1]["lines"]) == 3 and "Traceback" not in error
    (tmp_path / "lines").mkdir()
    code, _, error = said(str(scan), "--page", "--lines", str(tmp_path / "lines"))
    assert code == 1 and "has 0 files of lines named scan" in error
    (tmp_path / "lines" / "scan.json").write_text("[[900, 0, 950, 0.5], [1]]")
    assert said(str(scan), "--page", "--lines", str(tmp_path / "lines"))[0] == 1
    (tmp_path / "lines" / "scan.json").write_text("[[[900, 900], [950, 900], [960, 950], [950, 980], [900, 980]]]")
    code, _, error = said(str(scan), "--page", "--lines", str(tmp_path / "lines"))
    assert code == 1 and "outside of the page" in error
    code, _, error = said(str(scan), "--page", "--lines", str(tmp_path / "bad.png"))
    assert code == 1 and f"{scan}: {tmp_path / 'bad.png'}: a file of lines must be" in error, "that file is at fault"
    code, _, error = said(str(scan), "--page", "--output", str(tmp_path / "bad.png" / "out"))
    assert code == 2 and "--output" in error and "tiny" not in error, "told before the model is loaded"
    code, out, error = said(str(blank), "--page")
    assert code == 0 and out == "" and "no lines found" in error
    (tmp_path / "other.png").write_bytes(scan.read_bytes())
    code, out, error = said(str(scan), str(blank), str(tmp_path / "other.png"), "--page")
    assert code == 0 and [len(page.splitlines()) for page in out.split("\f")] == [3, 0, 3]


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_a_page_on_its_side_or_head_is_turned_to_be_read(tmp_path, capsys, turned):
    """Its lines stay where they are on the page as it came, and begin where the writing does."""
    image, quads = pages.draw_page(pages.Layout(tilt=1.0), 0)
    image = image.crop((0, 0, 1240, 500))
    image.rotate(-turned, expand=True).save(tmp_path / "page.png")
    assert cli.main(["read", "--page", "--format", "json", str(tmp_path / "page.png")]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (f"read turned by {turned} degrees" in err) == (turned > 0) and found["turned"] == turned
    assert (found["width"], found["height"]) == ((1240, 500) if turned in (0, 180) else (500, 1240))
    first = np.array(found["lines"][0]["polygon"][0], float)
    x, y = quads[0][0]
    expected = {0: (x, y), 90: (500 - y, x), 180: (1240 - x, 500 - y), 270: (y, 1240 - x)}[turned]
    assert np.abs(first - expected).max() < 20
    assert found["lines"][0]["confidence"] > 0.1


@pytest.mark.parametrize(("logprob", "tokens", "turned"), [(-0.15, 20, 90), (-0.25, 20, 0), (-0.15, 15, 0)])
def test_a_page_is_turned_where_that_is_far_surer_and_on_enough_evidence(monkeypatch, logprob, tokens, turned):
    """Upright a token has -0.6."""

    def of(logprob, tokens):
        return Page(9, 9, (PageLine(((0, 0),) * 4, Line("x", tokens=(Token(5, "x", logprob),) * tokens)),))

    samples = {0: of(-0.6, 20), 90: of(logprob, tokens), 180: of(-0.5, 20), 270: of(-0.7, 20)}
    monkeypatch.setattr(page, "find_turned", lambda image, degrees: [degrees])
    monkeypatch.setattr(page, "_read", lambda reader, image, outlines, options: samples[outlines[0]])
    found = page._turned(None, Image.new("RGB", (9, 9)), [0], samples[0], {})
    assert found == replace(samples[turned], turned=turned)


def test_what_no_turn_makes_readable_is_said_to_be_lost(tmp_path, capsys):
    """Writing in a mirror."""
    image, _ = pages.draw_page(pages.Layout(), 0)
    image.crop((0, 0, 1240, 300)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "page.png")
    assert cli.main(["read", "--page", "--format", "json", str(tmp_path / "page.png")]) == 0
    out, err = capsys.readouterr()
    assert "whichever way it is turned" in err and json.loads(out)["turned"] == 0


@pytest.mark.parametrize(("turned", "text", "correction"), [(90, 270, -90), (180, 180, 180), (270, 90, 90)])
def test_every_format_tells_how_the_writing_of_a_turned_page_runs(turned, text, correction):
    found = replace(read_page_of(), turned=turned)
    checks = {"alto": check_alto, "hocr": check_hocr, "page": check_page}
    written = {form: render(found, form, "x.png") for form in checks}
    assert f'ROTATION="{text}"' in written["alto"] and f"textangle {text};" in written["hocr"]
    assert f'orientation="{correction}"' in written["page"]
    assert all(len(check(written[form])) == 2 for form, check in checks.items())
