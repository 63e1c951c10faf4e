"""What /metrics shows: requests, queue, batch fill, lines, latencies, compilations, memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from trocr_jax.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_COMPILE = "/jax/core/compile/backend_compile_duration"


class Metrics:
    """One registry a server, so that two in one process do not share numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def make(kind: Any, name: str, text: str, labels: Iterable[str] = (), **options: Any) -> Any:
            return kind(f"trocr_{name}", text, list(labels), registry=self.registry, **options)

        self.requests = make(Counter, "requests", "Requests answered", ["route", "status"])
        self.request_seconds = make(Histogram, "request_seconds", "From header to last byte", ["route"], buckets=_SECONDS)
        self.refused = make(Counter, "refused", "Requests refused", ["code"])
        self.vanished = make(Counter, "vanished", "Clients that left before their answer")
        self.decoded = make(Counter, "images_decoded", "Images decoded to pixels")
        self.lines = make(Counter, "lines", "Lines in answers", ["model", "finish_reason"])
        self.tokens = make(Counter, "tokens", "Tokens in answers", ["model"])
        self.first_token_seconds = make(Histogram, "first_token_seconds", "From header to first token", buckets=_SECONDS)
        self.queue_seconds = make(Histogram, "queue_seconds", "Wait of image or piece for a slot", ["model"], buckets=_SECONDS)
        self.images = make(Gauge, "images", "Images that wait or are being read")
        self.ready = make(Gauge, "ready", "1 when ready for requests")
        self.compilations = make(Counter, "compilations", "Programs compiled")
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def watch(self, engines: dict[str, Engine]) -> None:
        """Shows the engines' own counts, read when somebody asks."""
        self.registry.register(_EngineCollector(engines))  # pyright: ignore[reportArgumentType]

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def _on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILE:
            self.compilations.inc()


class _EngineCollector:
    def __init__(self, engines: dict[str, Engine]):
        self._engines = engines

    def collect(self) -> Iterator[Any]:
        """Counters are cumulative; batch fill over a time is rate(live) / rate(all)."""
        waiting = GaugeMetricFamily("trocr_waiting", "Images, or pieces, that wait for the encoder", labels=["model"])
        running = GaugeMetricFamily("trocr_slots_busy", "Slots in use", labels=["model"])
        steps = CounterMetricFamily("trocr_slot_steps", "Decoding steps of slots", labels=["model", "kind"])
        encoded = CounterMetricFamily("trocr_encoded", "Rows encoded", labels=["model", "kind"])
        ended = CounterMetricFamily("trocr_jobs", "Jobs by their end", labels=["model", "status"])
        for name, engine in self._engines.items():
            counts = engine.counts
            waiting.add_metric([name], engine.waiting)
            running.add_metric([name], engine.running)
            steps.add_metric([name, "live"], counts.live_steps)
            steps.add_metric([name, "all"], counts.slot_steps)
            encoded.add_metric([name, "image"], counts.encoded)
            encoded.add_metric([name, "all"], counts.encoded_rows)
            for status, count in counts.ended.items():
                ended.add_metric([name, status], count)
        yield from (waiting, running, steps, encoded, ended)
