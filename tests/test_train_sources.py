"""Data sets in every format people have them in, and what is wrong with some of them."""

import csv
import io
import json
from pathlib import Path

import lmdb
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
from PIL import Image

from trocr_jax import images
from trocr_jax.train.sets.records import SourceError
from trocr_jax.train.sets.sources import open_source

TEXTS = ["one", "two 2", "drei, vier"]


def png(text: str) -> bytes:
    buffer = io.BytesIO()
    tiny.draw(text).save(buffer, "PNG")
    return buffer.getvalue()


def files(folder, names=("a.png", "b.png", "c.png")):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, TEXTS, strict=True):
        (folder / name).write_bytes(png(text))
    return list(zip(names, TEXTS, strict=True))


def unilm_str(folder):
    rows = files(folder / "image")
    (folder / "gt_train.txt").write_text("".join(f"{name}\t{text}  \n" for name, text in rows))
    return folder / "gt_train.txt"


def unilm_receipt(folder):
    rows = files(folder / "crops")
    (folder / "gt_train.txt").write_text("".join(f"crops/{name}\t{text}\n" for name, text in rows))
    return folder


def image_folder(folder):
    rows = files(folder)
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in rows))
    return folder


def table(folder, suffix, delimiter, header=("path", "label")):
    rows = files(folder)
    with open(folder / f"lines{suffix}", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return folder / f"lines{suffix}"


def lmdb_folder(folder):
    environment = lmdb.open(str(folder), map_size=1 << 20)
    with environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", b"3")
        for number, text in enumerate(TEXTS, 1):
            transaction.put(f"image-{number:09d}".encode(), png(text))
            transaction.put(f"label-{number:09d}".encode(), text.encode())
    environment.close()
    return folder


def parquet(folder, struct=True):
    folder.mkdir()
    cells = [{"bytes": png(t), "path": None} if struct else png(t) for t in TEXTS]
    for part, (start, stop) in enumerate([(0, 2), (2, 3)]):
        rows = pyarrow.table({"image": cells[start:stop], "text": TEXTS[start:stop]})
        pyarrow.parquet.write_table(rows, folder / f"part-{part}.parquet", row_group_size=1)
    return folder


def page_of(texts) -> Image.Image:
    page = Image.new("RGB", (120, 80), (250, 250, 250))
    for row, text in enumerate(texts):
        page.paste(tiny.draw(text), (10, 4 + 24 * row))
    return page


def boxes():
    return [(10, 4 + 24 * row, 10 + tiny.draw(text).width, 20 + 24 * row) for row, text in enumerate(TEXTS)]


def transcripts(folder):
    """In folders below, and a picture that OCRopus made black and white."""
    rows = files(folder / "book", ("1.png", "2.bin.png", "10.tif"))
    for name, text in rows:
        (folder / "book" / f"{name.partition('.')[0]}.gt.txt").write_text(f"{text}\n")
    return folder


def sroie(folder):
    folder.mkdir()
    page_of(TEXTS).save(folder / "X00.png")
    lines = [f"{a},{b},{c},{b},{c},{d},{a},{d},{t}" for (a, b, c, d), t in zip(boxes(), TEXTS, strict=True)]
    lines.insert(1, "5,5,5,5,5,5,5,5,no area")
    (folder / "X00.txt").write_text("\r\n".join(lines) + "\r\n")
    return folder


def page_xml(folder):
    folder.mkdir()
    page_of(TEXTS).save(folder / "p1.png")
    lines = "".join(
        f'<TextLine id="l{i}"><Coords points="{a},{b} {c},{b} {c},{d} {a},{d}"/>'
        "<Word><TextEquiv><Unicode>word</Unicode></TextEquiv></Word>"
        f"<TextEquiv><Unicode>{t}</Unicode></TextEquiv></TextLine>"
        for i, ((a, b, c, d), t) in enumerate(zip(boxes(), TEXTS, strict=True))
    )
    space = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"
    (folder / "p1.xml").write_text(f'<PcGts xmlns="{space}"><Page imageFilename="scans/p1.png">{lines}</Page></PcGts>')
    return folder


def alto(folder, head="", place=None, unit="pixel"):
    folder.mkdir()
    page_of(TEXTS).save(folder / "p1.png")
    lines = "".join(
        f'<TextLine HPOS="{place or a}" VPOS="{b}.0" WIDTH="{c - a}" HEIGHT="{d - b}">'
        + '<SP WIDTH="3"/>'.join(f'<String CONTENT="{w}"/>' for w in t.split())
        + "</TextLine>"
        for (a, b, c, d), t in zip(boxes(), TEXTS, strict=True)
    )
    name = "<sourceImageInformation><fileName>p1.png</fileName></sourceImageInformation>"
    name = f"<Description><MeasurementUnit>{unit}</MeasurementUnit>{name}</Description>"
    space = "http://www.loc.gov/standards/alto/ns-v4#"
    layout = f"<Layout><Page><PrintSpace>{lines}</PrintSpace></Page></Layout>"
    (folder / "p1.xml").write_text(f'{head}<alto xmlns="{space}">{name}{layout}</alto>')
    return folder


MAKERS = {
    "unilm STR": unilm_str,
    "unilm Receipt53K": unilm_receipt,
    "image folder": image_folder,
    "csv": lambda folder: table(folder, ".csv", ","),
    "tsv": lambda folder: table(folder, ".tsv", "\t", ("image", "text")),
    "lmdb": lmdb_folder,
    "parquet structs": parquet,
    "parquet bytes": lambda folder: parquet(folder, struct=False),
    "tesstrain": transcripts,
    "sroie": sroie,
    "page": page_xml,
    "alto": alto,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_format_gives_the_same_lines(kind, tmp_path):
    source = open_source(MAKERS[kind](tmp_path / "data"))
    assert len(source) == 3
    for index in (2, 0, 1):
        record = source[index]
        assert record.text == TEXTS[index] and record.name
        np.testing.assert_array_equal(np.asarray(images.load(record.image)), np.asarray(tiny.draw(TEXTS[index])))


def test_a_line_of_alto_may_have_a_polygon_alone_and_one_without_a_place_is_left_out(tmp_path):
    folder = alto(tmp_path / "data")
    (a, b, c, d), *_ = boxes()
    shape = f'<TextLine><Shape><Polygon POINTS="{a}.0,{b}.0 {c}.0,{b}.0 {c}.0,{d}.0 {a}.0,{d}.0"/></Shape>'
    lines = f'{shape}<String CONTENT="{TEXTS[0]}"/></TextLine><TextLine><String CONTENT="nowhere"/></TextLine>'
    (folder / "p1.xml").write_text(f"<alto><fileName>p1.png</fileName>{lines}</alto>")
    source = open_source(folder)
    assert len(source) == 1 and source[0].text == TEXTS[0]
    np.testing.assert_array_equal(np.asarray(images.load(source[0].image)), np.asarray(tiny.draw(TEXTS[0])))


def test_pages_are_in_natural_order_whatever_their_names_are(tmp_path):
    folder = page_xml(tmp_path / "data")
    for name in ("²1", "p10", "p2"):
        (folder / f"{name}.xml").write_text((folder / "p1.xml").read_text().replace("<Unicode>one<", f"<Unicode>{name}<"))
    source = open_source(folder)
    assert [source[i].text for i in range(0, len(source), len(source) // 4)] == ["one", "p2", "p10", "²1"]


def test_of_several_readings_in_page_the_lowest_counts_and_words_make_a_line(tmp_path, capsys):
    folder, place = page_xml(tmp_path / "data"), '<Coords points="1,1 9,1 9,9 1,9"/>'
    reading = "<TextEquiv{}><Unicode>{}</Unicode></TextEquiv>".format
    lines = [
        place + reading(' index="1"', "second") + reading(' index="0"', "first"),
        place + reading(' index="1"', "guess") + reading("", "told"),
        place + "".join(f"<Word>{reading('', word)}</Word>" for word in ("two", "", "words")) + reading("", ""),
        place,
        place + reading("", " "),
        reading("", "nowhere"),
    ]
    page = "".join(f"<TextLine>{line}</TextLine>" for line in lines)
    (folder / "p1.xml").write_text(f'<PcGts><Page imageFilename="p1.png">{page}</Page></PcGts>')
    source = open_source(folder)
    assert [source[i].text for i in range(len(source))] == ["first", "told", "two words"]
    assert capsys.readouterr().err == f"{folder}: 2 without a text and 1 without a place of 6 lines left out\n"


def test_a_hyphen_of_alto_ends_its_word(tmp_path):
    folder = alto(tmp_path / "data")
    content = (folder / "p1.xml").read_text()
    (folder / "p1.xml").write_text(content.replace('<String CONTENT="2"/>', '<String CONTENT="frag"/><HYP CONTENT="-"/>'))
    assert open_source(folder)[1].text == "two frag-"


QUOTED = {  # a .tsv and its labels
    "of texts": ('file\ttext\na.png\t"\nb.png\t"Yes"\nc.png\t"a" or 5"', ['"', '"Yes"', '"a" or 5"']),
    "around quotation marks": ('file\ttext\na.png\t"""Yes"""\nb.png\tno\n', ['"Yes"', "no"]),
    "around a tab": ('file\ttext\r\na.png\t"a\tb"\r\n\r\nb.png\tno\r\n', ["a\tb", "no"]),
    "around everything": ('"file"\t"text"\n"a.png"\t"Yes"\n"b.png"\t""\n', ["Yes", ""]),
}


def test_a_transcript_that_is_a_link_to_elsewhere_is_refused_and_one_without_an_image_names_it(tmp_path):
    folder = transcripts(tmp_path / "data")
    (tmp_path / "secret").write_text("secret")
    (folder / "book" / "1.gt.txt").unlink()
    (folder / "book" / "1.gt.txt").symlink_to(tmp_path / "secret")
    (folder / "book" / "2.bin.png").unlink()
    source = open_source(folder)
    with pytest.raises(SourceError, match="outside the data set"):
        source[0]
    assert source[1].name == "book/2.jpg" and not source[1].image.exists()


@pytest.mark.parametrize("kind", QUOTED)
def test_quotation_marks_of_a_tsv_are_the_texts_or_the_formats(kind, tmp_path):
    content, labels = QUOTED[kind]
    (tmp_path / "lines.tsv").write_text(content)
    assert [text for _, text in open_source(tmp_path / "lines.tsv").rows] == labels


def test_numbers_of_json_are_texts_as_they_are_written(tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"file": 1, "text": 0}\n{"file": "2", "text": 9.00}\n{"file": "3", "text": null}\n')
    source = open_source(tmp_path / "lines.jsonl")
    assert source.rows == [("1", "0"), ("2", "9.00"), ("3", None)]
    with pytest.raises(SourceError, match="3: has no text"):
        source[2]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link.png", "a\0.png", "loop.png"])
def test_names_that_lead_out_of_the_folder_are_refused(name, tmp_path):
    folder = tmp_path / "data"
    files(folder)
    (tmp_path / "secret.png").write_bytes(png("secret"))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "lines.jsonl").write_text(json.dumps({"file_name": name, "text": "x"}) + "\n")
    source = open_source(folder / "lines.jsonl")
    with pytest.raises(ValueError):
        images.load(source[0].image)


def test_a_folder_that_is_itself_a_link_is_fine(tmp_path):
    image_folder(tmp_path / "real")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert open_source(tmp_path / "linked")[0].text == "one"


def written(folder, suffix, content):
    folder.mkdir()
    (folder / f"metadata.{suffix}").write_text(content)
    return folder / f"metadata.{suffix}"


def reworded(folder, old, new):
    xml = page_xml(folder) / "p1.xml"
    xml.write_text(xml.read_text().replace(old, new))


BROKEN = {
    "nothing there": (lambda f: None, "no such file or directory"),
    "empty folder": (lambda f: f.mkdir(), "holds no data set that is known"),
    "empty list": (lambda f: (f.mkdir(), (f / "gt_a.txt").write_text("\n")), "holds no lines"),
    "two lists": (lambda f: (f.mkdir(), (f / "gt_a.txt").touch(), (f / "gt_b.txt").touch()), "name one of gt_a.txt, gt_b.txt"),
    "no text column": (lambda f: (f.mkdir(), (f / "metadata.csv").write_text("file,words_\na.png,x\n")), "expected one of text"),
    "broken json": (lambda f: (f.mkdir(), (f / "metadata.jsonl").write_text('{"text": 1\n')), "line 1: not valid JSON"),
    "not objects": (lambda f: (f.mkdir(), (f / "metadata.jsonl").write_text("[1]\n")), "line 1: not a JSON object"),
    "a list": (lambda f: written(f, "jsonl", '{"file": "a", "text": ""}\n{"file": "b", "text": ["y"]}'), "line 2: text is .'y'."),
    "a truth": (lambda f: written(f, "jsonl", '{"file": "a", "text": true}'), "line 1: text is True, neither"),
    "a cell too many": (lambda f: written(f, "csv", "file,text\na,x\nb,y, z\n"), "csv, line 3: has 3 cells, the header 2"),
    "a cell too few": (lambda f: written(f, "tsv", "file\ttext\na\tx\nb\n"), "tsv, line 3: has 1 cells, the header 2"),
    "a line break": (lambda f: written(f, "csv", 'file,text\na,x\nb,"y\nz"\nc,x\n'), "line 3: a cell with a line break"),
    "a lone quote": (lambda f: written(f, "csv", 'file,text\na,"x\nb,y\n'), "line 2: unexpected end of data"),
    "not UTF-8": (lambda f: (f.mkdir(), (f / "gt_a.txt").write_bytes(b"a.png\t\xff\n")), "not UTF-8"),
    "corners": (lambda f: (sroie(f), (f / "X00.txt").write_text("1,2,3,text\n")), "line 1: expected eight coordinates"),
    "a document type": (lambda f: (page_xml(f), (f / "p1.xml").write_text("<!DOCTYPE a><PcGts/>")), "document type"),
    "no page image": (lambda f: (page_xml(f), (f / "p1.png").unlink()), "not beside it"),
    "broken xml": (lambda f: (page_xml(f), (f / "p1.xml").write_text("<PcGts>")), "not well-formed"),
    "no encoding": (lambda f: alto(f, '<?xml version="1.0" encoding="foo"?>'), "p1.xml: .*encoding"),
    "no index": (lambda f: reworded(f, "<TextEquiv>", '<TextEquiv index="x">'), "the index of a TextEquiv is 'x', not a number"),
    "no number": (lambda f: alto(f, place="NaN"), "p1.xml: HPOS.*'NaN', not a number of pixels"),
    "infinite": (lambda f: alto(f, place="1e999"), "'1e999', not a number of pixels"),
    "tenths of millimetres": (lambda f: alto(f, unit="mm10"), "p1.xml: .*measures in 'mm10'"),
    "no parquet": (lambda f: (f.mkdir(), (f / "a.parquet").write_bytes(b"PAR1")), "not a parquet file"),
    "not a data set": (lambda f: f.write_text(""), "not a data set"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_one_line(case, tmp_path):
    make, message = BROKEN[case]
    place = tmp_path / "data"
    found = make(place)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(found if isinstance(found, Path) else place)
    assert "\n" not in str(caught.value)


def test_a_text_of_several_lines_is_told_with_its_record(tmp_path):
    """As of a table's cell; here the other records are of use."""
    (tmp_path / "one.gt.txt").write_text("a\nb")
    (tmp_path / "two.gt.txt").write_text("a\n")
    source = open_source(tmp_path)
    with pytest.raises(SourceError, match="one.jpg: its text has a line break"):
        source[0]
    assert source[1].text == "a"


def test_damaged_lmdb_and_missing_rows(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(SourceError, match="not an LMDB of lines"):
        open_source(folder)
    source = open_source(lmdb_folder(tmp_path / "good"))
    source.count = 4
    with pytest.raises(SourceError, match="image-000000004"):
        source[3]
    cut = lmdb_folder(tmp_path / "cut") / "data.mdb"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(SourceError, match="data.mdb was cut off"):
        open_source(cut.parent)


def test_tables_that_spreadsheets_write_are_found_or_told_how_to_be(tmp_path):
    (tmp_path / "LINES.CSV").write_text("file,text\na.png,one\n")
    assert open_source(tmp_path / "LINES.CSV").rows == [("a.png", "one")]
    with pytest.raises(SourceError, match="a table of lines is named itself: .*LINES.CSV"):
        open_source(tmp_path)
    (tmp_path / "excel.csv").write_text("file;text\na.png;one, two\n")
    with pytest.raises(SourceError, match="its cells are parted by semicolons; save it with commas"):
        open_source(tmp_path / "excel.csv")
