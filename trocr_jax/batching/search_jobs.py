"""Jobs that want a beam search: a batch of them with as many beams is searched at once, as `Reader` does. None joins later.

Letters: n rows of a bucket, S image tokens, E their width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np

from ..decoding import GenerateConfig, Generation, generate
from ..generation.packed import Packed
from ..network.layers import Array
from .jobs import Job, Status


class SearchJobs:
    """The batch that is being searched, one at a time.

    Args:
        defaults: how to decode, except for the limit of new tokens, which every job sets for itself.
        beams: numbers of beams, above 1, that jobs may have.
    """

    def __init__(self, packed: Packed, defaults: GenerateConfig, beams: Iterable[int]):
        self._packed = packed
        self._configs = {b: replace(defaults, num_beams=b, num_return_sequences=b) for b in beams}
        self._searching: tuple[Sequence[Job], Generation] | None = None

    @property
    def busy(self) -> bool:
        """Whether a search was dispatched that nobody has waited for."""
        return self._searching is not None

    def warm_up(self, memory: Array) -> None:
        """Compiles the searches for this number of rows, by running them on rows that end at once."""
        for config in self._configs.values():
            generate(self._packed, memory, config, None, jax.device_put(np.zeros(memory.shape[0], np.int32)))

    def start(self, memory: Array, jobs: Sequence[Job]) -> None:
        """Dispatches a search for jobs with the same number of beams, whose images are the first rows of memory [n,S,E]."""
        limits = np.zeros(memory.shape[0], np.int32)
        limits[: len(jobs)] = [job.config.max_new_tokens for job in jobs]
        for job in jobs:
            job.start()
        config = self._configs[jobs[0].config.num_beams]
        self._searching = jobs, generate(self._packed, memory, config, None, jax.device_put(limits))

    def harvest(self) -> Iterator[tuple[Job, Status]]:
        """Waits for the search; yields its jobs with how each ends."""
        if self._searching is None:
            return
        jobs, found = self._searching
        found = jax.device_get(found)
        self._searching = None  # not before: an error of the device is raised only where it is waited for
        for row, job in enumerate(jobs):
            length = int(found.lengths[row, job.sample])
            job.add(*(array[row, job.sample, :length].tolist() for array in (found.tokens, found.logprobs)))
            whole: Status = "stop" if found.finished[row, job.sample] else "length"
            yield job, "failed" if any(map(math.isnan, job.logprobs)) else whole

    def clear(self) -> list[Job]:
        """Forgets the search, after an error; returns its jobs."""
        lost = list(self._searching[0]) if self._searching else []
        self._searching = None
        return lost
