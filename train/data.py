"""The lines that a run trains on, each a function of its position alone: their order, and reading them.

A position p = step * batch_size + row has its record and its random numbers from (seed, p) alone, so that resuming is exact and
hosts can share the work in any number: each reads its rows of the same global batch. grain gives the order of files
(shuffled anew every epoch, mixed by weight). A record that cannot be used is named, counted, and its place given to
another that depends on p alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from trocr_jax import images
from trocr_jax.pixels.image_processor import ImageProcessor
from trocr_jax.tokens import Tokenizer

from .config import Config
from .drawing.pool import LinePool
from .sets.records import Source, SourceError
from .sets.sources import open_source
from .start import Start

Place = tuple[int, int]
"""Source, and index within it."""
Augment = Callable[[Image.Image, np.random.Generator], Image.Image]
SYNTHETIC = "synthetic"
SUBSTITUTES = 20
JUDGED_FROM = 200  # different records, or all there are, before the share of bad ones counts


@dataclass(frozen=True)
class Example:
    """A line ready for a batch: uint8 pixels [height,width,3], label [T], and where it came from."""

    pixels: np.ndarray
    label: list[int]
    place: Place


def parse_source(text: str) -> tuple[str, float]:
    """ "path@0.3" -> path and weight.

    Raises:
        SourceError: the weight is no positive number.
    """
    path, at, weight = text.rpartition("@")
    if not at:
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        return text, 1.0  # an "@" in the path
    if not 0 < value < float("inf"):
        raise SourceError(f"{text}: the weight behind the @ must be above 0")
    return path, value


class Order(Protocol):
    """Position -> (source, index within it); a random-access sequence without end."""

    def __getitem__(self, position: int) -> Place: ...


class PoolOrder:
    """The order of drawn lines: position p takes one of the `available` ones, drawn with (seed, p)."""

    def __init__(self, pool: LinePool, seed: int, source: int = 0):
        self.pool, self.seed, self.source = pool, seed, source

    def __len__(self) -> int:
        return np.iinfo(np.int64).max

    def __getitem__(self, position: int) -> Place:
        index = np.random.default_rng((self.seed, position)).integers(0, self.pool.available(position))
        return self.source, int(index)


def mixed_order(sources: Sequence[Source | LinePool], weights: Sequence[float], seed: int) -> Order:
    """Every source shuffled anew each epoch, and all of them mixed by weight."""
    if len(sources) == 1 and isinstance(sources[0], LinePool):
        return PoolOrder(sources[0], seed)  # without grain, which an accelerator machine may lack
    import grain

    parts: list[Any] = []
    for number, source in enumerate(sources):
        if isinstance(source, LinePool):
            parts.append(grain.MapDataset.source(cast(Any, PoolOrder(source, seed, number))))
        else:
            places = grain.MapDataset.range(len(source)).seed(seed + number).shuffle().repeat()
            parts.append(places.map(lambda index, number=number: (number, int(index))))
    return parts[0] if len(parts) == 1 else cast(Order, grain.MapDataset.mix(parts, weights=list(weights)))


@dataclass(kw_only=True, eq=False)
class Loader:
    """Position -> Example.

    Attributes:
        sources: what `order` numbers.
        order: position -> source and index.
        tokenizer, processor: those of the model.
        seed: decides augmentation, and substitutes for records that cannot be used.
        max_tokens: most tokens of a label, its end token included.
        max_bad: share of records that cannot be used above which to give up.
        augment: (image, generator) -> image, for lines that were not drawn.
        report: called with what is wrong with a record, once for each.
    """

    sources: Sequence[Source | LinePool]
    order: Order
    tokenizer: Tokenizer
    processor: ImageProcessor
    seed: int
    max_tokens: int
    max_bad: float = 0.01
    augment: Augment | None = None
    report: Callable[[str], None] = lambda problem: None

    def __post_init__(self) -> None:
        self.bad: set[Place] = set()
        self.seen = [np.zeros(_size(source), bool) for source in self.sources]
        self._ends = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        self._last = ""
        self.met, self.judged_from = 0, min(JUDGED_FROM, sum(map(_size, self.sources)))
        self._lock = threading.Lock()

    def __getitem__(self, position: int) -> Example:
        """Raises SourceError where too many records cannot be used."""
        substitutes = np.random.default_rng((self.seed, position, 1)).integers(0, position + JUDGED_FROM, SUBSTITUTES)
        problem = ""
        for candidate in (position, *substitutes.tolist()):
            place = self.order[candidate]
            try:
                example = self._example(place, position)
            except _BadRecord as bad:
                problem = str(bad)
                self._judge(place, problem)
            else:
                self._judge(place)
                return example
        raise SourceError(f"{SUBSTITUTES} records in a row cannot be used; the last: {problem}")

    def text(self, position: int) -> str:
        """The label as it stands in the source; empty where it cannot be read."""
        source, index = self.order[position]
        found = self.sources[source]
        try:
            return found[index][1] if isinstance(found, LinePool) else found[index].text
        except (ValueError, OSError, KeyError):
            return ""

    def _example(self, place: Place, position: int) -> Example:
        source = self.sources[place[0]]
        if isinstance(source, LinePool):
            pixels, text = source[place[1]]
            return Example(pixels, self._label(text), place)
        name = f"source {place[0]} record {place[1]}"
        try:
            record = source[place[1]]
            name = record.name
            label = self._label(record.text)
            image = images.load(record.image)
        except (ValueError, OSError, KeyError) as error:
            raise _BadRecord(f"{name}: {error}") from None
        if self.augment:
            image = self.augment(image, np.random.default_rng((self.seed, position)))
        return Example(self.processor(image), label, place)

    def _label(self, text: str) -> list[int]:
        if not text.strip():  # a model that learns to say nothing forgets how to read
            raise _BadRecord("its label is empty")
        label = self.tokenizer.labels(text)
        if not self._ends.isdisjoint(label[:-1]):
            raise _BadRecord("its label has a token in it that begins, ends or fills up labels, such as </s>")
        if len(label) > self.max_tokens:
            raise _BadRecord(f"its label has {len(label)} tokens, more than --max-tokens {self.max_tokens}")
        return label

    def _judge(self, place: Place, problem: str = "") -> None:
        """Counts a record the first time it is met, and gives up where too many cannot be used."""
        source, index = place
        with self._lock:
            if self.seen[source][index]:
                return
            self.seen[source][index] = True
            self.met += 1
            if problem:
                self.bad.add(place)
                self._last = problem
            bad, met = len(self.bad), self.met
        if problem:
            self.report(problem)
        if bad > self.max_bad * met and met >= self.judged_from:
            limit = f"more than --data.max-bad {self.max_bad}"
            raise SourceError(f"{bad} of {met} records cannot be used, {limit}; the last: {self._last}")


def _size(source: Source | LinePool) -> int:
    return source.config.lines if isinstance(source, LinePool) else len(source)


class _BadRecord(ValueError):
    """One record cannot be used."""


def training_lines(config: Config, model: Start, report: Callable[[str], None]) -> Loader:
    """The lines of a run, in its order; starts to draw those that are drawn.

    Args:
        report: see `Loader`.

    Raises:
        SourceError: there is no source, or one cannot be opened.
    """
    sources, weights = _open_sources(config, model.processor)
    return Loader(
        sources=sources,
        order=mixed_order(sources, weights, config.seed),
        tokenizer=model.tokenizer,
        processor=model.processor,
        seed=config.seed,
        max_tokens=config.max_tokens,
        max_bad=config.data.max_bad,
        augment=augmentation(config.data.augment, model.processor.fit == "stretch"),
        report=report,
    )


def _open_sources(config: Config, processor: ImageProcessor) -> tuple[list[Source | LinePool], list[float]]:
    """The sources that a configuration names, with their weights."""
    if not config.data.train:
        raise SourceError("no data to train on: set --data.train")
    paths, weights = zip(*map(parse_source, config.data.train), strict=True)
    return [_pool(config, processor) if path == SYNTHETIC else open_source(path) for path in paths], list(weights)


def _pool(config: Config, processor: ImageProcessor) -> LinePool:
    pool = LinePool(config.synthetic, processor)
    pool.start()
    return pool


def augmentation(name: str, stretched: bool) -> Augment | None:
    """The recipe with this name, None for "none".

    Args:
        stretched: whether the model's images are stretched, as those of the recipes are; otherwise long lines stay legible.
    """
    if name == "da2":
        from .augmentation.da2 import da2

        return partial(da2, stretched=stretched)
    if name == "rand":
        from .augmentation.rand_augment import rand_augment

        return partial(rand_augment, stretched=stretched)
    return None
