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

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from trocr_jax import files, pretrained, sharding
from trocr_jax.cli import INTERRUPTED, UsageError, guarded

from . import mesh as meshes
from . import preflight, vocabulary
from .batches import Batches, prefetch
from .checkpoint import Checkpoints
from .config import Config, HostsConfig, check
from .data import training_lines
from .log import Log, evaluations, rounded
from .optimizer import make_optimizer, schedule
from .parameters import Arrays, build, finite, frozen_layers, new_lora, rates, with_lora
from .run_folder import CHECKPOINTS, claimed
from .start import Start, opened, start, trimming
from .step import Step, StepConfig, TrainState, inference, make_step, new_state
from .validation import digest, evaluate, held_out


def train(config: Config) -> int:
    """Runs or goes on with a run; returns the exit code: 0 also when a SIGTERM ended it after a checkpoint, 130 after Ctrl-C.

    Raises:
        UsageError: a number makes no sense.
        ValueError: the configuration cannot be followed, is not that of the run in the folder, or a check failed.
    """
    check(config)
    config = replace(config, out=files.expand(config.out))
    join_hosts(config)
    with _together(), claimed(config):
        return _train(config)


@contextmanager
def _together() -> Iterator[None]:
    """Ends one of several hosts at once where something goes wrong: at its end, Python would wait for the others, in jax's
    barrier, and they wait for this one.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() > 1:
            _end(error)
        raise


def _end(error: BaseException) -> NoReturn:
    """Says what went wrong as any command does, and ends the process."""

    def again() -> int:
        raise error

    try:
        code = guarded(again)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def _train(config: Config) -> int:
    log = Log(config.out, config.steps, config.tensorboard, host=jax.process_index())
    checkpoints = Checkpoints(config.out / CHECKPOINTS, config.keep, log)
    newest = checkpoints.newest()
    run = Run(config, _fresh(config) if newest is None else opened(checkpoints.path(newest), numbers=False), checkpoints, log)
    with run.signals():
        return _follow(run, newest)


def _follow(run: Run, newest: int | None) -> int:
    """From the start or the newest checkpoint to the end, or to a signal."""
    config, checkpoints, log = run.config, run.checkpoints, run.log
    state = run.place() if newest is None else checkpoints.load(newest, run.abstract())
    for text in _remarks(config):
        log("note", text=text)
    log("start", step=int(state.step), devices=run.mesh.size, **parameter_counts(run))
    if newest is None and config.preflight.enabled:
        run.preflight()
    run.forget_start()
    try:
        state, ended = run.steps(state)
    finally:
        checkpoints.close()  # what goes wrong must not cost the checkpoint that is being written
    if ended:
        publish(config, checkpoints, log)
    log.close()
    return INTERRUPTED if run.interrupted and not ended else 0


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


class Run:
    """What a run is made of, and its loop: batches in, steps, and every so often a line, an evaluation, a checkpoint."""

    def __init__(self, config: Config, model: Start, checkpoints: Checkpoints, log: Log):
        self.config, self.model, self.checkpoints, self.log = config, model, checkpoints, log
        o, lora = config.optimizer, config.lora
        _refuse_misfit(config, model)
        factors = with_lora(rates(model.parameters, o.rates, o.layer_decay))
        trained = frozenset(name for name, factor in factors.items() if np.any(factor))
        self.mesh: Mesh = meshes.make_mesh(config.devices, config.mesh)
        self.step_config = StepConfig(
            model=model.config, trained=trained, frozen=frozen_layers(factors), mean=model.processor.mean,
            std=model.processor.std, dtype=config.dtype, remat=config.remat, label_smoothing=o.label_smoothing,
            accumulate=o.accumulate, lora_scale=lora.alpha / max(lora.rank, 1), ema=o.ema,
            tensor_parallel=self.mesh.shape[sharding.MODEL] > 1,
        )  # fmt: skip
        self.optimizer = make_optimizer(o, config.steps, factors)
        self.shapes = jax.eval_shape(self.fresh, model.parameters)
        self.shardings = meshes.state_shardings(self.shapes, self.mesh, config.fsdp)
        self.rate = schedule(o, config.steps)
        self.terminated = self.interrupted = False
        self._held_out = held_out(config, model.processor) if jax.process_index() == 0 else {}  # now: it may hold mistakes
        self._valid = digest(self._held_out)
        self._scores: list[float] = []  # of all evaluations of these lines so far, those before a pause too

    def fresh(self, parameters: Arrays) -> TrainState:
        """The state before the first step."""
        lora = self._lora(parameters) if self.config.lora.rank else {}
        return new_state(self.step_config, parameters, lora, self.optimizer, self.config.seed)

    def _lora(self, parameters: Arrays) -> Arrays:
        """LoRA's factors; where the vocabulary is another one, its tables too, whose new rows would stay as they were made."""
        lora, begin = self.config.lora, self.config.start
        learning = {name: x for name, x in parameters.items() if name in self.step_config.trained}  # others get no factors
        resized = vocabulary.TABLES & learning.keys() if begin.tokenizer or begin.extend_vocab else set()
        tables = {name: jnp.array(learning.pop(name)) for name in sorted(resized)}
        return new_lora(learning, lora.targets, lora.rank, self.config.seed) | tables

    def place(self) -> TrainState:
        """The state before the first step, on the mesh."""
        return jax.jit(self.fresh, out_shardings=self.shardings)(self.model.parameters)

    def abstract(self) -> TrainState:
        """The shapes of a state, and its places on the mesh."""
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.shapes, self.shardings)

    @cached_property
    def batches(self) -> Batches:
        config, data = self.config, self.config.data
        lines = training_lines(config, self.model, lambda problem: self.log("bad_record", problem=problem))
        rows = meshes.own_rows(self.mesh, config.batch_size)
        if data.cut and len(rows) < config.batch_size:
            raise ValueError("--data.cut looks at whole batches, which one host alone has; set it to 0")
        if data.group > 1 and len(rows) < config.batch_size:
            raise ValueError("--data.group sorts whole batches, which one host alone has; set it to 1")
        return Batches(
            load=lines, batch_size=config.batch_size, seed=config.seed, pad=self.model.config.pad_token_id,
            max_tokens=config.max_tokens, rows=rows, group=data.group, threads=data.threads, cut=data.cut,
        )  # fmt: skip

    def preflight(self) -> None:
        """Raises preflight.Failed where training would be in vain."""
        batches, checks = self.batches, self.config.preflight
        texts = [text for text in map(batches.load.text, range(checks.lines)) if text]
        parameters, tokenizer = jax.device_put(self.model.parameters), self.model.tokenizer
        for line in preflight.check(self.step_config, parameters, tokenizer, texts, batches[0], checks.overfit):
            self.log("preflight", passed=line)

    def forget_start(self) -> None:
        """Leaves of the start weights their shapes; the numbers of a run are its state's."""
        self.model = replace(self.model, parameters=self.shapes.model)

    def steps(self, state: TrainState) -> tuple[TrainState, bool]:
        """From the state's step to the last one; False when a SIGTERM came before."""
        step, first = make_step(self.optimizer, self.step_config, (self.shardings, meshes.replicated(self.mesh))), int(state.step)
        if self._evaluates(first) and _on_all_hosts(self.checkpoints.metrics(first).get("valid") != self._valid):
            self._evaluate(first, self.inference(state))  # a SIGTERM came before it, or the lines are others now
        if jax.process_index() == 0:
            self._scores = [x["score"] for x in evaluations(self.config.out, first) if x.get("valid") == self._valid]
        state, done = (state, True) if self._impatient() else self._loop(state, step, first)
        self.checkpoints.wait()
        return state, done

    def _loop(self, state: TrainState, step: Step, first: int) -> tuple[TrainState, bool]:
        config, pending, timer = self.config, [], Timer()
        for index, batch in timer.waiting(prefetch(self.batches, first, config.steps)):
            images, labels = (meshes.global_array(self.mesh, x, config.batch_size) for x in (batch.images, batch.labels))
            state, metrics = step(state, images, labels)
            pending.append(metrics)
            done = index + 1
            if done % config.log_every == 0 or done == config.steps:
                measured = jax.device_get(pending)  # waits for the steps, which until here are only dispatched
                self._report(done, measured, timer)
                pending = []
            last = self._stop_asked(done) or done == config.steps
            self._keep(done, state, last, pending, timer)
            if last or self._evaluates(done) and self._impatient():  # hosts wait for each other then, not at every step
                return state, not self.terminated
        return state, True

    def _report(self, step: int, measured: list[Any], timer: Timer) -> None:
        means = {name: float(np.mean([float(m[name]) for m in measured])) for name in measured[0]}
        if not np.isfinite(means["loss"]):
            raise ValueError(self._diverged(step))
        seconds, share = timer.read()
        speed = len(measured) * self.config.batch_size / seconds
        self.log("train", step=step, **means, lr=float(np.asarray(self.rate(step - 1))), lines_per_s=speed, device_share=share)

    def _keep(self, step: int, state: TrainState, last: bool, pending: list[Any], timer: Timer) -> None:
        """Saves and evaluates when it is time to; saves at the end and before an early one."""
        if not (self._evaluates(step) or last or step % self.config.save_every == 0):
            return
        with timer.apart():
            self._refuse_diverged(step, state, pending)
            parameters = self.inference(state)
            self.checkpoints.save(state, parameters, self.model)
            if self._evaluates(step) and not self.terminated:
                self._evaluate(step, parameters)

    def _evaluates(self, step: int) -> bool:
        return step > 0 and (step % self.config.eval_every == 0 or step == self.config.steps)

    def _refuse_diverged(self, step: int, state: TrainState, pending: list[Any]) -> None:
        """Raises ValueError before a state that is no good takes the place of those that are."""
        losses = [float(metrics["loss"]) for metrics in jax.device_get(pending)]
        if not (np.isfinite(losses).all() and jax.jit(finite, out_shardings=meshes.replicated(self.mesh))(state)):
            raise ValueError(self._diverged(step))

    def _diverged(self, step: int) -> str:
        """What is wrong and what to do: a folder with checkpoints takes no other learning rate."""
        self.checkpoints.wait()
        good = [self.checkpoints.path(saved) for saved in self.checkpoints.steps()]
        anew = f", in a new --out with --start.model {good[-1]}" if good else ""
        return f"the loss is not finite at step {step}; lower --optimizer.lr or set --optimizer.clip 1.0{anew}"

    @cached_property
    def inference(self) -> Callable[[TrainState], Arrays]:
        """A state -> the parameters to read with, whole on every device; compiled once."""
        return jax.jit(partial(inference, config=self.step_config), out_shardings=meshes.replicated(self.mesh))

    def _evaluate(self, step: int, parameters: Arrays) -> None:
        """On the first host alone; the others wait for it at the next step."""
        metrics = self._measured(step, parameters) if jax.process_index() == 0 else {}
        self.checkpoints.score(step, metrics)

    def _measured(self, step: int, parameters: Arrays) -> dict[str, Any]:
        began = time.perf_counter()
        local = build(self.model.config, {name: x.addressable_data(0) for name, x in parameters.items()})
        metrics, samples = evaluate(local, self.model.tokenizer, self.model.processor, self._held_out, self.config.max_tokens)
        metrics["valid"] = self._valid
        self.log("eval", step=step, **metrics, seconds=time.perf_counter() - began)
        self.log.samples(step, samples)
        self._scores.append(rounded(metrics["score"]))  # as the log has it
        return metrics

    def _impatient(self) -> bool:
        """Every host asks after every evaluation, and the first one knows."""
        patience, scores = self.config.patience, self._scores
        if patience is None:
            return False
        return _on_all_hosts(bool(scores) and len(scores) - 1 - int(np.argmin(scores)) >= patience)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Lets SIGTERM and Ctrl-C end the run after a step; several hosts have jax's own handler, which tells all of them."""
        caught = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        before = {number: signal.signal(number, self._terminate) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _terminate(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                os._exit(INTERRUPTED)  # a KeyboardInterrupt while XLA's threads run crashes Python at its end
            os.write(2, b"\ntrocr-jax: interrupted: ends and saves after this step; Ctrl-C once more ends at once\n")
        self.terminated, self.interrupted = True, self.interrupted or number == signal.SIGINT

    def _stop_asked(self, step: int) -> bool:
        """Whether a SIGTERM came, to this host or another one: all of them must stop at the same step."""
        if jax.process_count() > 1:
            self.terminated = multihost_utils.reached_preemption_sync_point(step)
        if self.terminated:
            self.log("terminated", step=step)
        return self.terminated


class Timer:
    """Where the time of a stretch of steps goes; evaluations and checkpoints are kept apart."""

    def __init__(self) -> None:
        self.began, self.idle, self.aside = time.perf_counter(), 0.0, 0.0

    def waiting(self, items: Any) -> Any:
        """Passes items on and counts the time until each comes."""
        iterator = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.idle += time.perf_counter() - asked
            yield item

    @contextmanager
    def apart(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.aside += time.perf_counter() - began

    def read(self) -> tuple[float, float]:
        """Seconds since the last reading, and the share of them in which the device was not kept waiting for data."""
        seconds = time.perf_counter() - self.began - self.aside
        share = 1.0 - self.idle / seconds
        self.began, self.idle, self.aside = time.perf_counter(), 0.0, 0.0
        return seconds, share


def _on_all_hosts(first: bool) -> bool:
    """What the first host found."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(first))) if jax.process_count() > 1 else first


def join_hosts(config: Config) -> None:
    """Connects the processes of a run; before anything touches a device.

    Raises:
        ValueError: they cannot be connected, or jax finds no cluster.
    """
    hosts = config.hosts
    if hosts.count == 1:
        return
    try:
        jax.distributed.initialize(hosts.coordinator, hosts.count or None, hosts.index if hosts.count else None)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{_unjoined(hosts)} ({reason})") from error


def _unjoined(hosts: HostsConfig) -> str:
    """With which flags hosts could not be connected, and what to do."""
    if not hosts.count:
        return "--hosts.count 0: jax finds no cluster; set --hosts.count, --hosts.index and --hosts.coordinator"
    flags = f"--hosts.coordinator {hosts.coordinator} --hosts.count {hosts.count} --hosts.index {hosts.index}"
    return f"{flags}: the hosts cannot be connected; every index must start once, and reach the first"


def parameter_counts(run: Run) -> dict[str, int]:
    """How many there are, and how many of them are trained."""
    counts = {name: int(np.prod(x.shape)) for name, x in run.shapes.model.items()}
    trained = sum(counts[name] for name in run.step_config.trained & counts.keys())
    if run.config.lora.rank:
        trained = sum(int(np.prod(x.shape)) for x in run.shapes.lora.values())
    return {"parameters": sum(counts.values()), "trained": trained}


def _refuse_misfit(config: Config, model: Start) -> None:
    """Raises UsageError for flags that do not fit the model."""
    most, cut, encoder = model.config.decoder.max_positions, config.data.cut, model.config.encoder
    if config.max_tokens > most:
        raise UsageError(f"--max-tokens {config.max_tokens} is more than the {most} positions of this model")
    if cut and encoder.grid[0] > 1:
        raise UsageError(f"--data.cut needs a model with one row of patches, this one has {encoder.grid[0]}; set it to 0")
    if cut % encoder.patch_size[1]:
        raise UsageError(f"--data.cut {cut} must be a multiple of {encoder.patch_size[1]}, the width of this model's patches")


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
