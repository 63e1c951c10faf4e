"""Checkpoints under abuse: killed at random moments, damaged file by file, a disk that fills up."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from conftest import ROOT

from trocr_jax import files
from trocr_jax.train.checkpoint import Checkpoints
from trocr_jax.train.start import Start, opened
from trocr_jax.train.step import TrainState


def state_of(step: int, model: Start) -> TrainState:
    """A state all of whose numbers tell the step."""
    full = {name: np.full(x.shape, step, np.float32) for name, x in model.parameters.items()}
    moments = {"mu": {name: jnp.asarray(x) + 0.5 for name, x in full.items()}}
    return TrainState(jnp.int32(step), jnp.uint32(7), {n: jnp.asarray(x) for n, x in full.items()}, {}, {}, moments)


def save(checkpoints: Checkpoints, step: int, model: Start, **metrics) -> None:
    state = state_of(step, model)
    checkpoints.save(state, state.model, model)
    if metrics:
        checkpoints.score(step, metrics)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Start:
    return opened(tiny.model_directory(tmp_path_factory.mktemp("model") / "start"))


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    """Checkpoints at steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        save(checkpoints, step, model, score=1.0)
    checkpoints.wait()
    return folder


def check(folder: Path, model: Start, minimum: int) -> int:
    """The newest good checkpoint is not older than `minimum` and holds what was saved at its step; returns the step."""
    checkpoints = Checkpoints(folder)
    newest = checkpoints.newest()
    assert (newest or 0) >= minimum
    if newest is not None:
        expected = state_of(newest, model)
        tiny.equal_trees(checkpoints.load(newest, expected), expected)
    return newest or 0


def test_a_checkpoint_gives_back_what_was_saved(saved, model):
    assert check(saved, model, 2) == 2


FILES = sorted(
    "config.json manifest.json metrics.json vocab.json merges.txt preprocessor_config.json orbax/_CHECKPOINT_METADATA "
    "orbax/commit_success.txt orbax/state/manifest.ocdbt state/state/_METADATA state/commit_success.txt".split()
)


def test_every_file_damaged_in_any_way_is_noticed_and_the_older_step_is_used(saved, model, tmp_path):
    """All of them, not a choice: flipped, cut and deleted in turn."""
    parts = [path.relative_to(saved / "00000002") for path in sorted((saved / "00000002").rglob("*")) if path.is_file()]
    assert {Path(name) for name in FILES} <= set(parts) and len(parts) > 25
    for number, part in enumerate(parts):
        for damage in ("flip", "cut", "delete"):
            folder = tmp_path / f"{number}-{damage}"
            folder.mkdir()
            for step in ("00000001", "00000002"):
                shutil.copytree(saved / step, folder / step, copy_function=os.link)
            path = folder / "00000002" / part
            content = bytearray(path.read_bytes())
            path.unlink()  # a link: writing into it would damage the original
            if damage == "flip":
                content = content or bytearray(b"x")
                content[len(content) // 2] ^= 1
                path.write_bytes(content)
            elif damage == "cut":
                path.write_bytes(content[: len(content) // 2] if len(content) > 1 else b"xx")
            said: list[dict] = []
            checkpoints = Checkpoints(folder, say=lambda kind, said=said, **fields: said.append({"kind": kind, **fields}))
            assert checkpoints.newest() == 1, (part, damage)
            assert said[0]["kind"] == "damaged" and said[0]["step"] == 2 and said[0]["problem"]
            assert checkpoints.steps() == [1] and list(folder.glob("damaged-00000002-*")), "out of the way of a new step 2"
            shutil.rmtree(folder)


def test_when_all_are_damaged_it_stops_instead_of_starting_over(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "c")
    for step in (1, 2):
        (tmp_path / "c" / f"{step:08d}" / "config.json").write_text("{}")
    for _ in range(2):  # a scheduler tries a command that failed again
        with pytest.raises(files.FilesError, match="none of the checkpoints can be restored; remove it to start anew"):
            Checkpoints(tmp_path / "c").newest()


def test_the_newest_and_the_best_stay(model, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step, score in enumerate([5.0, 1.0, 3.0, 4.0, 2.0], 1):
        save(checkpoints, step, model, score=score)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5] and checkpoints.best() == 2
    assert json.loads((checkpoints.path(2) / "metrics.json").read_text()) == {"step": 2, "score": 1.0}


def test_of_equals_the_newest_is_the_best_and_one_that_is_beaten_goes(model, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    for step in (1, 2, 3):
        save(checkpoints, step, model)
    checkpoints.wait()
    assert checkpoints.best() == 3, "none has a score"
    for step, score in ((1, 4.0), (2, 4.0)):
        checkpoints.score(step, {"score": score})
    checkpoints.wait()
    assert checkpoints.best() == 2
    checkpoints.keep = 1
    checkpoints.score(3, {"score": 1.0})
    checkpoints.wait()
    assert checkpoints.steps() == [3]


def test_a_step_that_is_saved_twice_is_saved_once(model, tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    for _ in range(2):
        save(checkpoints, 1, model)
    checkpoints.wait()
    assert checkpoints.steps() == [1] and checkpoints.newest() == 1


def test_scores_of_other_lines_do_not_compete(model, tmp_path):
    """What was evaluated last says which lines count."""
    checkpoints = Checkpoints(tmp_path / "c", keep=4)
    for step, (score, valid) in enumerate([(1.0, "easy"), (4.0, "hard"), (5.0, "hard")], 1):
        save(checkpoints, step, model, score=score, valid=valid)
    save(checkpoints, 4, model)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3, 4] and checkpoints.best() == 2


@pytest.mark.parametrize("writes", range(4))
def test_an_evaluation_that_is_added_leaves_a_whole_checkpoint_at_any_time(writes, saved, tmp_path, monkeypatch):
    """It takes the place of another one, as after a change of --data.valid, and the disk fills up after so many writes."""
    shutil.copytree(saved, tmp_path / "c")
    write, done = files.write_atomically, []

    def until_full(path, data):
        if len(done) == writes:
            raise files.FilesError("full")
        done.append(path)
        write(path, data)

    monkeypatch.setattr(files, "write_atomically", until_full)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.score(2, {"score": 7.0})
    if writes < 3:
        with pytest.raises(files.FilesError, match="cannot be written"):
            checkpoints.wait()
    checkpoints.wait()
    assert Checkpoints(tmp_path / "c").newest() == 2
    assert checkpoints.metrics(2)["score"] == (1.0 if writes < 2 else 7.0)


def test_a_restored_state_lies_where_the_new_mesh_wants_it(saved, model):
    from jax.sharding import NamedSharding, PartitionSpec

    from trocr_jax.train.mesh import make_mesh

    place = NamedSharding(make_mesh(4), PartitionSpec())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state_of(2, model))
    state = Checkpoints(saved).load(2, like)
    tiny.equal_trees(state, state_of(2, model))
    assert all(len(x.sharding.device_set) == 4 for x in jax.tree.leaves(state))


def test_a_full_disk_is_said_and_harms_nothing(saved, model, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "c")
    checkpoints = Checkpoints(tmp_path / "c")

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    save(checkpoints, 3, model)
    with pytest.raises(files.FilesError, match="cannot be written; is the disk full"):
        checkpoints.wait()
    monkeypatch.undo()
    assert check(tmp_path / "c", model, 2) == 2
    save(again := Checkpoints(tmp_path / "c"), 3, model)
    again.wait()
    assert check(tmp_path / "c", model, 3) == 3


SAVER = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
import test_train_checkpoints as t
model = t.opened(Path(sys.argv[1]))
def say(kind, step, **_):
    print(kind, step, flush=True)
checkpoints = t.Checkpoints(Path(sys.argv[2]), keep=2, say=say)
first = (checkpoints.newest() or 0) + 1
print("go", first, flush=True)
for step in range(first, first + 10_000):
    t.save(checkpoints, step, model)
"""


def kills(folder: Path, count: int, seed: int) -> None:
    """A process that saves as fast as it can is killed at random moments, over and over, in one folder."""
    start, checkpoints, rng = tiny.model_directory(folder / "start"), folder / "checkpoints", random.Random(seed)
    model, reported = opened(start), 0
    for _ in range(count):
        command = [sys.executable, "-c", SAVER, str(start), str(checkpoints)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            kind, step = line.split()
            reported = max(reported, int(step)) if kind == "saved" else reported
            if kind == "saved":
                break
        time.sleep(rng.uniform(0, 1.0))
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0]
        complete = rest.split("\n")[:-1]
        reported = max([reported, *(int(line.split()[1]) for line in complete if line.startswith("saved"))])
        assert check(checkpoints, model, reported) >= reported
    assert reported >= count


def test_a_kill_never_corrupts_nor_takes_back_what_was_reported(tmp_path):
    kills(tmp_path, 2, seed=0)


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    kills(tmp_path, 20, seed=1)
