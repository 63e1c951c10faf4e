"""Greedy decoding with the two ONNX graphs of a model, in ONNX Runtime or whatever else runs them.

Rows that have ended are left out of the steps after: in memory the others move together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
import onnx

from trocr_jax.config import TrOCRConfig
from trocr_jax.decoding import GenerateConfig
from trocr_jax.generation.result import Generation
from trocr_jax.model import TrOCR

from . import export as onnx_export
from .graph import Style
from .session import fast_session

ENDED_SHARE = 0.25
"""With this share of ended rows among those that a step reads, the others go on alone."""

HEAD_SIZES = 8
"""The attention with caches takes heads of a multiple of this many numbers."""


class OnnxModel:
    """The two graphs of a model, ready to run.

    Args:
        model: the one whose weights they hold.
        style: how they are written.
        open_session: what runs a graph, with `run` and `bound` of a `Session`; by default ONNX Runtime, as it is quickest.

    Raises:
        ValueError: heads of a size that ONNX Runtime's attention does not take; those of all public checkpoints it does.
    """

    def __init__(self, model: TrOCR, style: Style, open_session: Callable[[onnx.ModelProto], Any] = fast_session):
        self.config, self.style, self.abstract = model.config, style, TrOCR.abstract(model.config)
        head = self.config.decoder.hidden_size // self.config.decoder.num_heads
        if head % HEAD_SIZES and not style.plain:
            raise ValueError(f"ONNX Runtime attends with heads of a multiple of {HEAD_SIZES} numbers; this decoder's have {head}")
        self.encoder, self.step = (open_session(write(model, style)) for write in (onnx_export.encoder, onnx_export.step))

    def generate(self, pixels: np.ndarray, config: GenerateConfig) -> Generation:
        """Greedy decoding of normalised pixels [B,height,width,3] float32; arrays of the result are numpy's, R is 1.

        Args:
            pixels: as wide as the model's images, or the left part of such images where the graphs are not plain.

        Raises:
            ValueError: an option other than max_new_tokens, min_new_tokens, constraint; more tokens than there are positions.
        """
        check(config, self.config)
        found, going = _Found(len(pixels), config, self.config), Going(self, pixels, config.max_new_tokens)
        for place in range(config.max_new_tokens):
            found.add(going.rows, place, going.logprobs(found.last[going.rows], place))
            ended = found.ended[going.rows]
            if ended.all():
                break
            if ended.mean() >= ENDED_SHARE:
                going.keep(~ended, place + 1)
        return found.generation()


class Going:
    """The rows of a batch that go on, and the step's graph bound to what it reads of them.

    Args:
        model: its graphs.
        pixels: as for `OnnxModel.generate`.
        tokens: how many a row may get: the caches have room for these, where they do not grow.

    Attributes:
        rows: indices of the rows among those of the batch, ascending.
    """

    def __init__(self, model: OnnxModel, pixels: np.ndarray, tokens: int):
        c, plain = model.config.decoder, model.style.plain
        self.rows, self._model = np.arange(len(pixels)), model
        self._image = model.encoder.run({"pixels": pixels})
        shape = (len(pixels), c.num_heads, 0 if plain else tokens, c.hidden_size // c.num_heads)
        names = [f"past_{name}_{i}" for i in range(c.num_layers) for name in ("key", "value")]
        self._caches = {name: np.zeros(shape, np.float32) for name in names}
        self._bind()

    def logprobs(self, ids: np.ndarray, place: int) -> np.ndarray:
        """Log-probabilities [rows,V] of what follows the token ids [rows], which are `place` tokens after the first."""
        column = ids[:, None].astype(np.int64)
        inputs = {"ids": column, "rows": onnx_export.position_rows(column, place, self._model.abstract)}
        if self._model.style.plain:
            found = self._step.run(inputs | self._caches)
            self._caches = {name: found[name.removeprefix("past_")] for name in self._caches}
        else:
            found = self._step.run(inputs | {"place": np.array(place, np.int32)})
        return found["logprobs"]

    def keep(self, kept: np.ndarray, used: int) -> None:
        """Goes on only with the rows that the mask `kept` [rows] has; `used` tokens of each are cached."""
        self.rows, places = self.rows[kept], np.flatnonzero(kept)
        self._image = {name: _moved_up(array, places, array) for name, array in self._image.items()}
        self._caches = {name: _moved_up(cache, places, cache[:, :, :used]) for name, cache in self._caches.items()}
        self._bind()

    def _bind(self) -> None:
        self._step = self._model.step.bound(self._image if self._model.style.plain else self._image | self._caches)


def _moved_up(array: np.ndarray, places: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The rows at ascending places as the first ones, in the array's own memory; of each the `used` part, a view of the array."""
    for target, place in enumerate(places):
        if target != place:
            used[target] = used[place]
    return array[: len(places)]


class _Found:
    """What has been read so far: tokens and log-probabilities [B,T], the last token of each row, and which rows have ended."""

    def __init__(self, rows: int, config: GenerateConfig, ids: TrOCRConfig):
        self._ids, self._min_new_tokens, self._constraint = ids, config.min_new_tokens, config.constraint
        self._states = np.zeros(rows, np.int32)
        self._tokens = np.full((rows, config.max_new_tokens), ids.pad_token_id, np.int32)
        self._logprobs, self.ended = np.zeros(self._tokens.shape, np.float32), np.zeros(rows, bool)
        self.last = np.full(rows, ids.decoder_start_token_id)

    def add(self, rows: np.ndarray, place: int, logprobs: np.ndarray) -> None:
        """The likeliest token of each of these rows [b] by its log-probabilities [b,V]; what comes after a row's end does not
        count."""
        self.last[rows] = tokens = self._ruled(rows, place, logprobs).argmax(axis=1)
        if self._constraint:
            self._states[rows] = self._constraint.after(self._states[rows], tokens)
        going = ~self.ended[rows]
        self._tokens[rows[going], place] = tokens[going]
        self._logprobs[rows[going], place] = logprobs[going, tokens[going]]
        self.ended[rows] |= tokens == self._ids.eos_token_id

    def _ruled(self, rows: np.ndarray, place: int, logprobs: np.ndarray) -> np.ndarray:
        """Log-probabilities with -inf where a token may not come, as in `processors.process`."""
        ruled = logprobs
        if place < self._min_new_tokens:
            ruled = logprobs.copy()
            ruled[:, self._ids.eos_token_id] = -np.inf
        return self._constraint.restrict(logprobs, ruled, self._states[rows]) if self._constraint else ruled

    def generation(self) -> Generation:
        """All of it, one sequence a row."""
        ends = self._tokens == self._ids.eos_token_id
        lengths = np.where(self.ended, ends.argmax(axis=1) + 1, ends.shape[1]).astype(np.int32)
        fields = (self._tokens, self._logprobs, lengths, self._logprobs.sum(axis=1), self.ended)
        return Generation(*(cast(jax.Array, field[:, None]) for field in fields))  # numpy serves all that a Reader does with them


def check(config: GenerateConfig, model: TrOCRConfig) -> None:
    """Raises ValueError for options that these graphs have no operators for, and for more tokens than the model can write."""
    config.check_positions(model.decoder.max_positions)
    if config != GenerateConfig(config.max_new_tokens, config.min_new_tokens, constraint=config.constraint):
        only = "max_new_tokens, min_new_tokens and a pattern or constraint"
        raise ValueError(f"ONNX Runtime decodes greedily: of the options only {only} are possible")
