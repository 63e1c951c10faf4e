"""JAX's compilation cache, which a program that reads or trains turns on once, at its start."""

from __future__ import annotations

import errno
import logging
import math
import os
from pathlib import Path

import jax


def cache_compilations() -> None:
    """Keeps compiled programs on disk, so that the next process starts at once. JAX's own setting or variable wins.

    Where there is no place for them every process compiles for itself, which the log tells.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "trocr-jax" / "xla"
    except RuntimeError:  # a user without a home directory
        return
    if trouble := _unwritable(folder):
        message = f"compiled programs cannot be kept in {folder} ({trouble}): set JAX_COMPILATION_CACHE_DIR to another folder"
        logging.getLogger(__name__).warning(message)
    if os.path.isdir(folder):  # one that is only there to be read saves compiling, too
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf if trouble else 0.2)


def _unwritable(folder: Path) -> str:
    """Why nothing can be written into a folder, which is made where it is missing; "" where something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return str(error.strerror)
    return "" if os.access(folder, os.W_OK) else os.strerror(errno.EACCES)
