"""How many images a second this machine fetches, decodes and resizes for `trocr-jax batch`, by threads and by processes.

    python -m trocr_jax.serve.decode_rate FOLDER --model microsoft/trocr-base-printed

A device that reads more than that waits, whatever it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from trocr_jax import files
from trocr_jax.cli import program
from trocr_jax.config import TrOCRConfig
from trocr_jax.cores import usable_cores
from trocr_jax.image_paths import find_images
from trocr_jax.pixels.image_processor import ImageProcessor

from .batch_job.decode import CHUNK, Decoders
from .batch_job.prepare import Decoded, decode
from .batch_job.units import groups


@dataclass(frozen=True)
class Config:
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Images of lines, or of pages with --page."""
    model: str | None = None
    """Hub name or directory, for its image size. By default the model in the package."""
    page: bool = False
    """The images are pages."""
    workers: tuple[int, ...] = (1, usable_cores())
    """Threads, and then processes."""
    rounds: int = 3
    """How often to count; the best counts."""


def run(config: Config) -> int:
    """A row a kind and number of workers, then a JSON line."""
    directory = files.resolve(config.model)
    size = TrOCRConfig.from_hf(files.read_json(directory / "config.json")).encoder.image_size
    processor = ImageProcessor.from_hf(files.read_preprocessor(directory), size)
    images = [str(path) for path in find_images([str(config.folder)])]
    rows = []
    for kind, measure in (("threads", threads), ("processes", processes)):
        for count in config.workers:
            rate = measure(images, processor, count, config)
            rows.append({"kind": kind, "workers": count, "images_per_second": round(rate, 1)})
            print(f"{count:>3} {kind:<9} {rate:9,.1f} images/s {rate / count:9,.1f} each")
    print(json.dumps({"images": len(images), "size": size, "page": config.page, "results": rows}))
    return 0


def threads(images: list[str], processor: ImageProcessor, count: int, config: Config) -> float:
    """Images a second."""
    one = partial(decode, processor=processor, pages=config.page)
    with ThreadPoolExecutor(count) as pool:
        return highest_rate(lambda: list(pool.map(one, images)), len(images), config.rounds)


def processes(images: list[str], processor: ImageProcessor, count: int, config: Config) -> float:
    """Images a second, the way of their pixels back to this process counted."""
    decoders = Decoders(partial(decode, processor=processor, pages=config.page), count, Decoded.failed)

    def work(chunks: list[list[str]]) -> None:
        for waiting in [decoders.submit(chunk) for chunk in chunks]:
            waiting.result()

    try:
        work([images[:1]] * 4 * count)  # until all of them are up
        return highest_rate(partial(work, list(groups(images, CHUNK))), len(images), config.rounds)
    finally:
        decoders.close()


def highest_rate(work: Callable[[], object], count: int, rounds: int) -> float:
    """The rate of the quickest of some rounds, in things a second."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return count / min(seconds)


if __name__ == "__main__":
    raise SystemExit(program("trocr_jax.serve.decode_rate"))
