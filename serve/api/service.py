"""What stands behind the routes: models with their engines, admission, image decoding, and readings that always end.

A request's images go from admission (`Gate`) through a bounded pool of threads (`Pictures`) to their model's engine, and come
back as a `Reading`. Whatever happens to the request, its context closes the reading, which frees slots and room.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from trocr_jax.engine import Engine, Job
from trocr_jax.engine_thread import EngineThread
from trocr_jax.generation.sampling import image_seed
from trocr_jax.pixels.line_cutting import MOST_PIECES
from trocr_jax.prepared import Prepared
from trocr_jax.reader import Reader

from .answer import Answer, JobPart
from .errors import ApiError, bad_request, overloaded, timed_out
from .gate import Gate
from .ids import fresh_id
from .keys import Keys, RateLimit
from .limits import Limits
from .logs import log
from .metrics import Metrics
from .options import Options
from .pictures import Decode, Picture, Pictures, decode_line, decode_page, in_loop
from .reading import Reading, Signal
from .sources import RequestImage

State = Literal["starting", "ready", "draining", "failed"]
_TURN_SECONDS = 5.0  # for the engines' last turn, which nobody waits for


@dataclass
class RequestContext:
    """One request: who, until when, and what to put right after it.

    Attributes:
        id: x-request-id.
        key: a name for its API key, or "anonymous".
        started, deadline: on `time.monotonic`, the clock of the event loop too.
        units: what it counts for while it is under way: its images, each times its `n`, and of pages the lines.
        closers: called when the request is over, however it ends.
        over: whether it is.
        refusal: the code of the error that it was answered with.
        notes: fields of its log entry.
    """

    id: str = field(default_factory=lambda: fresh_id("req_"))
    key: str = ""
    started: float = field(default_factory=time.monotonic)
    deadline: float = float("inf")
    units: int = 0
    closers: list[Callable[[], None]] = field(default_factory=list)
    over: bool = False
    refusal: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        """Puts right what the request has taken."""
        self.over = True
        for close in reversed(self.closers):
            close()


@dataclass
class Served:
    """A model under its name."""

    name: str
    reader: Reader
    engine: Engine
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def image_tokens(self) -> int:
        """What an image counts as in `usage`: the vectors that the decoder reads."""
        return self.reader.model.config.encoder.num_tokens


class Service:
    """Everything that a server has, made before the event loop runs.

    Args:
        readers: by the names under which they are served; the first one is the default.
        keys, limits: who may come in, and how much they may ask for.
        hosts: those from which images may be fetched by URL.
        slots, batch: those of each engine; see `Engine`.
        beams: numbers of beams that requests may ask for.
    """

    def __init__(
        self, readers: dict[str, Reader], keys: Keys, limits: Limits, *, hosts: Sequence[str] = (), slots: int, batch: int,
        beams: Sequence[int] = (),
    ):  # fmt: skip
        self.keys, self.limits, self.metrics = keys, limits, Metrics()
        self.rate = RateLimit(limits.rate, limits.burst)
        self.images = Gate(limits.queue, "too many images are waiting, try again soon")
        self.bodies = Gate(limits.bodies_bytes, "too many requests are being received, try again soon")
        wake = threading.Event()
        self.models = {
            name: Served(name, reader, Engine(
                reader.model, reader.processor.mean, reader.processor.std, reader.defaults,
                slots=slots, batch=batch, beams=beams, max_waiting=limits.queue * MOST_PIECES, wake=wake,
            ))
            for name, reader in readers.items()
        }  # fmt: skip
        self.metrics.watch({name: served.engine for name, served in self.models.items()})
        self.pictures = Pictures(limits, hosts, self.metrics.decoded.inc)
        self.state: State = "starting"
        engines = [served.engine for served in self.models.values()]
        self._thread = EngineThread(engines, wake, self._on_ready, self._on_error, self._on_death)
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failed: Callable[[], None] = lambda: None

    # --- life ---

    def start(self) -> None:
        """Compiles in the engines' thread; `state` tells when it is done."""
        self._thread.start()

    def drain(self) -> None:
        """From here on /readyz says no; requests are still served until the server closes its socket."""
        self.state = "draining"
        self.metrics.ready.set(0)
        log("draining", images=self.images.inside)

    async def stop(self) -> None:
        """Ends the threads, after the last request. It does not wait for an image, a compiler or a device that takes its
        time, see `held_up`.
        """
        await asyncio.to_thread(self._thread.stop, _TURN_SECONDS)
        await self.pictures.close()

    @property
    def held_up(self) -> str:
        """After `stop`: what a thread is still doing, for which Python would wait at its exit; empty where there is nothing."""
        if self._thread.is_alive():
            return "the device or its compiler"
        return "an image" if self.pictures.busy else ""

    def _on_ready(self) -> None:
        if self.state == "starting":
            self.state = "ready"
            self.metrics.ready.set(1)
            log("ready", models=list(self.models), compilations=int(self.metrics.compilations._value.get()))
            self.on_ready()

    def _on_error(self, error: Exception) -> None:
        log("device error", level=40, error=error)

    def _on_death(self, error: Exception) -> None:
        """Tells whoever restarts servers that nothing will be read any more."""
        log("device failed", level=40, error=error)
        self.state = "failed"
        self.metrics.ready.set(0)
        self.on_failed()

    # --- requests ---

    def check_ready(self) -> None:
        """Raises ApiError 503 while the server cannot take images, or has as many as it takes."""
        if self.state in ("starting", "failed"):
            why = "is starting" if self.state == "starting" else "has lost its device"
            raise ApiError(503, f"the server {why}, try again soon", "not_ready", retry_after=2)
        if self.images.full:
            raise overloaded(self.images.wait())

    def model(self, name: str | None, param: str = "model") -> Served:
        """A model by name, the first one without. Raises ApiError 404."""
        found = next(iter(self.models.values())) if name is None else self.models.get(name)
        if found is None:
            raise ApiError(404, "no such model here; GET /v1/models lists them", "model_not_found", param)
        return found

    async def read(self, context: RequestContext, served: Served, sources: Sequence[RequestImage], options: Options) -> Reading:
        """One reading of several images; one that cannot be read is an error of the whole.

        Raises:
            ApiError: too many images (400), no room (503), not an image (400), too late (504).
        """
        pictures = []
        for item in await self.prepare(context, served, sources, options):
            if isinstance(item, ApiError):
                raise item
            pictures.append(item)
        return self.submit(context, served, [line for picture in pictures for line in picture.lines], options)

    async def prepare(
        self, context: RequestContext, served: Served, sources: Sequence[RequestImage], options: Options
    ) -> list[Picture | ApiError]:
        """Admits images and decodes them; an error stands in the place of its image."""
        if len(sources) > self.limits.images:
            raise bad_request(f"at most {self.limits.images} images a request", sources[-1].param, "too_many_images")
        self._admit(context, len(sources) * options.choices, charged=1)
        context.notes |= {"model": served.name, "images": len(sources)}
        decode = self._decoder(context, served, options)
        try:
            async with asyncio.timeout_at(context.deadline):
                return list(await asyncio.gather(*(self.pictures.prepare(source, decode) for source in sources)))
        except TimeoutError:
            raise timed_out() from None

    def _decoder(self, context: RequestContext, served: Served, options: Options) -> Decode:
        if not options.page:
            return partial(decode_line, served.reader)

        def admit(lines: int) -> None:  # a page came in as one unit
            self._admit(context, max(0, lines - 1) * options.choices)

        return partial(decode_page, served.reader.processor, in_loop(admit))

    def _admit(self, context: RequestContext, units: int, charged: int = 0) -> None:
        """Lets units of a request in, until it is over, of which some were charged for. Only in the event loop.

        Raises:
            ApiError: no room now (503) or ever (413), or too late (504).
        """
        if context.over:
            raise timed_out()
        self.images.enter(units, context.units)
        context.units += units
        self.metrics.images.set(self.images.inside)
        context.closers.append(lambda: self._leave(units))
        self.rate.charge(context.key, units - charged, admit=False)

    def submit(
        self, context: RequestContext, served: Served, prepared: Sequence[Prepared], options: Options, *, together: bool = True
    ) -> Reading:
        """Gives images to the engine: `choices` answers with all of them together, or an answer each.

        The reading is closed with the context.
        """
        signal = Signal()

        def part(index: int, sample: int, place: int, piece: Prepared) -> JobPart:
            assert piece.pixels is not None
            job = Job(
                piece.pixels, options.config, image_seed(index, options.seed), sample, options.alternatives, context.deadline,
                signal.set, options.stream,
            )  # fmt: skip
            return JobPart(job, piece.flags, place, below=together and index > 0)

        def parts(index: int, sample: int) -> list[JobPart]:
            return [part(index, sample, place, piece) for place, piece in enumerate(prepared[index].pieces)]

        indices, samples = range(len(prepared)), range(options.choices)
        rows = [[x for i in indices for x in parts(i, s)] for s in samples] if together else [parts(i, 0) for i in indices]
        answers = [Answer(served.reader, row, options.budget, options.stops, options.detailed) for row in rows]
        reading, jobs = Reading(answers, signal, context.deadline, len(prepared)), [part.job for row in rows for part in row]
        context.closers.append(lambda: self._close(context, served, reading, jobs))
        served.engine.submit(jobs)
        return reading

    def _leave(self, units: int) -> None:
        self.images.leave(units)
        self.metrics.images.set(self.images.inside)

    def _close(self, context: RequestContext, served: Served, reading: Reading, jobs: list[Job]) -> None:
        reading.close()
        context.notes["tokens"] = reading.tokens
        self.metrics.tokens.labels(served.name).inc(reading.tokens)
        for job in jobs:
            if job.started:
                self.metrics.queue_seconds.labels(served.name).observe(job.started - job.submitted)
        for line in (line for answer in reading.answers for line in answer.lines):  # one of a long line in pieces, too
            self.metrics.lines.labels(served.name, line.finish_reason).inc()
        if first := [job.first_token for job in jobs if job.first_token]:
            self.metrics.first_token_seconds.observe(min(first) - context.started)
