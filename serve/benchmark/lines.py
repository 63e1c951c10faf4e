"""Real line images through the whole path, decoding of the files included: every mode of ours, and Tesseract where installed.

Faster modes are compared with float32 line by line and token by token: speed never pays with quality silently.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from trocr_jax.cores import usable_cores
from trocr_jax.image_paths import find_images
from trocr_jax.line import Line
from trocr_jax.reader import Reader
from trocr_jax.tesseract import read_lines

NAMED = 3
"""Images that cannot be read, of which so many are named."""
ReadAll = Callable[[Sequence[Path]], list[Line]]


def run(folder: Path, model: str | None, rounds: int) -> dict[str, Any]:
    """Reads all images of a folder with every candidate in turn; prints a table and returns what the JSON line says.

    Raises:
        ValueError: an image cannot be read: what it costs is not what a line costs, and Tesseract gives up at it.
    """
    paths = find_images([str(folder)])
    candidates = make_candidates(model)
    lines: dict[str, list[Line]] = {}
    for name, read in candidates.items():  # also warms up
        lines[name] = read(paths)
        _check_read(paths, lines[name])
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, read in candidates.items():
            start = time.perf_counter()
            read(paths)
            seconds[name].append(time.perf_counter() - start)
    exact = next(iter(lines.values()))
    rows = [_row(name, float(np.median(seconds[name])), lines[name], exact) for name in candidates]
    print(f"{len(paths)} line images of {folder}, {rounds} rounds")
    print(f"{'':<40} {'median s':>9} {'lines/s':>9} {'same lines':>11} {'same tokens':>12}")
    for row in rows:
        same = "" if row["token_agreement"] is None else f"{row['line_agreement']:11.2%} {row['token_agreement']:12.2%}"
        print(f"{row['name']:<40} {row['median_s']:9.3f} {row['lines_per_s']:9.1f} {same}")
    return {"lines": len(paths), "results": rows}


def _check_read(paths: Sequence[Path], lines: Sequence[Line]) -> None:
    bad = [f"{path}: {line.error}" for path, line in zip(paths, lines, strict=False) if line.error]
    if bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise ValueError(f"{len(bad)} of {len(paths)} images cannot be read, take them out: {'; '.join(bad[:NAMED])}{more}")


def make_candidates(model: str | None) -> dict[str, ReadAll]:
    """float32 on XLA first; what is not installed is left out and said."""
    readers: dict[str, Callable[[], Reader]] = {
        "trocr-jax (XLA, float32)": lambda: Reader.from_pretrained(model, dtype="float32"),
        "trocr-jax (XLA, bfloat16)": lambda: Reader.from_pretrained(model, dtype="bfloat16"),
    }
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
        from ..onnx_backend import OnnxReader

        for precision in ("float32", "int8"):
            readers[f"trocr-jax (ONNX Runtime, {precision})"] = lambda p=precision: OnnxReader.from_pretrained(model, precision=p)
    found = {name: _reading(make()) for name, make in readers.items()}
    if shutil.which("tesseract"):
        found["Tesseract (a process a core)"] = tesseract
    else:
        print("tesseract is not installed and left out", file=sys.stderr)
    return found


def _reading(reader: Reader) -> ReadAll:
    return lambda paths: reader.read(list(paths), num_beams=1)


def tesseract(paths: Sequence[Path]) -> list[Line]:
    """One process a core, each with one thread and a list of files: its fastest way to read many lines."""
    count = usable_cores()
    pictures = [path.resolve() for path in paths]
    shares = [share for share in (pictures[i::count] for i in range(count)) if share]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(count) as pool:
        lists = [Path(folder) / f"{i}.txt" for i in range(len(shares))]
        list(pool.map(read_lines, shares, lists))
    return []


def _row(name: str, seconds: float, lines: list[Line], exact: list[Line]) -> dict[str, Any]:
    row = {
        "name": name,
        "median_s": seconds,
        "lines_per_s": len(exact) / seconds,
        "line_agreement": None,
        "token_agreement": None,
    }
    if not lines:
        return row
    pairs = [(ids(line), ids(other)) for line, other in zip(lines, exact, strict=True)]
    longest = sum(max(len(a), len(b)) for a, b in pairs)
    same = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    agreement = {"line_agreement": sum(a == b for a, b in pairs) / len(pairs), "token_agreement": same / max(longest, 1)}
    return row | agreement


def ids(line: Line) -> list[int]:
    """The token ids of a line."""
    return [token.id for token in line.tokens]
