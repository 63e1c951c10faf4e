"""A training run from its configuration to a complete model directory; the same command goes on where it stopped.

Its folder:

    run/config.json     the whole configuration
    run/log.jsonl       one object a line: steps, evaluations, checkpoints, records that cannot be used
    run/curves.png      loss and error over the steps
    run/checkpoints/    see checkpoint.py
    run/.lock           held by the process at work; may be left lying there
    run/model/          the best checkpoint as a hub directory, when the run is done
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from trocr_jax import files, pretrained
from trocr_jax.terminal import INTERRUPTED

from . import hosts
from . import mesh as meshes
from .batches import prefetch
from .checkpoint import Checkpoints
from .config import Config, check
from .interruption import Interruption
from .log import Log
from .optimizer import schedule
from .parameters import Arrays, build, finite
from .run import Run
from .run_folder import CHECKPOINTS, claimed
from .scores import Scores
from .start import Start, opened, start, trimming
from .step import TrainState
from .timer import Timer


def train(config: Config) -> int:
    """Runs or goes on with a run; returns the exit code: 0 also when a SIGTERM ended it after a checkpoint, 130 after Ctrl-C.

    Raises:
        UsageError: a number makes no sense.
        ValueError: the configuration cannot be followed, is not that of the run in the folder, or a check failed.
    """
    check(config)
    config = replace(config, out=files.expand(config.out))
    hosts.join(config.hosts)
    with hosts.together(), claimed(config):
        return _train(config)


def _train(config: Config) -> int:
    """From the start or the newest checkpoint to the end, or to a signal."""
    log = Log(config.out, config.steps, config.tensorboard, host=jax.process_index())
    checkpoints = Checkpoints(config.out / CHECKPOINTS, config.keep, log)
    newest = checkpoints.newest()
    run = Run(config, _fresh(config) if newest is None else opened(checkpoints.path(newest), numbers=False), log)
    loop = Loop(run, Scores(config, run.model, log), checkpoints)  # reads the validation lines: they may hold mistakes
    with loop.interruption.listening():
        ended = _follow(loop, newest)
        if ended:
            publish(config, checkpoints, log)
    log.close()
    return INTERRUPTED if loop.interruption.by_hand and not ended else 0


def _follow(loop: Loop, newest: int | None) -> bool:
    """Begins, or goes on, and keeps at it until `Loop.steps` returns."""
    run = loop.run
    state = run.place() if newest is None else loop.checkpoints.load(newest, run.abstract())
    for text in _remarks(run.config):
        run.log("note", text=text)
    run.log("start", step=int(state.step), devices=run.mesh.size, **run.parameter_counts())
    if newest is None and run.config.preflight.enabled:
        run.preflight()
    run.forget_start()
    try:
        return loop.steps(state)
    finally:
        loop.checkpoints.close()  # what goes wrong must not cost the checkpoint that is being written


def _remarks(config: Config) -> Iterator[str]:
    """What about the learning rate is allowed, and seldom meant."""
    o, steps = config.optimizer, config.steps
    if o.warmup >= steps:
        yield f"--optimizer.warmup {o.warmup} outlasts --steps: the rate never reaches --optimizer.lr"
    elif o.warmup < 2 and o.schedule == "inverse_sqrt":
        last = float(np.asarray(schedule(o, steps)(steps - 1)))
        yield (
            f"--optimizer.warmup {o.warmup} has inverse_sqrt fall from the first step on, from {o.lr:.2g} to {last:.2g}: "
            "set a warmup, or --optimizer.schedule constant"
        )


def _fresh(config: Config) -> Start:
    """The start model as host arrays: on devices, the state is to be its only copy."""
    found = trimming(start(config.start, config.seed), bool(config.data.cut))
    return replace(found, parameters=jax.device_get(found.parameters))


class Loop:
    """Batches in, steps, and every so often a line, an evaluation, a checkpoint."""

    def __init__(self, run: Run, scores: Scores, checkpoints: Checkpoints):
        self.run, self.scores, self.checkpoints, self.config, self.log = run, scores, checkpoints, run.config, run.log
        self.interruption, self.timer = Interruption(), Timer()
        self.rate = schedule(run.config.optimizer, run.config.steps)

    def steps(self, state: TrainState) -> bool:
        """From the state's step to the last one, or out of patience; False when a signal came before."""
        first = int(state.step)
        if self._evaluates(first) and hosts.agreed(self.checkpoints.metrics(first).get("valid") != self.scores.valid):
            self._evaluate(first, self.run.inference(state))  # a signal came before it, or the lines are others now
        self.scores.recall(self.config.out, first)
        done = self.scores.out_of_patience() or self._from(first, state)
        self.checkpoints.wait()
        return done

    def _from(self, first: int, state: TrainState) -> bool:
        config, run, pending = self.config, self.run, []
        self.timer = Timer()  # what is compiled before is not the steps'
        for index, batch in self.timer.waiting(prefetch(run.batches, first, config.steps)):
            state, metrics = run.step(state, run.on_devices(batch.images), run.on_devices(batch.labels))
            pending.append(metrics)
            done = index + 1
            if done % config.log_every == 0 or done == config.steps:
                self._report(done, jax.device_get(pending))  # waits for the steps, which until here are only dispatched
                pending = []
            last = self._stops(done) or done == config.steps
            self._keep(done, state, last, pending)
            if last or self._evaluates(done) and self.scores.out_of_patience():  # hosts wait for each other then, not always
                return not self.interruption.asked
        return True

    def _stops(self, step: int) -> bool:
        if stops := self.interruption.after(step):
            self.log("terminated", step=step)
        return stops

    def _report(self, step: int, measured: list[Any]) -> None:
        means = {name: float(np.mean([float(m[name]) for m in measured])) for name in measured[0]}
        if not np.isfinite(means["loss"]):
            raise ValueError(self._diverged(step))
        seconds, share = self.timer.read()
        speed = len(measured) * self.config.batch_size / seconds
        self.log("train", step=step, **means, lr=float(np.asarray(self.rate(step - 1))), lines_per_s=speed, device_share=share)

    def _keep(self, step: int, state: TrainState, last: bool, pending: list[Any]) -> None:
        """Saves and evaluates when it is time to; saves at the end and before an early one."""
        if not (self._evaluates(step) or last or step % self.config.save_every == 0):
            return
        with self.timer.apart():
            self._refuse_diverged(step, state, pending)
            parameters = self.run.inference(state)
            self.checkpoints.save(state, parameters, self.run.model)
            if self._evaluates(step) and not self.interruption.asked:
                self._evaluate(step, parameters)

    def _evaluate(self, step: int, parameters: Arrays) -> None:
        self.checkpoints.score(step, self.scores.measure(step, parameters))

    def _evaluates(self, step: int) -> bool:
        return step > 0 and (step % self.config.eval_every == 0 or step == self.config.steps)

    def _refuse_diverged(self, step: int, state: TrainState, pending: list[Any]) -> None:
        """Raises ValueError before a state that is no good takes the place of those that are."""
        losses = [float(metrics["loss"]) for metrics in jax.device_get(pending)]
        if not (np.isfinite(losses).all() and jax.jit(finite, out_shardings=meshes.replicated(self.run.mesh))(state)):
            raise ValueError(self._diverged(step))

    def _diverged(self, step: int) -> str:
        """What is wrong and what to do: a folder with checkpoints takes no other learning rate."""
        self.checkpoints.wait()
        good = [self.checkpoints.path(saved) for saved in self.checkpoints.steps()]
        anew = f", in a new --out with --start.model {good[-1]}" if good else ""
        return f"the loss is not finite at step {step}; lower --optimizer.lr or set --optimizer.clip 1.0{anew}"


def publish(config: Config, checkpoints: Checkpoints, log: Log) -> None:
    """Writes the best checkpoint as a hub directory that `Reader.from_pretrained` and transformers read."""
    best = checkpoints.best()
    if best is None:
        return
    found = opened(checkpoints.path(best))  # on all hosts: Orbax waits for all of them when it reads, too
    if jax.process_index() > 0:
        return
    pretrained.save(build(found.config, found.parameters), config.out / "model", found.companions, replace=True)
    log("done", step=best, model=str(config.out / "model"), score=checkpoints.metrics(best).get("score"))
