"""Labelled lines on disk, in the formats that people have, each behind `len(source)` and `source[i]`.

A source reads nothing but what an index asks for, works from several threads, and leaves judging to its reader: a record may
have an empty label, an image that does not open, a name that points outside the data set. `open_source` finds the format:

    gt_train.txt                file<TAB>text, images in `image/` beside it or beside it (unilm's STR and Receipt53K types)
    folder of .jpg with .txt    eight corner coordinates, then the text (SROIE task 2); boxes are cut out
    folder with data.mdb        LMDB: num-samples, image-%09d, label-%09d (scene text benchmarks)
    folder with metadata.jsonl  file_name and text (image folder of the datasets library); also metadata.csv
    .csv .tsv .jsonl            a column for the file and one for the text
    .parquet, folder of them    a column of images (bytes, or {bytes, path}) and one of texts
    folder of .xml              PAGE or ALTO; lines are cut out of the page images
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from trocr_jax import images

FILE_COLUMNS = ("file_name", "file", "filename", "path", "image", "image_path")
TEXT_COLUMNS = ("text", "label", "transcription", "ground_truth", "words")
PHOTOS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")


class SourceError(ValueError):
    """A data set or a record of it that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Record:
    """A line: `image` is anything that `images.load` takes, `name` says where it came from."""

    image: Any
    text: str
    name: str


class Source(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record:
        """Raises ValueError, OSError or KeyError where the record is broken."""
        ...


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
    from . import containers, page_xml

    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        raise SourceError(f"{path}: no such file or directory")
    if (path / "data.mdb").exists():
        return containers.Lmdb(path)
    for name in ("metadata.jsonl", "metadata.csv"):
        if (path / name).exists():
            return table(path / name)
    if parts := sorted(path.glob("*.parquet")):
        return containers.Parquet(parts)
    if lists := sorted(path.glob("gt_*.txt")):
        if len(lists) > 1:
            raise SourceError(f"{path}: name one of {', '.join(file.name for file in lists)}")
        return tab_separated(lists[0])
    if pages := sorted(path.glob("*.xml"), key=natural):
        return page_xml.lines(pages)
    if boxes := [p for p in sorted(path.iterdir(), key=natural) if p.suffix.lower() in PHOTOS and p.with_suffix(".txt").exists()]:
        return sroie(boxes)
    raise SourceError(f"{path}: no data set format recognised; see the list in train/sources.py")


def _open_file(path: Path) -> Source:
    from . import containers

    if path.suffix in (".csv", ".tsv", ".jsonl"):
        return table(path)
    if path.suffix == ".parquet":
        return containers.Parquet([path])
    if path.suffix == ".txt":
        return tab_separated(path)
    raise SourceError(f"{path}: not a data set; expected .csv, .tsv, .jsonl, .parquet or .txt")


class Files:
    """Images in files below a folder, with their texts.

    A name that leads out of the folder, by `..`, as an absolute path or through a link, is refused when it is asked for.
    """

    def __init__(self, root: Path, rows: list[tuple[str, str]]):
        self.root, self.rows = root.resolve(), rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        file, text = self.rows[index]
        return Record(inside(self.root, file), text, file)


class Crops:
    """Boxes (left, top, right, bottom) in page images, with their texts."""

    def __init__(self, rows: list[tuple[Path, tuple[int, int, int, int], str]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        path, box, text = self.rows[index]
        name = f"{path.name} at {','.join(map(str, box))}"
        return Record(crop(images.load(path), box), text, name)


def crop(page: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The part of the box that lies on the page.

    Raises:
        SourceError: nothing of it does.
    """
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], page.width), min(box[3], page.height)
    if right <= left or bottom <= top:
        raise SourceError(f"the box {box} has no area on the page of {page.width} x {page.height}")
    return page.crop((left, top, right, bottom))


def inside(root: Path, name: str) -> Path:
    """root/name, refused when it lies elsewhere.

    Raises:
        SourceError: it does.
    """
    try:
        path = (root / name).resolve()
    except (ValueError, OSError, RuntimeError):  # a NUL, a loop of links
        raise SourceError(f"{name!a} is not a file name") from None
    if not path.is_relative_to(root):
        raise SourceError(f"{name!a} lies outside the data set's folder")
    return path


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
            rows.append((photo, bounds(zip(map(int, corners[::2]), map(int, corners[1::2]), strict=True)), text))
    return Crops([row for row in rows if row[1][0] < row[1][2] and row[1][1] < row[1][3]])


def bounds(points: Iterable[tuple[int, int]]) -> tuple[int, int, int, int]:
    """The box around points: left, top, right, bottom."""
    across, down = zip(*points, strict=True)
    return min(across), min(down), max(across), max(down)


def table(path: Path) -> Files:
    """A table with a header, or JSON lines: one column names the file, relative to the table's folder, one holds the text."""
    rows = _json_lines(path) if path.suffix == ".jsonl" else _csv_rows(path)
    if not rows:
        return Files(path.parent, [])
    file, text = (column(rows[0], names, path) for names in (FILE_COLUMNS, TEXT_COLUMNS))
    return Files(path.parent, [(str(row.get(file, "")), str(row.get(text) or "")) for row in rows])


def column(names: Iterable[str], wanted: tuple[str, ...], path: Path) -> str:
    """The first of the wanted names that a table has.

    Raises:
        SourceError: it has none of them.
    """
    names = list(names)
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise SourceError(f"{path}: has the columns {', '.join(names)}; expected one of {', '.join(wanted)}")
    return found


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
        except (csv.Error, UnicodeDecodeError):
            raise SourceError(f"{path}: not a table in UTF-8") from None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError):
                raise SourceError(f"{path}, line {number}: not valid JSON") from None
            if not isinstance(rows[-1], dict):
                raise SourceError(f"{path}, line {number}: not a JSON object")
    return rows


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        SourceError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SourceError(f"{path}: not UTF-8") from None


def natural(path: Path) -> list[Any]:
    """A sorting key by which page 2 comes before page 10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]
