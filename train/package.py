"""Puts a trained model into the package: half-size weights, a picture with its known answer for `trocr-jax doctor`.

    python -m train.package RUN/model

The weights are stored as float16: 2 bytes a number keep the wheel small, and 11 bits of mantissa (bfloat16 has 8) keep the texts
that float32 gives. They are read into float32 or bfloat16.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp

from trocr_jax import files, pretrained
from trocr_jax.model import TrOCR
from trocr_jax.reader import Reader

PICTURE = Path(__file__).resolve().parents[1] / "examples" / "print-1.png"


def package(source: Path, target: Path = files.PACKAGED) -> None:
    """Writes a model directory of `train` to the place of the packaged model, which it replaces."""
    model = TrOCR.from_pretrained(source, dtype=jnp.float16)
    companions = pretrained.companions(source)
    with tempfile.TemporaryDirectory() as folder:
        draft = pretrained.save(model, Path(folder) / "draft", companions)
        answer = golden(Reader.from_pretrained(draft, dtype="float32"))
    shutil.rmtree(target, ignore_errors=True)
    pretrained.save(model, target, {**companions, "golden.png": PICTURE.read_bytes(), "golden.json": answer})


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
    package(Path(sys.argv[1]))
