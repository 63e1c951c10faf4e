"""Drawn lines on disk: drawn once, in the background, and used over and over.

Drawing a line costs about 2 ms of a core and reading it back microseconds. Shard i holds the lines i * SHARD to
(i + 1) * SHARD - 1: images in a `.npy` that is mapped, not read, texts in a `.txt`. The folder's name is a hash of all that
decides the lines, the drawing code included, so that a folder never mixes two kinds of lines and several runs share one.
A shard appears under its name when it is complete; a killed process leaves nothing half done.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trocr_jax.pixels import image_processor
from trocr_jax.pixels.image_processor import ImageProcessor

from ..config import SyntheticConfig, to_plain
from ..sets.records import SourceError
from . import fonts, synthesis

SHARD = 2048
CODE = tuple(
    Path(folder).with_name(f"{name}.py")
    for folder, names in (
        (__file__, "fonts synthesis texts words"),
        (image_processor.__file__, "image_processor line_cutting line_normalization strokes"),
    )
    for name in names.split()
)
"""What decides how a line looks, beside `Drawer`: the modules that draw it, the one that makes pixels of it, and every module of
this package that one of these imports. One that is missing lets a run read lines that its code would not draw any more."""
ATTEMPTS = 16  # to draw a line that is not too wide, before one is taken as it is


class LinePool:
    """Lines 0 to n-1 of a source, drawn by child processes while the parent lives.

    Args:
        config: what to draw.
        processor: scales a line to the pixels that the model gets.
    """

    def __init__(self, config: SyntheticConfig, processor: ImageProcessor):
        self.config, self.processor = config, processor
        self.folder = Path(config.cache).expanduser() / _digest(config, processor)
        self._shards: dict[int, tuple[np.ndarray, list[str]]] = {}
        self._drawers: list[Any] = []

    def start(self) -> None:
        """Starts the drawers, unless all lines are there.

        Raises:
            SourceError: there are no fonts to draw with.
        """
        count = -(-self.config.lines // SHARD)
        if all(_images(self.folder, i).exists() for i in range(count)):
            return
        self._prepare()
        context = multiprocessing.get_context("spawn")
        for worker in range(self.config.workers):
            arguments = (self.config, self.processor, self.folder, range(worker, count, self.config.workers), os.getpid())
            drawer = context.Process(target=draw_shards, args=arguments, daemon=True)
            drawer.start()
            self._drawers.append(drawer)

    def _prepare(self) -> None:
        try:
            fonts.find_faces(self.config.fonts)  # here: the drawers' own complaints would be tracebacks
        except FileNotFoundError as error:
            raise SourceError(f"--synthetic.fonts: {error}") from None
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "source.json").write_text(json.dumps(to_plain(self.config), indent=1))

    def available(self, used: int) -> int:
        """Lines to choose from when `used` have been used; nothing else decides, so that a resumed run repeats it."""
        return min(self.config.lines, int(self.config.start + used * self.config.fresh))

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        """uint8 pixels [height,width,3] and the text; waits for the drawers where they have not come so far."""
        shard, row = divmod(index, SHARD)
        if shard not in self._shards:
            self._shards[shard] = self._open(shard)
        images, labels = self._shards[shard]
        return images[row], labels[row]

    def _open(self, shard: int) -> tuple[np.ndarray, list[str]]:
        path = _images(self.folder, shard)
        while not path.exists():
            if not any(drawer.is_alive() for drawer in self._drawers):
                raise RuntimeError(f"{path} is missing and no process is drawing it: see the message above")
            time.sleep(0.2)
        return np.load(path, mmap_mode="r"), path.with_suffix(".txt").read_text(encoding="utf-8").split("\n")


def draw_shards(config: SyntheticConfig, processor: ImageProcessor, folder: Path, shards: range, parent: int) -> None:
    """Draws the missing shards in order, at low priority, and stops when the parent is gone."""
    os.nice(5)
    drawer = Drawer(config, processor)
    for shard in shards:
        path = _images(folder, shard)
        if path.exists():
            continue
        lines = []
        for index in range(shard * SHARD, (shard + 1) * SHARD):
            if os.getppid() != parent:
                return
            lines.append(drawer[index])
        _publish(path, lines)


def _publish(path: Path, lines: list[tuple[np.ndarray, str]]) -> None:
    """Puts a shard under its name, the images last: they say that it is there. Unless another run was quicker."""
    images, texts = (path.with_name(f".{path.stem}.{os.getpid()}{suffix}") for suffix in (".npy", ".txt"))
    np.save(images, np.stack([pixels for pixels, _ in lines]))
    texts.write_text("\n".join(text for _, text in lines), encoding="utf-8")
    if not path.exists():  # whoever comes between here and there puts the same lines in their place, whole
        os.replace(texts, path.with_suffix(".txt"))
        os.replace(images, path)
    for leftover in (images, texts):
        leftover.unlink(missing_ok=True)


class Drawer:
    """Line `index` as pixels and text: the first of a few attempts that is not too wide for the model's image."""

    def __init__(self, config: SyntheticConfig, processor: ImageProcessor):
        self.config, self.processor = config, processor

    @cached_property
    def source(self) -> synthesis.LineSource:
        c = self.config
        faces = tuple(fonts.find_faces(c.fonts))
        return synthesis.LineSource(c.seed, faces, min_length=c.min_length, max_length=c.max_length)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        for attempt in range(ATTEMPTS):
            image, text, _ = self.source[index * ATTEMPTS + attempt]
            if self.takes(image):
                break
        return self.scaled(image), text

    def takes(self, image: Image.Image) -> bool:
        """Whether a line is not too wide for the model's image."""
        widest = self.config.max_squeeze * self.processor.width / self.processor.height
        return image.width <= widest * image.height

    def scaled(self, image: Image.Image) -> np.ndarray:
        return self.processor(image.convert("RGB"))


def _images(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}.npy"


def _digest(config: SyntheticConfig, processor: ImageProcessor) -> str:
    """Hash of settings, fonts and drawing code; how many lines there are and how they are scheduled does not enter into it."""
    plain = to_plain(config)
    decisive = {name: plain[name] for name in ("seed", "min_length", "max_length", "max_squeeze")}
    folder = Path(config.fonts).expanduser()
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    code = [inspect.getsource(Drawer), *(path.read_text(encoding="utf-8") for path in CODE)]
    content = json.dumps([decisive, processor.to_hf(), SHARD, ATTEMPTS, names, code])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
