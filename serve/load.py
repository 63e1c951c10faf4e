"""How the server behaves as the load grows, and what continuous batching is worth: two tables, a plot, and a JSON line.

    python -m trocr_jax.serve.load [--plot docs/load.png]

The first table reads the same images, each with a given number of tokens from 1 to --tokens, one by one, in batches as they come,
in batches sorted by length (which needs all lengths beforehand), and with the engine. The second sends images over HTTP to a
server in a process of its own, at random moments (a Poisson process), and shows the time from sending to the whole answer.
Client and server share this machine; what they can do at most is measured first, in turns with `Reader.read`, and compared.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from trocr_jax import cli, terminal
from trocr_jax.engine import Engine, Job
from trocr_jax.generation.loop import whole_chunks
from trocr_jax.image_paths import find_images
from trocr_jax.reader import Reader

from .client import Client


@dataclass(frozen=True)
class Config:
    images: tuple[str, ...] = ("examples",)
    """Images, folders or globs; they are read again and again."""
    count: int = 96
    """Images of the first table."""
    tokens: int = 40
    """Most tokens of an image there."""
    slots: int = 8
    """Slots of the engine, and the size of the batches it is compared with."""
    rounds: int = 3
    """Rounds of each comparison, its sides in turns; the best counts."""
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 1.1)
    """Loads of the second table, as shares of what the server can do at most."""
    seconds: float = 15.0
    """Time for each of them."""
    plot: Path | None = None
    """A PNG to draw the second table to (needs matplotlib)."""
    seed: int = 0
    """Seed of the lengths, and of the moments at which images are sent."""


@dataclass(frozen=True)
class Way:
    """A line of the first table: images a second, and the share of decoding steps that gave a wanted token."""

    name: str
    per_second: float
    useful: float


@dataclass(frozen=True)
class Level:
    """A line of the second table: times in seconds, `served` per second."""

    share: float
    offered: float
    served: float
    p50: float
    p99: float
    refused: int


def run(config: Config) -> int:
    """Measures and prints; the exit code."""
    if config.plot:
        terminal.check_writable(config.plot, "--plot")
        cli.load("matplotlib", "--plot", "train")
    reader = Reader.from_pretrained()
    paths = find_images(config.images)
    ways = batching(reader, [reader.prepare(path).pixels for path in paths], config)
    print(f"{'way of reading, mixed lengths':<34} {'images/s':>9} {'useful steps':>13}")
    for way in ways:
        print(f"{way.name:<34} {way.per_second:9.1f} {way.useful:13.0%}")
    gc.freeze()  # a full collection of all that is loaded here takes 0.1 s, which would pass for a wait for the server
    with server(config) as url:
        offline, most, levels = asyncio.run(load(url, reader, paths, config))
    print(f"\nReader.read {offline:.1f} images/s, the server at most {most:.1f}: {most / offline:.0%}")
    print(f"{'share':>6} {'offered/s':>10} {'served/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'refused':>8}")
    for n in levels:
        print(f"{n.share:6.0%} {n.offered:10.1f} {n.served:9.1f} {1000 * n.p50:8.0f} {1000 * n.p99:8.0f} {n.refused:8}")
    rows = {"batching": list(map(asdict, ways)), "offline": offline, "most": most, "levels": list(map(asdict, levels))}
    print(json.dumps({"device": jax.devices()[0].device_kind, "slots": config.slots, **rows}), flush=True)
    if config.plot:
        draw(levels, config.plot)
    return 0


# --- batching ---


def batching(reader: Reader, pixels: Sequence[Any], config: Config) -> list[Way]:
    """The ways in turns, after one turn that compiles."""
    rng = np.random.default_rng(config.seed)
    work = [(pixels[i % len(pixels)], int(n)) for i, n in enumerate(rng.integers(1, config.tokens + 1, config.count))]
    ordered, engine = sorted(work, key=lambda item: item[1]), _engine(reader, config)
    ways: dict[str, Callable[[], int]] = {
        "one by one": lambda: _static(reader, work, 1, config),
        f"batches of {config.slots}, as they come": lambda: _static(reader, work, config.slots, config),
        f"batches of {config.slots}, sorted": lambda: _static(reader, ordered, config.slots, config),
        f"engine, {config.slots} slots": lambda: _continuous(engine, work),
    }
    best, steps = dict.fromkeys(ways, float("inf")), {name: way() for name, way in ways.items()}
    for _ in range(config.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    wanted = sum(n for _, n in work)
    return [Way(name, len(work) / best[name], wanted / steps[name]) for name in ways]


def _static(reader: Reader, work: Sequence[tuple[Any, int]], size: int, config: Config) -> int:
    """Batches that run until their longest line is done; the steps of all rows."""
    steps = 0
    for start in range(0, len(work), size):
        batch = work[start : start + size]
        length = min(whole_chunks(max(n for _, n in batch)), config.tokens)
        exactly = replace(reader.defaults, max_new_tokens=length, min_new_tokens=length)
        jax.block_until_ready(reader.generate(np.stack([image for image, _ in batch]), exactly))
        steps += length * len(batch)
    return steps


def _engine(reader: Reader, config: Config) -> Engine:
    defaults, processor = replace(reader.defaults, max_new_tokens=config.tokens), reader.processor
    engine = Engine(reader.model, processor.mean, processor.std, defaults, slots=config.slots, batch=8, max_waiting=config.count)
    engine.rules = replace(engine.rules, min_new_tokens=config.tokens)  # a line ends by its own limit and not before
    engine.warm_up()
    return engine


def _continuous(engine: Engine, work: Sequence[tuple[Any, int]]) -> int:
    before = engine.counts.slot_steps
    engine.submit([Job(image, replace(engine.defaults, max_new_tokens=n)) for image, n in work])
    while engine.turn():
        pass
    return engine.counts.slot_steps - before


# --- over HTTP ---


def offline_rate(reader: Reader, paths: Sequence[Path], config: Config) -> float:
    """Images a second of `Reader.read`, for half the time of a load."""
    sources, count, start = [paths[i % len(paths)] for i in range(config.count)], 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < config.seconds / 2:
        count += len(reader.read(sources, batch_size=config.slots))
    return count / seconds


@contextmanager
def server(config: Config) -> Iterator[str]:
    """`trocr-jax serve` with the packaged model in a process of its own; its address."""
    command = [sys.executable, "-P", "-m", "trocr_jax.cli", "serve", "--port=0", f"--slots={config.slots}", "--log-level=ERROR"]
    environment = os.environ | {"TROCR_API_KEY": ""}  # on loopback, without a key: ours sends none
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if " at " not in line:
            raise ValueError("the server did not start: see above")
        yield line.rsplit(" at ", 1)[1].strip()
    finally:
        process.terminate()
        process.communicate()


async def load(url: str, reader: Reader, paths: Sequence[Path], config: Config) -> tuple[float, float, list[Level]]:
    """The most that `Reader.read` does and that the server does, the best of rounds in turns, then each load."""
    bodies, rng = [_body(path.read_bytes()) for path in paths], np.random.default_rng(config.seed)
    offline, most = [], []
    async with Client(url) as client:
        for _ in range(1 + config.rounds):  # the first one warms up
            offline.append(await asyncio.to_thread(offline_rate, reader, paths, config))
            most.append(await _saturate(client, bodies, config.seconds / 2, 4 * config.slots))
        best = max(most[1:])
        return max(offline[1:]), best, [await _offer(client, bodies, share, share * best, config, rng) for share in config.shares]


def _body(image: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").save(buffer, "PNG")
    return json.dumps({"images": [f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"]}).encode()


async def _saturate(client: Client, bodies: Sequence[bytes], seconds: float, clients: int) -> float:
    """Answers a second when `clients` of them each send their next image after their last."""
    until, done = time.perf_counter() + seconds, 0

    async def one(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            number += 1
            answer = await client.post("/v1/ocr", bodies[number % len(bodies)])
            done += answer.status == 200

    start = time.perf_counter()
    await asyncio.gather(*map(one, range(clients)))
    return done / (time.perf_counter() - start)


async def _offer(
    client: Client, bodies: Sequence[bytes], share: float, rate: float, config: Config, rng: np.random.Generator
) -> Level:
    """Sends at random moments, whatever becomes of what was sent before."""
    moments = np.cumsum(rng.exponential(1 / rate, max(1, int(rate * config.seconds))))
    served, refused, start = [], 0, time.perf_counter()

    async def one(number: int, moment: float) -> None:
        nonlocal refused
        await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
        answer = await client.post("/v1/ocr", bodies[number % len(bodies)])
        if answer.status == 200:
            served.append(time.perf_counter() - start - moment)  # from when it was due: a client that lags hides nothing
        else:
            refused += 1

    await asyncio.gather(*(one(number, moment) for number, moment in enumerate(moments)))
    seconds = time.perf_counter() - start
    p50, p99 = np.percentile(served, (50, 99)) if served else (0.0, 0.0)
    return Level(share, len(moments) / float(moments[-1]), len(served) / seconds, float(p50), float(p99), refused)


def draw(levels: Sequence[Level], path: Path) -> None:
    """Waiting times over load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes: Any = figure.subplots()
    for name, times in (("p50", [n.p50 for n in levels]), ("p99", [n.p99 for n in levels])):
        axes.plot([n.offered for n in levels], [1000 * t for t in times], "o-", label=name)
    axes.set(xlabel="images offered a second", ylabel="milliseconds to the whole answer", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110, format="png")


if __name__ == "__main__":
    raise SystemExit(cli.program("trocr_jax.serve.load"))
