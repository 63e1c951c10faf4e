"""Servers for tests: the real one in a thread of this process, on a free port, with the model in the package.

Programs are compiled once a process: further servers of the same slots start in a moment.
"""

import base64
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx2
import uvicorn
from conftest import ROOT

from trocr_jax.reader import Reader
from trocr_jax.serve.api.app import create_app
from trocr_jax.serve.api.connection import Server, protocol
from trocr_jax.serve.api.keys import Keys
from trocr_jax.serve.api.launch import _listen
from trocr_jax.serve.api.limits import Limits
from trocr_jax.serve.api.service import Service

MODEL = "tiny-print"
SLOTS, BATCH, BEAMS = 4, 2, (2,)
PICTURES = sorted((ROOT / "examples").glob("*.[pj][np]g"))


@cache
def reader() -> Reader:
    return Reader.from_pretrained()


@cache
def lines():
    """What the Reader reads in each of the PICTURES."""
    return reader().read(PICTURES)


class Running:
    """A server that runs. `url` is its address, `service` its inside."""

    def __init__(self, limits=None, keys=(), hosts=(), models=(MODEL,), local_only=False, pause=0.0, wait=True):
        limits = limits or Limits()
        models = {name: reader() for name in models}
        self.service = Service(models, Keys(keys), limits, hosts=hosts, slots=SLOTS, batch=BATCH, beams=BEAMS)
        app = create_app(self.service, local_only=local_only)
        self.app = app.app  # behind the guard
        config = uvicorn.Config(app, http=protocol(limits), ws="none", lifespan="on", log_config=None, access_log=False)
        self.server = Server(config, self.service, pause)
        listener = _listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.run, args=([listener],))
        self._thread.start()
        wait_until(lambda: self.server.started if not wait else self.service.state != "starting", 300)
        assert not wait or self.service.state == "ready"

    def stop(self):
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def engine(self):
        return self.service.models[MODEL].engine

    def client(self, **options):
        return httpx2.Client(base_url=self.url, timeout=60, **options)

    def count(self, name, **labels):
        """A metric's value."""
        return self.service.metrics.registry.get_sample_value(f"trocr_{name}", labels) or 0.0

    def idle(self):
        """Nothing waits, nothing runs, nothing is held."""
        service = self.service
        held = (service.images.inside, service.bodies.inside, self.engine.waiting, self.engine.running)
        return held == (0, 0, 0, 0)


@contextmanager
def serving(**options):
    running = Running(**options)
    try:
        yield running
        wait_until(running.idle, 10)
    finally:
        running.stop()


@cache
def _compiled() -> tempfile.TemporaryDirectory:
    """Where servers of this run keep compiled programs, so that only the first one compiles."""
    return tempfile.TemporaryDirectory()


class Process:
    """`trocr-jax serve` as its user starts it: a process of its own, on a free port. `log` holds its entries so far.

    Args:
        program: Python that stands in for the command.
    """

    def __init__(self, *arguments, keys="", wait=True, program=None):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": _compiled().name, "TROCR_API_KEY": keys, "XLA_FLAGS": ""}
        command = ["-c", program] if program else ["-m", "trocr_jax.cli"]
        self._log = tempfile.TemporaryFile("w+")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *command, "serve", "--port", "0", "--slots", "4", *arguments],
            stdout=subprocess.PIPE, stderr=self._log, text=True, env=environment, cwd=tempfile.gettempdir(),
        )  # fmt: skip
        self.key = keys.partition(",")[0]
        if wait:
            self.ready()

    def ready(self):
        """Waits for the line that says where it serves."""
        line = self.process.stdout.readline()
        assert " at http://" in line, self.text()
        self.url = line.rsplit(" at ", 1)[1].strip()
        self.port = int(self.url.rsplit(":", 1)[1])
        return self

    def client(self, headers=None):
        key = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx2.Client(base_url=self.url, timeout=60, headers=key | (headers or {}))

    def text(self) -> str:
        self._log.seek(0)
        return self._log.read()

    @property
    def log(self) -> list[dict]:
        return [json.loads(line) for line in self.text().splitlines()]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with self.client() as client:
            text = client.get("/metrics").text
        rows = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith((f"trocr_{name} ", f"trocr_{name}{{"))]
        return sum(float(value) for _, value in rows)

    def memory(self, kind="VmRSS") -> float:
        """MB of memory: VmRSS now, VmHWM at most since `forget_peak`."""
        rows = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith(f"{kind}:")) / 1024

    def forget_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds=60) -> int:
        return self.process.wait(seconds)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self._log.close()


@contextmanager
def process(*arguments, **options):
    running = Process(*arguments, **options)
    try:
        yield running
    finally:
        running.kill()


@contextmanager
def collected():
    """Without full garbage collections of what this process has loaded: its own pauses are not the server's."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def wait_until(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.01)


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def message(*pictures) -> list:
    """Messages with images: paths, bytes or URLs."""
    urls = [p if isinstance(p, str) else data_url(p if isinstance(p, bytes) else p.read_bytes()) for p in pictures]
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "Read this line."}, *images]}]


def chat(*pictures, **fields) -> dict:
    """The body of a chat completion."""
    return {"model": MODEL, "messages": message(*(pictures or PICTURES[:1])), **fields}
