"""Checkpoints of a run: complete model directories with the rest of the training state beside the parameters.

    checkpoints/00001000/   config.json, tokenizer, preprocessing: `Reader.from_pretrained` reads it
        orbax/              parameters to read with (averaged, LoRA merged)
        state/              step, seed, optimizer, and the parameters as trained where they are others
        metrics.json        the evaluation at this step, once it has been made
        manifest.json       sha256 of every file: Orbax does not notice a flipped bit

Orbax writes in the background, from every host, into a directory with another name; when all is there and listed, the first host
gives it its own. A checkpoint that does not agree with its manifest is passed over for the one before it, aloud.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from trocr_jax import files

from .parameters import Arrays, named, unnamed
from .start import Start
from .step import TrainState

STATE, METRICS = "state", "metrics.json"


class Checkpoints:
    """The checkpoints in a folder that all hosts share.

    Args:
        folder: made if absent.
        keep: newest checkpoints that stay, at least 1, beside the one with the lowest score.
        say: (kind, fields) of what happens; see `log.Log`.
    """

    def __init__(self, folder: Path, keep: int = 2, say: Callable[..., None] = lambda *_, **__: None):
        self.folder, self.keep, self.say = Path(folder).resolve(), keep, say
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer = ThreadPoolExecutor(1)
        self._work: list[Future[None]] = []
        if jax.process_index() == 0:
            for leftover in self.folder.glob(".[0-9]*"):
                shutil.rmtree(leftover, ignore_errors=True)
        _barrier("checkpoints cleaned")

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def save(self, state: TrainState, parameters: Arrays, model: Start) -> None:
        """Starts to write a checkpoint and returns when the arrays are copied. Waits for the one before.

        Args:
            parameters: to read with: `step.inference(state)`.
            model: whose config, tokenizer and preprocessing go with them.
        """
        from orbax.checkpoint import v1 as ocp

        self.wait()
        step = int(state.step)
        if self.path(step).exists():
            return
        partial = self.folder / f".{step:08d}.partial"
        if jax.process_index() == 0:
            partial.mkdir()
        _barrier(f"checkpoint {step} begun")
        writing = [ocp.save_async(str(partial / files.ORBAX), parameters), ocp.save_async(str(partial / STATE), _rest(state))]
        self._work.append(self._writer.submit(self._finish, writing, partial, step, model))

    def score(self, step: int, metrics: dict[str, Any]) -> None:
        """Starts to add an evaluation to a checkpoint, once that is written. Every host calls this; the first one has metrics."""
        self._work.append(self._writer.submit(self._add, step, metrics))

    def wait(self) -> None:
        """Until what is under way is on disk.

        Raises:
            FilesError: it could not be written.
        """
        if not self._work:
            return
        work, self._work = self._work, []
        failures = [failure for done in work if (failure := done.exception())]
        _barrier("checkpoint written")
        if failures:
            raise files.FilesError(f"{self.folder}: a checkpoint cannot be written; is the disk full?") from failures[0]

    def close(self) -> None:
        """Lets what is under way end, on this host alone, and takes no more."""
        self._writer.shutdown()

    def _finish(self, writing: list[Any], partial: Path, step: int, model: Start) -> None:
        for response in writing:
            response.result()
        if jax.process_index() == 0:
            self._publish(partial, step, model)
            self.say("saved", step=step)
            self._remove_old()

    def _add(self, step: int, metrics: dict[str, Any]) -> None:
        """The manifest forgets an old file before it knows the new one: killed in between, the checkpoint is whole."""
        if jax.process_index() > 0:
            return
        content = json.dumps({"step": step, **metrics}, indent=2).encode() + b"\n"
        entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        listed = files.read_json(self.path(step) / files.MANIFEST)["files"]
        self._list(step, {name: known for name, known in listed.items() if name != METRICS})
        files.write_atomically(self.path(step) / METRICS, content)
        self._list(step, {**listed, METRICS: entry})
        self._remove_old()

    def _list(self, step: int, entries: dict[str, Any]) -> None:
        files.write_atomically(self.path(step) / files.MANIFEST, json.dumps({"files": entries}, indent=2).encode() + b"\n")

    def _publish(self, partial: Path, step: int, model: Start) -> None:
        with files.new_directory(self.path(step)) as folder:
            for part in partial.iterdir():
                part.rename(folder / part.name)
            for file, content in model.companions.items():
                (folder / file).write_bytes(content)
            files.write_json(folder / "config.json", {**model.config.to_hf(), "dtype": "float32", "torch_dtype": "float32"})
        partial.rmdir()

    def _remove_old(self) -> None:
        steps = self.steps()
        for step in set(steps) - {*steps[-self.keep :], self.best()}:
            doomed = self.path(step).rename(self.folder / f".{step:08d}.old")  # half of a checkpoint never has its name
            shutil.rmtree(doomed)

    def metrics(self, step: int) -> dict[str, Any]:
        """The metrics of the evaluation at a step; empty where there was none, or its file is damaged."""
        try:
            return files.read_json(self.path(step) / METRICS)
        except files.FilesError:
            return {}

    def best(self) -> int | None:
        """The step with the lowest score on what was evaluated last, the newest of equals; where none has one, the newest."""
        scored = {step: metrics for step in self.steps() if "score" in (metrics := self.metrics(step))}
        if not scored:
            return max(self.steps(), default=None)
        last = scored[max(scored)].get("valid")  # scores on other lines do not compare
        return min(
            (step for step in scored if scored[step].get("valid") == last), key=lambda step: (scored[step]["score"], -step)
        )

    def newest(self) -> int | None:
        """The newest checkpoint that agrees with its manifest; None where there is none. Damaged ones are renamed, aloud.

        Raises:
            FilesError: there are checkpoints, but all of them are damaged.
        """
        steps = self.steps()
        damaged = {}
        for step in reversed(steps):
            if problem := self._problem(step):
                damaged[step] = problem
        good = [step for step in steps if step not in damaged]
        _barrier("checkpoints judged")
        for step, problem in damaged.items():
            self.say("damaged", step=step, problem=problem)
            if jax.process_index() == 0:
                self.path(step).rename(self.folder / f"damaged-{step:08d}-{time.time_ns()}")
        if not good and (damaged or in_use(self.folder)):  # renamed by an earlier attempt: tried again, it is no new run
            raise files.FilesError(f"{self.folder}: none of the checkpoints can be restored; remove it to start anew")
        return good[-1] if good else None

    def _problem(self, step: int) -> str:
        path = self.path(step)
        if not (path / files.MANIFEST).exists():
            return f"{files.MANIFEST} is missing"
        try:
            files.check_manifest(path)
        except (files.FilesError, OSError) as error:
            return str(error)
        return ""

    def load(self, step: int, like: TrainState) -> TrainState:
        """A state from one checkpoint, placed on devices as `like` is."""
        from orbax.checkpoint import v1 as ocp

        rest = _rest(like)
        found = dict(ocp.load(str(self.path(step) / STATE), rest))
        if not any(name.startswith("model.") for name in rest):
            found |= {f"model.{name}": x for name, x in self.parameters(step, like.model).items()}
        return unnamed(like, found)

    def parameters(self, step: int, like: Arrays) -> Arrays:
        """The parameters to read with, of one checkpoint."""
        from orbax.checkpoint import v1 as ocp

        return dict(ocp.load(str(self.path(step) / files.ORBAX), like))


def in_use(folder: Path) -> bool:
    """Whether a folder has checkpoints, damaged ones too; half-written ones do not count."""
    return any(folder.glob("[!.]*"))


def _rest(state: TrainState) -> Arrays:
    """The part of the state that the parameters to read with do not contain."""
    same = not state.lora and not state.ema
    return {name: x for name, x in named(state).items() if not (same and name.startswith("model."))}


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
