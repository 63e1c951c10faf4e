"""The same lines through Ray Data and through Beam as through `trocr-jax batch`."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import batching
import pytest
import tiny
from batching import batch, pictures
from conftest import ROOT

from trocr_jax.serve.ray_adapter import LineReader

COUNT = 2000


def needs(package: str):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs the Python package {package}, which is not installed")


def agree(found: list[dict], expected: list[dict]) -> None:
    """Everything equal; probabilities as far as other batches round otherwise."""
    assert len(found) == len(expected)
    for a, b in zip(sorted(found, key=lambda row: row["id"]), sorted(expected, key=lambda row: row["id"]), strict=True):
        assert {k: a[k] for k in ("id", "text", "flags", "error", "finish_reason")} == {
            k: b[k] for k in ("id", "text", "flags", "error", "finish_reason")
        }
        assert math.isclose(a["confidence"], b["confidence"], rel_tol=1e-4)
        assert [w["text"] for w in a["words"]] == [w["text"] for w in b["words"]]


@pytest.mark.parametrize("column", ["bytes", "path", "image"])
def test_a_table_gives_the_rows_of_batch(capsys, tmp_path, column):
    """Without Ray: a callable that takes tables and gives tables. One image of five is bad."""
    import pickle

    import pyarrow

    model, images = tiny.model_directory(tmp_path / "model"), pictures(5) | {"00002.png": b"no image"}
    folder = batching.folder(tmp_path / "lines", images)
    assert batch(capsys, folder, tmp_path / "out", "--model", model)[0] == 1
    values = {
        "bytes": list(images.values()), "path": [str(folder / name) for name in images],
        "image": [{"bytes": content, "path": name} for name, content in images.items()],
    }  # fmt: skip
    table = pyarrow.table({column: values[column], "id": list(images)})
    kind = pickle.loads(pickle.dumps(LineReader))
    result = kind(str(model), image=column, id="id", batch_size=8, max_new_tokens=6)(table)
    agree(result.to_pylist(), batching.rows(tmp_path / "out"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """2,000 images, one in a hundred of them bad, and what `batch` with the model in the package makes of them."""
    folder = tmp_path_factory.mktemp("many")
    images = pictures(COUNT)
    images |= {name: b"damaged" for name in list(images)[::100]}
    lines = batching.folder(folder / "lines", images)
    command = [sys.executable, "-m", "trocr_jax.cli", "batch", lines, folder / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=plain())
    assert done.returncode == 1 and json.loads(done.stdout)["errors"] == {
        "not a PNG, JPEG, WEBP, TIFF, GIF, BMP or PPM image": 20
    }
    expected = [row | {"id": str(lines / row["id"])} for row in batching.rows(folder / "out")]
    return lines, expected


def plain() -> dict[str, str]:
    """The environment of a user: what the suite sets for itself would reach the engines' workers."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


@pytest.mark.slow
@needs("ray")
def test_ray_with_two_actors_equals_batch(many, tmp_path):
    lines, expected = many
    script = [sys.executable, ROOT / "examples" / "ray_lines.py", lines, tmp_path / "out"]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, env=plain())
    assert done.returncode == 0, done.stderr[-3000:]
    agree(batching.rows(tmp_path / "out"), expected)


@pytest.mark.slow
@needs("apache_beam")
def test_beam_on_the_direct_runner_equals_batch(many, tmp_path):
    lines, expected = many
    script = [sys.executable, ROOT / "examples" / "beam_lines.py", f"{lines}/*.png", tmp_path / "out" / "part"]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, env=plain())
    assert done.returncode == 0, done.stderr[-3000:]
    agree(batching.rows(tmp_path / "out"), expected)
