"""Several processes, usually one a machine, that train one model: how they meet, agree and end together."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from trocr_jax.terminal import guarded

from .config import HostsConfig


def join(hosts: HostsConfig) -> None:
    """Connects the processes of a run; before anything touches a device.

    Raises:
        ValueError: they cannot be connected, or jax finds no cluster.
    """
    if hosts.count == 1:
        return
    try:
        jax.distributed.initialize(hosts.coordinator, hosts.count or None, hosts.index if hosts.count else None)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{_unjoined(hosts)} ({reason})") from error


def _unjoined(hosts: HostsConfig) -> str:
    """With which flags hosts could not be connected, and what to do."""
    if not hosts.count:
        return "--hosts.count 0: jax finds no cluster; set --hosts.count, --hosts.index and --hosts.coordinator"
    flags = f"--hosts.coordinator {hosts.coordinator} --hosts.count {hosts.count} --hosts.index {hosts.index}"
    return f"{flags}: the hosts cannot be connected; every index must start once, and reach the first"


def agreed(first: bool) -> bool:
    """What the first host found; all hosts must ask."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(first))) if jax.process_count() > 1 else first


@contextmanager
def together() -> Iterator[None]:
    """Ends one of several hosts at once where something goes wrong: at its end, Python would wait for the others, in jax's
    barrier, and they wait for this one.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() > 1:
            _end(error)
        raise


def _end(error: BaseException) -> NoReturn:
    """Says what went wrong as any command does, and ends the process."""

    def again() -> int:
        raise error

    try:
        code = guarded(again)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)
