"""Continuous batching: images join and leave a running batch, so that none waits for the slowest of its neighbours.

One engine reads with one model. Each `turn` of it is sequential and does the same whatever the timing:

    fill     encoded images -> free slots                          (`slots.insert`)
    advance  k decoding steps of all slots, dispatched             (`slots.advance`)
    encode   waiting images, dispatched behind those steps, so     (`slots.encode`)
             that the device works while the host looks at them;
             on a CPU beside the steps (`lanes`)
    search   one batch of beam searches, which cannot join others  (`decoding.generate`)
    harvest  new tokens -> their jobs; ended lines free their slot

Everything has a bound: slots, images encoded ahead, waiting jobs, tokens a job. Shapes are few and all of them are compiled by
`warm_up`. The text of an image is the one that `Reader` gives, whatever it shares the slots with.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import jax
import numpy as np

from . import slots as device
from .decoding import GenerateConfig, Generation, generate
from .lanes import Lanes
from .layers import Array
from .loop import bucket
from .model import TrOCR
from .packed import pack

_PER_JOB = {"max_new_tokens", "do_sample", "temperature", "top_p", "num_beams", "num_return_sequences"}

Status = Literal["waiting", "running", "stop", "length", "cancelled", "expired", "failed"]


class QueueFullError(Exception):
    """The engine has as many waiting jobs as it may have; nothing was queued."""


@dataclass(eq=False)
class Job:
    """One image to read, and what came of it so far. The engine's thread writes, others read; lists only grow.

    Attributes:
        pixels: uint8 [height,width,C] of the model's size.
        config: how to decode; `Engine.check` tells what is possible.
        seed: for sampling; the draws are those of `Reader.read(image, seed=seed)`.
        sample: which of a seed's samples, or of a beam search's sequences, best first.
        alternatives: how many likeliest tokens to note at each step, at most slots.MAX_ALTERNATIVES.
        deadline: on `time.monotonic`; after it the job is dropped wherever it is.
        notify: called by the engine's thread when the job is over, and if `stream` after every turn that gave it tokens. Must not
            block.
        tokens: without the start token, the end token included.
        logprobs: of the tokens.
        best: for each token the `alternatives` likeliest ones as (token, log-probability).
        status: where it is; "stop" and "length" are its good ends.
        submitted, started, first_token: on `time.monotonic`, when it was queued, got a slot, and had its first token.
    """

    pixels: np.ndarray
    config: GenerateConfig
    seed: int = 0
    sample: int = 0
    alternatives: int = 0
    deadline: float = math.inf
    notify: Callable[[], Any] = lambda: None
    stream: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    best: list[list[tuple[int, float]]] = field(default_factory=list)
    status: Status = "waiting"
    submitted: float = 0.0
    started: float = 0.0
    first_token: float = 0.0
    cancelled: bool = False

    def cancel(self) -> None:
        """Drops the job at the engine's next turn, from the queue or from its slot. Any thread may call it, at any time."""
        self.cancelled = True

    @property
    def over(self) -> bool:
        return self.status not in ("waiting", "running")


@dataclass
class Counts:
    """What an engine did since it started.

    Attributes:
        encoded, encoded_rows: images, and rows of the buckets that they were padded to.
        live_steps, slot_steps: decoding steps that gave a token, and all steps of all slots; their ratio is the batch fill.
        ended: jobs by the status they ended with.
    """

    encoded: int = 0
    encoded_rows: int = 0
    live_steps: int = 0
    slot_steps: int = 0
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("stop", "length", "cancelled", "expired", "failed"), 0))


@dataclass
class _Encoded:
    """Image tokens [n,S,E] on the device, and the jobs of the rows that have no slot yet."""

    memory: Array
    rows: deque[tuple[int, Job]]


class Engine:
    """Reads images with one model on one device.

    Args:
        model: with parameters on the device.
        mean, std: of the pixels, as the checkpoint's processor has them.
        defaults: how to decode; jobs may differ in number and choice of tokens, and in the number of beams.
        slots: B, lines decoded at the same time.
        batch: most images encoded, or searched, at once; a power of two.
        beams: numbers of beams (above 1) that jobs may ask for; each is compiled for every bucket.
        max_waiting: jobs that may wait.
        wake: set when there is work; engines that share a thread share it.
    """

    def __init__(
        self, model: TrOCR, mean: tuple[float, ...], std: tuple[float, ...], defaults: GenerateConfig, *,
        slots: int, batch: int, beams: Iterable[int] = (), max_waiting: int = 1024, wake: threading.Event | None = None,
    ):  # fmt: skip
        if batch < 1 or batch & (batch - 1):
            raise ValueError(f"batch must be a power of two, not {batch}")
        self.model, self.mean, self.std, self.defaults = model, mean, std, defaults
        self.batch, self.max_waiting, self.wake = batch, max_waiting, wake or threading.Event()
        self.rules = replace(defaults, num_beams=1, num_return_sequences=1)
        numbers = {b for b in (defaults.num_beams, *beams) if b > 1}
        self.searches = {b: replace(defaults, num_beams=b, num_return_sequences=b) for b in sorted(numbers)}
        self.counts, self._lanes = Counts(), Lanes()
        self._lock = threading.Lock()
        self._waiting: dict[int, deque[Job]] = {b: deque() for b in (1, *self.searches)}
        self._taken: list[Job] = []  # from the queue, and not yet encoded
        self._encoded: deque[_Encoded] = deque()
        self._jobs: list[Job | None] = [None] * slots
        self._packed = pack(model)
        self._slots = device.empty(model, slots, defaults.max_new_tokens)
        self._advancing: tuple[list[Job | None], device.Progress] | None = None
        self._searching: tuple[list[Job], Generation] | None = None

    # --- any thread ---

    def check(self, config: GenerateConfig, alternatives: int = 0) -> None:
        """Raises ValueError, naming the option, if jobs with this config are not possible here."""
        for name in (f.name for f in fields(config) if f.name not in _PER_JOB):
            if getattr(config, name) != getattr(self.defaults, name):
                raise ValueError(f"{name} is fixed to {getattr(self.defaults, name)} here")
        if config.max_new_tokens > self.defaults.max_new_tokens:
            raise ValueError(f"max_new_tokens is at most {self.defaults.max_new_tokens} here")
        if config.num_beams not in self.beams:
            raise ValueError(f"num_beams must be one of {self.beams} here")
        if not 0 <= alternatives <= (device.MAX_ALTERNATIVES if config.num_beams == 1 else 0):
            raise ValueError(f"alternatives are at most {device.MAX_ALTERNATIVES}, and none with beams")
        if not 1 <= config.num_return_sequences <= (device.MAX_SAMPLES if config.num_beams == 1 else config.num_beams):
            raise ValueError(f"num_return_sequences is at most {device.MAX_SAMPLES}, and at most num_beams")

    @property
    def beams(self) -> list[int]:
        """Numbers of beams that a job may have."""
        return sorted(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues jobs, all or none.

        Raises:
            QueueFullError: too many are waiting. ValueError: see `check`.
        """
        for job in jobs:
            self.check(job.config, job.alternatives)
        with self._lock:
            if self.waiting + len(jobs) > self.max_waiting:
                raise QueueFullError
            for job in jobs:
                job.submitted = time.monotonic()
                self._waiting[job.config.num_beams].append(job)
        self.wake.set()

    @property
    def waiting(self) -> int:
        """Jobs that no device work has been done for."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """Slots in use."""
        return sum(job is not None for job in self._jobs)

    # --- the engine's thread ---

    def warm_up(self) -> None:
        """Compiles every program that a job can need, by running it on nothing."""
        for n in buckets(self.batch):
            memory = self._encode(np.zeros((n, *self._image_shape), np.uint8))
            self._insert(memory, {})
            for config in self.searches.values():
                generate(self._packed, memory, config, None, jax.device_put(np.zeros(n, bool)))
        for full in (False, True):
            self._slots, _ = device.advance(self._packed, self._slots, self.rules, full)
        jax.block_until_ready(self._slots)

    def turn(self) -> bool:
        """One turn as the module describes it; False where there was nothing to do."""
        self.dispatch()
        return self.harvest()

    def dispatch(self) -> None:
        """The part of a turn that starts work on the device and does not wait for it."""
        self._drop_dead()
        self._fill()
        self._advance()
        self._encode_next()
        self._search_next()

    def harvest(self) -> bool:
        """The part of a turn that waits for what `dispatch` started; False where that was nothing."""
        busy = bool(self._advancing or self._searching or self._encoded)
        if self._advancing:
            (jobs, progress), self._advancing = self._advancing, None
            self._take_steps(jobs, jax.device_get(progress))
        if self._searching:
            (searched, found), self._searching = self._searching, None
            self._take_found(searched, jax.device_get(found))
        return busy

    def fail(self) -> None:
        """After an error of the device: every job under way fails and the slots start anew. Waiting jobs are not touched."""
        running = [*self._jobs, *self._taken, *(job for encoded in self._encoded for _, job in encoded.rows)]
        running += self._searching[0] if self._searching else []
        self._encoded.clear()
        self._taken = []
        self._advancing = self._searching = None
        self._slots = device.empty(self.model, len(self._jobs), self.defaults.max_new_tokens)
        self._jobs = [None] * len(self._jobs)
        for job in running:
            if job is not None:
                self._end(job, "failed")

    # --- a turn's parts ---

    def _drop_dead(self) -> None:
        """Ends jobs that were cancelled or whose deadline has passed, so that the device does nothing more for them."""
        now = time.monotonic()
        with self._lock:
            dead = [job for queue in self._waiting.values() for job in queue if _dead(job, now)]
            if dead:
                self._waiting = {b: deque(job for job in q if not _dead(job, now)) for b, q in self._waiting.items()}
        for slot, job in enumerate(self._jobs):
            if job is not None and _dead(job, now):
                self._jobs[slot] = None
                dead.append(job)
        for encoded in self._encoded:
            dead += [job for _, job in encoded.rows if _dead(job, now)]
            encoded.rows = deque((row, job) for row, job in encoded.rows if not _dead(job, now))
        for job in dead:
            self._end(job, "cancelled" if job.cancelled else "expired")

    def _fill(self) -> None:
        free = deque(slot for slot, job in enumerate(self._jobs) if job is None)
        while self._encoded and (free or not self._encoded[0].rows):
            encoded = self._encoded[0]
            placed: dict[int, tuple[int, Job]] = {}
            while encoded.rows and free:
                row, job = encoded.rows.popleft()
                slot = free.popleft()
                placed[row] = slot, job
                self._jobs[slot] = job
                job.status, job.started = "running", time.monotonic()
            if placed:
                self._insert(encoded.memory, placed)
            if not encoded.rows:
                self._encoded.popleft()

    def _insert(self, memory: Array, placed: dict[int, tuple[int, Job]]) -> None:
        n = memory.shape[0]
        nowhere = np.full(n, len(self._jobs), np.int32)
        settings = device.Settings(nowhere, *(np.zeros(n, t) for t in (np.int32, np.uint32, np.int32, np.float32, np.float32)))
        for row, (slot, job) in placed.items():
            settings.slot[row], settings.limit[row] = slot, job.config.max_new_tokens
            settings.seed[row], settings.sample[row] = job.seed, job.sample
            settings.temperature[row] = job.config.temperature if job.config.do_sample else 0.0
            settings.top_p[row] = job.config.top_p
        self._slots = device.insert(self._slots, memory, jax.device_put(settings), self.model.config)

    def _advance(self) -> None:
        live = [job for job in self._jobs if job is not None]
        if not live:
            return
        full = any(job.config.do_sample or job.alternatives for job in live)
        self._slots, progress = device.advance(self._packed, self._slots, self.rules, full)
        self._advancing = list(self._jobs), progress

    def _encode_next(self) -> None:
        """As many as are waiting where slots are free; ahead of that only whole batches, and one of them."""
        ahead = sum(len(encoded.rows) for encoded in self._encoded)
        ready = len(self._waiting[1])
        if ready and (len(self._jobs) - self.running > ahead or (ready >= self.batch and ahead < self.batch)):
            jobs = self._take(1)
            self._encoded.append(_Encoded(self._encode_jobs(jobs), deque(enumerate(jobs))))
            self._taken = []

    def _search_next(self) -> None:
        """Of the numbers of beams, the one whose first job has waited longest."""
        queues = [queue for beams, queue in self._waiting.items() if beams > 1 and queue]
        if not queues:
            return
        beams = min(queues, key=lambda queue: queue[0].submitted)[0].config.num_beams
        jobs = self._take(beams)
        memory = self._encode_jobs(jobs)
        mask = jax.device_put(np.arange(memory.shape[0]) < len(jobs))
        for job in jobs:
            job.status, job.started = "running", time.monotonic()
        self._searching = jobs, generate(self._packed, memory, self.searches[beams], None, mask)
        self._taken = []

    def _take(self, beams: int) -> list[Job]:
        with self._lock:
            queue = self._waiting[beams]
            self._taken = [queue.popleft() for _ in range(min(self.batch, len(queue)))]
        return self._taken

    def _encode_jobs(self, jobs: list[Job]) -> Array:
        images = np.zeros((bucket(len(jobs)), *self._image_shape), np.uint8)
        for row, job in enumerate(jobs):
            images[row] = job.pixels
        self.counts.encoded += len(jobs)
        self.counts.encoded_rows += len(images)
        return self._encode(images)

    def _encode(self, images: np.ndarray) -> Array:
        return self._lanes.dispatch(device.encode, self._packed, jax.device_put(images), self.mean, self.std)

    def _take_steps(self, jobs: list[Job | None], progress: device.Progress) -> None:
        tokens, logprobs = progress.tokens.T.tolist(), progress.logprobs.T.tolist()  # [B][k]
        self.counts.slot_steps += progress.tokens.size
        for slot, job in enumerate(jobs):
            if job is None:
                continue
            for step, (token, logprob) in enumerate(zip(tokens[slot], logprobs[slot], strict=True)):
                self._add(job, token, logprob, progress, step, slot)
                if token == self.model.config.eos_token_id or len(job.tokens) == job.config.max_new_tokens:
                    self._jobs[slot] = None
                    self._end(job, "stop" if token == self.model.config.eos_token_id else "length")
                    break
            if job.stream and not job.over:
                job.notify()

    def _add(self, job: Job, token: int, logprob: float, progress: device.Progress, step: int, slot: int) -> None:
        if job.alternatives:
            best = (array[step, slot, : job.alternatives].tolist() for array in (progress.best, progress.best_logprobs))
            job.best.append(list(zip(*best, strict=True)))
        job.first_token = job.first_token or time.monotonic()
        job.logprobs.append(logprob)
        job.tokens.append(token)
        self.counts.live_steps += 1

    def _take_found(self, jobs: list[Job], found: Generation) -> None:
        """A search runs with the full budget of tokens; a job that wants fewer gets the beginning of its line."""
        for row, job in enumerate(jobs):
            length = int(found.lengths[row, job.sample])
            kept = min(length, job.config.max_new_tokens)
            job.first_token = time.monotonic()
            job.logprobs += found.logprobs[row, job.sample, :kept].tolist()
            job.tokens += found.tokens[row, job.sample, :kept].tolist()
            self._end(job, "stop" if found.finished[row, job.sample] and kept == length else "length")

    def _end(self, job: Job, status: Status) -> None:
        self.counts.ended[status] += 1
        job.status = status
        job.notify()

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        encoder = self.model.config.encoder
        return *encoder.image_size, encoder.num_channels


class EngineThread(threading.Thread):
    """The one thread that talks to the device, for all engines in turns.

    Args:
        engines: which share `wake`.
        wake: set by whoever gives work.
        on_ready: called once when everything is compiled.
        on_error: called with an exception of the device, after the jobs under way have failed; one before `on_ready` ends the
            thread.
    """

    def __init__(
        self, engines: Sequence[Engine], wake: threading.Event, on_ready: Callable[[], Any] = lambda: None,
        on_error: Callable[[Exception], Any] = lambda error: None,
    ):  # fmt: skip
        super().__init__(name="engine", daemon=True)
        self.engines, self.wake, self.on_ready, self.on_error = engines, wake, on_ready, on_error
        self._stopping = False

    def run(self) -> None:
        try:
            for engine in self.engines:
                engine.warm_up()
        except Exception as error:
            self.on_error(error)
            return
        self.on_ready()
        while not self._stopping:
            self.wake.clear()
            if not self._turn():
                self.wake.wait()

    def stop(self) -> None:
        """Ends the thread after its turn; jobs under way stay as they are."""
        self._stopping = True
        self.wake.set()
        self.join()

    def _turn(self) -> bool:
        """Dispatches for every engine before it waits for any."""
        busy = False
        for act in (Engine.dispatch, Engine.harvest):
            for engine in self.engines:
                try:
                    busy = bool(act(engine)) or busy
                except Exception as error:  # the device's errors have many types
                    engine.fail()
                    self.on_error(error)
                    busy = True  # who still waits has its turn, whether or not another job comes
        return busy


def _dead(job: Job, now: float) -> bool:
    return job.cancelled or job.deadline <= now


def buckets(largest: int) -> list[int]:
    """All buckets up to the largest."""
    return [1 << i for i in range(largest.bit_length())]
