"""Runs from start to end: killed and gone on with, ended early, refused, and what they leave behind.

The runs that are killed are processes of their own; they kill themselves at a given event of their log.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import tiny
from conftest import ROOT

from trocr_jax import Reader, files, pretrained
from trocr_jax.terminal import UsageError
from trocr_jax.train import vocabulary
from trocr_jax.train.config import DataConfig, HostsConfig, LoraConfig, OptimizerConfig, PreflightConfig, StartConfig
from trocr_jax.train.log import evaluations, read_log
from trocr_jax.train.loop import train
from trocr_jax.train.parameters import named
from trocr_jax.train.start import opened, start

DRIVER = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
import tiny
from trocr_jax.train import log, loop
kind, step, number, changes = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5])
say = log.Log.__call__
def watched(self, event, **fields):
    say(self, event, **fields)
    if event == kind and fields.get("step") == step:
        os.kill(os.getpid(), number)
log.Log.__call__ = watched
sys.exit(loop.train(tiny.config(Path(sys.argv[1]), **changes)))
"""


def run_until(folder: Path, kind: str, step: int, number: int, **changes) -> int:
    """A run in another process that gets a signal right after an event; its exit code."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", DRIVER, str(folder), kind, str(step), str(number), json.dumps(changes)]
    done = subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.returncode


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint of a run: parameters, optimizer, step, seed."""
    last = sorted((folder / "run" / "checkpoints").glob("0*"))[-1]
    found = {}
    for part in (files.ORBAX, "state"):
        found |= {f"{part} {name}": x for name, x in pretrained._load_orbax(last / part).items()}
    return found


def losses(folder: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_log(folder / "run") if e["kind"] == "train"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """20 steps without a pause."""
    folder = tmp_path_factory.mktemp("straight")
    assert train(tiny.config(folder, tensorboard=True)) == 0
    return folder


@pytest.fixture(scope="module")
def killed(straight, tmp_path_factory) -> Path:
    """The same run, killed when its checkpoint at step 7 was reported."""
    folder = tmp_path_factory.mktemp("killed")
    for part in ("start", "lines"):
        shutil.copytree(straight / part, folder / part)
    assert run_until(folder, "saved", 7, signal.SIGKILL, save_every=7) == -signal.SIGKILL
    return folder


def continued(killed: Path, folder: Path, **changes) -> Path:
    shutil.copytree(killed, folder, dirs_exist_ok=True)
    config = json.loads((folder / "run" / "config.json").read_text())
    text = json.dumps(config).replace(str(killed), str(folder))  # the copy's data lie in the copy
    (folder / "run" / "config.json").write_text(text)
    assert train(tiny.config(folder, **changes)) == 0
    return folder


def test_seven_steps_a_kill_and_thirteen_more_are_twenty_steps(straight, killed, tmp_path):
    folder = continued(killed, tmp_path)
    a, b = arrays(straight), arrays(folder)
    assert int(a["state step"]) == 20 and a.keys() == b.keys() and len(a) > 60
    tiny.equal_trees(a, b)
    assert losses(straight) == losses(folder)
    starts = [e["step"] for e in read_log(folder / "run") if e["kind"] == "start"]
    assert starts == [0, 7]


def test_on_eight_devices_seven_steps_and_thirteen_more_are_twenty_steps(straight, tmp_path):
    """From the checkpoint at step 7 of the run itself; test_eight_devices_survive_a_kill has the kill."""
    folders = [tmp_path / name for name in ("whole", "rest")]
    for part in ("start", "lines"):
        shutil.copytree(straight / part, folders[0] / part)
    config = tiny.config(folders[0], devices=8, keep=3)
    assert train(config) == 0
    checkpoint = folders[1] / "run" / "checkpoints" / "00000007"
    shutil.copytree(folders[0] / "run" / "checkpoints" / "00000007", checkpoint)
    assert train(replace(config, out=folders[1] / "run")) == 0
    tiny.equal_trees(*map(arrays, folders))
    whole, rest = map(losses, folders)
    assert len(rest) == 13 and {step: whole[step] for step in rest} == rest


def test_a_run_goes_on_on_another_mesh(straight, killed, tmp_path, monkeypatch):
    from trocr_jax.train import mesh

    monkeypatch.setattr(mesh, "SMALL", 64)
    folder = continued(killed, tmp_path, devices=4, fsdp=True)
    a, b = losses(straight), losses(folder)
    np.testing.assert_allclose(list(b.values()), list(a.values()), rtol=1e-4)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on(straight, tmp_path, number, code):
    for part in ("start", "lines"):
        shutil.copytree(straight / part, tmp_path / part)
    assert run_until(tmp_path, "train", 5, number) == code
    events = read_log(tmp_path / "run")
    assert [e["step"] for e in events if e["kind"] in ("terminated", "saved")] == [5, 5]
    assert not (tmp_path / "run" / "model").exists()
    assert train(tiny.config(tmp_path)) == 0
    tiny.equal_trees(arrays(straight), arrays(tmp_path))


def test_who_interrupts_twice_does_not_wait(straight, tmp_path, monkeypatch):
    """And handlers are there no longer than the run."""
    before, codes = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], []

    def hurry(run, *_):
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("trocr_jax.train.loop.Loop._report", hurry)
    monkeypatch.setattr("trocr_jax.train.interruption.os._exit", codes.append)
    assert train(tiny.config(straight, out=tmp_path / "run", steps=1)) in (0, 130)
    assert codes == [130, 130] and [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_home_directory_is_one_in_flags_too(tmp_path, monkeypatch):
    """A shell leaves the ~ of --out=~/x to the program."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train(tiny.config(tmp_path, out=Path("~/run"), steps=1)) == 0
    assert (tmp_path / "run" / "model").is_dir() and not (tmp_path / "~").exists()


def test_a_tokenizer_is_found_as_a_model_is(tmp_path, monkeypatch):
    """By its name on the hub, too."""
    monkeypatch.setattr(files, "_download", {"owner/model": tiny.model_directory(tmp_path / "hub")}.__getitem__)
    begin = StartConfig(model=str(tmp_path / "hub"), tokenizer="owner/model")
    assert start(begin, 0).tokenizer.size == tiny.TOKENIZER.size


def test_labels_longer_than_the_model_has_positions_are_refused_by_the_flag(tmp_path):
    with pytest.raises(UsageError, match="--max-tokens 25 is more than the 24 positions of this model"):
        train(tiny.config(tmp_path, max_tokens=25))


@pytest.mark.parametrize(
    ("patch", "cut", "message"),
    [((16, 8), 12, "--data.cut 12 must be a multiple of 8"), ((8, 8), 16, "--data.cut needs a model with one row .* has 2; set")],
)
def test_columns_that_are_no_patches_of_the_model_are_refused_by_the_flag(patch, cut, message, tmp_path):
    tiny.model_directory(tmp_path / "start", replace(tiny.MODEL, encoder=replace(tiny.MODEL.encoder, patch_size=patch)))
    tiny.line_folder(tmp_path / "lines")
    config = tiny.config(tmp_path)
    with pytest.raises(UsageError, match=message):
        train(replace(config, data=replace(config.data, cut=cut)))


@pytest.mark.parametrize("error", [ValueError("coordinator_address should be defined."), RuntimeError("UNAVAILABLE: no\nmore")])
def test_hosts_that_cannot_be_connected_are_told_which_flags_say_so(error, monkeypatch, tmp_path):
    monkeypatch.setattr(jax.distributed, "initialize", Mock(side_effect=error))
    reason = str(error).partition("\n")[0].rstrip(".")
    for hosts, said in (
        (HostsConfig(0), "--hosts.count 0: jax finds no cluster; set"),
        (HostsConfig(2, 1, "a:1"), "--hosts.coordinator a:1 --hosts.count 2 --hosts.index 1: the hosts cannot be connected; "),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(said)}.*{re.escape(f'({reason})')}$"):
            train(tiny.config(tmp_path, hosts=hosts))


def test_a_warmup_that_has_the_rate_collapse_is_noted(straight, tmp_path, capsys):
    falling = OptimizerConfig(lr=1e-3, warmup=0)
    assert train(tiny.config(straight, out=tmp_path / "run", steps=2, optimizer=falling)) == 0
    assert "--optimizer.warmup 0 has inverse_sqrt fall from the first step on" in capsys.readouterr().err
    assert not any(e["kind"] == "note" for e in read_log(straight / "run"))


def test_a_model_that_cannot_be_published_leaves_the_old_one(straight, tmp_path, monkeypatch):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("trocr_jax.checkpoints.tensor_files.write_safetensors", Mock(side_effect=OSError(28, "no space left")))
    with pytest.raises(files.FilesError, match="run/model: cannot be written"):
        train(tiny.config(straight, out=tmp_path / "run", tensorboard=True))
    tiny.equal_trees(*(Reader.from_pretrained(folder / "run" / "model").model for folder in (straight, tmp_path)))
    assert not list((tmp_path / "run").glob(".model*"))


def test_what_a_run_leaves_behind(straight):
    run = straight / "run"
    events = read_log(run)
    assert {"start", "train", "eval", "saved", "done"} <= {e["kind"] for e in events}
    row = next(e for e in events if e["kind"] == "train")
    assert {"step", "loss", "accuracy", "grad_norm", "lr", "lines_per_s", "device_share"} <= row.keys()
    assert losses(straight)[20] < losses(straight)[5]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((run / "tensorboard").iterdir())
    files.check_manifest(run / "model")
    tiny.equal_trees(Reader.from_pretrained(run / "model").model, Reader.from_pretrained(run / "checkpoints" / "00000020").model)
    line = Reader.from_pretrained(run / "model").read(tiny.draw("123"))
    assert line.error is None and line.tokens
    with pytest.raises(files.FilesError, match="a training run; name its .*run/model, or one of its .*run/checkpoints"):
        Reader.from_pretrained(run)


def test_a_folder_with_another_run_is_refused(straight, tmp_path):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    base = tiny.config(straight, out=tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run with another optimizer.lr, seed; choose another --out"):
        train(replace(base, seed=3, optimizer=replace(base.optimizer, lr=0.5)))


@pytest.mark.parametrize("name", ["config.json", "label.txt"])
def test_a_folder_with_other_things_is_refused_and_left_as_it_is(name, tmp_path):
    """A model's config.json is as good as its weights."""
    out = tmp_path / "model"
    out.mkdir()
    (out / name).write_text('{"model_type": "vision-encoder-decoder"}')
    with pytest.raises(UsageError, match="holds other things than a run"):
        train(tiny.config(tmp_path, out=out))
    assert [file.name for file in out.iterdir()] == [name] and "vision" in (out / name).read_text()


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_where_the_folder_should_be_is_named(below, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="--out .*: .*/file is a file; name a new or an empty folder"):
        train(tiny.config(tmp_path, out=tmp_path / "file" / below))


def test_a_folder_in_which_another_process_trains_is_refused(straight, tmp_path):
    """Or both would write the same checkpoints, as when a run is started again before it has ended."""
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(99)"
    (tmp_path / "run").mkdir()
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run" / ".lock")], stdout=subprocess.PIPE)
    assert other.stdout and other.stdout.readline()
    config = tiny.config(straight, out=tmp_path / "run", steps=1)
    with pytest.raises(ValueError, match="another process is training in"):
        train(config)
    other.kill()
    other.communicate()
    assert train(config) == 0


def test_a_folder_in_which_no_step_was_kept_takes_another_configuration(straight, tmp_path):
    """A typo must not lock it."""
    config = tiny.config(straight, out=tmp_path / "run", steps=1)
    with pytest.raises(ValueError, match="no such file or directory"):
        train(replace(config, data=replace(config.data, train=("dd",))))
    assert train(config) == 0
    with pytest.raises(ValueError, match="holds a run with another data.train"):
        train(replace(config, data=replace(config.data, train=("dd",))))


def test_patience_remembers_what_was_before_a_pause(straight, tmp_path):
    """Of six evaluations that never get better, patience 3 allows four, in however many pieces they come."""
    still = replace(tiny.config(straight).optimizer, lr=1e-30)
    changes = {"steps": 6, "eval_every": 1, "save_every": 1, "keep": 6, "patience": 3, "optimizer": still}
    config = tiny.config(straight, out=tmp_path / "run", **changes)

    def evaluated() -> list[int]:
        events = map(json.loads, (config.out / "log.jsonl").read_text().splitlines())
        return [event["step"] for event in events if event["kind"] == "eval"]

    assert train(config) == 0
    assert evaluated() == [1, 2, 3, 4]
    shutil.rmtree(config.out / "model")
    assert train(config) == 0
    assert evaluated() == [1, 2, 3, 4], "the same command does not start again"
    assert (config.out / "model").is_dir()
    for step in (3, 4):
        shutil.rmtree(config.out / "checkpoints" / f"{step:08d}")
    assert train(config) == 0
    assert evaluated() == [1, 2, 3, 4, 3, 4], "preempted, it stops where it would have stopped"


def test_evaluations_of_a_run_that_was_not_gone_on_with_do_not_count(tmp_path):
    rows = [("start", 0, 1.0), ("eval", 5, 2.0), ("eval", 7, 3.0), ("start", 0, 4.0), ("eval", 7, 5.0), ("eval", 14, 6.0)]
    events = [{"kind": kind, "step": step, "time": time, "score": time} for kind, step, time in rows]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert [event["score"] for event in evaluations(tmp_path, 13)] == [5.0]


def test_lora_leaves_frozen_kernels_alone(straight, tmp_path):
    base = tiny.config(straight, out=tmp_path / "run", steps=1, lora=LoraConfig(rank=2))
    optimizer = replace(base.optimizer, lr=0.1, warmup=0, rates=("^encoder=0", ".*=1"))
    assert train(replace(base, optimizer=optimizer)) == 0
    before, after = (
        named(Reader.from_pretrained(folder, dtype="float32").model) for folder in (straight / "start", base.out / "model")
    )
    changed = {name for name in before if (np.asarray(before[name]) != np.asarray(after[name])).any()}
    assert changed and all(name.startswith("decoder") for name in changed)
    row = next(event for event in read_log(base.out) if event["kind"] == "start")
    assert row["trained"] == 2 * 2 * (2 * 2 * 16 * 2), "two attentions, two kernels, two factors in two layers"


@pytest.mark.parametrize("tied", [True, False])
def test_lora_with_new_characters_trains_their_rows(tmp_path, tied):
    """Embedding and head whole; and a run that was ended goes on with both."""
    model = replace(tiny.MODEL, decoder=replace(tiny.MODEL.decoder, tie_word_embeddings=tied))
    tiny.model_directory(tmp_path / "start", model)
    tiny.line_folder(tmp_path / "lines")
    begin = StartConfig(model=str(tmp_path / "start"), extend_vocab="ż")
    base = tiny.config(tmp_path, start=begin, steps=2, eval_every=2, save_every=1, lora=LoraConfig(rank=2, targets=r"query|head"))
    base = replace(base, optimizer=OptimizerConfig(lr=0.1, warmup=0, schedule="constant"))
    assert train(base) == 0
    found = opened(base.out / "model")
    before, after = start(begin, base.seed).parameters, found.parameters
    changed = {name for name in before if (np.asarray(before[name]) != np.asarray(after[name])).any()}
    assert vocabulary.TABLES & before.keys() <= changed and all("query" in name for name in changed - vocabulary.TABLES)
    new, table = found.tokenizer.labels("ż")[0], vocabulary.EMBEDDING if tied else vocabulary.HEAD
    old_row, new_row = (np.take(np.asarray(x[table]), new, axis=0 if tied else 1) for x in (before, after))
    assert (old_row != new_row).all()
    shutil.copytree(base.out, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "00000002")
    assert train(replace(base, out=tmp_path / "again")) == 0
    tiny.equal_trees(opened(tmp_path / "again" / "model").parameters, after)


def test_a_finished_run_says_so_again_and_changes_nothing(straight, tmp_path):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    before = arrays(tmp_path)
    assert train(tiny.config(straight, out=tmp_path / "run", tensorboard=True)) == 0
    tiny.equal_trees(arrays(tmp_path), before)


def test_a_loss_that_explodes_ends_the_run(tmp_path):
    config = tiny.config(tmp_path)
    with pytest.raises(ValueError, match="the loss is not finite at step"):
        train(replace(config, optimizer=OptimizerConfig(lr=1e30, warmup=0, schedule="constant")))


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    """Though the loss is looked at only every so many steps; and the advice names a checkpoint to go on from."""
    explodes = OptimizerConfig(lr=1e30, warmup=10, schedule="constant")
    config = tiny.config(tmp_path, log_every=100, save_every=1, eval_every=100, keep=100, optimizer=explodes)
    with pytest.raises(ValueError) as caught:
        train(config)
    found = sorted((config.out / "checkpoints").iterdir())
    assert f"in a new --out with --start.model {found[-1].resolve()}" in str(caught.value)
    for checkpoint in found:
        for part in (files.ORBAX, "state"):
            assert all(np.isfinite(x).all() for x in pretrained._load_orbax(checkpoint / part).values()), checkpoint
    assert train(tiny.config(tmp_path, out=tmp_path / "anew", steps=1, start=StartConfig(model=str(found[0])))) == 0


def test_a_mistake_in_the_validation_data_is_said_before_the_first_step(tmp_path):
    config = tiny.config(tmp_path)
    valid = tiny.line_folder(tmp_path / "valid", 12)
    (valid.parent / "image" / "007.png").write_bytes(b"no image")
    config = replace(config, eval_lines=None, data=replace(config.data, valid=(str(valid),)))
    with pytest.raises(ValueError, match=r"valid/gt_train.txt: 007.png: "):
        train(config)
    assert not (config.out / "log.jsonl").exists()


def test_an_evaluation_that_fails_costs_no_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("trocr_jax.train.scores.evaluate", lambda *_: 1 / 0)
    config = tiny.config(tmp_path, steps=2)
    with pytest.raises(ZeroDivisionError):
        train(config)
    monkeypatch.undo()
    assert train(config) == 0
    events = read_log(config.out)
    assert [e["step"] for e in events if e["kind"] == "start"] == [0, 2]
    assert [e["step"] for e in events if e["kind"] == "eval"] == [2]


def test_what_a_sigterm_left_unevaluated_is_evaluated_when_the_run_goes_on(tmp_path, monkeypatch):
    """And published, where it is the best: here it is the only one."""

    def stop(interruption, step):
        interruption.asked = step == 2
        return interruption.asked

    monkeypatch.setattr("trocr_jax.train.interruption.Interruption.after", stop)
    config = tiny.config(tmp_path, steps=2)
    assert train(config) == 0
    assert not [e for e in read_log(config.out) if e["kind"] in ("eval", "done")]
    monkeypatch.undo()
    assert train(config) == 0
    done = [(e["kind"], e["step"]) for e in read_log(config.out) if e["kind"] in ("train", "eval", "done")]
    assert done == [("train", 1), ("train", 2), ("eval", 2), ("done", 2)]


def test_scores_of_another_validation_set_are_not_compared(tmp_path):
    """Neither for the best checkpoint nor for patience: the newest is evaluated anew, and competes with what follows."""
    still = replace(tiny.config(tmp_path).optimizer, lr=1e-30)
    changes = {"eval_every": 1, "save_every": 1, "keep": 9, "patience": 2, "optimizer": still}
    assert train(tiny.config(tmp_path, steps=2, **changes)) == 0
    other = tiny.line_folder(tmp_path / "other", 12)
    data = replace(tiny.config(tmp_path).data, valid=(str(other),))
    assert train(tiny.config(tmp_path, steps=9, data=data, **changes)) == 0
    events = [e for e in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()) if e["kind"] == "eval"]
    assert [e["step"] for e in events] == [1, 2, 2, 3, 4], "patience begins anew"
    assert events[0]["valid"] == events[1]["valid"] != events[2]["valid"] == events[4]["valid"]
    metrics = json.loads((tmp_path / "run" / "checkpoints" / "00000004" / "metrics.json").read_text())
    assert metrics["valid"] == events[4]["valid"]


def test_hosts_ask_each_other_about_patience_after_evaluations_alone(straight, tmp_path, monkeypatch):
    """Every question makes all of them wait for the slowest."""
    asked = []
    monkeypatch.setattr("trocr_jax.train.hosts.agreed", lambda first: asked.append(first) or first)
    assert train(tiny.config(straight, out=tmp_path / "run", steps=6, eval_every=2, patience=9)) == 0
    assert asked == [False] * 3, "before the first step and after 2 and 4; 6 is the end"


def test_lora_and_averages_survive_a_pause(straight, tmp_path):
    """The model to read with is merged and averaged; the run goes on from what it was made of."""
    for part in ("start", "lines"):
        shutil.copytree(straight / part, tmp_path / part)
    changes = {
        "steps": 8, "save_every": 4, "eval_every": 8, "lora": LoraConfig(rank=2),
        "optimizer": OptimizerConfig(lr=1e-2, warmup=0, schedule="constant", ema=0.5),
    }  # fmt: skip
    whole = tiny.config(tmp_path, out=tmp_path / "whole", **changes)
    assert train(whole) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000008")
    assert train(replace(whole, out=tmp_path / "run")) == 0
    parts = [pretrained._load_orbax(tmp_path / run / "checkpoints" / "00000008" / files.ORBAX) for run in ("whole", "run")]
    tiny.equal_trees(*parts)
    start = pretrained.open_checkpoint(tmp_path / "start")
    assert start.config == pretrained.open_checkpoint(tmp_path / "run" / "model").config, "no trace of LoRA in the model"


def test_the_start_weights_take_no_memory_beside_the_state(straight, tmp_path, monkeypatch):
    """From the first step on, neither a device's nor the host's; the checks before it have used them."""
    before, beside = jax.live_arrays(), []

    def keep(loop, step, state, *_):
        known = {id(x) for x in [*before, *jax.tree.leaves(state)]}
        beside.append([x.shape for x in jax.live_arrays() if id(x) not in known and x.dtype == "float32" and x.ndim])
        assert {type(x) for x in loop.run.model.parameters.values()} == {jax.ShapeDtypeStruct}

    monkeypatch.setattr("trocr_jax.train.loop.Loop._keep", keep)
    assert train(tiny.config(straight, out=tmp_path / "run", steps=2, preflight=PreflightConfig(lines=20))) == 0
    assert beside == [[], []]


def test_preflight_runs_first_and_stops_a_run_in_vain(tmp_path, monkeypatch):
    config = tiny.config(tmp_path, preflight=PreflightConfig(lines=20), steps=1)
    (tmp_path / "lines" / "gt_train.txt").write_text("000.png\t\U0001f600" + "\n")
    monkeypatch.setattr("trocr_jax.train.preflight.round_trips", lambda tokenizer, texts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(config)
    assert not any((config.out / "checkpoints").iterdir())


def test_mixing_from_scratch_with_a_new_size(tmp_path):
    """Two sources by weight, frozen encoder, wider images, vocabulary extended: all through one configuration."""
    base = tiny.config(tmp_path)
    data = base.data.train[0]
    config = replace(
        base, steps=2, start=StartConfig(model=str(tmp_path / "start"), image_size=(16, 64), extend_vocab="ß"),
        data=DataConfig(train=(f"{data}@0.7", f"{data}@0.3"), valid=(data,), threads=2),
        optimizer=OptimizerConfig(lr=1e-3, rates=("^encoder=0", ".*=1")),
    )  # fmt: skip
    assert train(config) == 0
    reader = Reader.from_pretrained(config.out / "model")
    assert reader.processor.width == 64 and len(reader.tokenizer.labels("ß")) == 2
    row = next(e for e in read_log(config.out) if e["kind"] == "start")
    assert 0 < row["trained"] < row["parameters"] and row["devices"] == 1
    assert jax.device_count() == 8


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_the_same_command_on_more_devices_has_the_same_curve(devices, straight, tmp_path):
    for part in ("start", "lines"):
        shutil.copytree(straight / part, tmp_path / part)
    assert train(tiny.config(tmp_path, devices=devices)) == 0
    alone, together = losses(straight), losses(tmp_path)
    assert len(alone) == 20 and alone.keys() == together.keys()
    np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=1e-4)


@pytest.mark.slow
def test_eight_devices_survive_a_kill(straight, tmp_path):
    for name in ("whole", "killed"):
        for part in ("start", "lines"):
            shutil.copytree(straight / part, tmp_path / name / part)
    assert train(tiny.config(tmp_path / "whole", devices=8)) == 0
    assert run_until(tmp_path / "killed", "saved", 7, signal.SIGKILL, devices=8) == -signal.SIGKILL
    assert train(tiny.config(tmp_path / "killed", devices=8)) == 0
    tiny.equal_trees(arrays(tmp_path / "whole"), arrays(tmp_path / "killed"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def two_processes(folder: Path, kind: str, step: int, number: int) -> list[int]:
    """A run on two hosts of one device each, both of which get a signal after an event of the first one's log."""
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    driver = DRIVER.replace("**changes)", "devices=None, hosts=config.HostsConfig(2, int(sys.argv[6]), sys.argv[7]), **changes)")
    driver = driver.replace("import log, loop", "import config, log, loop")
    processes = []
    for index in range(2):
        arguments = [str(folder), kind, str(step), str(number), "{}", str(index), address]
        command = [sys.executable, "-c", driver, *arguments]
        processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    codes = []
    for process in processes:
        try:
            _, said = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        codes.append(process.returncode)
        assert number == signal.SIGKILL or process.returncode == 0, said[-3000:]
    return codes


@pytest.mark.slow
def test_two_processes_train_one_model_and_survive_a_kill(straight, tmp_path):
    """The losses of one process; killed after step 7 and gone on with, bit for bit those of two that nobody killed."""
    for name in ("whole", "killed"):
        for part in ("start", "lines"):
            shutil.copytree(straight / part, tmp_path / name / part)
    assert two_processes(tmp_path / "whole", "never", 0, signal.SIGTERM) == [0, 0]
    assert two_processes(tmp_path / "killed", "saved", 7, signal.SIGKILL)[0] == -signal.SIGKILL
    assert two_processes(tmp_path / "killed", "never", 0, signal.SIGTERM) == [0, 0]
    tiny.equal_trees(arrays(tmp_path / "whole"), arrays(tmp_path / "killed"))
    whole, alone = losses(tmp_path / "whole"), losses(straight)
    assert whole == losses(tmp_path / "killed")
    np.testing.assert_allclose(list(whole.values()), list(alone.values()), rtol=1e-4)
    assert Reader.from_pretrained(tmp_path / "killed" / "run" / "model").read(tiny.draw("1")).error is None
