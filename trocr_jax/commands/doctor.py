"""Checks this machine and a checkpoint: versions, devices, precision, a self-test, and what otherwise goes wrong silently.

The self-test reads a picture in the package with the model in the package and compares tokens and log-probabilities with those
of the machine that made the package: a processor or driver that computes something else shows here.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from .. import files
from ..checkpoints import generation_files
from ..cli import package_version, remark

if TYPE_CHECKING:
    from ..reader import Reader

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "pillow",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "orbax-checkpoint",
)
GOLDEN = "golden.json"
TOLERANCE = 2e-3  # of a log-probability in float32; another order of summation gives about 1e-5, a broken kernel 1 and more
SAMPLES = (
    "Hello world",
    "0123456789",
    "Total: 12.50",
    "a b  c",
    "(x) [y] {z} <tag>",
    "O'Neill & Co. #7 50% *new*",
    "user@example.org",
)


@dataclass(frozen=True)
class Config:
    model: tyro.conf.Positional[str | None] = None
    """A checkpoint to check: hub name (or NAME@REVISION) or directory. By default the model in the package."""


@dataclass(frozen=True)
class Check:
    """One thing looked at: passed (True), failed (False), or only told (None)."""

    name: str
    passed: bool | None
    detail: str


def run(config: Config) -> int:
    """Prints one line a check; 1 where one failed."""
    failed = 0
    for check in checks(config.model):
        mark = {True: "ok  ", False: "FAIL", None: "    "}[check.passed]
        print(f"{mark} {check.name:<18} {check.detail}", flush=True)
        failed += check.passed is False
    if failed:
        remark(f"{failed} checks failed")
    return 1 if failed else 0


def checks(name: str | None) -> Iterator[Check]:
    """All checks, as they are made."""
    from ..reader import Reader

    yield from machine()
    yield self_test(Reader.from_pretrained(dtype="float32"))
    reader = Reader.from_pretrained(name, dtype="float32")
    yield Check("checkpoint", None, reader.name)
    yield from checkpoint(reader, files.resolve(name))


def machine() -> Iterator[Check]:
    """Versions, devices and precision."""
    import jax

    from ..network.layers import asked_precision
    from ..reader import default_dtype

    yield Check("python", None, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Check("trocr-jax", None, package_version())
    yield from map(installed, PACKAGES)
    devices = jax.devices()
    yield Check("devices", None, f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})")
    asked = asked_precision()
    how = f"in the precision that JAX was told, {asked}" if asked else "in full"
    yield Check("precision", None, f"{default_dtype()} by default; float32 is computed {how}")
    if jax.default_backend() == "cpu" and (better := _unused_accelerator()):
        yield Check("accelerator", False, better)


def installed(package: str) -> Check:
    try:
        return Check(package, None, version(package))
    except PackageNotFoundError:
        return Check(package, False, "not installed")


def self_test(reader: Reader) -> Check:
    """Does the packaged model read its golden picture as it did where it was made?"""
    golden = json.loads((files.PACKAGED / GOLDEN).read_text(encoding="utf-8"))
    line = reader.read(files.PACKAGED / golden["image"])
    ids, logprobs = [t.id for t in line.tokens], [t.logprob for t in line.tokens]
    if ids != golden["tokens"]:
        return Check(
            "self-test", False, f"read {line.text!r} instead of {golden['text']!r}: this machine computes something else"
        )
    error = max(abs(a - b) for a, b in zip(logprobs, golden["logprobs"], strict=True))
    return Check("self-test", error < TOLERANCE, f"read {line.text!r}, log-probabilities within {error:.1e}")


def checkpoint(reader: Reader, directory: Path) -> Iterator[Check]:
    """Ids, vocabulary, head and label round trip of a checkpoint: what makes fine-tuned models babble."""
    config, tokenizer = reader.model.config, reader.tokenizer
    start = config.decoder_start_token_id
    hint = "as the originals" if start == config.eos_token_id else f"the originals start with </s> ({config.eos_token_id})"
    yield Check("start token", start in (config.eos_token_id, config.bos_token_id), f"{start}, {hint}")
    ours, theirs = (config.pad_token_id, config.eos_token_id), (tokenizer.pad_token_id, tokenizer.eos_token_id)
    yield Check("pad and end", ours == theirs, f"model {ours}, tokenizer {theirs}")
    yield Check("generation ids", *_generation_ids(directory, start))
    rows, tokens = config.decoder.vocab_size, tokenizer.size
    yield Check(
        "vocabulary", tokens <= rows, f"{tokens} tokens, {rows} rows" + (", some without a token" if tokens < rows else "")
    )
    tied = config.decoder.tie_word_embeddings
    yield Check("output head", True, "tied to the embeddings" if tied else "a matrix of its own")
    broken = [text for text in SAMPLES if _round_trip(reader, text) != " ".join(text.split())]
    yield Check(
        "label round trip",
        not broken,
        f"{len(SAMPLES) - len(broken)} of {len(SAMPLES)}" + (f", not {broken[0]!r}" if broken else ""),
    )


def _round_trip(reader: Reader, text: str) -> str:
    return " ".join(reader.tokenizer.decode(reader.tokenizer.labels(text)).split())


def _generation_ids(directory: Path, start: int) -> tuple[bool, str]:
    path = directory / generation_files.NAME
    found = files.read_json(path).get("decoder_start_token_id") if path.is_file() else None
    agrees = found in (None, start)
    return (
        agrees,
        "agree with config.json" if agrees else f"start token {found} in generation_config.json, {start} in config.json",
    )


def _unused_accelerator() -> str | None:
    if Path("/dev/nvidia0").exists():
        return "there is an NVIDIA GPU, but JAX runs on the CPU: pip install 'trocr-jax[cuda]'"
    if any(Path("/dev").glob("accel*")) or any(Path("/dev").glob("vfio/[0-9]*")):
        return "there may be a TPU, but JAX runs on the CPU: pip install 'trocr-jax[tpu]'"
    return None
