"""Labelled lines on disk, in the formats that people have, each behind `len(source)` and `source[i]`.

A source reads nothing but what an index asks for, works from several threads, and leaves judging to its reader: a record may
have an empty label, an image that does not open, a name that points outside the data set. `open_source` finds the format:

    gt_train.txt                file<TAB>text, images in `image/` beside it or beside it (unilm's STR and Receipt53K types)
    folder of .gt.txt           the text of the image beside it, x.png with x.gt.txt (tesstrain, kraken), folders below too
    folder of .jpg with .txt    eight corner coordinates, then the text (SROIE task 2); boxes are cut out
    folder with data.mdb        LMDB: num-samples, image-%09d, label-%09d (scene text benchmarks)
    folder with metadata.jsonl  file_name and text (image folder of the datasets library); also metadata.csv
    .csv .tsv .jsonl            a column for the file and one for the text
    .parquet, folder of them    a column of images (bytes, or {bytes, path}) and one of texts
    folder of .xml              PAGE or ALTO; lines are cut out of the page images
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trocr_jax.containers import FILE_COLUMNS
from trocr_jax.image_paths import natural

from . import containers, page_xml
from .records import TEXT_COLUMNS, Crops, Record, Source, SourceError, column, inside, read_text

_QUOTED = r'"((?:[^"]|"")*+)"'
_CELL = rf'(?:{_QUOTED}|[^"\t]*+)'
TRANSCRIPT = ".gt.txt"
TABLES = (".csv", ".tsv", ".jsonl")
BINARIZED = (".bin.png", ".nrm.png")  # as OCRopus calls what it made of the photograph
PHOTOS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")


def open_source(place: str | Path) -> Source:
    """The data set at a path.

    Raises:
        SourceError: nothing there, no known format, or no records.
    """
    path = Path(place).expanduser()
    source = _open(path)
    if not len(source):
        raise SourceError(f"{path}: holds no lines")
    return source


def _open(path: Path) -> Source:
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise SourceError(f"{path}: no such file or directory")
    if (path / "data.mdb").exists():
        return containers.Lmdb(path)
    for name in ("metadata.jsonl", "metadata.csv"):
        if (path / name).exists():
            return table(path / name)
    if parts := sorted(path.glob("*.parquet"), key=natural):
        return containers.Parquet(parts)
    if texts := sorted(path.rglob(f"*{TRANSCRIPT}"), key=natural):
        return Transcripts(path, [text.relative_to(path) for text in texts])
    if lists := sorted(path.glob("gt_*.txt")):
        if len(lists) > 1:
            raise SourceError(f"{path}: name one of {', '.join(file.name for file in lists)}")
        return tab_separated(lists[0])
    if pages := sorted(path.glob("*.xml"), key=natural):
        return page_xml.lines(pages)
    if boxes := [p for p in sorted(path.iterdir(), key=natural) if p.suffix.lower() in PHOTOS and p.with_suffix(".txt").exists()]:
        return sroie(boxes)
    if tables := sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in TABLES):
        raise SourceError(f"{path}: a table of lines is named itself: {path / tables[0]}")
    known = "metadata.jsonl or .csv, .parquet, .gt.txt, gt_*.txt, .jpg with .txt (SROIE), LMDB, PAGE or ALTO"
    raise SourceError(f"{path}: holds no data set that is known: {known}; docs/tutorial.md tells more")


def _open_file(path: Path) -> Source:
    kind = path.suffix.lower()
    if kind in TABLES:
        return table(path)
    if kind == ".parquet":
        return containers.Parquet([path])
    if kind == ".txt":
        return tab_separated(path)
    raise SourceError(f"{path}: not a data set; expected .csv, .tsv, .jsonl, .parquet or .txt")


class Files:
    """Images in files below a folder, with their texts.

    A name that leads out of the folder, by `..`, as an absolute path or through a link, is refused when it is asked for.
    """

    def __init__(self, root: Path, rows: Sequence[tuple[str, str | None]]):
        self.root, self.rows = root.resolve(), rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        file, text = self.rows[index]
        if text is None:
            raise SourceError(f"{file or 'a row without a file'}: has no text")
        return Record(inside(self.root, file), text, file)


class Transcripts:
    """Images of a line below a folder, with the text in a file beside each: `x.gt.txt` for `x.png`, `x.bin.png`, `x.tif`, ...

    Neither may lie elsewhere, as for `Files`.
    """

    def __init__(self, root: Path, texts: list[Path]):
        self.root, self.texts = root.resolve(), texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Record:
        text = self.texts[index]
        names = [str(text).removesuffix(TRANSCRIPT) + end for end in (*PHOTOS, *BINARIZED)]
        name = next((name for name in names if (self.root / name).exists()), names[0])  # the reader says that it is not there
        return Record(inside(self.root, name), read_text(inside(self.root, str(text))).strip(), name)


def tab_separated(path: Path) -> Files:
    """unilm's `file<TAB>text`; trailing blanks are cut as the original does."""
    rows = [line.rstrip().partition("\t") for line in read_text(path).split("\n") if line.strip()]
    folder = path.parent / "image"
    return Files(folder if folder.is_dir() else path.parent, [(file, text) for file, _, text in rows])


def sroie(photos: list[Path]) -> Crops:
    """Every line of a `.txt` is eight coordinates and the text, which may hold commas itself; the crop is the box around them."""
    rows = []
    for photo in photos:
        for number, line in enumerate(read_text(photo.with_suffix(".txt")).split("\n"), 1):
            *corners, text = line.rstrip().split(",", 8)
            if not line.strip():
                continue
            if len(corners) < 8 or not all(re.fullmatch(r"\s*-?\d{1,9}\s*", corner) for corner in corners):
                raise SourceError(f"{photo.with_suffix('.txt')}, line {number}: expected eight coordinates and a text")
            across, down = [int(x) for x in corners[::2]], [int(y) for y in corners[1::2]]
            rows.append((photo, (min(across), min(down), max(across), max(down)), text))
    return Crops([row for row in rows if row[1][0] < row[1][2] and row[1][1] < row[1][3]])


def table(path: Path) -> Files:
    """A table with a header, or JSON lines: one column names the file, relative to the table's folder, one holds the text.

    Raises:
        SourceError: a row has more or fewer cells than the header, or one whose text no line can have, with its number.
    """
    rows = _json_lines(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    if not rows:
        return Files(path.parent, [])
    file, text = (column(rows[0][1], names, path) for names in (FILE_COLUMNS, TEXT_COLUMNS))
    return Files(path.parent, [(_cell(row, file, place) or "", _cell(row, text, place)) for place, row in rows])


def _cell(row: dict[str, Any], name: str, place: str) -> str | None:
    """The text of a cell; None where there is none, which is no empty text."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise SourceError(f"{place}: {name} is {value!r:.40}, neither text nor a number")
    return value


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Rows by column, each with its place."""
    text = read_text(path)
    commas = path.suffix.lower() == ".csv"
    quoting = csv.QUOTE_MINIMAL if commas or _is_quoted(text) else csv.QUOTE_NONE
    if commas and ";" in (header := text.partition("\n")[0]) and "," not in header:
        raise SourceError(f"{path}: its cells are parted by semicolons; save it with commas, or as .tsv with tabs")
    reader = csv.reader(io.StringIO(text), delimiter="," if commas else "\t", quoting=quoting, strict=True)
    rows, number = [], 1
    try:
        for cells in reader:
            rows += [(f"{path}, line {number}", cells)] if cells else []
            number = reader.line_num + 1
    except csv.Error as error:
        raise SourceError(f"{path}, line {number}: {error}") from None
    return [(place, _by_column(rows[0][1], cells, place)) for place, cells in rows[1:]]


def _is_quoted(text: str) -> bool:
    """Whether the quotation marks of a .tsv are the format's, as spreadsheets write them, or the texts'.

    They are the format's where all stand around whole cells and double inside, if the header has them or a cell needs them.
    """
    lines = text.split("\n")
    needing = ('""' in cell or "\t" in cell for line in lines for cell in re.findall(_QUOTED, line))
    return all(re.fullmatch(rf"{_CELL}(?:\t{_CELL})*+", line) for line in lines) and ('"' in lines[0] or any(needing))


def _by_column(header: list[str], cells: list[str], place: str) -> dict[str, str]:
    if any("\n" in cell for cell in cells):
        raise SourceError(f"{place}: a cell with a line break; is a quotation mark missing?")
    if len(cells) != len(header):
        raise SourceError(f"{place}: has {len(cells)} cells, the header {len(header)}")
    return dict(zip(header, cells, strict=True))


def _json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Objects, each with its place; numbers as they are written: the picture of 9.00 does not show 9.0."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                rows.append((place, json.loads(line, parse_int=str, parse_float=str)))
            except (ValueError, RecursionError):
                raise SourceError(f"{place}: not valid JSON") from None
            if not isinstance(rows[-1][1], dict):
                raise SourceError(f"{place}: not a JSON object")
    return rows
