"""What a batch job writes: a row a line, as JSON lines or parquet, and the counts of a unit."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from trocr_jax.line import Line

Format = Literal["jsonl", "parquet"]


def row(name: str, line: Line) -> dict[str, Any]:
    """A line as it is stored. Probabilities are kept to six digits."""
    words = [{"text": w.text, "start": w.start, "end": w.end, "confidence": _six(w.confidence)} for w in line.words]
    return {
        "id": name.encode("utf-8", "backslashreplace").decode(),  # a file's name may be no valid text
        "text": line.text, "confidence": _six(line.confidence), "finish_reason": line.finish_reason, "words": words,
        "flags": list(line.flags), "error": line.error,
    }  # fmt: skip


def encode(rows: Sequence[dict[str, Any]], form: Format) -> bytes:
    """A part's content: the same rows give the same bytes."""
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table(rows), buffer, compression="zstd")
    return buffer.getvalue()


def table(rows: Sequence[dict[str, Any]]) -> Any:
    """Rows as a pyarrow table whose types do not depend on them."""
    import pyarrow as pa

    word = pa.struct([("text", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("confidence", pa.float64())])
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.string()),
            ("confidence", pa.float64()),
            ("finish_reason", pa.string()),
            ("words", pa.list_(word)),
            ("flags", pa.list_(pa.string())),
            ("error", pa.string()),
        ]  # fmt: skip
    )
    return pa.Table.from_pylist(list(rows), schema=schema)


def kind(error: str) -> str:
    """An error without what is particular to one image, to count by."""
    return error.partition(" (")[0]


def count(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A unit's counts: lines, and errors by kind."""
    return {"lines": len(rows), "errors": dict(Counter(kind(row["error"]) for row in rows if row["error"]))}


def _six(probability: float) -> float:
    return float(f"{probability:.6g}")
