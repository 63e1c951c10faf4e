"""Which job is in which slot, and what the steps of `device` gave it: the host's side of the slots.

Letters: B slots, n rows of a bucket, S image tokens, E their width, k steps, A alternatives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from ..config import TrOCRConfig
from ..generation.config import GenerateConfig
from ..generation.packed import Packed
from ..generation.sampling import small_seed
from ..network.layers import Array
from . import device
from .jobs import Counts, Job, Status


class SlotJobs:
    """B jobs at most that are decoded at the same time, each from its own beginning to its own end.

    Args:
        packed: the model, as the device runs it.
        config: the model's.
        slots: B.
        places: P, how many tokens of a line a slot has room for.
        counts: where steps are counted.
    """

    _slots: device.Slots

    def __init__(self, packed: Packed, config: TrOCRConfig, slots: int, places: int, counts: Counts):
        self._packed, self._config, self._places, self._counts = packed, config, places, counts
        self._jobs: list[Job | None] = [None] * slots
        self.restart()
        self._advancing: tuple[list[Job | None], device.Progress] | None = None

    @property
    def free(self) -> list[int]:
        """Slots without a job."""
        return [slot for slot, job in enumerate(self._jobs) if job is None]

    @property
    def running(self) -> int:
        """The number of slots with a job."""
        return len(self._jobs) - len(self.free)

    @property
    def busy(self) -> bool:
        """Whether steps were dispatched that nobody has waited for."""
        return self._advancing is not None

    def warm_up(self, rules: GenerateConfig) -> None:
        """Compiles the steps, by taking some in empty slots."""
        for sort in (False, True):
            self._slots, _ = device.advance(self._packed, self._slots, rules, sort)
        jax.block_until_ready(self._slots)

    def insert(self, memory: Array, rows: Sequence[tuple[int, Job]]) -> None:
        """Puts jobs into free slots, of which there are enough.

        Args:
            memory: [n,S,E]
            rows: indices of its rows to insert, each with its job.
        """
        placed = [(slot, row, job) for slot, (row, job) in zip(self.free, rows, strict=False)]
        for slot, _, job in placed:
            self._jobs[slot] = job
            job.start()
        settings = jax.device_put(self._settings(memory.shape[0], placed))
        self._slots = device.insert(self._slots, memory, settings, self._config)

    def _settings(self, n: int, placed: Sequence[tuple[int, int, Job]]) -> device.Settings:
        nowhere = np.full(n, len(self._jobs), np.int32)
        settings = device.Settings(nowhere, *(np.zeros(n, t) for t in (np.int32, np.uint32, np.int32, np.float32, np.float32)))
        for slot, row, job in placed:
            settings.slot[row], settings.limit[row] = slot, job.config.max_new_tokens
            settings.seed[row], settings.sample[row] = small_seed(job.seed), job.sample
            settings.temperature[row] = job.config.temperature if job.config.do_sample else 0.0
            settings.top_p[row] = job.config.top_p
        return settings

    def advance(self, rules: GenerateConfig) -> None:
        """Dispatches k steps of all slots, if any has a job."""
        live = [job for job in self._jobs if job is not None]
        if not live:
            return
        sort = any(job.config.do_sample or job.alternatives for job in live)
        self._slots, progress = device.advance(self._packed, self._slots, rules, sort)
        self._advancing = list(self._jobs), progress

    def harvest(self) -> Iterator[tuple[Job, Status]]:
        """Waits for the steps and gives them to their jobs; yields those that end, with how. Their slots are then free."""
        if self._advancing is None:
            return
        (jobs, progress), self._advancing = self._advancing, None
        progress = jax.device_get(progress)
        tokens, logprobs = progress.tokens.T.tolist(), progress.logprobs.T.tolist()  # [B][k]
        self._counts.slot_steps += progress.tokens.size
        for slot, job in enumerate(jobs):
            if job is None:
                continue
            kept, status = self._end_within(job, tokens[slot])
            if any(map(math.isnan, logprobs[slot][:kept])):  # of weights that are damaged or do not fit their dtype
                kept, status = 0, "failed"
            self._counts.live_steps += kept
            job.add(tokens[slot][:kept], logprobs[slot][:kept], _likeliest(progress, slot, kept, job.alternatives))
            if status:
                self._jobs[slot] = None
                yield job, status
            elif job.stream:
                job.tell()

    def _end_within(self, job: Job, tokens: Sequence[int]) -> tuple[int, Status | None]:
        """How many of k new tokens belong to a job, and how it ends with them, if it does."""
        room = job.config.max_new_tokens - len(job.tokens)
        end = self._config.eos_token_id
        if end in tokens[:room]:
            return tokens.index(end) + 1, "stop"
        return (room, "length") if room <= len(tokens) else (len(tokens), None)

    def drop_unwanted(self, now: float) -> list[Job]:
        """Takes jobs that nobody waits for from their slots and returns them."""
        dropped = []
        for slot, job in enumerate(self._jobs):
            if job is not None and job.unwanted(now):
                self._jobs[slot] = None
                dropped.append(job)
        return dropped

    def clear(self) -> list[Job]:
        """Forgets the jobs and the device's state, after an error; returns the jobs. `restart` comes next."""
        lost = [job for job in self._jobs if job is not None]
        self._jobs = [None] * len(self._jobs)
        self._advancing = None
        self._slots = None  # pyright: ignore[reportAttributeAccessIssue]  # what takes its place needs its memory
        return lost

    def restart(self) -> None:
        """Makes a new device state."""
        self._slots = device.empty(self._packed, len(self._jobs), self._places)


def _likeliest(progress: device.Progress, slot: int, steps: int, count: int) -> list[list[tuple[int, float]]]:
    """[steps][count] of (token, log-probability), best first."""
    if not count:
        return []
    best, logprobs = (array[:steps, slot, :count].tolist() for array in (progress.best, progress.best_logprobs))
    return [list(zip(*step, strict=True)) for step in zip(best, logprobs, strict=True)]
