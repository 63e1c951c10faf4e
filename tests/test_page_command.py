"""`trocr-jax read --page` with several pages: none takes another's place, or another's lines."""

import json

import pytest
from PIL import Image

from trocr_jax.commands import page as page_command
from trocr_jax.commands.page import Job, Source, check, sources
from trocr_jax.line import Line
from trocr_jax.pages.outlines import PageFormatError
from trocr_jax.terminal import UsageError


@pytest.mark.parametrize("other", ["b/1.png", "a/1.tif"])
def test_pages_that_would_overwrite_each_other_are_refused(tmp_path, other):
    first, second, out = tmp_path / "a" / "1.png", tmp_path / other, tmp_path / "out"
    check(Job("text", None, None, {}), sources([first, second]))
    check(Job("text", None, str(out), {}), sources([first, first, tmp_path / "b" / "1.2.png"]))
    with pytest.raises(UsageError) as error:
        check(Job("alto", None, str(out), {}), sources([first, second]))
    assert all(str(path) in str(error.value) for path in (first, second, out / "1.alto.xml"))


def test_a_page_whose_result_would_have_too_long_a_name_is_told_before_any_is_read(tmp_path):
    page = tmp_path / f"{83 * chr(0x5B57)}.png"  # 249 and 4 bytes
    page.touch()
    check(Job("text", None, str(tmp_path / "out"), {}), sources([page]))
    with pytest.raises(UsageError, match="name is too long"):
        check(Job("alto", None, str(tmp_path / "out"), {}), sources([page]))


@pytest.mark.parametrize("lines, form", [("", "page"), ("scan.page.xml", "page"), (None, "text")])
def test_what_is_read_is_never_written_to(tmp_path, lines, form):
    """The lines, in a file or in a folder of them; and a picture with an odd name, by another way to it."""
    page, given = tmp_path / ("scan.png" if form == "page" else "scan.txt"), tmp_path / "scan.page.xml"
    page.touch()
    given.touch()
    (tmp_path / "same").symlink_to(tmp_path)
    job = Job(form, None if lines is None else str(tmp_path / lines), str(tmp_path / "same"), {})
    with pytest.raises(UsageError, match="same/scan.* is read and would be written to: name another folder"):
        check(job, sources([page]))


def test_other_files_that_are_replaced_are_told(tmp_path, capsys):
    pages = [tmp_path / f"{number}.png" for number in range(3)]
    job = Job("text", None, str(tmp_path), {})
    check(job, sources(pages))
    assert capsys.readouterr().err == ""
    (tmp_path / "1.txt").write_text("by hand")
    check(job, sources(pages))
    assert capsys.readouterr().err == f"trocr-jax: --output {tmp_path}: 1.txt will be replaced\n"
    (tmp_path / "2.txt").write_text("by hand")
    check(job, sources(pages))
    assert "1.txt and 1 more will be replaced" in capsys.readouterr().err


@pytest.mark.parametrize(
    "page, expected",
    [
        ("scan.png", "scan.json"), ("scan.1.png", "scan.1.page.xml"), ("scan.2.png", "scan.2.png.hocr"),
        ("other.tif", "other.gt.xml"), ("x.y.png", None), ("scan.3.png", None), ("two.png", None),
    ],
)  # fmt: skip
def test_a_page_gets_the_lines_that_are_named_as_it_is(tmp_path, page, expected):
    names = ("scan.json", "scan.1.page.xml", "scan.2.png.hocr", "other.gt.xml", "others.xml", "x.json", "two.xml", "two.hocr")
    for right, name in enumerate(names, start=1):
        box = f"<p class='ocr_line' title='bbox 0 0 {right} 10'>"
        (tmp_path / name).write_text(json.dumps([[0, 0, right, 10]]) if name.endswith("json") else box)
    if expected is None:
        with pytest.raises(PageFormatError, match="files of lines named"):
            page_command._given(Source(tmp_path / page), str(tmp_path))
    else:
        (outline,) = page_command._given(Source(tmp_path / page), str(tmp_path)) or ()
        assert outline[1, 0] == 1 + names.index(expected)


def test_the_lines_of_a_page_are_in_the_file_that_is_named_as_it(tmp_path):
    for name in ("scan.1.json", "scan.2.json", "scan.1.old.json"):
        (tmp_path / name).write_text("[[0,0,9,9]]")
    assert page_command._named_as(Source(tmp_path / "scan.1.png"), tmp_path) == [tmp_path / "scan.1.json"]


class Sizes:
    """A reader whose text is the size of the picture, and which fails on one."""

    def read(self, pictures, **options):
        return [Line(f"{p.width} x {p.height}") if p.width < 90 else Line.failed("no numbers") for p in pictures]


def test_a_line_that_cannot_be_read_is_told_and_counts(tmp_path, capsys):
    Image.new("RGB", (100, 40)).save(tmp_path / "scan.png")
    (tmp_path / "scan.json").write_text("[[0,0,50,20],[0,20,95,40]]")
    job = Job("text", str(tmp_path / "scan.json"), None, {})
    assert page_command.read_pages([Source(tmp_path / "scan.png")], Sizes(), job) == 1
    out, err = capsys.readouterr()
    assert out.startswith("50 x 20\n") and "scan.png: line 2: no numbers" in err


def test_a_file_of_lines_that_cannot_be_opened_costs_its_page(tmp_path, capsys, monkeypatch):
    for name in ("a", "b"):
        Image.new("RGB", (100, 40)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text("[[0,0,50,20]]")

    def denied(path, mode):
        if str(path).endswith("a.json"):
            raise PermissionError(13, "Permission denied")
        return open(path, mode)

    monkeypatch.setattr(page_command, "open", denied, raising=False)
    pages = [Source(tmp_path / "a.png"), Source(tmp_path / "b.png")]
    assert page_command.read_pages(pages, Sizes(), Job("text", str(tmp_path), None, {})) == 1
    out, err = capsys.readouterr()
    assert out == "\f50 x 20\n" and "a.json: Permission denied" in err, "an empty page in its place"


class Doubtful:
    """A reader that is not sure of anything."""

    def read(self, pictures, **options):
        list(pictures)
        return [Line("a", flags=("repetition",)), Line("b", finish_reason="length"), Line("c", flags=("unlikely", "repetition"))]


def test_what_is_doubtful_about_the_lines_of_a_page_is_told(tmp_path, capsys):
    Image.new("RGB", (100, 40)).save(tmp_path / "scan.png")
    (tmp_path / "scan.json").write_text("[[0,0,50,20],[0,20,95,40],[50,20,95,40]]")
    job = Job("text", str(tmp_path / "scan.json"), None, {})
    assert page_command.read_pages([Source(tmp_path / "scan.png")], Doubtful(), job) == 0
    err = capsys.readouterr().err
    for what in ("1 of 3 lines have what the model hardly sees", "2 of 3 lines repeat", "1 of 3 lines were cut off"):
        assert f"scan.png: {what}" in err


def test_an_output_that_is_a_file_is_refused_before_a_page_is_read(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match="is no folder"):
        check(Job("text", None, str(tmp_path / "out"), {}), sources([tmp_path / "1.png"]))
