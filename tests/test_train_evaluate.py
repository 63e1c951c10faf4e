"""Evaluation of a model on data sets and benchmarks: the tables, the published numbers, the report."""

import io
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
from PIL import ImageFont
from test_packaged import EXAMPLES, ROOT

from trocr_jax import Reader, metrics
from trocr_jax.line import Line
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.terminal import UsageError
from trocr_jax.train import evaluate
from trocr_jax.train.benchmarks import BENCHMARKS, size_name
from trocr_jax.train.config import Config as TrainConfig
from trocr_jax.train.config import DataConfig, SyntheticConfig
from trocr_jax.train.evaluate import Config, run
from trocr_jax.train.report import difference, render
from trocr_jax.train.results import Reading, Result, Task
from trocr_jax.train.sets.records import SourceError, row_names
from trocr_jax.train.sets.sources import open_source
from trocr_jax.train.validation import drawn_lines, held_out


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    data = tiny.line_folder(folder / "lines", 12)
    with open(data, "a", encoding="utf-8") as file:
        file.write("missing.png\t<b>7</b>\n")
    return tiny.model_directory(folder / "model"), data


def test_a_run_prints_tables_json_and_a_page(places, tmp_path, capsys):
    model, data = places
    report = tmp_path / "report.html"
    data_sets, scores = (str(data), str(data.parent)), ("cer", "accuracy")
    config = Config(data_sets, str(model), beams=(1, 2), scores=scores, report=report, max_tokens=8)
    assert run(config) == 1, "an image was missing"
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [r["beams"] for r in found["results"]] == [1, 2]
    first = found["results"][0]
    assert first["lines"] == 26 and first["unreadable"] == 2 and first["lines_per_s"] > 0
    assert first["scores"].keys() == {"gt_train", "lines", "all"}
    for score in first["scores"]["all"].values():
        assert score["low"] <= score["value"] <= score["high"]
    assert "beam 2" in err and "expected calibration error" in err and "most confused: '" in err
    assert all(wanted != read and count > 0 for wanted, read, count in first["confusions"]) and first["confusions"]
    page = report.read_text()
    assert "data:image/jpeg;base64," in page and "&lt;b&gt;7" in page and "<b>7" not in page
    assert "http" not in page, "the page needs nothing from elsewhere"


def holes(folder: Path, images: dict[int, bytes], labels: dict[int, bytes]) -> Path:
    """An LMDB of four lines that lacks some."""
    folder.mkdir()
    with lmdb.open(str(folder), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", b"4")
        for kind, found in (("image", images), ("label", labels)):
            for number, content in found.items():
                transaction.put(f"{kind}-{number:09d}".encode(), content)
    return folder


def png() -> bytes:
    buffer = io.BytesIO()
    tiny.draw("12").save(buffer, "PNG")
    return buffer.getvalue()


SCORES = ("accuracy", "word_accuracy", "sroie_recall")


def test_records_that_are_not_there_are_left_out_of_the_scores(places, tmp_path, capsys):
    data = holes(tmp_path / "holes", {1: png()}, {1: b"definitely wrong"})
    assert run(Config((str(data),), str(places[0]), scores=SCORES, max_tokens=8)) == 1
    out, err = capsys.readouterr()
    (found,) = json.loads(out)["results"]
    assert {score["value"] for score in found["scores"]["holes"].values()} == {0.0}, "nothing read is not nothing written"
    assert (found["lines"], found["unreadable"], found["left_out"]) == (4, 3, 3)
    assert "1 lines" in err and "3 records cannot be read, not scored; the first of holes: record 1" in err


def test_a_broken_image_whose_text_is_known_is_wrong(places, tmp_path, capsys):
    data = holes(tmp_path / "holes", {1: png(), 2: b"broken"}, {1: b"12", 2: b"34", 3: b"56"})
    assert run(Config((str(data),), str(places[0]), scores=("cer",), max_tokens=8)) == 1
    out, err = capsys.readouterr()
    (found,) = json.loads(out)["results"]
    assert (found["unreadable"], found["left_out"]) == (3, 1)
    assert "3 lines" in err and "2 images cannot be read, counted as wrong; the first of holes: image-000000002" in err
    assert found["scores"]["holes"]["cer"]["value"] >= 100 * 4 / 6


def test_a_data_set_of_which_nothing_can_be_read_has_no_scores(places, tmp_path, capsys):
    data = holes(tmp_path / "holes", {}, {})
    assert run(Config((str(data),), str(places[0]), max_tokens=8)) == 1
    assert json.loads(capsys.readouterr().out)["results"][0]["scores"] == {"holes": {}}


@pytest.mark.parametrize(("form", "accuracy"), [(None, 0.0), ("NFC", 100.0)])
def test_accents_apart_from_their_letters_are_told_and_compared_as_asked(tmp_path, capsys, form, accuracy):
    name = "print-3.jpg"
    (tmp_path / name).write_bytes((ROOT / "examples" / name).read_bytes())
    apart = unicodedata.normalize("NFD", EXAMPLES[name])
    (tmp_path / "lines.jsonl").write_text(json.dumps({"file_name": name, "text": apart}), encoding="utf-8")
    assert run(Config((str(tmp_path / "lines.jsonl"),), normalize=form)) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["normalize"], found["results"][0]["scores"]["lines"]["accuracy"]["value"]) == (form, accuracy)
    told = "1 references have accents apart from their letters: --normalize NFC compares them as readers see them"
    assert (f"{told}; the first of lines: {name}" in err) == (form is None)


def test_all_that_is_told_compares_with_the_references_of_the_original_scorer(places, tmp_path, capsys):
    """An end token within a text is none of its signs to the tokenizer."""
    reader, folder = Reader.from_pretrained(str(places[0])), tmp_path / "signs"
    folder.mkdir()
    picture = tiny.draw("12")
    picture.save(folder / "a.png")
    text = reader.read(picture, max_new_tokens=8).text
    (folder / "a.gt.txt").write_text(f"{text}</s>", encoding="utf-8")
    for published, error in ((True, False), (False, True)):
        report = tmp_path / "report.html"
        run(Config((str(folder),), str(places[0]), max_tokens=8, as_published=published, report=report))
        (found,) = json.loads(capsys.readouterr().out)["results"]
        assert (found["scores"]["signs"]["cer"]["value"] > 0) is error
        assert bool(found["confusions"]) is error and ("<figure" in report.read_text()) is error
        assert (found["coverage"][0]["coverage"] == 0) is error


def test_data_sets_of_the_same_name_have_rows_of_their_own(tmp_path):
    lists = [str(tiny.line_folder(tmp_path / name / "valid", count)) for name, count in (("a", 3), ("b", 5))]
    folders = [str(Path(place).parent) for place in lists]
    tasks = evaluate.data_tasks(Config((*folders, folders[0])))
    assert [(task.name, len(task.source)) for task in tasks] == [("a/valid", 3), ("b/valid", 5)], "one twice is one"
    valid = TrainConfig(data=DataConfig(valid=tuple(folders)))
    groups = held_out(valid, ImageProcessor(height=16, width=48))
    assert {name: len(group.texts) for name, group in groups.items()} == {"a/valid": 3, "b/valid": 5}
    assert list(row_names(["x/one.txt", "y/two.csv"])) == ["one", "two"]
    assert list(row_names(["x/all.txt"], ["all"])) == ["all.txt"]
    assert list(row_names(["x/one.txt", "x/one.csv"])) == ["one.txt", "one.csv"]


def test_a_run_that_is_measured_on_lines_unlike_its_own_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr("trocr_jax.train.validation.drawn_lines", lambda *_: {})
    for train, told in ((("mine.csv",), True), (("mine.csv", "synthetic@0.1"), False)):
        held_out(TrainConfig(data=DataConfig(train=train)), ImageProcessor(height=16, width=48))
        assert ("evaluation reads drawn lines: set --data.valid" in capsys.readouterr().err) == told


@pytest.fixture(scope="module")
def font(tmp_path_factory):
    """A folder with Pillow's own font: none needs to be installed."""
    folder, face = tmp_path_factory.mktemp("font"), ImageFont.load_default(12)
    (folder / "plain.ttf").write_bytes(face.font_bytes if isinstance(face, ImageFont.FreeTypeFont) else b"")
    return folder


def test_a_run_and_a_measurement_read_the_same_drawn_lines(font, monkeypatch, tmp_path, capsys):
    """The run those that fit; both ask for fonts that training does not use, and a run may do without."""
    config, processor = SyntheticConfig(fonts=font, held_out_fonts=font, max_squeeze=9.0), ImageProcessor(height=16, width=48)
    monkeypatch.setattr(evaluate, "SyntheticConfig", lambda seed: replace(config, seed=seed))
    measured = {task.name: task.source for task in evaluate.data_tasks(Config(limit=20))}
    lines = drawn_lines(replace(config, seed=evaluate.SEED), processor, 20)
    assert list(lines) == list(measured) == ["clean", "worn", "rough"]
    for level, source in measured.items():
        texts = [source[i].text for i in range(20)]
        assert 0 < len(lines[level].texts) <= 20 and set(lines[level].texts) <= set(texts)
    assert drawn_lines(config, processor, 20)["worn"].texts != lines["worn"].texts, "another seed"
    long = drawn_lines(replace(config, min_length=40), processor, 20)["worn"].texts
    assert np.mean([len(text) for text in long]) > np.mean([len(text) for text in lines["worn"].texts]) + 5
    capsys.readouterr()
    drawn_lines(replace(config, held_out_fonts=tmp_path / "none"), processor, 5)
    assert "none: evaluation draws with the fonts of training" in capsys.readouterr().err


def test_a_squeeze_that_no_line_fits_is_told(font):
    config = SyntheticConfig(fonts=font, held_out_fonts=font, max_squeeze=0.01)
    with pytest.raises(SourceError, match="none of 5 drawn lines of level clean fits: raise --synthetic.max-squeeze"):
        drawn_lines(config, ImageProcessor(height=16, width=48), 5)


def test_a_column_of_numbers_is_no_text(places, tmp_path):
    """12.50 would be 12.5."""
    table = pyarrow.table({"image": [b"x"], "text": [12.5]})
    pyarrow.parquet.write_table(table, tmp_path / "lines.parquet")
    with pytest.raises(SourceError, match="lines.parquet: the column text holds double, not text"):
        run(Config((str(tmp_path / "lines.parquet"),), str(places[0])))
    words = pyarrow.table({"image": [b"x"], "text": pyarrow.array(["a"]).dictionary_encode()})
    pyarrow.parquet.write_table(words, tmp_path / "words.parquet")
    assert open_source(tmp_path / "words.parquet")[0].text == "a"


def test_wrong_calls_are_refused(places):
    model, data = places
    with pytest.raises(SourceError, match="no such file"):
        run(Config(("nowhere",), str(model)))
    with pytest.raises(SourceError, match="holds no part of this benchmark"):
        run(Config((str(data.parent),), str(model), benchmark="str"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": ("bleu",)}, "no score bleu; there are cer, wer"),
        ({"limit": -1}, "--limit must be at least 1"),
        ({"max_tokens": 0}, "--max-tokens, --batch-size and --limit must be at least 1"),
        ({"beams": (1, 0)}, "--beams, --max-tokens"),
        ({"data": ()}, "--data, --scores and --beams need at least one value each"),
        ({"benchmark": "iam"}, "--benchmark iam needs --data with its folder, and nothing else"),
        ({"benchmark": "iam", "data": ("a", "b")}, "and nothing else"),
        ({"benchmark": "iam", "data": ("a",), "scores": ("cer",)}, "leave --scores out"),
        ({"report": Path("/nowhere/report.html")}, "--report /nowhere/report.html: there is no folder /nowhere"),
        ({"report": Path("/")}, "--report /: is a folder"),
    ],
)
def test_flags_that_mean_nothing_are_refused_before_a_model_is_loaded(monkeypatch, changes, message):
    monkeypatch.delattr(Reader, "from_pretrained")
    with pytest.raises(UsageError, match=message):
        run(Config(**changes))


def test_the_json_line_comes_before_the_report_which_may_fail(places, tmp_path, monkeypatch, capsys):
    model, data = places
    monkeypatch.setattr(evaluate, "render", lambda *_: "\ud800")  # stands for a disk that is full by then
    with pytest.raises(ValueError):
        run(Config((str(data),), str(model), max_tokens=8, report=tmp_path / "report.html"))
    assert json.loads(capsys.readouterr().out)["results"]


def test_a_benchmark_finds_its_parts_and_says_when_they_are_not_the_published_ones(places, tmp_path, capsys):
    model, _ = places
    tiny.line_folder(tmp_path / "SVT", 5)
    assert run(Config((str(tmp_path),), str(model), benchmark="str", max_tokens=8)) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["results"][0]["scores"].keys() == {"SVT-647"}
    assert "SVT-647: has 5 lines, the published test set 647" in err and "CT80-288: none of CUTE80" in err


def test_published_numbers_stand_beside_those_of_the_same_size():
    assert {part.name: part.published["large"]["word_accuracy"] for part in BENCHMARKS["str"].parts}["IC15-2077"] == 84.1
    assert BENCHMARKS["iam"].parts[0].published["base"] == {"byte_cer": 3.42} and BENCHMARKS["iam"].scores[0] == "byte_cer"
    assert BENCHMARKS["sroie"].parts[0].published["large"]["sroie_f1"] == 96.58
    assert size_name(tiny.MODEL) == ""
    wide = replace(tiny.MODEL.encoder, hidden_size=768)
    assert size_name(replace(tiny.MODEL, encoder=wide, decoder=replace(tiny.MODEL.decoder, cross_attention_size=768))) == "base"


def test_the_published_number_stands_beside_ours_in_table_and_json(places):
    found, task = result([("abc", "abd"), ("aa", "b")]), Task("s", [], {"cer": 1.5})
    assert "cer 60.00 (33.33 to 100.00) [published 1.50]" in evaluate.table(found, [task])
    reader = Reader.from_pretrained(places[0])
    (row,) = evaluate.summary([found], [task], reader, Config(benchmark="iam"))["results"]
    assert row["scores"]["s"]["cer"] == {"value": 60.0, "low": 33.3333, "high": 100.0, "published": 1.5}
    assert sorted(row["confusions"]) == [["a", "", 1], ["a", "b", 1], ["c", "d", 1]]


def result(pairs: Sequence[tuple[str, str]]) -> Result:
    readings = [Reading("s", f"n{i}", b"", wanted, Line(text=read, confidence=0.5)) for i, (wanted, read) in enumerate(pairs)]
    texts = [[r.line.text for r in readings], [r.reference for r in readings]]
    return Result(1, readings, {"s": metrics.score(["cer"], *texts)}, 1.0)


def test_table_json_and_page_tell_which_lines_to_believe(places):
    """Of a hundred lines the surest is wrong, and the least sure fifty are."""
    lines = [Line(text="a", confidence=1 - i / 100) for i in range(100)]
    readings = [Reading("s", f"n{i}", b"", "b" if i == 0 or i >= 50 else "a", line) for i, line in enumerate(lines)]
    found = Result(1, readings, {}, 1.0)
    (row,) = evaluate.summary([found], [], Reader.from_pretrained(places[0]), Config())["results"]
    assert row["coverage"] == [
        {"risk": 0.01, "confidence": None, "coverage": 0.0},
        {"risk": 0.02, "confidence": 0.51, "coverage": 0.5},
        {"risk": 0.05, "confidence": 0.5, "coverage": 0.51},
    ]
    table, page = evaluate.table(found, []), render([found], [], "m")
    assert "with at most 1% of them wrong: none\n" in table
    assert "with at most 2% of them wrong: those of confidence 0.510 and more, 50.0% of all\n" in table
    assert "<td>1%</td><td>none</td><td>0.0%</td>" in page and "<td>2%</td><td>0.510</td><td>50.0%</td>" in page


def test_the_report_shows_the_worst_lines_first_and_escapes_everything():
    found = result([("abc", "abd"), ("<script>", "xyz"), ("same", "same")])
    page = render([found], [Task("s", [], {"cer": 1.5})], "<m>")
    assert "<script>" not in page and "&lt;m&gt;" in page and "1.50" in page
    assert page.index("s: n1") < page.index("s: n0") and "s: n2" not in page


def test_images_that_cannot_be_read_are_told_in_the_report_and_confuse_no_letters():
    found = result([("abc", "abd")])
    found.readings.append(Reading("s", "gone.png", b"", "xyz", Line.failed("no such file")))
    page = render([found], [Task("s", [], {})], "m")
    assert found.confusions == {("c", "d"): 1}
    assert "1 images cannot be read, counted as wrong; the first of s: gone.png" in page and "<td>s</td><td>2</td>" in page


def test_differences_are_marked():
    assert difference("abd", "abc") == "ab<del>c</del><ins>d</ins>"
    assert difference("a<", "a") == "a<ins>&lt;</ins>"
    assert difference("", "xy") == "<del>xy</del>"
