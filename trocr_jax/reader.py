"""Images in, lines of text out: the whole of TrOCR behind one call.

An image's path: `prepared` (any input -> RGB -> uint8 pixels) -> `decoding` (pixels -> tokens, one compiled program) ->
`tokens` and `line` (tokens -> text with confidences).

Images are decoded by threads ahead of the device, put together in batches of a few fixed sizes (so that few programs are
compiled) and read while the next batch is prepared. Results come in the order of the images.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import lru_cache, partial
from numbers import Integral
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from . import files, images, sharding
from .agreement import misreadings
from .checkpoints.generation_files import read_settings
from .cores import usable_cores
from .decoding import GenerateConfig, Generation, read_pixels
from .flags import NO_TEXT
from .generation.packed import Packed, pack
from .generation.sampling import image_seed, small_seed
from .lanes import Lanes
from .line import NO_NUMBERS, Line, line_from_tokens
from .model import TrOCR
from .patterns import constraint
from .pixels.image_processor import ImageProcessor
from .prepared import Prepared, prepare
from .streaming import Piece, batches, by_place, in_order, in_pieces, whole
from .tokens import Tokenizer

SURE = 0.5
"""The confidence from which a text is believed although its image looks blank."""
TOGETHER = 8
"""Batches that `read` sorts by length. As many again are prepared meanwhile: 0.9 GB with batches of 128 images of 384x384."""

CPU_BATCH = 8
"""Images a batch on a CPU, by default."""

AHEAD = 2
"""Batches that the device works on or that wait for it while the one before is read out."""

PATTERNS = 8
"""Patterns whose automata a reader keeps."""

Wait = Callable[[], Generation]
"""Gives the result of a batch when it is there."""


class Reader:
    """Reads line images with one model.

    Args:
        model: with parameters on the device; not to be changed in place, as a CPU reads from a copy of the decoder's layers.
        tokenizer, processor: those of the same checkpoint.
        defaults: how to decode where `read` is not told otherwise.
        name: what to call the model in messages.
        mesh: devices that the model was placed on, to read with all of them; see `sharding`.
    """

    def __init__(
        self, model: TrOCR, tokenizer: Tokenizer, processor: ImageProcessor, defaults: GenerateConfig,
        name: str = "model", mesh: Mesh | None = None,
    ):  # fmt: skip
        self.model, self.tokenizer, self.processor, self.defaults, self.name = model, tokenizer, processor, defaults, name
        self.mesh, self._lanes, self.batch_size = mesh, Lanes(), default_batch_size() * sharding.rows_for(1, mesh)
        self.together, self.ahead = TOGETHER, AHEAD
        self.pads_last_batch = jax.default_backend() != "cpu"  # a program for fewer rows takes longer to compile than to pad
        self._packed: tuple[TrOCR, Packed] | None = None
        self._constraint = lru_cache(PATTERNS)(partial(constraint, tokenizer=tokenizer))
        if model.config.encoder.num_channels != 3:
            raise ValueError(f"{name}: reads images of {model.config.encoder.num_channels} channels; images are prepared as RGB")
        if wrong := misreadings(model.config, tokenizer):
            raise ValueError(f"{name}: {'; '.join(wrong)}: they do not belong together")

    @classmethod
    def from_pretrained(cls, name: str | Path | None = None, *, dtype: Any = None, mesh: str | None = None) -> Reader:
        """A checkpoint by hub name (or `owner/model@revision`) or directory; by default the model in the package: no network.

        Args:
            dtype: "float32", "bfloat16" or "float16"; by default float32 on CPU, bfloat16 on TPU and GPU. For int8 there is
                `trocr_jax.serve.onnx_backend.OnnxReader`.
            mesh: "data=8" reads with 8 devices, "data=4,model=2" cuts the weights over pairs of them; by default one device.

        Raises:
            ValueError: no such checkpoint, or a damaged or unsupported one; the message says which file and why. No such mesh.
        """
        if dtype is not None and _dtype_name(dtype) not in ("float32", "bfloat16", "float16"):
            raise ValueError(
                f"dtype must be float32, bfloat16 or float16, not {dtype}; int8 is OnnxReader's (serve.onnx_backend)"
            )
        directory = files.resolve(name)
        devices = sharding.make_mesh(mesh) if mesh else None
        put = sharding.putter(devices) if devices else None
        model = TrOCR.from_pretrained(directory, dtype=jnp.dtype(dtype or default_dtype()), put=put)
        processor = ImageProcessor.from_hf(files.read_preprocessor(directory), model.config.encoder.image_size)
        defaults = default_generation(directory, model)
        return cls(model, Tokenizer.from_directory(directory), processor, defaults, str(name or "tiny-print"), devices)

    @overload
    def read(
        self, source: list[Any] | tuple[Any, ...] | Iterator[Any], *, batch_size: int | None = None, seed: int = 0, **options: Any
    ) -> list[Line]: ...

    @overload
    def read(self, source: images.Source, *, batch_size: int | None = None, seed: int = 0, **options: Any) -> Line: ...

    def read(self, source: Any, *, batch_size: int | None = None, seed: int = 0, **options: Any) -> Line | list[Line]:
        """Reads one image, or many.

        Args:
            source: an image (path, bytes, open file, PIL image, array), or any other iterable of images.
            batch_size: images a step of all devices; by default 8 a device on CPU, 128 elsewhere.
            seed: for sampling, with `do_sample`; image i draws from (seed, i), whatever it is batched with.
            options: fields of GenerateConfig (num_beams, max_new_tokens, ...); or `pattern`, a regular expression that the whole
                text shall match, as `patterns` has them. Pieces that a long line is read in shall match it each. Probabilities
                stay the model's own: low ones tell that the image shows something else.

        Returns:
            A Line for one image, a list of Lines in order for many. An unreadable image gives a Line with `error` set.
        """
        many = isinstance(source, Iterable) and not images.is_source(source)
        sources = source if many else [source]
        lines = list(self.stream(sources, batch_size=batch_size, seed=seed, together=self.together, **options))
        return lines if many else lines[0]

    def stream(
        self, sources: Iterable[Any], *, batch_size: int | None = None, seed: int = 0, together: int = 1, **options: Any
    ) -> Iterator[Line]:
        """`read` for many images, one Line at a time as they are done, in order. While the caller looks at a line, two
        batches are with the device, and images for one more and for `together` ones are being prepared.

        Args:
            together: batches that are filled from the images of all of them by what seems to be their length, so that none waits
                for a much longer one: the more, the faster as a whole, and the later the first line.

        Raises:
            ValueError: at once, for options that this reader cannot follow, for sizes that are no whole numbers from 1 on, for a
                seed that is no whole number, and for a single image, whose letters would be names of files.
        """
        if images.is_source(sources) and not hasattr(sources, "__array__"):
            raise ValueError("stream reads many images; for one there is read")
        config, seed = self.configured(**options), small_seed(seed)
        size = self.batch_size if batch_size is None else batch_size
        if not all(isinstance(n, Integral) and n >= 1 for n in (size, together)):
            raise ValueError(f"batch_size and together must be whole numbers, at least 1, not {size} and {together}")
        pieces = in_pieces(self.prepare_all(sources, size + size * together))
        return whole(by_place(self._read(batches(pieces, size, size * together), config, seed)), config.do_sample)

    def _read(self, batches: Iterable[list[Piece]], config: GenerateConfig, seed: int) -> Iterator[tuple[Piece, Line]]:
        """Every piece and its Line, in the order of the batches."""
        pending: deque[tuple[list[Piece], Wait | None]] = deque()
        rows = 0
        for batch in batches:
            rows = max(rows, len(batch)) if self.pads_last_batch else 0
            pending.append((batch, self._submit(batch, config, seed, rows)))
            if len(pending) > self.ahead:
                yield from self._lines(*pending.popleft())
        for batch, wait in pending:
            yield from self._lines(batch, wait)

    def configured(self, pattern: str | None = None, **options: Any) -> GenerateConfig:
        """The defaults but for these options of `read`. Raises ValueError for those that this reader cannot follow."""
        if pattern is not None:
            if not isinstance(pattern, str):
                raise ValueError(f"pattern must be a string, a regular expression, not {pattern!r:.80}")
            options["constraint"] = self._constraint(pattern)
        known = [field.name for field in fields(self.defaults)]
        if unknown := options.keys() - set(known):
            raise ValueError(f"no option {', '.join(sorted(unknown))}; there are pattern, {', '.join(known)}")
        config = replace(self.defaults, **options)
        self.check(config)
        return config

    def check(self, config: GenerateConfig) -> None:
        """Raises ValueError for options that this reader cannot follow, before any image is looked at."""
        config.check_positions(self.model.config.decoder.max_positions)

    def prepare(self, source: Any, max_pixels: int = images.MAX_PIXELS) -> Prepared:
        """Any image -> uint8 pixels [height,width,3] and what can be said of it without the model. Runs in a thread."""
        return prepare(source, self.processor, max_pixels)

    def prepare_all(self, sources: Iterable[Any], ahead: int) -> Iterator[Prepared]:
        """Every source prepared, in order; `ahead` of them are under way at a time."""
        with ThreadPoolExecutor(usable_cores()) as pool:
            yield from in_order((pool.submit(self.prepare, source) for source in sources), ahead)

    def generate(self, pixels: np.ndarray, config: GenerateConfig, seeds: np.ndarray | None = None) -> Generation:
        """uint8 pixels [n,height,width,3] -> Generation of at least n rows: the batch is filled up to a bucket.

        Dispatches and returns; the arrays of the result are waited for when they are used. On a CPU that happens in other
        threads, which settings like `with jax.default_device(...)` do not reach; `jax.config.update` does.
        """
        rows = sharding.rows_for(len(pixels), self.mesh)
        padded = np.zeros((rows, *pixels.shape[1:]), np.uint8)
        padded[: len(pixels)] = pixels
        draws = None
        if config.do_sample:
            draws = np.resize(np.arange(len(pixels)) if seeds is None else seeds, rows).astype(np.uint32)
        limits = np.where(np.arange(rows) < len(pixels), config.max_new_tokens, 0).astype(np.int32)
        settings = (config, self.processor.mean, self.processor.std)
        if self.mesh:
            return sharding.read_pixels(self.model, padded, *settings, draws, limits, mesh=self.mesh)
        padded, draws, limits = jax.device_put((padded, draws, limits))
        return self._lanes.dispatch(read_pixels, self._ready(), padded, *settings, draws, limits)

    def _ready(self) -> Packed:
        """The model laid out for decoding, once; and again where another one has taken its place."""
        if self._packed is None or self._packed[0] is not self.model:
            self._packed = self.model, pack(self.model)
        return self._packed[1]

    def lines(self, result: Generation, flags: Iterable[tuple[str, ...]]) -> Iterator[Line]:
        """The first rows of a Generation as Lines, one for every `flags` of an image; waits for the device."""
        rows = zip(*jax.device_get((result.tokens, result.logprobs, result.lengths, result.finished)), strict=True)
        for own, row in zip(flags, rows, strict=False):  # rows that only filled the batch up come last
            # of length 0 are those that a search was asked for and did not find
            best, *others = (
                self.line(tokens, p, length, end, own) for tokens, p, length, end in zip(*row, strict=True) if length
            )
            yield replace(best, alternatives=tuple(others)) if others else best

    def line(self, tokens: np.ndarray, logprobs: np.ndarray, length: int, finished: bool, flags: tuple[str, ...] = ()) -> Line:
        """One row of a Generation, tokens and logprobs [T] of which `length` count, as a Line.

        An image that looked blank keeps its text only where the model is sure of it: pale print in noise looks blank too,
        and on real blanks the model babbles. Where the model overflowed or is damaged, the Line says so as its error.
        """
        ids = [int(token) for token in tokens[:length]]
        if np.isnan(logprobs[:length]).any():
            return Line.failed(NO_NUMBERS, flags)
        line = line_from_tokens(
            self.tokenizer.decode(ids), ids, [float(p) for p in logprobs[:length]], self.tokenizer.spans(ids), finished, flags
        )
        if NO_TEXT not in flags:
            return line
        sure = line.text and line.confidence >= SURE
        return replace(line, flags=tuple(f for f in line.flags if f != NO_TEXT)) if sure else Line(flags=flags)

    def start(self, pixels: np.ndarray, config: GenerateConfig, seeds: np.ndarray | None = None) -> Wait:
        """Begins to read a batch, see `generate`; the function that it returns waits for the result."""
        result = self.generate(pixels, config, seeds)
        return lambda: result

    def _submit(self, batch: list[Piece], config: GenerateConfig, seed: int, rows: int) -> Wait | None:
        """None where no image of the batch could be prepared. Fewer than so many rows are filled up with copies of the last one:
        they would take a program of their own.
        """
        readable = [(piece.source, piece.item.pixels) for piece in batch if piece.item.pixels is not None]
        if not readable:
            return None
        index = np.array([source for source, _ in readable], np.uint64)
        copies = max(rows - len(readable), 0)
        pixels = np.stack([pixels for _, pixels in readable] + [readable[-1][1]] * copies)
        return self.start(pixels, config, image_seed(np.pad(index, (0, copies), "edge"), seed))

    def _lines(self, batch: list[Piece], wait: Wait | None) -> Iterator[tuple[Piece, Line]]:
        readable = [piece.item for piece in batch if piece.item.pixels is not None]
        lines = self.lines(wait(), [item.flags for item in readable]) if wait else iter(())
        for piece in batch:
            yield piece, Line.failed(piece.item.error) if piece.item.error else next(lines)


def _dtype_name(dtype: Any) -> str:
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return str(dtype)


def default_dtype() -> str:
    """float32 on CPU, where narrower is slower; bfloat16 on TPU and GPU."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def default_batch_size() -> int:
    """Enough to keep the device busy without making a caller wait for it."""
    return CPU_BATCH if jax.default_backend() == "cpu" else 128


def default_generation(directory: Path, model: TrOCR) -> GenerateConfig:
    """What the checkpoint says of decoding, where it says something; lines of up to 128 tokens where it does not.

    Raises ValueError, which names the checkpoint, for settings that cannot be.
    """
    settings = read_settings(directory, model.config)
    try:
        return GenerateConfig.from_hf(settings, model.config.decoder.max_positions)
    except ValueError as error:
        raise ValueError(f"{directory}: its settings of decoding (generation_config.json, config.json): {error}") from None
