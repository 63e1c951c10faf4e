"""Reading with ONNX Runtime instead of XLA: greedy decoding, float32 or int8, on the CPU.

The graphs are written from the same weights (`onnx.export`), so any checkpoint that this package loads can be read this way.
float32 gives the tokens of `generate`. int8 is faster than XLA, for large models and for the one in the package; it reads some
lines otherwise (docs/performance.md has both). The activations of linear maps are rounded with one scale for all rows of a batch,
and columns that are empty in all of them are left out where the model knows that (`ImageProcessor.trimmed`), so that a line's
text can depend on the lines beside it.

    from trocr_jax.serve.onnx_backend import OnnxReader
    reader = OnnxReader.from_pretrained(precision="int8")
    print(reader.read("line.png").text)
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trocr_jax.config import TrOCRConfig
from trocr_jax.cores import usable_cores
from trocr_jax.decoding import GenerateConfig
from trocr_jax.generation.result import Generation
from trocr_jax.model import TrOCR
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.prepared import Prepared, prepare, used_width
from trocr_jax.reader import CPU_BATCH, Reader, Wait
from trocr_jax.streaming import in_order
from trocr_jax.tokens import Tokenizer

from .batch_job.decode import CHUNK, Decoders
from .batch_job.units import groups
from .onnx.graph import Style
from .onnx.model import OnnxModel, check
from .onnx.session import fast_session

Precision = Literal["float32", "int8"]

SMALL = 1 << 16
"""Encoders with up to this many numbers for an image (tokens x width) have operators too short to share among threads: every core
reads batches of its own instead."""

MANY = 100
"""Images that are worth the start of processes that prepare them, half a second of a core each."""

SMALL_BATCH, SMALL_TOGETHER = 24, 16
"""Images a batch of such a model, by default, and batches that are sorted by length: narrow ones have fewer columns to read."""

MARGIN = 32
"""Columns of paper that are left at the right of the longest line of a batch; with fewer the last letters are misread."""


def is_small(config: TrOCRConfig) -> bool:
    return config.encoder.num_tokens * config.encoder.hidden_size <= SMALL


def default_batch_size(config: TrOCRConfig) -> int:
    """Images a batch."""
    return SMALL_BATCH if is_small(config) else CPU_BATCH


class OnnxReader(Reader):
    """A `Reader` whose pixels are read by ONNX Runtime; greedy, whatever the checkpoint says.

    Small models (see SMALL) read SMALL_BATCH images a batch where `read` is not told otherwise, as many batches at a time as
    there are cores, and have the images of long lists prepared by as many processes: in threads that would take longer than
    reading them. The processes end with the reader.
    """

    def __init__(
        self, model: TrOCR, tokenizer: Tokenizer, processor: ImageProcessor, defaults: GenerateConfig, name: str = "model", *,
        precision: Precision = "int8",
    ):  # fmt: skip
        if precision not in ("float32", "int8"):
            raise ValueError(f"precision must be 'float32' or 'int8', not {precision!r}")
        super().__init__(model, tokenizer, processor, defaults, name)
        cores = usable_cores()
        self._small, self.batch_size = is_small(model.config), default_batch_size(model.config)
        if self._small:
            self.together, self.ahead = SMALL_TOGETHER, cores
        self._pool = ThreadPoolExecutor(cores if self._small else 1, "onnx")
        self._decoders = Decoders(partial(prepare, processor=self.processor), cores, _crashed)
        weakref.finalize(self, self._decoders.close)
        open_session = partial(fast_session, threads=1 if self._small else usable_cores())
        self.onnx = OnnxModel(self.model, Style(int8=precision == "int8", cross_cache=self._small), open_session)
        self.model = TrOCR.abstract(model.config)  # its weights are in the graphs
        self._trims = self.processor.trimmed and precision == "int8"
        self.defaults = GenerateConfig(defaults.max_new_tokens, defaults.min_new_tokens, constraint=defaults.constraint)

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, *, dtype: Any = None, precision: Precision = "int8") -> OnnxReader:
        """Like `Reader.from_pretrained`; `dtype` is that of the weights that the graphs are written from, float32 by default.

        Raises:
            ValueError: as there, or an unknown precision.
        """
        reader = Reader.from_pretrained(name, dtype=dtype or "float32")
        return cls(reader.model, reader.tokenizer, reader.processor, reader.defaults, reader.name, precision=precision)

    def prepare_all(self, sources: Iterable[Any], ahead: int) -> Iterator[Prepared]:
        """Every source prepared, in order; in other processes where a small model has many of them to read at once."""
        sources = iter(sources)
        first = list(itertools.islice(sources, min(MANY, ahead)))
        every = itertools.chain(first, sources)
        if self._small and len(first) == MANY:
            chunks = in_order(map(self._prepare_elsewhere, groups(every, CHUNK)), ahead // CHUNK)
            yield from itertools.chain.from_iterable(chunks)
        else:
            yield from super().prepare_all(every, ahead)

    def _prepare_elsewhere(self, sources: list[Any]) -> Future[list[Prepared]]:
        here = os.getcwd()  # a process keeps the folder that it was started in
        files = [os.path.join(here, os.fsdecode(s)) if isinstance(s, str | os.PathLike) else s for s in sources]
        if all(isinstance(source, str | bytes) for source in files):
            return self._decoders.submit(files)
        return self._pool.submit(lambda: [self.prepare(source) for source in sources])  # arrays and open images stay here

    def check(self, config: GenerateConfig) -> None:
        """Like `Reader.check`; only options for lengths and a constraint can be followed."""
        check(config, self.model.config)

    def start(self, pixels: np.ndarray, config: GenerateConfig, seeds: np.ndarray | None = None) -> Wait:
        """`generate` in another thread; returns a function that waits for the result."""
        return self._pool.submit(self.generate, pixels, config, seeds).result

    def generate(self, pixels: np.ndarray, config: GenerateConfig, seeds: np.ndarray | None = None) -> Generation:
        """uint8 pixels [n,height,width,3] -> Generation of n rows."""
        normal = (self._without_empty_columns(pixels) if self._trims else pixels).astype(np.float32)
        normal *= np.float32(1 / 255)
        normal -= _of_channels(self.processor.mean)
        normal /= _of_channels(self.processor.std)
        return self.onnx.generate(normal, config)

    def _without_empty_columns(self, pixels: np.ndarray) -> np.ndarray:
        patch = self.model.config.encoder.patch_size[1]
        return pixels[:, :, : -(-(used_width(pixels) + MARGIN) // patch) * patch]


def _crashed(reason: str) -> Prepared:
    return Prepared(None, error=reason)


def _of_channels(values: tuple[float, ...]) -> np.ndarray:
    """One number where all channels have the same: ten times as quick as three."""
    return np.asarray(values[:1] if len(set(values)) == 1 else values, np.float32)
