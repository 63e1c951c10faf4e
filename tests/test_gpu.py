"""A GPU's programs, where jax's plugin for CUDA is installed, for an H100 that is not there."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.skipif(not (find_spec("jax_cuda13_plugin") or find_spec("jax_cuda12_plugin")), reason="needs jax's plugin for CUDA")
def test_greedy_and_beam_of_base_fit_an_h100():
    command = [sys.executable, "-m", "trocr_jax.serve.gpu", "--models", "microsoft/trocr-base-handwritten"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for program in json.loads(done.stdout.splitlines()[-1])["programs"]:
        assert 0 < program["bytes"] < 5 * 2**30
        step, layer = program["loops"]
        assert step["kernels"] < 320, "steps one by one"
        assert layer["kernels"] < 26 and layer["bytes"] < 9e9, "no scores written out"
