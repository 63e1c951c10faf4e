"""Drawn lines on disk: a shard is whole or not there, and stays as it was published."""

import ast
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.train.config import SyntheticConfig
from trocr_jax.train.drawing import pool
from trocr_jax.train.sets.records import SourceError

DRAWER = pool.Drawer
LINE = np.zeros((2, 2, 3), np.uint8)


class Numbers:
    """A drawer whose lines are their numbers."""

    def __init__(self, *_):
        pass

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        return LINE, f"line {index}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(pool, "SHARD", 4)
    monkeypatch.setattr(pool, "Drawer", Numbers)
    monkeypatch.setattr(os, "nice", lambda _: 0)


def draw(folder: Path, shards: int = 1) -> None:
    pool.draw_shards(SyntheticConfig(), None, folder, range(shards), os.getppid())  # pyright: ignore[reportArgumentType]


def test_shards_are_published_whole_and_nothing_else_stays(tmp_path):
    draw(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.npy", "000000.txt", "000001.npy", "000001.txt"]
    assert (tmp_path / "000001.txt").read_text() == "line 4\nline 5\nline 6\nline 7"
    assert np.load(tmp_path / "000001.npy").shape == (4, 2, 2, 3)


def test_a_kill_while_texts_are_written_leaves_no_half_of_them(tmp_path, monkeypatch):
    write = Path.write_text

    def killed(self, text, **options):
        write(self, text[:9], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_a_shard_that_another_run_published_meanwhile_is_left_alone(tmp_path, monkeypatch):
    class Slow(Numbers):
        """While it draws, another run publishes the shard."""

        def __getitem__(self, index):
            if not (tmp_path / "000000.npy").exists():
                np.save(tmp_path / "000000.npy", LINE)
                (tmp_path / "000000.txt").write_text("published")
            return super().__getitem__(index)

    monkeypatch.setattr(pool, "Drawer", Slow)
    draw(tmp_path)
    assert (tmp_path / "000000.txt").read_text() == "published" and np.load(tmp_path / "000000.npy").shape == LINE.shape
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.npy", "000000.txt"]


def test_without_fonts_nothing_is_drawn_and_the_flag_is_named(tmp_path):
    config = SyntheticConfig(fonts=tmp_path / "fonts", cache=tmp_path / "lines")
    lines = pool.LinePool(config, ImageProcessor(height=16, width=48))
    with pytest.raises(SourceError, match="^--synthetic.fonts: no fonts .* under .*fonts; `bash .*fetch_fonts.sh` fetches free"):
        lines.start()
    assert not list(tmp_path.iterdir())


def imported(module: str) -> Iterator[str]:
    """The modules of this package that a module imports."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        if isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
            names = (base, *(f"{base}.{name.name}" for name in node.names))
            yield from (name for name in names if name.startswith("trocr_jax.") and name in sys.modules)


def test_every_module_that_decides_pixels_decides_the_folder():
    """Or lines that older code drew would be read as if today's had."""
    met = {"trocr_jax.train.drawing.synthesis", "trocr_jax.pixels.image_processor"}  # what `Drawer` calls
    waiting = set(met)
    while waiting:
        new = set(imported(waiting.pop())) - met
        met, waiting = met | new, waiting | new
    files = {Path(sys.modules[name].__file__ or "") for name in met}
    assert {path for path in files if path.name != "__init__.py"} == set(pool.CODE)


def test_another_drawer_draws_into_another_folder(monkeypatch):
    config, processor = SyntheticConfig(), ImageProcessor(height=16, width=48)
    before = pool._digest(config, processor)
    assert before == pool._digest(config, processor)
    monkeypatch.setattr(pool, "Drawer", DRAWER)
    assert before != pool._digest(config, processor)
