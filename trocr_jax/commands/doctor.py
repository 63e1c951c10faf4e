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
from ..cli import package_version
from ..terminal import remark

if TYPE_CHECKING:
    from ..config import TrOCRConfig
    from ..reader import Reader
    from ..tokens import Tokenizer

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
    directory = files.resolve(name)
    yield Check("checkpoint", None, name or directory.name)
    yield from checkpoint(directory)
    yield opens(directory)


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


def opens(directory: Path) -> Check:
    """Can the whole checkpoint be read with, its weights and its preprocessing too?"""
    from ..reader import Reader

    try:
        Reader.from_pretrained(directory, dtype="float32")
    except ValueError as error:
        return Check("reader", False, str(error))
    return Check("reader", True, "opens weights, tokenizer and preprocessing")


def checkpoint(directory: Path) -> Iterator[Check]:
    """Ids, vocabulary, head and label round trip of a checkpoint: what makes fine-tuned models babble."""
    from .. import pretrained
    from ..tokens import Tokenizer

    config, tokenizer = pretrained.open_checkpoint(directory).config, Tokenizer.from_directory(directory)
    start = config.decoder_start_token_id
    hint = "as the originals" if start == config.eos_token_id else f"the originals start with </s> ({config.eos_token_id})"
    yield Check("start token", start in (config.eos_token_id, config.bos_token_id), f"{start}, {hint}")
    yield from belongs(config, tokenizer)
    settings = directory / generation_files.NAME
    wrong = generation_files.contradictions(files.read_json(settings) if settings.is_file() else {}, config)
    yield Check("generation ids", not wrong, ", ".join(wrong) or "agree with config.json")
    tied = config.decoder.tie_word_embeddings
    yield Check("output head", True, "tied to the embeddings" if tied else "a matrix of its own")
    yield round_trips(tokenizer)


def belongs(config: TrOCRConfig, tokenizer: Tokenizer) -> Iterator[Check]:
    """One check for each thing that model and tokenizer say differently, or one that says that they agree."""
    from ..agreement import disagreements

    wrong = disagreements(config, tokenizer)
    yield from (Check("tokenizer", False, text) for text in wrong)
    if not wrong:
        yield Check("tokenizer", True, f"ids agree; {tokenizer.size} tokens, {config.decoder.vocab_size} rows")


def round_trips(tokenizer: Tokenizer) -> Check:
    """Do labels come back as the texts that they were made of, but for the number of spaces?"""
    broken = [text for text in SAMPLES if tokenizer.decode(tokenizer.labels(text)).split() != text.split()]
    detail = f"{len(SAMPLES) - len(broken)} of {len(SAMPLES)}" + (f", not {broken[0]!r}" if broken else "")
    return Check("label round trip", not broken, detail)


def _unused_accelerator() -> str | None:
    if Path("/dev/nvidia0").exists():
        return "there is an NVIDIA GPU, but JAX runs on the CPU: pip install 'trocr-jax[cuda]'"
    if any(Path("/dev").glob("accel*")) or any(Path("/dev").glob("vfio/[0-9]*")):
        return "there may be a TPU, but JAX runs on the CPU: pip install 'trocr-jax[tpu]'"
    return None
