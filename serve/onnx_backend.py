"""Reading with ONNX Runtime instead of XLA: greedy decoding, float32 or int8, on the CPU.

The graphs are written from the same weights (`onnx_export`), so any checkpoint that this package loads can be read this way.
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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np
import onnx

from trocr_jax.config import TrOCRConfig
from trocr_jax.decoding import GenerateConfig
from trocr_jax.images import ImageProcessor
from trocr_jax.loop import Generation
from trocr_jax.model import TrOCR
from trocr_jax.prepared import Prepared, prepare, used_width
from trocr_jax.reader import CPU_BATCH, Reader, Wait, in_order
from trocr_jax.tokens import Tokenizer

from . import onnx_export
from .batch_decode import Decoders
from .batch_units import groups
from .onnx_graph import Style

Precision = Literal["float32", "int8"]

SMALL = 1 << 16
"""Encoders with up to so many numbers for an image (tokens x width) have operators too short to be shared by threads: every core
reads batches of its own instead."""

MANY, CHUNK = 100, 8
"""Images that are worth the start of processes that prepare them, half a second of a core each; and what one gets at a time."""

SMALL_BATCH, SMALL_TOGETHER = 24, 16
"""Images a batch of such a model, by default, and batches that are sorted by length: narrow ones have fewer columns to read."""

MARGIN = 32
"""Columns of paper that are left at the right of the longest line of a batch; with fewer the last letters are misread."""

ENDED_SHARE = 0.25
"""With so many ended rows among those that a step reads, the others are copied together and go on alone."""

ROOM = 16
"""Tokens by which the caches grow. All of the room that a line may need would be copied along when ended rows are left out."""

HEAD_SIZES = 8
"""The attention with caches takes heads of a multiple of so many numbers."""


class Session:
    """A graph in ONNX Runtime on the CPU. Results stay in its own memory until `host` asks for them: what goes round from step to
    step is not copied, and a cache of fixed size (an input `past_x` of the shape of the output `x`) is written where it lies.

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
        self._caches = _fixed_caches(model)

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """All outputs by name, for inputs that are arrays or such outputs."""
        values = {name: self._value.ortvalue_from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
        own = {name: values[past] for name, past in self._caches.items()}  # kept by these objects alone: arrays lie below them
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            if name in own:
                binding.bind_ortvalue_output(name, own[name])
            else:
                binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return dict(zip(self.outputs, binding.get_outputs(), strict=True)) | own


def _fixed_caches(model: onnx.ModelProto) -> dict[str, str]:
    """Outputs that take the memory of an input, see `Session`, and that input."""
    inputs = {value.name: value.type for value in model.graph.input}
    pairs = ((output, f"past_{output.name}") for output in model.graph.output)
    return {output.name: past for output, past in pairs if inputs.get(past) == output.type}


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

    Raises:
        ValueError: heads of a size that ONNX Runtime's attention does not take; those of all public checkpoints it does.
    """

    def __init__(self, model: TrOCR, style: Style, open_session: Callable[[onnx.ModelProto], Any] = fast_session):
        self.config, self.style, self._model = model.config, style, TrOCR.abstract(model.config)
        head = self.config.decoder.hidden_size // self.config.decoder.num_heads
        if head % HEAD_SIZES and not style.plain:
            raise ValueError(f"ONNX Runtime attends with heads of a multiple of {HEAD_SIZES} numbers; this decoder's have {head}")
        self.encoder, self.step = (open_session(write(model, style)) for write in (onnx_export.encoder, onnx_export.step))

    def generate(self, pixels: np.ndarray, config: GenerateConfig) -> Generation:
        """Greedy decoding of normalised pixels [B,height,width,3] float32; arrays of the result are numpy's, R is 1.

        Args:
            pixels: of the model's width, or the left part of such images, where the graphs are not plain.

        Raises:
            ValueError: an option other than max_new_tokens and min_new_tokens, or more tokens than the decoder has positions.
        """
        check(config, self.config)
        ids, found = self.config, _Found(len(pixels), config.max_new_tokens, self.config)
        rows, current = np.arange(len(pixels)), np.full(len(pixels), ids.decoder_start_token_id)
        state = self.encoder.run({"pixels": pixels}) | self._empty_caches(len(pixels))
        for place in range(config.max_new_tokens):
            logprobs, state = self._run_step(current, place, state)
            if place < config.min_new_tokens:
                logprobs[:, ids.eos_token_id] = -np.inf
            current = logprobs.argmax(axis=1)
            found.add(rows, place, current, logprobs[np.arange(len(rows)), current])
            ended = found.ended[rows]
            if ended.all() or place + 1 == config.max_new_tokens:
                break
            if ended.mean() >= ENDED_SHARE or self._is_full(place + 1):
                rows, current, state = rows[~ended], current[~ended], self._only(state, ~ended, place + 1)
        return found.generation()

    def _empty_caches(self, rows: int) -> dict[str, np.ndarray]:
        c = self.config.decoder
        shape = (rows, c.num_heads, 0 if self.style.plain else ROOM, c.hidden_size // c.num_heads)
        return {f"past_{name}_{i}": np.zeros(shape, np.float32) for i in range(c.num_layers) for name in ("key", "value")}

    def _is_full(self, used: int) -> bool:
        return not self.style.plain and used % ROOM == 0

    def _only(self, state: dict[str, Any], kept: np.ndarray, used: int) -> dict[str, Any]:
        """Those rows of everything that goes round from step to step, caches with room for the tokens that come after `used`."""
        chosen = slice(None) if kept.all() else kept
        found = {name: host(value) for name, value in state.items()}
        grow = {name for name in found if name.startswith("past_") and not self.style.plain}
        return {name: _with_room(x[chosen, :, :used], used) if name in grow else x[chosen] for name, x in found.items()}

    def _run_step(self, ids: np.ndarray, place: int, state: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Log-probabilities [B,V], and the state with this step in its caches."""
        column = ids[:, None].astype(np.int64)
        inputs = {"ids": column, "rows": onnx_export.position_rows(column, place, self._model)}
        if not self.style.plain:
            inputs["place"] = np.array(place, np.int32)
        found = self.step.run(inputs | state)
        after = {name: found.get(name.removeprefix("past_"), value) for name, value in state.items()}
        return host(found["logprobs"]), after


def _with_room(cache: np.ndarray, used: int) -> np.ndarray:
    """A cache [B,N,_,H] with its first `used` tokens and room for the next, up to a multiple of ROOM."""
    B, N, _, H = cache.shape
    roomy = np.empty((B, N, (used // ROOM + 1) * ROOM, H), np.float32)
    roomy[:, :, :used] = cache[:, :, :used]
    return roomy


class _Found:
    """What has been read so far: tokens and log-probabilities [B,T], and which rows have ended."""

    def __init__(self, rows: int, places: int, ids: TrOCRConfig):
        self._ids, self._tokens = ids, np.full((rows, places), ids.pad_token_id, np.int32)
        self._logprobs, self.ended = np.zeros((rows, places), np.float32), np.zeros(rows, bool)

    def add(self, rows: np.ndarray, place: int, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """A token of each of these rows [b]; what comes after a row's end does not count."""
        going = ~self.ended[rows]
        self._tokens[rows[going], place], self._logprobs[rows[going], place] = tokens[going], logprobs[going]
        self.ended[rows] |= tokens == self._ids.eos_token_id

    def generation(self) -> Generation:
        """All of it, one sequence a row."""
        ends = self._tokens == self._ids.eos_token_id
        lengths = np.where(self.ended, ends.argmax(axis=1) + 1, ends.shape[1]).astype(np.int32)
        fields = (self._tokens, self._logprobs, lengths, self._logprobs.sum(axis=1), self.ended)
        return Generation(*(cast(jax.Array, field[:, None]) for field in fields))  # numpy serves all that a Reader does with them


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
        encoder, cores = self.model.config.encoder, os.cpu_count() or 1
        self._small = encoder.num_tokens * encoder.hidden_size <= SMALL
        self.batch_size = CPU_BATCH
        if self._small:
            self.batch_size, self.together, self.ahead = SMALL_BATCH, SMALL_TOGETHER, cores
        self._pool = ThreadPoolExecutor(cores if self._small else 1, "onnx")
        self._decoders = Decoders(partial(prepare, processor=self.processor), cores, _crashed)
        weakref.finalize(self, self._decoders.close)
        open_session = partial(fast_session, threads=1 if self._small else 0)
        self.onnx = OnnxModel(self.model, Style(int8=precision == "int8", cross_cache=self._small), open_session)
        self.model = TrOCR.abstract(model.config)  # its weights are in the graphs
        self._trims = self.processor.trimmed and precision == "int8"
        self.defaults = GenerateConfig(self.defaults.max_new_tokens)

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, *, dtype: Any = None, precision: Precision = "int8") -> OnnxReader:
        """As `Reader.from_pretrained`; `dtype` is that of the weights that the graphs are written from, float32 by default.

        Raises:
            ValueError: as there, and an unknown precision.
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
        """As `Reader.check`; of the options only the lengths can be followed."""
        check(config, self.model.config)

    def start(self, pixels: np.ndarray, config: GenerateConfig, seeds: np.ndarray | None = None) -> Wait:
        """As `generate`, in another thread."""
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


def check(config: GenerateConfig, model: TrOCRConfig) -> None:
    """Raises ValueError for options that these graphs have no operators for, and for more tokens than the model can write."""
    config.check_positions(model.decoder.max_positions)
    if config != GenerateConfig(config.max_new_tokens, config.min_new_tokens):
        raise ValueError("ONNX Runtime decodes greedily: of the options only max_new_tokens and min_new_tokens are possible")

