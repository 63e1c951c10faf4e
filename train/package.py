"""Puts a trained model into the package: half-size weights, a picture with its known answer for `trocr-jax doctor`.

    python -m train.package RUN/model

It replaces the one that is there, in this checkout.
The weights are stored as float16: 2 bytes a number keep the wheel small, and 11 bits of mantissa (bfloat16 has 8) keep the texts
that float32 gives. They are read into float32 or bfloat16.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import tyro

from trocr_jax import files, pretrained
from trocr_jax.cli import program
from trocr_jax.model import TrOCR
from trocr_jax.reader import Reader

PICTURE = Path(__file__).resolve().parents[1] / "examples" / "print-1.png"


@dataclass(frozen=True)
class Config:
    """What to package.

    Attributes:
        model: directory that `trocr-jax train` wrote.
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]


def run(config: Config) -> int:
    """Packages; the exit code."""
    model = TrOCR.from_pretrained(config.model, dtype=jnp.float16)
    companions = pretrained.companions(config.model)
    with tempfile.TemporaryDirectory() as folder:
        draft = pretrained.save(model, Path(folder) / "draft", companions)
        answer = golden(Reader.from_pretrained(draft, dtype="float32"))
    golden_files = {"golden.png": PICTURE.read_bytes(), "golden.json": answer}
    pretrained.save(model, files.PACKAGED, {**companions, **golden_files}, replace=True)
    return 0


def golden(reader: Reader) -> bytes:
    """What the model reads in the picture, token by token."""
    line = reader.read(PICTURE)
    answer = {
        "image": "golden.png",
        "text": line.text,
        "tokens": [t.id for t in line.tokens],
        "logprobs": [t.logprob for t in line.tokens],
    }
    return (json.dumps(answer, indent=1, ensure_ascii=False) + "\n").encode()


if __name__ == "__main__":
    raise SystemExit(program(f"{__package__}.package"))  # `train` in a bare checkout, `trocr_jax.train` where it is installed
