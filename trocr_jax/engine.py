"""Continuous batching: images join and leave a running batch, so that none waits for the slowest of its neighbours.

A job is one image. Where it may be, on its way from `submit` to its end:

    queue          `jobs.Queue`               nothing has been done for it
    encoded        here                       its image tokens are on the device, and wait for a free slot
    in a slot      `slot_jobs.SlotJobs`       it gets k tokens a turn, until it ends and its slot is free
    in a search    `search_jobs.SearchJobs`   instead of a slot, where it wants beams: those cannot join others

One engine reads with one model. Each `turn` of it is sequential and does the same whatever the timing:

    drop       jobs that nobody waits for any more, wherever they are
    fill       encoded images -> free slots
    advance    k decoding steps of all slots, dispatched
    encode     images from the queue, dispatched behind those steps, so that the device works while the host looks at them;
               on a CPU beside the steps (`lanes`)
    search     one batch of beam searches is begun, where none is under way, and takes as many steps
    harvest    waits for the steps of both: new tokens, and texts that were found -> their jobs

Everything has a bound: slots, images encoded ahead, waiting jobs, tokens a job. Shapes are few and all of them are compiled by
`warm_up`. The text of an image is the one that `Reader` gives, whatever it shares the slots with.

Letters: n rows of a bucket, S image tokens, E their width.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain

import jax
import numpy as np

from .batching import device
from .batching.jobs import Counts, Job, Queue, QueueClosedError, QueueFullError, Status
from .batching.search_jobs import SearchJobs
from .batching.slot_jobs import SlotJobs
from .buckets import bucket, buckets
from .decoding import GenerateConfig
from .generation.packed import pack
from .generation.sampling import small_seed
from .lanes import Lanes
from .model import TrOCR
from .network.layers import Array

__all__ = ["Engine", "Job", "QueueClosedError", "QueueFullError"]

_PER_JOB = {"max_new_tokens", "do_sample", "temperature", "top_p", "num_beams"}


@dataclass
class _Encoded:
    """Image tokens [n,S,E] on the device, and the jobs of the rows that have no slot yet."""

    memory: Array
    rows: deque[tuple[int, Job]]

    def drop_unwanted(self, now: float) -> list[Job]:
        dropped = [job for _, job in self.rows if job.unwanted(now)]
        self.rows = deque((row, job) for row, job in self.rows if job not in dropped)
        return dropped


class Engine:
    """Reads images with one model on one device.

    Args:
        model: with parameters on the device.
        mean, std: what pixels are normalised with, as the checkpoint's processor has them.
        defaults: how to decode; jobs may differ in number and choice of tokens, and in the number of beams.
        slots: B, lines decoded at the same time.
        batch: most images encoded, or searched, at once; a power of two.
        beams: numbers of beams (above 1) that jobs may ask for; each is compiled for every bucket.
        max_waiting: jobs that may wait.
        wake: set when there is work; engines that share a thread share it.

    Attributes:
        failures: errors of the device since it last gave a result.
    """

    def __init__(
        self, model: TrOCR, mean: tuple[float, ...], std: tuple[float, ...], defaults: GenerateConfig, *,
        slots: int, batch: int, beams: Iterable[int] = (), max_waiting: int = 1024, wake: threading.Event | None = None,
    ):  # fmt: skip
        if batch < 1 or batch & (batch - 1):
            raise ValueError(f"batch must be a power of two, not {batch}")
        self.model, self.mean, self.std, self.defaults = model, mean, std, replace(defaults, num_return_sequences=1)
        self.batch, self.wake, self.counts = batch, wake or threading.Event(), Counts()
        self.failures = 0
        self.rules = replace(self.defaults, num_beams=1)
        searches = sorted({b for b in (defaults.num_beams, *beams) if b > 1})
        self.beams = [1, *searches]
        self._packed, self._lanes = pack(model), Lanes()
        self._queue = Queue(self.beams, max_waiting)
        self._taken: list[Job] = []  # from the queue, and not yet in a place
        self._encoded: deque[_Encoded] = deque()
        self._slots = SlotJobs(self._packed, model.config, slots, defaults.max_new_tokens, self.counts)
        self._search = SearchJobs(self._packed, model.config, defaults, searches, self._lanes)

    # --- any thread ---

    def check(self, job: Job) -> None:
        """Raises ValueError, naming the option, if such a job is not possible here."""
        config, searched = job.config, job.config.num_beams > 1
        if config.num_return_sequences != 1:
            raise ValueError("num_return_sequences is 1 here: every sample, and every sequence of a search, is a job of its own")
        for name in (f.name for f in fields(config) if f.name not in _PER_JOB):
            if getattr(config, name) != getattr(self.defaults, name):
                raise ValueError(f"{name} is fixed to {getattr(self.defaults, name)} here")
        if config.max_new_tokens > self.defaults.max_new_tokens:
            raise ValueError(f"max_new_tokens is at most {self.defaults.max_new_tokens} here")
        if config.num_beams not in self.beams:
            raise ValueError(f"num_beams must be one of {self.beams} here")
        if job.pixels.shape != (shape := (*self.model.config.encoder.image_size, 3)) or job.pixels.dtype != np.uint8:
            raise ValueError(f"pixels must be uint8 of shape {shape}, not {job.pixels.dtype} of {job.pixels.shape}")
        if not 0 <= job.alternatives <= (0 if searched else device.MAX_ALTERNATIVES):
            raise ValueError(f"alternatives are at most {device.MAX_ALTERNATIVES}, and none with beams")
        small_seed(job.seed)
        if not 0 <= job.sample < (config.num_beams if searched else 2**31):  # as the device has int32 of it
            raise ValueError("sample is at least 0, below 2**31, and with beams less than their number")

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues jobs, all or none.

        Raises:
            QueueFullError: too many are waiting. QueueClosedError: after `close`. ValueError: see `check`.
        """
        for job in jobs:
            self.check(job)
        self._queue.add(jobs)
        self.wake.set()

    @property
    def waiting(self) -> int:
        """Jobs that no device work has been done for."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._slots.running

    # --- the engine's thread ---

    def warm_up(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Compiles every program that a job can need, by running it on nothing; skips the rest once `stopping` says so."""
        for _ in self._compile():
            if stopping():
                return

    def _compile(self) -> Iterator[None]:
        """Takes minutes for large models: yields between programs."""
        for n in buckets(self.batch):
            memory = self._encode(np.zeros((n, *self._image_shape), np.uint8))
            yield
            self._slots.insert(memory, [])
            yield
            self._search.warm_up(memory)
            yield
        self._slots.warm_up(self.rules)

    def turn(self) -> bool:
        """One turn as the module describes it; False where there was nothing to do."""
        self.dispatch()
        return self.harvest()

    def dispatch(self) -> None:
        """The part of a turn that starts work on the device and does not wait for it."""
        self._drop_unwanted()
        self._fill()
        self._slots.advance(self.rules)
        self._encode_next()
        self._search_next()
        self._search.advance(beside=self._slots.busy)

    def harvest(self) -> bool:
        """The part of a turn that waits for what `dispatch` started; False where that was nothing."""
        awaited = self._slots.busy or self._search.busy
        for job, status in chain(self._slots.harvest(), self._search.harvest()):
            self._end(job, status)
        if awaited:
            self.failures = 0
        return awaited or bool(self._encoded)

    def fail(self) -> None:
        """After an error of the device: every job under way fails and the slots start anew. Waiting jobs are not touched.

        Raises whatever the device raises where it does not start anew; the jobs have failed by then.
        """
        self.failures += 1
        self._fail_under_way()
        self._slots.restart()

    def close(self) -> None:
        """After the last error of the device: every job fails, waiting ones too, and no more are taken."""
        self._fail_under_way()
        for job in self._queue.close():
            self._end(job, "failed")

    def _fail_under_way(self) -> None:
        lost = [*self._taken, *(job for encoded in self._encoded for _, job in encoded.rows)]
        self._taken = []
        self._encoded.clear()
        for job in (*self._slots.clear(), *self._search.clear(), *lost):
            self._end(job, "failed")

    # --- a turn's parts ---

    def _drop_unwanted(self) -> None:
        """Ends jobs that were cancelled or whose deadline has passed, so that the device does nothing more for them."""
        now = time.monotonic()
        for jobs in (self._queue, self._slots, self._search, *self._encoded):
            for job in jobs.drop_unwanted(now):
                self._end(job, "cancelled" if job.cancelled else "expired")

    def _fill(self) -> None:
        """Moves encoded images into free slots, those encoded first, as many as there are free slots."""
        while self._encoded and (self._slots.free or not self._encoded[0].rows):
            encoded = self._encoded[0]
            if rows := [encoded.rows.popleft() for _ in range(min(len(encoded.rows), len(self._slots.free)))]:
                self._slots.insert(encoded.memory, rows)
            if not encoded.rows:
                self._encoded.popleft()

    def _encode_next(self) -> None:
        """Encodes up to a batch of waiting images where slots are free; ahead of that a whole batch only, and only one."""
        ready, ahead = self._queue.count(1), sum(len(encoded.rows) for encoded in self._encoded)
        if ready and (len(self._slots.free) > ahead or (ready >= self.batch and ahead < self.batch)):
            with self._encoding(1) as (jobs, memory):
                self._encoded.append(_Encoded(memory, deque(enumerate(jobs))))

    def _search_next(self) -> None:
        """After the search before, begins one for the job that has waited longest, and others that want as many beams."""
        if not self._search.busy and (beams := self._queue.next_search()):
            with self._encoding(beams) as (jobs, memory):
                self._search.start(memory, jobs)

    @contextmanager
    def _encoding(self, beams: int) -> Iterator[tuple[list[Job], Array]]:
        """At most a batch of jobs from the queue, and their image tokens [n,S,E]; they get their place inside. An error before
        its end leaves them to `fail`.
        """
        self._taken = jobs = self._queue.take(beams, self.batch)
        images = np.zeros((bucket(len(jobs)), *self._image_shape), np.uint8)
        for row, job in enumerate(jobs):
            images[row] = job.pixels
        self.counts.encoded += len(jobs)
        self.counts.encoded_rows += len(images)
        yield jobs, self._encode(images)
        self._taken = []

    def _encode(self, images: np.ndarray) -> Array:
        return self._lanes.dispatch(device.encode, self._packed, jax.device_put(images), self.mean, self.std)

    def _end(self, job: Job, status: Status) -> None:
        self.counts.ended[status] += 1
        job.end(status)

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        encoder = self.model.config.encoder
        return *encoder.image_size, encoder.num_channels
