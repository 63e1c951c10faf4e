"""Reads millions of images of lines or pages: a folder, a glob, a list, tar shards, parquet files or an LMDB, here or at a URL.

OUTPUT becomes a folder of parts (JSON lines or parquet) with id, text, confidence, finish_reason, words, flags and error of
every line, or with --page id, size, lines and error of every page.
Run the same command again to go on after any interruption, and on as many machines as share OUTPUT to go faster: the
result is the same.
"""

from __future__ import annotations

import hashlib
import signal
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from trocr_jax import files
from trocr_jax.checkpoints import generation_files
from trocr_jax.cli import int8_backend
from trocr_jax.cores import usable_cores
from trocr_jax.files import FilesError
from trocr_jax.page import is_lost
from trocr_jax.pages.formats import Page
from trocr_jax.terminal import UsageError, check_pattern

from .batch_job import inputs, output
from .batch_job.places import FetchError, PlaceError, absolute, root_of
from .batch_job.progress import ProgressBar, Share, remark, report
from .batch_job.units import Columns, Item
from .batch_job.work import BatchJob, Worker, begin_job, disk_full, open_job

if TYPE_CHECKING:
    from trocr_jax.decoding import GenerateConfig
    from trocr_jax.reader import Reader

    from .batch_job.pipeline import ImageReading


@dataclass(frozen=True)
class Config:
    """What to read, where its results go, and how.

    Attributes:
        input: Folder, glob, list, .tar, .parquet or LMDB folder; a path, or a URL that fsspec knows (gs://, s3://, ...).
        output: A folder that all workers share: empty or absent, or that of the job to continue.
        format: Format of the parts. By default jsonl.
        page: The images are pages: find their lines and read them in order. A row is a page then.
        model: Hub name or directory. By default the model in the package.
        beams: Beams of the search; 1 is greedy. By default as the checkpoint says.
        batch_size: Images a step. By default 8 on CPU (24 in int8 with a small model), 128 on TPU and GPU.
        dtype: By default float32 on CPU, bfloat16 on TPU and GPU. int8 is the fastest on a CPU, with ONNX Runtime (the
            extra "onnx"): it is always greedy, and reads some lines otherwise, on another kind of CPU perhaps others.
        pattern: A regular expression that every text shall match as a whole, as [0-9]{2}/[0-9]{2}/[0-9]{4}; needs the
            extra "pattern". Of a page every line is held to it, of a line that is too long to be read at once every piece.
        max_tokens: Most new tokens a line. By default as the checkpoint says, else 128.
        unit_lines: Images of a work unit, which is a part of OUTPUT. By default 1024, or 64 pages. A tar shard is always
            one unit.
        image_column: Column of images in parquet files. By default image, img, bytes, ...
        id_column: Column of ids in parquet files. By default id, key or __key__; without one, ids are file#row.
        decoders: Processes that decode images. By default one a core.
        give_up: Store as an error what cannot be read in three tries of a listed file or URL, as where its host is gone. By
            default this worker ends there, and the same command tries again.
        lease: Seconds after which the work of a worker on another machine that gives no sign of life is done by others.
        price_per_hour: What this machine costs, to report the cost of 1,000 lines.
    """

    input: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="INPUT")]
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUTPUT")]
    format: Literal["jsonl", "parquet"] | None = None
    page: bool = False
    model: str | None = None
    beams: Annotated[int | None, tyro.conf.arg(aliases=("-k",))] = None
    batch_size: int | None = None
    dtype: Literal["float32", "bfloat16", "int8"] | None = None
    pattern: str | None = None
    max_tokens: int | None = None
    unit_lines: int | None = None
    image_column: str | None = None
    id_column: str | None = None
    decoders: int | None = None
    give_up: bool = False
    lease: float = 60.0
    price_per_hour: float | None = None


def run(config: Config) -> int:
    """Works until the job is done; 1 where images failed."""
    numbers = [config.beams, config.batch_size, config.max_tokens, config.unit_lines, config.decoders]
    if any(number is not None and number < 1 for number in numbers):
        raise UsageError("--beams, --batch-size, --max-tokens, --unit-lines and --decoders must be at least 1")
    if not config.lease > 0 or not (config.price_per_hour or 0) >= 0:
        raise UsageError("--lease must be above 0, and --price-per-hour not below")
    if config.dtype == "int8" and (config.beams or 1) > 1:
        raise UsageError("--dtype int8 reads greedily: leave --beams out")
    if config.pattern is not None:
        check_pattern(config.pattern)
    began = time.perf_counter()
    folder = config.output.expanduser()
    job = open_job(folder) or _begin(folder, config)
    check_settings(job, config)
    if job.settings["format"] == "parquet" and find_spec("pyarrow") is None:
        raise UsageError("--format parquet needs the Python package 'pyarrow': pip install 'trocr-jax[batch]'")
    previous = signal.signal(signal.SIGTERM, _leave)  # a preempted machine gives its leases back
    try:
        return work(job, config, began)
    except FilesError as error:
        hint = "; free some space and run the same command again, finished parts are kept" if disk_full(error) else ""
        raise FilesError(f"{error}{hint}") from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _leave(*_: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _begin(folder: Path, config: Config) -> BatchJob:
    dtype, batch_size = _defaults(config)
    settings = {
        "input": absolute(config.input), "root": root_of(config.input), "format": config.format or "jsonl", "page": config.page,
        "model": config.model, "digest": digest(config.model),
        "beams": config.beams, "batch_size": batch_size, "dtype": dtype,
        "pattern": config.pattern, "max_tokens": config.max_tokens,
        "unit_lines": config.unit_lines or (64 if config.page else 1024),
        "image_column": config.image_column, "id_column": config.id_column,
    }  # fmt: skip
    columns = Columns(config.image_column, config.id_column)
    return begin_job(folder, settings, lambda listing: inputs.plan(config.input, settings["unit_lines"], listing, columns))


def _defaults(config: Config) -> tuple[str, int]:
    """What numbers to read in, and how many images a step: by default as this machine does best, in int8 as the model does."""
    if config.dtype == "int8":
        from trocr_jax.pretrained import open_checkpoint

        backend = int8_backend()
        return config.dtype, config.batch_size or backend.default_batch_size(open_checkpoint(config.model).config)
    from trocr_jax.reader import default_batch_size, default_dtype

    return config.dtype or default_dtype(), config.batch_size or default_batch_size()


def check_settings(job: BatchJob, config: Config) -> None:
    """Checks that the flags say what the job was begun with; what no flag says is taken from the job.

    Raises:
        UsageError: something differs.
    """
    for name in (field.name for field in fields(config) if field.name in job.settings):
        asked, begun = getattr(config, name), job.settings[name]
        asked = absolute(asked) if name == "input" else asked
        if asked and asked != begun:
            flag = "INPUT" if name == "input" else "--" + name.replace("_", "-")
            raise UsageError(f"{job.folder}: the job was begun with {flag} {begun}, not {asked}; choose another OUTPUT")
    if digest(job.settings["model"]) != job.settings["digest"]:
        raise UsageError(f"{job.folder}: the job was begun with other weights than the model has now; choose another OUTPUT")


def digest(model: str | None) -> str:
    """What tells a checkpoint from another without reading all of its weights: the files that a result depends on, large ones in
    samples.

    Raises:
        FilesError: there is no such checkpoint.
    """
    place = files.resolve(model)
    found = hashlib.sha256()
    for path in sorted(path for path in place.rglob("*") if _matters(path, place)) if place.is_dir() else [place]:
        found.update(f"{path.relative_to(place)} {path.stat().st_size}\n".encode())
        for block in _samples(path):
            found.update(block)
    return found.hexdigest()[:16]


def _matters(path: Path, place: Path) -> bool:
    """Whether a result depends on this file of a checkpoint: not on a README, nor on the manifest, which lists that too."""
    weights = path.suffix in (".safetensors", ".bin", ".pt") or path.relative_to(place).parts[0] == files.ORBAX
    small = ("config.json", generation_files.NAME, *files.TOKENIZER_FILES, *files.PREPROCESSOR_FILES)
    return path.is_file() and (weights or path.name in small or path.name.endswith(".index.json"))


def _samples(path: Path) -> Iterator[bytes]:
    """16 blocks of 64 KB from a file's beginning to its end, evenly apart; of a small file they cover all of it."""
    last = max(path.stat().st_size - (1 << 16), 0)
    with open(path, "rb") as file:
        for number in range(16):
            file.seek(last * number // 15)
            yield file.read(1 << 16)


def work(job: BatchJob, config: Config, began: float) -> int:
    """This process's share of a job, and the report."""
    worker = Worker(job, config.lease)
    share = Share()
    try:
        if len(job.done()) < len(job.units):
            share = _share(job, worker, config, began)
        worker.sweep()
    finally:
        worker.close()
    _tell_of_new(job)
    return report(job, share, config.price_per_hour)


def _tell_of_new(job: BatchJob) -> None:
    """Says what came into INPUT after the job was planned, and is therefore not read."""
    place = job.settings["input"]
    with suppress(PlaceError, FetchError, UsageError):  # INPUT may be gone by now
        if count := inputs.count_new(place, job.units, job.listing, job.folder):
            what = f"{count:,} images or shards that came after this job was planned and are not read"
            remark(f"{place} has {what}; choose another OUTPUT to read them")


def _share(job: BatchJob, worker: Worker, config: Config, began: float) -> Share:
    """Reads units until the job is done."""
    from .batch_job.decode import Decoders
    from .batch_job.pipeline import Pipeline, windows
    from .batch_job.prepare import Decoded, decode

    settings, reader = job.settings, _reader(job.settings)
    pages = settings["page"]
    work = partial(decode, processor=reader.processor, pages=pages, root=settings["root"], give_up=config.give_up)
    decoders = Decoders(work, config.decoders or usable_cores(), Decoded.failed)
    progress = ProgressBar(job)
    writer = Writer(job, worker, progress)
    pipeline = Pipeline(reader, _decoding(reader, settings), settings["batch_size"], writer.store, progress.advance)
    try:
        units = iter(partial(worker.claim, progress.waiting), None)
        pipeline.run((x for number in units for x in windows(number, _items(job, number), decoders, pages)), worker.close)
        writer.close()
    finally:
        worker.close()  # first of all: others shall not wait for what may hang here
        decoders.close()
        pipeline.close()
        progress.close()
    startup = (pipeline.clock.first or time.perf_counter()) - began
    return Share(progress.lines, time.perf_counter() - began, startup, pipeline.clock.waited())


def _reader(settings: dict[str, Any]) -> Reader:
    from trocr_jax.compilation_cache import cache_compilations
    from trocr_jax.reader import Reader

    cache_compilations()
    if settings["dtype"] == "int8":
        return int8_backend().OnnxReader.from_pretrained(settings["model"], precision="int8")
    return Reader.from_pretrained(settings["model"], dtype=settings["dtype"])


def _decoding(reader: Reader, settings: dict[str, Any]) -> GenerateConfig:
    """How to decode: as the model says, except for what the job's settings say."""
    asked = {"num_beams": settings["beams"], "max_new_tokens": settings["max_tokens"], "pattern": settings["pattern"]}
    return reader.configured(**{name: value for name, value in asked.items() if value is not None})


def _items(job: BatchJob, number: int) -> Iterator[Item]:
    """The images of a unit."""
    columns = Columns(job.settings["image_column"], job.settings["id_column"])
    return inputs.read(job.units[number], job.listing, columns, job.settings["root"])


class Writer:
    """Stores units in a thread of its own: the device does not wait for the disk."""

    def __init__(self, job: BatchJob, worker: Worker, progress: ProgressBar):
        self.job, self.worker, self.progress = job, worker, progress
        self._pool = ThreadPoolExecutor(1, "writer")
        self._pending: deque[Future[None]] = deque()

    def store(self, number: int, images: list[ImageReading]) -> None:
        """Has a unit written. Raises what the writing of an earlier one raised."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._write, number, images))

    def close(self) -> None:
        """Waits for the last unit; raises what writing raised."""
        self._pool.shutdown()
        for pending in self._pending:
            pending.result()

    def _write(self, number: int, images: list[ImageReading]) -> None:
        pages = self.job.settings["page"]
        as_row: Any = output.page_row if pages else output.row
        results = [(image.item.id, image.result) for image in images]
        for name, result in results:
            if isinstance(result, Page) and is_lost(result) and self.job.settings["pattern"] is None:
                remark(f"{name}: hardly a line could be read; 'trocr-jax read --page' tries a page in every direction")
        rows = [as_row(name, result) for name, result in results]
        for row in rows:
            for error in output.errors(row):
                remark(f"{row['id']}: {error}")
        counts = output.count(rows)
        self.worker.finish(number, output.encode(rows, self.job.settings["format"], pages), counts)
        self.progress.stored(counts["images"], counts["lines"])
