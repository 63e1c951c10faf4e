"""From a command line to a running server: keys, socket, models, then uvicorn until a signal."""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import socket
import sys
import threading

import uvicorn

from trocr_jax.buckets import bucket
from trocr_jax.compilation_cache import cache_compilations
from trocr_jax.files import expand
from trocr_jax.reader import Reader, default_batch_size
from trocr_jax.terminal import UsageError, check_pattern

from .app import create_app
from .config import Config
from .connection import Server, protocol
from .fetch import is_host
from .guard import Guard
from .keys import ENVIRONMENT, Keys, read_keys
from .logs import configure, log
from .service import Service

MOST_ENCODED = 32
"""Images that an engine encodes, or searches with beams, at a time at most: the lines that it decodes wait for them."""


def launch(config: Config) -> int:
    """Serves; the exit code."""
    _check(config)
    configure(config.log_level)
    keys = Keys(read_keys(config.api_key_file, os.environ.get(ENVIRONMENT)))
    local_only = _is_local_only(config, keys)
    listener = _listen(config.host, config.port)
    cache_compilations()
    service = _service(config, keys)
    code = _serve(service, _server(config, service, create_app(service, local_only=local_only)), listener)
    if service.held_up:  # nobody waits for that any more
        logging.shutdown()
        os._exit(code)
    return code


def _check(config: Config) -> None:
    """Raises UsageError for flags that are wrong by themselves, before a log is set up."""
    config.limits.check()
    if config.pattern is not None:
        check_pattern(config.pattern)
    if wrong := [name for name in config.image_host if not is_host(name)]:
        raise UsageError(f"--image-host {wrong[0]} is no host's name: example.org, without https:// and what follows the name")


def _is_local_only(config: Config, keys: Keys) -> bool:
    """Whether to answer this machine alone. Raises UsageError where others would be answered although nobody let them in."""
    local = _is_loopback(config.host)
    if not (local or keys.required or config.no_key):
        raise UsageError(
            f"other machines can reach {config.host}: set {ENVIRONMENT} or --api-key-file, or say --no-key to let everybody in"
        )
    return local and not keys.required


def _serve(service: Service, server: Server, listener: socket.socket) -> int:
    """Answers until a signal, or until the service fails, which is 1."""
    failed, url = threading.Event(), _url(listener)

    def ready() -> None:
        gc.collect()
        gc.freeze()  # models and libraries stay: a full collection looks at all of them, 0.1 s in which nobody is answered
        _announce(f"trocr-jax serves {', '.join(service.models)} at {url}")

    def fail() -> None:
        failed.set()
        server.should_exit = True

    service.on_ready, service.on_failed = ready, fail
    server.run([listener])
    return int(failed.is_set())


def _announce(line: str) -> None:
    """Prints a line where somebody may read it. A program that started us may have closed its end, or a disk be full: no reason
    not to serve, nor, at Python's exit, to end with another code.
    """
    try:
        print(line, flush=True)
    except OSError as error:
        log("nobody reads stdout", level=logging.WARNING, error=error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _service(config: Config, keys: Keys) -> Service:
    slots = config.slots if config.slots is not None else default_batch_size()
    if slots < 1 or any(beams < 2 for beams in config.beams):
        raise UsageError("--slots must be at least 1 and every number of --beams at least 2")
    readers: dict[str, Reader] = {}
    for entry in config.model or (None,):
        name, path = _named(entry)
        reader = Reader.from_pretrained(path, dtype=config.dtype)
        reader.defaults = reader.configured(pattern=config.pattern)
        name = name or reader.name
        if name in readers:
            raise UsageError(f"two models are called {name}: name them with --model NAME=PATH")
        readers[name] = reader
    batch = min(bucket(slots), default_batch_size(), MOST_ENCODED)
    return Service(readers, keys, config.limits, hosts=config.image_host, slots=slots, batch=batch, beams=config.beams)


def _named(entry: str | None) -> tuple[str, str | None]:
    """NAME=PATH, or a path alone, in which there may be a "="."""
    if not entry or "=" not in entry or expand(entry).exists():
        return "", entry or None
    name, _, path = entry.partition("=")
    return name, path or None


def _server(config: Config, service: Service, app: Guard) -> Server:
    settings = uvicorn.Config(
        app, http=protocol(config.limits), ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        timeout_keep_alive=5, timeout_graceful_shutdown=int(config.drain_seconds), proxy_headers=False,
    )  # fmt: skip
    return Server(settings, service, config.drain_pause)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket: a port in use is known before minutes of loading.

    Raises:
        UsageError: no port at all. OSError: it is in use, or not ours to use.
    """
    if not 0 <= port < 1 << 16:  # getaddrinfo would take the rest of a division
        raise UsageError(f"cannot listen on {host}:{port}: ports are 0 to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return listener
    except (OSError, UnicodeError) as error:  # a name of no host may have no encoding
        raise OSError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or 'no such host'}") from None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
