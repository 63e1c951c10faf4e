"""Jobs of continuous batching, one per image; the queue of those that no device work has been done for; and what is counted."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..generation.config import GenerateConfig

Status = Literal["waiting", "running", "stop", "length", "cancelled", "expired", "failed"]


class QueueFullError(Exception):
    """The engine has as many waiting jobs as it may have; nothing was queued."""


class QueueClosedError(Exception):
    """The engine reads no more because its device has failed for good; nothing was queued."""


@dataclass(eq=False)
class Job:
    """One image to read, and what came of it so far. The engine's thread writes, others read; lists only grow.

    Attributes:
        pixels: uint8 [height,width,C] of the model's size.
        config: how to decode; `Engine.check` tells what is possible.
        seed: for sampling; the draws are those of `Reader.read(image, seed=seed)`.
        sample: which of a seed's samples, or of a beam search's sequences, best first.
        alternatives: how many likeliest tokens to note at each step, at most device.MAX_ALTERNATIVES.
        deadline: on `time.monotonic`; after it the job is dropped wherever it is.
        notify: called by the engine's thread when the job is over, and if `stream` after every turn that gave it tokens. Must not
            block; an exception of its own is logged, and hinders no other job.
        tokens: without the start token, the end token included.
        logprobs: the log-probability of each token.
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
    notify: Callable[[], object] = lambda: None
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

    # --- the engine's thread ---

    def unwanted(self, now: float) -> bool:
        """Whether nobody waits for it any more."""
        return self.cancelled or self.deadline <= now

    def start(self) -> None:
        """Marks the job as running: the device decodes it from here on."""
        self.status, self.started = "running", time.monotonic()

    def add(self, tokens: Sequence[int], logprobs: Sequence[float], best: Sequence[list[tuple[int, float]]] = ()) -> None:
        """Appends new tokens and what belongs to them. Tokens come last, so that whoever sees one finds the rest, too."""
        self.first_token = self.first_token or time.monotonic()
        self.best += best
        self.logprobs += logprobs
        self.tokens += tokens

    def tell(self) -> None:
        """Calls `notify`, whatever it does."""
        try:
            self.notify()
        except Exception:
            logging.getLogger(__name__).exception("notify of a job failed")

    def end(self, status: Status) -> None:
        """Ends the job with this status and calls `notify`: nothing more will be added to it."""
        self.status = status
        self.tell()


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


class Queue:
    """Jobs in the order they came, in a queue for each number of beams. Any thread may add and count, one takes.

    Args:
        beams: numbers of beams that jobs may have.
        most: jobs that may wait.
    """

    def __init__(self, beams: Iterable[int], most: int):
        self._most, self._lock = most, threading.Lock()
        self._queues: dict[int, deque[Job]] = {number: deque() for number in beams}
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def count(self, beams: int) -> int:
        """How many jobs with this number of beams are waiting."""
        return len(self._queues[beams])

    def add(self, jobs: Sequence[Job]) -> None:
        """Queues all of the jobs or, with QueueFullError or QueueClosedError, none."""
        with self._lock:
            if self._closed:
                raise QueueClosedError
            if len(self) + len(jobs) > self._most:
                raise QueueFullError
            for job in jobs:
                job.submitted = time.monotonic()
                self._queues[job.config.num_beams].append(job)

    def take(self, beams: int, most: int) -> list[Job]:
        """Removes and returns the first jobs with this number of beams, at most `most`."""
        with self._lock:
            queue = self._queues[beams]
            return [queue.popleft() for _ in range(min(most, len(queue)))]

    def close(self) -> list[Job]:
        """Stops taking jobs, and removes and returns those that are waiting."""
        with self._lock:
            self._closed = True
            return [queue.popleft() for queue in self._queues.values() for _ in range(len(queue))]

    def next_search(self) -> int | None:
        """The number of beams above 1 whose first job has waited longest; None where no such job waits."""
        first = [queue[0] for beams, queue in self._queues.items() if beams > 1 and queue]
        return min(first, key=lambda job: job.submitted).config.num_beams if first else None

    def drop_unwanted(self, now: float) -> list[Job]:
        """Removes jobs that nobody waits for and returns them. Each is asked once: it may be cancelled at any moment."""
        with self._lock:
            dropped = {job: None for queue in self._queues.values() for job in queue if job.unwanted(now)}
            if dropped:
                self._queues = {b: deque(job for job in queue if job not in dropped) for b, queue in self._queues.items()}
        return list(dropped)
