"""Measures how fast a model reads, beside other implementations on the same weights, images and tokens, in one run.

Rounds alternate between the candidates, so that a machine that slows down slows all of them. Prints a table for every batch
size and number of tokens, then one JSON line. `--lines` reads real line images instead (`benchmark.lines`).
"""

from __future__ import annotations

import gc
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from trocr_jax import cli, sharding, terminal
from trocr_jax.config import PRESETS
from trocr_jax.decoding import GenerateConfig, generate
from trocr_jax.generation.packed import Packed, model_of, pack
from trocr_jax.model import TrOCR
from trocr_jax.network.attention import for_one_device
from trocr_jax.terminal import UsageError

from .benchmark import peers, roofline
from .benchmark.random_model import random_model

Read = peers.Read
DTYPES = ("float32", "bfloat16")
OF_LINES = ("lines", "model", "rounds")  # the flags that say something about `--lines`


@dataclass(frozen=True)
class Config:
    model: str | None = None
    """Hub name or directory; by default the model in the package."""
    random: bool = False
    """Random weights in the shape of a public checkpoint: no download, the same speed."""
    batch_size: tuple[int, ...] = (8,)
    """Images a batch; each is measured."""
    tokens: tuple[int, ...] = (20,)
    """New tokens a line, exactly so many; each is measured."""
    dtype: tuple[str, ...] = ("float32",)
    """Dtypes of our side: float32, bfloat16 or both. Tokens are compared with those of the first."""
    devices: int = 1
    """Devices that share a batch of ours."""
    rounds: int = 5
    """Timed batches of every candidate; with few of them p99 is the slowest."""
    peers: bool = True
    """Run what else is installed: transformers on torch, ONNX Runtime, OpenVINO."""
    only: tuple[str, ...] = ()
    """Run only the peers whose names contain one of these. All at once need some 20 GB at base size."""
    price_per_hour: float = 0.0
    """Price of this machine, in any currency: gives the cost of 1,000 lines."""
    cold_start: bool = False
    """Also start a new process that reads one batch: its seconds and its peak memory."""
    plot: Path | None = None
    """Where to put a roofline as PNG."""
    lines: Path | None = None
    """A folder of line images to read in all modes and with Tesseract, instead of noise; takes --model and --rounds alone."""
    seed: int = 0
    """Seed of images and random weights."""


@dataclass(frozen=True)
class Timing:
    """One candidate: seconds of its first batch (with compilation) and of the timed ones, and the tokens that it gave."""

    name: str
    first: float
    seconds: tuple[float, ...]
    tokens: np.ndarray

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def run(config: Config) -> int:
    """Measures, prints tables and a JSON line."""
    check(config)
    if config.lines is not None:
        from .benchmark import lines as bench_lines

        print(json.dumps(setting(config) | bench_lines.run(config.lines, config.model, config.rounds)))
        return 0
    model = load(config)
    candidates = make_candidates(config, model)
    limits = roofline.ceilings(jnp.dtype(config.dtype[0]))
    results: list[dict[str, Any]] = []
    points: list[tuple[str, roofline.Work, float]] = []
    for batch in config.batch_size:
        for tokens in config.tokens:
            timings = measure(candidates, draw_pixels(config, model, batch), tokens, config.rounds)
            stages = own_stages(config, model, batch, tokens, timings[0], limits)
            report(config, batch, tokens, timings, stages)
            results.append({"batch_size": batch, "tokens": tokens, "results": rows(config, batch, timings), "roofline": stages})
            work = roofline.Work(stages["flops"], stages["bytes"])
            points.append((f"{batch} lines, {tokens} tokens", work, timings[0].median * config.devices))
    del model, candidates
    cold = cold_start(config) if config.cold_start else {}
    print(json.dumps(setting(config) | {"ceilings": asdict(limits), "measured": results, **memory(), **cold}), flush=True)
    if config.plot:
        roofline.plot(config.plot, limits, points)
    return 0


def check(config: Config) -> None:
    """Raises UsageError, naming the option, for what cannot be measured."""
    if not (config.batch_size and config.tokens):
        raise UsageError("--batch-size and --tokens need at least one number each")
    if min(*config.batch_size, *config.tokens, config.rounds, config.devices) < 1:
        raise UsageError("--batch-size, --tokens, --rounds and --devices must be at least 1")
    if not 0 <= config.price_per_hour < math.inf:
        raise UsageError("--price-per-hour must be a number from 0 on")
    if not config.dtype or not set(config.dtype) <= set(DTYPES):
        raise UsageError(f"--dtype must be one or both of {', '.join(DTYPES)}")
    if config.devices > (have := jax.local_device_count()):
        raise UsageError(f"--devices is {config.devices}, but there are {have}")
    if config.random and config.model not in PRESETS:
        raise UsageError(f"--random needs --model to be one of: {', '.join(PRESETS)}")
    if config.lines is not None:
        _check_lines(config)
    names = available_peers()
    if config.peers and (unknown := [part for part in config.only if not any(part in name for name in names)]):
        raise UsageError(f"--only: no peer here is called {', '.join(unknown)}; there are: {'; '.join(names)}")
    if config.plot is not None:
        terminal.check_writable(config.plot, "--plot")
        cli.load("matplotlib", "--plot", "train")


def _check_lines(config: Config) -> None:
    """`--lines` reads every image to its own end, in every mode there is."""
    given = [field for field in fields(Config) if field.name not in OF_LINES and getattr(config, field.name) != field.default]
    flags = [("--no-" if field.default is True else "--") + field.name.replace("_", "-") for field in given]
    if flags:
        raise UsageError(f"--lines takes --model and --rounds alone: leave out {', '.join(flags)}")


def load(config: Config) -> TrOCR:
    """The model to measure, in the first dtype to measure."""
    if config.random:
        return random_model(PRESETS[config.model or ""], config.dtype[0], config.seed)
    return TrOCR.from_pretrained(config.model, dtype=jnp.dtype(config.dtype[0]))


def draw_pixels(config: Config, model: TrOCR, batch: int) -> np.ndarray:
    """Normalised pixels [B,height,width,C], noise."""
    shape = (batch, *model.config.encoder.image_size, model.config.encoder.num_channels)
    return np.random.default_rng(config.seed).uniform(-1, 1, shape).astype(np.float32)


def make_candidates(config: Config, model: TrOCR) -> dict[str, Read]:
    """Ours first, then the peers that are installed and asked for, each built as it is needed."""
    found: dict[str, Read] = {}
    for dtype in config.dtype:
        own = model if dtype == config.dtype[0] else load(replace(config, dtype=(dtype,)))
        found[f"trocr-jax (XLA {jax.default_backend()}, {dtype})"] = ours(own, config.devices)
    if config.peers:
        for name, make in available_peers().items():
            if not config.only or any(part in name for part in config.only):
                print(f"building {name}", file=sys.stderr)
                found[name] = make(model)
                gc.collect()
    return found


def available_peers() -> dict[str, peers.Make]:
    """The peers that this environment has, by name."""
    found = peers.available()
    if peers.installed("onnx", "onnxruntime"):
        from .benchmark import onnx_peers

        found |= onnx_peers.available()
    return found


def ours(model: TrOCR, devices: int = 1) -> Read:
    """Encode and decode as the reader does, with the number of tokens fixed."""
    if devices > 1:
        return _ours_on_mesh(model, sharding.make_mesh({sharding.DATA: devices, sharding.MODEL: 1}))
    packed = pack(model)

    def read(pixels: np.ndarray, tokens: int) -> np.ndarray:
        options = GenerateConfig(tokens, min_new_tokens=tokens)
        return np.asarray(generate(packed, _encode(packed, jnp.asarray(pixels)), options).tokens[:, 0])

    return read


def _ours_on_mesh(model: TrOCR, mesh: Mesh) -> Read:
    model = sharding.place(model, mesh)
    cut = jax.NamedSharding(mesh, jax.P(sharding.DATA))
    specs = (jax.P(), jax.P(sharding.DATA))
    encode = jax.jit(jax.shard_map(_encode_alone, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False))

    def read(pixels: np.ndarray, tokens: int) -> np.ndarray:
        memory = encode(model, jax.device_put(pixels, cut))
        options = GenerateConfig(tokens, min_new_tokens=tokens)
        return np.asarray(sharding.generate(model, memory, options, mesh=mesh).tokens)[:, 0]

    return read


def _encode_alone(model: TrOCR, pixels: jax.Array) -> jax.Array:
    """What one device of a mesh does."""
    return for_one_device(model, jax.default_backend()).encode(pixels)


@jax.jit
def _encode(model: Packed, pixels: jax.Array) -> jax.Array:
    return model_of(model).encode(pixels)


def measure(candidates: dict[str, Read], pixels: np.ndarray, tokens: int, rounds: int) -> list[Timing]:
    """Every candidate once to warm up, then `rounds` times in turn."""
    first = {name: timed(read, pixels, tokens) for name, read in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, read in candidates.items():
            seconds[name].append(timed(read, pixels, tokens)[0])
    return [Timing(name, first[name][0], tuple(seconds[name]), first[name][1]) for name in candidates]


def timed(read: Callable[..., np.ndarray], *arguments: Any) -> tuple[float, np.ndarray]:
    """Seconds until the result is on the host, and the result."""
    start = time.perf_counter()
    result = read(*arguments)
    return time.perf_counter() - start, result


def own_stages(
    config: Config, model: TrOCR, batch: int, tokens: int, own: Timing, limits: roofline.Ceilings
) -> dict[str, float]:  # fmt: skip
    """Counts of our first candidate, and the share of the roofline that it reaches: the least time over the measured one."""
    size = jnp.dtype(config.dtype[0]).itemsize
    encode, decode = roofline.encoding(model.config, batch, size), roofline.decoding(model.config, batch, tokens, size)
    least = (encode.seconds(limits) + decode.seconds(limits)) / config.devices
    return {
        "flops": encode.flops + decode.flops, "bytes": encode.bytes + decode.bytes, "encode_flops": encode.flops,
        "decode_flops": decode.flops, "decode_bytes": decode.bytes, "least_s": least, "share": least / own.median,
    }  # fmt: skip


def rows(config: Config, batch: int, timings: list[Timing]) -> list[dict[str, Any]]:
    """What the JSON says of each candidate."""
    own, price = timings[0], config.price_per_hour
    return [
        {
            "name": t.name, "first_s": t.first, "compile_s": max(0.0, t.first - t.median), "median_s": t.median,
            "min_s": min(t.seconds), "p50_s": t.median, "p99_s": float(np.percentile(t.seconds, 99)),
            "lines_per_s": batch / t.median, "ms_per_line": 1000 * t.median / batch, "ours_over_this": t.median / own.median,
            "token_agreement": float((t.tokens == own.tokens).mean()), "cost_per_1000_lines": t.median / batch / 3.6 * price,
        }
        for t in timings
    ]  # fmt: skip


def report(config: Config, batch: int, tokens: int, timings: list[Timing], stages: dict[str, float]) -> None:
    """The table for people."""
    print(f"{config.model or 'tiny-print'}, {batch} images, {tokens} tokens, greedy, {config.rounds} rounds")
    titles = ("compile s", "p50 s", "p99 s", "ms/line", "lines/s", "cost/1000", "ratio", "same tokens")
    print(f"{'':<46}" + "".join(f" {title:>11}" for title in titles))
    for row in rows(config, batch, timings):
        print(
            f"{row['name']:<46} {row['compile_s']:11.2f} {row['p50_s']:11.4f} {row['p99_s']:11.4f} {row['ms_per_line']:11.2f} "
            f"{row['lines_per_s']:11.2f} {row['cost_per_1000_lines']:11.4f} {row['ours_over_this']:11.2f} "
            f"{row['token_agreement']:11.2%}"
        )
    print(
        f"ours: {stages['flops'] / 1e9:.1f} GFLOP, {stages['bytes'] / 1e9:.2f} GB, {stages['share']:.0%} of the measured "
        f"roofline ({stages['least_s']:.3f} s)\n"
    )


def setting(config: Config) -> dict[str, Any]:
    """What was measured where and when."""
    return {
        "model": config.model or "tiny-print", "dtype": config.dtype, "devices": config.devices, "rounds": config.rounds,
        "device": jax.devices()[0].device_kind, "processor": processor(), "jax": jax.__version__, "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def processor() -> str:
    """The CPU's name, for what runs on it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def commit() -> str:
    """The git commit of the checkout that this runs in; empty in an installed package."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def memory() -> dict[str, float]:
    """The device's peak memory in bytes, where it tells. A CPU does not; for that there is `--cold-start`."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"device_peak_bytes": stats["peak_bytes_in_use"]} if "peak_bytes_in_use" in stats else {}


def cold_start(config: Config) -> dict[str, float]:
    """A new process that imports, loads, compiles and reads one batch: its seconds, and its peak memory in bytes."""
    alone = replace(config, peers=False, plot=None, batch_size=config.batch_size[:1], tokens=config.tokens[:1])
    program = f"from pathlib import *; from {__package__}.bench import Config, first_batch; print(first_batch({alone!r}))"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"the cold start failed: {done.stderr.strip().splitlines()[-1]}")
    return {"cold_start_s": time.perf_counter() - start, "cold_peak_bytes": float(done.stdout.split()[-1])}


def first_batch(config: Config) -> int:
    """Reads one batch with ours alone and tells the process's peak memory in bytes."""
    model = load(config)
    ours(model, config.devices)(draw_pixels(config, model, config.batch_size[0]), config.tokens[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def from_json(arguments: list[str]) -> Config:
    """The fields of a Config as one JSON object, for machines without tyro; a list of one may go without its brackets.

    Raises:
        UsageError: another field, or a value of another kind.
    """
    kinds = get_type_hints(Config)
    try:
        given = json.loads(*arguments) if arguments else {}
        return Config(**{name: _typed(name, value, kinds[name]) for name, value in given.items()})
    except (TypeError, ValueError, AttributeError, KeyError):
        names = ", ".join(kinds)
        raise UsageError(f"{__package__}.bench takes one JSON object of: {names}; 'trocr-jax bench' has flags") from None


def _typed(name: str, value: Any, kind: Any) -> Any:
    """A field's value as `kind` has it, a type as `Config` writes it."""
    if get_origin(kind) is tuple:
        return tuple(_typed(name, one, get_args(kind)[0]) for one in (value if isinstance(value, list) else [value]))
    if value is None and type(None) in get_args(kind):
        return None
    wanted = next((part for part in get_args(kind) if part is not type(None)), kind)
    json_kind: Any = {Path: str, float: (int, float)}.get(wanted, wanted)
    if not isinstance(value, json_kind) or (isinstance(value, bool) and wanted is not bool):
        raise UsageError(f"{name} must be of type {wanted.__name__}, not {value!r:.80}")
    return wanted(value)


if __name__ == "__main__":
    raise SystemExit(terminal.guarded(lambda: run(from_json(sys.argv[1:]))))
