"""Reading with ONNX Runtime instead of XLA: greedy decoding, float32 or int8, on the CPU.

The graphs are written from the same weights (`onnx_export`), so any checkpoint that this package loads can be read this way.
float32 gives the tokens of `generate`. int8 is faster than XLA, for large models and for the one in the package; it reads some
lines otherwise (docs/performance.md has both). The activations of linear maps are rounded with one scale for all rows that a
session is given, so that a line's text can depend on the lines beside it, and on the number of cores where these share a batch.

    from trocr_jax.serve.onnx_backend import OnnxReader
    reader = OnnxReader.from_pretrained(precision="int8")
    print(reader.read("line.png").text)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np
import onnx

from trocr_jax.decoding import GenerateConfig
from trocr_jax.loop import Generation
from trocr_jax.model import TrOCR
from trocr_jax.reader import Reader

from . import onnx_export
from .onnx_graph import Style

Precision = Literal["float32", "int8"]

SMALL = 1 << 16
"""Encoders with up to so many numbers for an image (tokens x width) have operators too short to be shared by threads: every core
reads a part of the batch instead."""

SMALL_BATCH = 64
"""Images a batch of such a model, by default."""

ENDED_SHARE = 0.125
"""With so many ended rows among those that a step reads, the others are copied together and go on alone."""


class Session:
    """A graph in ONNX Runtime on the CPU. Results stay in its own memory until `host` asks for them: a cache that goes round
    from step to step is not copied.

    Args:
        model: the graph.
        without: names of optimizers that are on by default.
        threads: that share an operator; 0 is one a core.
    """

    def __init__(self, model: onnx.ModelProto, without: tuple[str, ...] = (), threads: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, threads
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=list(without)
        )
        self._value = onnxruntime.OrtValue
        self.outputs = [output.name for output in model.graph.output]

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """All outputs by name, for inputs that are arrays or such outputs."""
        values = {name: self._value.ortvalue_from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
        return dict(zip(self.outputs, self._session.run_with_ort_values(self.outputs, values), strict=True))


def host(value: Any) -> np.ndarray:
    """A session's output as an array."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def fast_session(model: onnx.ModelProto, threads: int = 0) -> Session:
    """A session without a fusion that slows norms down: sum and norm as one take five times as long as one by one."""
    return Session(model, ("SkipLayerNormFusion",), threads)


class OnnxModel:
    """The two graphs of a model, ready to run.

    Args:
        model: whose weights they hold.
        style: how they are written.
        open_session: what runs a graph, with the `run` of a `Session`; by default ONNX Runtime, as it is quickest.
    """

    def __init__(self, model: TrOCR, style: Style, open_session: Callable[[onnx.ModelProto], Any] = fast_session):
        self.config, self.style, self._model = model.config, style, TrOCR.abstract(model.config)
        self.encoder, self.step = (open_session(write(model, style)) for write in (onnx_export.encoder, onnx_export.step))

    def generate(self, pixels: np.ndarray, config: GenerateConfig) -> Generation:
        """Greedy decoding of normalised pixels [B,height,width,3] float32; arrays of the result are numpy's, R is 1.

        Raises:
            ValueError: an option other than max_new_tokens and min_new_tokens.
        """
        check(config)
        B, ids = len(pixels), self.config
        tokens = np.full((B, config.max_new_tokens), ids.pad_token_id, np.int32)
        logprobs, rows, ended = np.zeros(tokens.shape, np.float32), np.arange(B), np.zeros(B, bool)
        encoded, cache = self.encoder.run({"pixels": pixels}), self._empty_cache(B)
        current = np.full((B, 1), ids.decoder_start_token_id, np.int64)
        for place in range(config.max_new_tokens):
            scores, total, cache = self._run_step(current, place, encoded, cache)
            if place < config.min_new_tokens:
                scores[:, ids.eos_token_id] = -np.inf
            best = scores.argmax(axis=1)
            tokens[rows, place] = np.where(ended, ids.pad_token_id, best)
            logprobs[rows, place] = np.where(ended, 0.0, scores[np.arange(len(rows)), best] - total[:, 0])
            ended |= best == ids.eos_token_id
            if ended.all():
                break
            if ended.mean() >= ENDED_SHARE:  # go on with the others alone
                rows, best = rows[~ended], best[~ended]
                encoded, cache = ({name: host(x)[~ended] for name, x in values.items()} for values in (encoded, cache))
                ended = ended[~ended]
            current = best[:, None].astype(np.int64)
        return _generation(tokens, logprobs, ids.eos_token_id)

    def _empty_cache(self, rows: int) -> dict[str, np.ndarray]:
        c = self.config.decoder
        empty = np.zeros((rows, c.num_heads, 0, c.hidden_size // c.num_heads), np.float32)
        return {f"past_{name}_{i}": empty for i in range(c.num_layers) for name in ("key", "value")}

    def _run_step(
        self, ids: np.ndarray, place: int, encoded: dict[str, Any], cache: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        rows = onnx_export.position_rows(ids, place, self._model)
        found = self.step.run({"ids": ids, "rows": rows, **encoded, **cache})
        return host(found["logits"]), host(found["total"]), {name: found[name.removeprefix("past_")] for name in cache}


class OnnxReader(Reader):
    """A `Reader` whose pixels are read by ONNX Runtime; greedy, whatever the checkpoint says.

    Small models (see SMALL) read SMALL_BATCH images a batch where `read` is not told otherwise.
    """

    def __init__(self, *arguments: Any, precision: Precision = "int8", **options: Any):
        super().__init__(*arguments, **options)
        encoder = self.model.config.encoder
        small = encoder.num_tokens * encoder.hidden_size <= SMALL
        self._parts, self.batch_size = (os.cpu_count() or 1, SMALL_BATCH) if small else (1, self.batch_size)
        style, open_session = Style(int8=precision == "int8"), partial(fast_session, threads=1 if small else 0)
        self.onnx = OnnxModel(self.model, style, open_session)
        self.defaults = GenerateConfig(self.defaults.max_new_tokens)

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, *, dtype: Any = None, precision: Precision = "int8") -> OnnxReader:
        """As `Reader.from_pretrained`; `dtype` is that of the weights that the graphs are written from.

        Raises:
            ValueError: as there, and an unknown precision.
        """
        if precision not in ("float32", "int8"):
            raise ValueError(f"precision must be 'float32' or 'int8', not {precision!r}")
        reader = Reader.from_pretrained(name, dtype=dtype)
        return cls(reader.model, reader.tokenizer, reader.processor, reader.defaults, reader.name, precision=precision)

    def generate(self, pixels: np.ndarray, config: GenerateConfig, seeds: np.ndarray | None = None) -> Generation:
        """uint8 pixels [n,height,width,3] -> Generation of n rows."""
        check(config)
        parts = np.array_split(pixels, min(self._parts, len(pixels)) or 1)
        if len(parts) == 1:
            return self._generate(pixels, config)
        with ThreadPoolExecutor(len(parts)) as pool:
            found = list(pool.map(lambda part: self._generate(part, config), parts))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *found)

    def _generate(self, pixels: np.ndarray, config: GenerateConfig) -> Generation:
        mean, std = (np.asarray(values, np.float32) for values in (self.processor.mean, self.processor.std))
        return self.onnx.generate((pixels.astype(np.float32) * np.float32(1 / 255) - mean) / std, config)


def check(config: GenerateConfig) -> None:
    """Raises ValueError for options that these graphs have no operators for."""
    if config != GenerateConfig(config.max_new_tokens, config.min_new_tokens):
        raise ValueError("ONNX Runtime decodes greedily: of the options only max_new_tokens and min_new_tokens are possible")


def _generation(tokens: np.ndarray, logprobs: np.ndarray, end: int) -> Generation:
    finished = (tokens == end).any(axis=1)
    lengths = np.where(finished, (tokens == end).argmax(axis=1) + 1, tokens.shape[1]).astype(np.int32)
    fields = (tokens, logprobs, lengths, logprobs.sum(axis=1), finished)
    return Generation(*(cast(jax.Array, field[:, None]) for field in fields))  # numpy serves all that a Reader does with them
