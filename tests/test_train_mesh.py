"""Training on a mesh of data x model, and by two processes: what one device computes; its checkpoints go on anywhere."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from conftest import ROOT

from trocr_jax import files, pretrained
from trocr_jax.train import mesh as meshes
from trocr_jax.train.config import OptimizerConfig
from trocr_jax.train.log import read_log
from trocr_jax.train.loop import train
from trocr_jax.train.optimizer import make_optimizer
from trocr_jax.train.parameters import named
from trocr_jax.train.start import random_parameters
from trocr_jax.train.step import StepConfig, make_step, new_state

PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import tiny
from trocr_jax.train.config import HostsConfig
from trocr_jax.train.loop import train
folder, index, address = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sys.exit(train(tiny.config(folder, devices=None, log_every=1, hosts=HostsConfig(2, index, address))))
"""

FAILING = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, "tests")
import tiny
from trocr_jax.train.config import HostsConfig
from trocr_jax.train.loop import train
folder, index, address = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
config = tiny.config(folder, devices=None, hosts=HostsConfig(2, index, address))
lines = [config.data.train, (str(folder / "bad.csv"),)][index]
sys.exit(train(replace(config, data=replace(config.data, train=lines))))
"""

ROWS = """
import json, sys
from pathlib import Path
import jax
import numpy as np
folder, index, address = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, index)
from trocr_jax.train import mesh as meshes
hosts = np.array(jax.devices()).reshape(2, 4)
mesh = jax.sharding.Mesh(hosts.T.reshape(8, 1), ("data", "model"))
rows = meshes.own_rows(mesh, 16)
batch = meshes.global_array(mesh, np.array(rows)[:, None], 16)
assert batch.shape == (16, 1)
for shard in batch.addressable_shards:
    assert shard.data.ravel().tolist() == list(range(16))[shard.index[0]]
(folder / str(index)).write_text(json.dumps(rows))
"""


@contextmanager
def processes(code: str, folder: Path, devices: int = 1) -> Iterator[list[subprocess.Popen[str]]]:
    """Two real processes of some devices each, which talk through gloo on this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    flags = re.sub(r"(?<=device_count=)\d+", str(devices), os.environ["XLA_FLAGS"])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    commands = [[sys.executable, "-c", code, str(folder), str(index), address] for index in range(2)]
    running = [subprocess.Popen(c, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        yield running
    finally:
        for process in running:
            process.kill()  # one that waits for the other ignores a SIGTERM


def run_processes(code: str, folder: Path, devices: int = 1) -> None:
    with processes(code, folder, devices) as running:
        for process in running:
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said[-3000:]


@pytest.fixture(autouse=True)
def _keep_the_signal_handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def steps_on(axes: str, fsdp: bool = False) -> tuple[object, list[float]]:
    """Three steps of the tiny model on a mesh: the state and the losses."""
    config = StepConfig(tiny.MODEL, frozenset(random_parameters(tiny.MODEL, 0)))
    optimizer = make_optimizer(OptimizerConfig(lr=1e-2, warmup=0, schedule="constant"), 3, {})
    mesh = meshes.make_mesh(None, axes)
    state = new_state(config, random_parameters(tiny.MODEL, 0), {}, optimizer, 0)
    shardings = meshes.state_shardings(state, mesh, fsdp)
    state, step = jax.device_put(state, shardings), make_step(optimizer, config, (shardings, meshes.replicated(mesh)))
    rng, losses = np.random.default_rng(0), []
    for _ in range(3):
        images = rng.integers(0, 256, (8, *tiny.SIZE, 3)).astype(np.uint8)
        labels = rng.integers(4, tiny.MODEL.decoder.vocab_size, (8, 6)).astype(np.int32)
        state, metrics = step(state, *(meshes.global_array(mesh, x, 8) for x in (images, labels)))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("axes, fsdp", [("data=2,model=4", False), ("data=4,model=2", True)])
def test_weights_cut_over_a_mesh_give_the_losses_of_one_device(axes, fsdp, monkeypatch):
    monkeypatch.setattr(meshes, "SMALL", 64)
    state, losses = steps_on(axes, fsdp)
    np.testing.assert_allclose(losses, steps_on("data=1")[1], rtol=1e-5)
    kernel = "encoder.layers.mlp.fc1.kernel"
    parts = [x for name, x in named(state).items() if name.endswith(kernel)]
    assert len(parts) == 3, "the masters and both moments of the optimizer"
    cut = int(axes[-1]) * (int(axes[5]) if fsdp else 1)
    assert all(x.addressable_shards[0].data.size * cut == x.size for x in parts)


def test_the_batch_is_cut_over_data_alone():
    assert meshes.own_rows(meshes.make_mesh(None, "data=2,model=4"), 6) == [*range(6)]
    with pytest.raises(ValueError, match="--batch-size 7 must be a multiple of the 2 devices"):
        meshes.own_rows(meshes.make_mesh(None, "data=2,model=4"), 7)
    with pytest.raises(ValueError, match="needs 16 devices, but there are 8"):
        meshes.make_mesh(None, "data=16")


def test_a_host_without_a_device_of_the_mesh_is_named(monkeypatch):
    """By every host: one that stops alone leaves the others waiting."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match="none of the mesh's 4 devices is on host 1, 2: use all, or fewer hosts"):
        meshes.make_mesh(4)


@pytest.mark.parametrize("error", [NotImplementedError, AssertionError])
def test_a_shape_that_the_chips_of_a_tpu_do_not_have_is_one_line(error, monkeypatch):
    def make_mesh(*_, **__):
        raise error("data=8,model=2 of v6e:4x4, or three chips of v5e:2x2")

    monkeypatch.setattr(jax, "make_mesh", make_mesh)
    with pytest.raises(ValueError, match="the mesh data=3,model=1 does not fit how these chips are wired: use another"):
        meshes.make_mesh(3)


def test_hosts_whose_devices_are_no_neighbours_hold_their_own_rows(tmp_path):
    """As those of v5e:4x8 are in a mesh of data=32: two hosts in turn, each of four devices, and a batch of 16."""
    run_processes(ROWS, tmp_path, devices=4)
    rows = [json.loads((tmp_path / str(index)).read_text()) for index in range(2)]
    assert rows == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]


def test_a_host_that_fails_says_why_and_no_host_waits_for_it(tmp_path):
    """As jax's own barrier does for five minutes. Its bad records are its own, so that it names them itself."""
    tiny.config(tmp_path)
    (tmp_path / "bad.csv").write_text("file,text\nabsent.png,1\n")
    with processes(FAILING, tmp_path) as (first, second):
        _, said = second.communicate(timeout=90)
        assert second.returncode == 1 and "Traceback" not in said
        assert re.search(r"^bad_record host 1 problem absent.png: ", said, re.MULTILINE)
        assert said.splitlines()[-1].startswith("trocr-jax: 1 of 1 records cannot be used")
        _, said = first.communicate(timeout=90)
        assert first.returncode == 1 and said.splitlines()[-1].startswith("trocr-jax: ")


def parameters(run: Path, step: int) -> dict[str, np.ndarray]:
    return pretrained._load_orbax(run / "checkpoints" / f"{step:08d}" / files.ORBAX)


def agree(run: Path, other: Path) -> None:
    """The parameters of step 20. A bias of the keys adds the same to all scores, which softmax does not see: its gradient is
    rounding alone, and Adam makes full steps of that."""
    expected, found = parameters(other, 20), parameters(run, 20)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if not name.endswith("key.bias"):
            np.testing.assert_allclose(found[name], x, rtol=0, atol=1e-4, err_msg=name)


def losses(run: Path) -> list[float]:
    """Of steps 1 to 20; of a step that was done twice the last."""
    found = {e["step"]: e["loss"] for e in read_log(run) if e["kind"] == "train"}
    return [found[step] for step in range(1, 21)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """20 steps by two real processes of one device each."""
    folder = tmp_path_factory.mktemp("two")
    tiny.config(folder)
    run_processes(PROCESS, folder)
    return folder


@pytest.mark.slow
def test_two_processes_train_what_one_trains(two_processes, tmp_path):
    for part in ("start", "lines"):
        shutil.copytree(two_processes / part, tmp_path / part)
    assert train(tiny.config(tmp_path, log_every=1)) == 0
    start = next(e for e in read_log(two_processes / "run") if e["kind"] == "start")
    assert start["devices"] == 2
    np.testing.assert_allclose(losses(two_processes / "run"), losses(tmp_path / "run"), rtol=1e-4)
    agree(two_processes / "run", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["data=1", "data=8", "data=2,model=4"])
def test_a_checkpoint_of_two_processes_goes_on_on_other_meshes(axes, two_processes, tmp_path):
    """Step 20 is thrown away; the run goes on from step 14 on another mesh and computes the same."""
    shutil.copytree(two_processes / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000020")
    assert train(tiny.config(two_processes, out=tmp_path / "run", log_every=1, devices=None, mesh=axes)) == 0
    events = read_log(tmp_path / "run")
    assert [e["step"] for e in events if e["kind"] == "start"] == [0, 14]
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(two_processes / "run"), rtol=1e-4)
    agree(tmp_path / "run", two_processes / "run")
