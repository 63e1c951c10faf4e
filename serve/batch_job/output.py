"""What a batch job writes: a row an image, as JSON lines or parquet, and the counts of a unit."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from trocr_jax.line import Line
from trocr_jax.pages.formats import Page, with_boxes

Format = Literal["jsonl", "parquet"]


def row(name: str, line: Line) -> dict[str, Any]:
    """A line as it is stored."""
    return {"id": _valid(name), **_line(line)}


def page_row(name: str, page: Page | Line) -> dict[str, Any]:
    """A page as it is stored, with its lines in reading order; a Line where it could not be read."""
    if isinstance(page, Line):
        return {"id": _valid(name), "width": None, "height": None, "lines": [], "error": page.error}
    lines = [with_boxes(found, _line(found.line)) for found in page.lines]
    return {"id": _valid(name), "width": page.width, "height": page.height, "lines": lines, "error": None}


def _line(line: Line) -> dict[str, Any]:
    """What is stored of a line, with probabilities to six digits."""
    words = tuple(replace(word, confidence=_six(word.confidence)) for word in line.words)
    rounded = replace(line, confidence=_six(line.confidence), words=words)
    return rounded.to_dict("text", "confidence", "finish_reason", "words", "flags", "error")


def _valid(name: str) -> str:
    """A file's name as text that can be stored: it may hold bytes that are no valid text."""
    return name.encode("utf-8", "backslashreplace").decode()


def encode(rows: Sequence[dict[str, Any]], form: Format, pages: bool) -> bytes:
    """A part's content: the same rows give the same bytes."""
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table(rows, pages), buffer, compression="zstd")
    return buffer.getvalue()


def table(rows: Sequence[dict[str, Any]], pages: bool = False) -> Any:
    """Rows as a pyarrow table whose types do not depend on them."""
    import pyarrow as pa

    box = ("box", pa.list_(pa.int32()))
    word = [("text", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("confidence", pa.float64())]
    words = ("words", pa.list_(pa.struct([*word, box] if pages else word)))
    line = [
        ("text", pa.string()), ("confidence", pa.float64()), ("finish_reason", pa.string()), words,
        ("flags", pa.list_(pa.string())), ("error", pa.string()),
    ]  # fmt: skip
    placed = pa.struct([*line, box, ("polygon", pa.list_(pa.list_(pa.int32())))])
    page = [("width", pa.int32()), ("height", pa.int32()), ("lines", pa.list_(placed)), ("error", pa.string())]
    return pa.Table.from_pylist(list(rows), schema=pa.schema([("id", pa.string()), *(page if pages else line)]))


def kind(error: str) -> str:
    """An error's text without what is particular to one image, for counting."""
    return error.partition(" (")[0]


def count(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A unit's counts: images, lines in them, errors by kind, and what lines are flagged with; "length" where tokens ran out."""
    lines = [line for row in rows for line in row.get("lines", [row])]
    found = Counter(kind(error) for row in rows for error in errors(row))
    flags = Counter(flag for line in lines for flag in (*line["flags"], *["length"] * (line["finish_reason"] == "length")))
    return {"images": len(rows), "lines": len(lines), "errors": dict(found), "flags": dict(flags)}


def errors(row: dict[str, Any]) -> list[str]:
    """The errors of a row: the image's own, and those of the lines of a page."""
    return [part["error"] for part in (row, *row.get("lines", ())) if part["error"]]


def _six(probability: float) -> float:
    return float(f"{probability:.6g}")
