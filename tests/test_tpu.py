"""Every decoding program compiles for a TPU and fits its memory, without a TPU: libtpu compiles for a described topology.

Processes of their own, so that libtpu never meets the CPU devices of the suite, and a folder of its own for libtpu
(`make test` fills it): where it is importable without a TPU, every start of JAX prints its complaints.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trocr_jax import ahead_of_time
from trocr_jax.serve import tpu as serve_tpu
from trocr_jax.train import tpu as train_tpu

LIBTPU = Path(sys.prefix) / "libtpu"
HBM = 16 * 2**30  # bytes of a v5e chip

needs_libtpu = pytest.mark.skipif(not LIBTPU.is_dir(), reason="needs libtpu in .venv/libtpu, where `make test` puts it")


def programs() -> list[Any]:
    """Every program for every topology. Those that the suite compiles have both searches and both sizes among them; for one chip
    alone the compiler takes three times as long as for one of four.
    """
    quick = {("v5e:2x2", "base", 4), ("v5e:2x2", "large", 1)}
    every = product(("v5e:1x1", "v5e:2x2"), ("base", "large"), (1, 4))
    return [pytest.param(*program, marks=() if program in quick else pytest.mark.slow) for program in every]


@needs_libtpu
@pytest.mark.parametrize(("topology", "size", "beams"), programs())
def test_greedy_and_beam_of_base_and_large_fit_a_v5e(topology, size, beams):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": "", "PYTHONPATH": str(LIBTPU),
        "TPU_LIBRARY_PATH": str(LIBTPU / "libtpu" / "libtpu.so"),
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a lock file that a killed one left behind
    }  # fmt: skip
    model = f"microsoft/trocr-{size}-handwritten"
    command = [
        sys.executable,
        "-m",
        "trocr_jax.serve.tpu",
        "--topology",
        topology,
        "--models",
        model,
        "--beams",
        str(beams),
        "--price",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=LIBTPU)
    assert done.returncode == 0, done.stderr[-3000:]
    (program,) = json.loads(done.stdout.splitlines()[-1])["programs"]
    assert (program["model"], program["beams"]) == (model, beams)
    assert 0 < program["bytes_per_chip"] < HBM
    assert program["collectives"] == 0, "data-parallel decoding must not wait for other chips"
    assert 50 < program["estimated_lines_per_s"] / (4 if topology == "v5e:2x2" else 1) < 700, "no more than the chip can"
    assert program["kernels"] == 1 + 12, "the encoder's attention, and every layer's look at the image, see network.fused"


@pytest.mark.parametrize(
    ("tokens", "most", "expected"), [(20, 64, [5]), (20, 128, [5, 0]), (33, 128, [8, 1]), (128, 128, [8, 24])]
)
def test_lines_take_their_steps_in_the_narrowest_caches_that_hold_them(tokens, most, expected):
    assert serve_tpu.rounds(tokens, most) == expected


def test_a_chip_without_known_rates_costs_the_estimates_alone(monkeypatch, capsys):
    """Training's table has a row for it; who asks for a price is told before minutes of compiling."""
    monkeypatch.setattr(ahead_of_time, "tpu_mesh", lambda _: SimpleNamespace(size=4))
    monkeypatch.setattr(ahead_of_time, "bytes_held", lambda _: 2**30)
    monkeypatch.setattr(ahead_of_time, "collectives", lambda _: Counter())
    monkeypatch.setattr(ahead_of_time, "kernels", lambda _: 2)
    monkeypatch.setattr(train_tpu, "compile_step", lambda *_: None)
    assert train_tpu.run(train_tpu.Config("tpu7x:2x2x1", ("microsoft/trocr-base-stage1",))) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)["programs"]
    assert row["bytes_per_chip"] == 2**30 and "estimated_lines_per_s" not in row
    assert "no rates are known for tpu7x" in err and "rows have no estimates" in err
    compiled = list[str]()
    monkeypatch.setattr(serve_tpu, "compiled", lambda _, label, __: compiled.append(label) or ({"program": label}, None))
    with pytest.raises(ValueError, match="no rates are known for tpu7x"):
        serve_tpu.run(serve_tpu.Config("tpu7x:2x2x1", price=True))
    assert not compiled
    assert serve_tpu.run(serve_tpu.Config("tpu7x:2x2x1")) == 0
