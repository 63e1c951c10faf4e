"""A labelled line, and what every format of data sets needs to find one: columns, boxes, files that stay in their folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from trocr_jax import images

TEXT_COLUMNS = ("text", "label", "transcription", "ground_truth", "words")


class SourceError(ValueError):
    """A data set or a record of it that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Record:
    """A line: `image` is anything that `images.load` takes, `name` says where it came from.

    Raises:
        SourceError: its text is more than one line, which no model of lines can read.
    """

    image: Any
    text: str
    name: str

    def __post_init__(self) -> None:
        if "\n" in self.text or "\r" in self.text:
            raise SourceError(f"{self.name}: its text has a line break")


class Source(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record:
        """Raises ValueError, OSError or KeyError where the record is broken."""
        ...


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


def row_names(places: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Name of a table's row -> data set: as few of the last parts of the paths as tell all of them apart.

    Args:
        taken: names of other rows.
    """
    paths = {Path(place).expanduser().absolute(): place for place in places}
    most = max((len(path.parts) for path in paths), default=0)
    choices = [[path.stem for path in paths], *(["/".join(path.parts[-n:]) for path in paths] for n in range(1, most + 1))]
    names = next(names for names in choices if len(set(names)) == len(paths) and not set(taken) & set(names))
    return dict(zip(names, paths.values(), strict=True))


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
