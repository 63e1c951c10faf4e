"""Jobs that want a beam search: a batch of them with as many beams is searched at once, as `Reader` does. None joins later, but
an image that is done leaves.

Letters: n rows of a bucket, S image tokens, E their width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from ..config import TrOCRConfig
from ..generation.beam import BeamState
from ..generation.config import GenerateConfig
from ..generation.loop import whole_chunks, widths
from ..generation.packed import Packed
from ..generation.result import Generation
from ..lanes import Lanes
from ..network.layers import Array
from . import search
from .jobs import Job, Status


@dataclass
class _Batch:
    """The batch that is being searched: its image tokens [n,S,E], the jobs of its first rows, None where one is over, and the
    steps that were dispatched.
    """

    memory: Array
    config: GenerateConfig
    state: BeamState
    jobs: list[Job | None]
    steps: int = 0


class SearchJobs:
    """The batch that is being searched, one at a time.

    Args:
        model_config: has the numbers of special tokens.
        defaults: how to decode, except for the limit of new tokens, which every job sets for itself.
        beams: numbers of beams, above 1, that jobs may have.
        lanes: for steps that are to run beside those of the slots.
    """

    def __init__(self, packed: Packed, model_config: TrOCRConfig, defaults: GenerateConfig, beams: Iterable[int], lanes: Lanes):
        self._packed, self._model_config, self._lanes = packed, model_config, lanes
        self._configs = {b: replace(defaults, num_beams=b, num_return_sequences=b) for b in beams}
        self._batch: _Batch | None = None

    @property
    def busy(self) -> bool:
        """Whether a batch is being searched."""
        return self._batch is not None

    def warm_up(self, memory: Array) -> None:
        """Compiles the searches for this number of rows, by taking steps of rows that are done."""
        for config in self._configs.values():
            batch = self._begun(memory, config, [])
            for width in widths(whole_chunks(config.max_new_tokens)):
                batch.steps = width - search.STEPS
                self._advance(batch, beside=False)
            self._found(batch)

    def start(self, memory: Array, jobs: Sequence[Job]) -> None:
        """Begins a search for jobs with the same number of beams, whose images are the first rows of memory [n,S,E]."""
        for job in jobs:
            job.start()
        self._batch = self._begun(memory, self._configs[jobs[0].config.num_beams], jobs)

    def _begun(self, memory: Array, config: GenerateConfig, jobs: Sequence[Job]) -> _Batch:
        limits = np.zeros(memory.shape[0], np.int32)
        limits[: len(jobs)] = [job.config.max_new_tokens for job in jobs]
        return _Batch(memory, config, search.begin(self._packed, config, jax.device_put(limits)), list(jobs))

    def advance(self, beside: bool) -> None:
        """Dispatches some steps of the search, if there is one; `beside` those of the slots, which a CPU then takes at once. A
        search alone is slower so.
        """
        if self._batch:
            self._advance(self._batch, beside)

    def _advance(self, batch: _Batch, beside: bool) -> None:
        state = search.widened(batch.config, batch.state, batch.steps)
        arguments = self._packed, batch.memory, batch.config, state
        batch.state = self._lanes.dispatch(search.advance, *arguments) if beside else search.advance(*arguments)
        batch.steps += search.STEPS

    def harvest(self) -> Iterator[tuple[Job, Status]]:
        """Waits for the steps; yields the jobs that end with them, with how. After the last one another search may start."""
        if not (batch := self._batch):
            return
        done = jax.device_get(batch.state.done)
        if ended := [(row, job) for row, job in enumerate(batch.jobs) if job and done[row]]:
            found = jax.device_get(self._found(batch))
            for row, job in ended:
                batch.jobs[row] = None
                yield job, _give(job, found, row)
        self._leave_if_over()

    def _found(self, batch: _Batch) -> Generation:
        return search.result(batch.state.best, batch.state.limits, batch.config, self._model_config)

    def drop_unwanted(self, now: float) -> list[Job]:
        """Takes jobs that nobody waits for from the search and returns them."""
        dropped = [job for job in self._under_way if job.unwanted(now)]
        if self._batch:
            self._batch.jobs = [None if job in dropped else job for job in self._batch.jobs]
            self._leave_if_over()
        return dropped

    def clear(self) -> list[Job]:
        """Forgets the search, after an error; returns its jobs."""
        lost, self._batch = self._under_way, None
        return lost

    @property
    def _under_way(self) -> list[Job]:
        return [job for job in self._batch.jobs if job] if self._batch else []

    def _leave_if_over(self) -> None:
        if not self._under_way:
            self._batch = None


def _give(job: Job, found: Generation, row: int) -> Status:
    """Gives a job what was found for its row; returns how it ends."""
    length = int(found.lengths[row, job.sample])
    job.add(*(array[row, job.sample, :length].tolist() for array in (found.tokens, found.logprobs)))
    if any(map(math.isnan, job.logprobs)):  # of weights that are damaged or do not fit their dtype
        return "failed"
    return "stop" if found.finished[row, job.sample] else "length"
