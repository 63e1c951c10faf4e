"""Batch jobs over pages: a row a page, with the lines that `read --page` finds and reads in it."""

import json
import math

import batching
import pytest
import tiny
from batching import batch
from pages import printed
from PIL import Image

from trocr_jax.line import Line
from trocr_jax.page import prepare_page, read_page
from trocr_jax.reader import Reader
from trocr_jax.serve.batch_job import output


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.model_directory(tmp_path_factory.mktemp("batch") / "model")


def test_errors_and_flags_of_a_page_s_lines_count():
    line = output.row("", Line("text", flags=("repetition",)))
    ended, failed = line | {"finish_reason": "length"}, line | {"flags": [], "error": "no numbers (NaN)"}
    page = {"id": "1.png", "lines": [line, failed, ended], "error": None}
    broken = {"id": "2.png", "lines": [], "error": "no such file"}
    counts = {"images": 2, "lines": 3, "errors": {"no numbers": 1, "no such file": 1}, "flags": {"repetition": 2, "length": 1}}
    assert output.count([page, broken]) == counts


def page(texts: list[str]) -> Image.Image:
    """A line under the other, of different widths."""
    image = Image.new("RGB", (700, 60 + 90 * len(texts)), "white")
    for number, text in enumerate(texts):
        drawn = tiny.draw(text)
        image.paste(drawn.resize((4 * drawn.width, 64)), (40, 30 + 90 * number))
    return image


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Twenty pages of one to three lines, an empty one, and one that is no picture."""
    folder, texts = tmp_path_factory.mktemp("scans"), iter(tiny.texts(60))
    for number in range(20):
        page([2 * next(texts) + "4711" for _ in range(1 + number % 3)]).save(folder / f"{number:02d}.png")
    page([]).save(folder / "20.png")
    (folder / "21.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def expected(model, scans):
    """What `read_page` makes of every page that can be read."""
    reader = Reader.from_pretrained(model)
    return [read_page(reader, Image.open(scans / f"{number:02d}.png"), max_new_tokens=6) for number in range(21)]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_pages_are_rows_with_their_lines_in_order(capsys, model, scans, expected, tmp_path, form):
    """Lines of several pages share a batch, and two windows of pages a unit."""
    out = tmp_path / "out"
    code, summary, err = batch(capsys, scans, out, "--page", "--model", model, "--format", form)
    rows = batching.rows(out)
    lines = sum(len(page.lines) for page in expected)
    assert lines == 20 + 19, "or the drawn pages are not what this test needs"
    assert code == 1 and summary["pages"] == 22 and summary["lines"] == summary["here"]["lines"] == lines
    assert "22 pages with 39 lines in 1 parts" in err and "22/22" in err and "page/s" in err
    assert [row["id"] for row in rows] == [f"{number:02d}.png" for number in range(22)]
    for row, page in zip(rows, expected, strict=False):
        assert (row["width"], row["height"], row["error"]) == (page.width, page.height, None)
        for found, line in zip(row["lines"], page.lines, strict=True):
            assert found["text"] == line.line.text and math.isclose(found["confidence"], line.line.confidence, rel_tol=1e-4)
            assert found["box"] == list(line.box) and found["polygon"] == [list(point) for point in line.points]
            assert [word["text"] for word in found["words"]] == [word.text for word in line.line.words]
    assert rows[20]["lines"] == [] and "not a PNG" in rows[21]["error"] and rows[21]["width"] is None


def test_a_job_of_pages_goes_on_as_one(capsys, model, scans, tmp_path):
    out = tmp_path / "out"
    batch(capsys, scans, out, "--page", "--model", model, "--unit-lines", 8)
    whole = batching.parts(out)
    (out / "part-00001.jsonl").unlink()
    code, summary, _ = batch(capsys, scans, out)
    assert code == 1 and batching.parts(out) == whole and len(whole) == 3 and summary["pages"] == 22
    assert json.loads((out / "_job" / "job.json").read_text())["settings"]["page"] is True
    batch(capsys, scans, tmp_path / "lines", "--model", model)
    code, _, err = batch(capsys, scans, tmp_path / "lines", "--page")
    assert code == 2 and "begun with --page False" in err


LONG, SHORT = "the quick brown fox jumps over a lazy dog while many small boxes", "27 parcels on Friday"


def test_long_lines_of_pages_are_read_whole_and_after_an_interruption_as_well(capsys, tmp_path):
    """In pieces, which are rows of batches with those of other lines and pages; with the model in the package."""
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    written = [(LONG, SHORT), (SHORT, LONG, LONG[:40])]
    for number, texts in enumerate(written):
        printed(*texts).save(folder / f"{number}.png")
    _, lines = prepare_page(printed(LONG, SHORT), Reader.from_pretrained().processor)
    assert [len(line.pieces) > 1 for line in lines] == [True, False], "or the drawn page is not what this test needs"
    code, summary, _ = batch(capsys, folder, out, "--page", "--unit-lines", 1, options=["--decoders", "1"])
    assert code == 0 and (summary["pages"], summary["lines"]) == (2, 5)
    for row, texts in zip(batching.rows(out), written, strict=True):
        assert tuple(line["text"] for line in row["lines"]) == texts
        for line in row["lines"]:
            assert [word["text"] for word in line["words"]] == line["text"].split() and line["finish_reason"] == "stop"
    whole = batching.parts(out)
    (out / "part-00001.jsonl").unlink()
    code, summary, _ = batch(capsys, folder, out, options=["--decoders", "1"])
    assert code == 0 and summary["here"]["lines"] == 3 and batching.parts(out) == whole and len(whole) == 2


def test_a_page_that_cannot_be_read_as_it_stands_is_told(capsys, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    image = printed(SHORT, LONG[:40], SHORT)
    image.save(folder / "upright.png")
    image.rotate(180).save(folder / "on-its-head.png")
    code, _, err = batch(capsys, folder, tmp_path / "out", "--page", options=["--decoders", "1"])
    assert code == 0 and "on-its-head.png: hardly a line could be read" in err and "upright.png: hardly" not in err
