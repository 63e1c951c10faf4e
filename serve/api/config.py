"""What `trocr-jax serve` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import tyro

from .limits import Limits


@dataclass(frozen=True)
class Config:
    """Flags of the server."""

    model: tuple[str, ...] = ()
    """Hub names or directories, each as NAME=PATH to serve it under another name. By default the model in the package."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own need an API key, or --no-key."""
    port: int = 8000
    """0 takes a free one."""
    api_key_file: str | None = None
    """A key a line; # starts a remark."""
    no_key: tyro.conf.FlagCreatePairsOff[bool] = False
    """Serve without keys although other machines can reach the address."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """By default float32 on CPU, bfloat16 on TPU and GPU."""
    slots: int | None = None
    """Lines decoded at the same time, for each model. By default 8 on CPU, 128 on TPU and GPU."""
    beams: tuple[int, ...] = ()
    """Numbers of beams that requests may ask for with num_beams, each compiled before the server is ready."""
    pattern: str | None = None
    """A regular expression that every text, or piece of a long one, shall match as a whole; needs the extra "pattern"."""
    image_host: tuple[str, ...] = ()
    """Hosts from which images may be fetched by URL. By default none is."""
    drain_pause: float = 2.0
    """Seconds after SIGTERM in which /readyz says no and requests are still taken."""
    drain_seconds: float = 60.0
    """Most seconds for the requests under way after that."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    limits: Limits = field(default_factory=Limits)
