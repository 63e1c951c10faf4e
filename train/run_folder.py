"""The folder of a run belongs to one configuration, and to one process at a time."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from trocr_jax import files
from trocr_jax.terminal import UsageError

from . import checkpoint
from .config import FREE, Config, to_plain

CHECKPOINTS = "checkpoints"


@contextmanager
def claimed(config: Config) -> Iterator[None]:
    """Makes the run folder, writes the configuration, and keeps other processes out for as long as this lasts.

    Raises:
        UsageError: the folder is a file, or holds other things than a run, such as a model.
        ValueError: another process is at work there, or the folder holds checkpoints of a run with another configuration: the
            message names the fields that differ.
    """
    _refuse_other_things(config.out)
    config.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        if first := jax.process_index() == 0:  # of the hosts of one run
            held.enter_context(_locked(config.out))
        _refuse_another_run(config)
        if first:
            files.write_atomically(config.out / "config.json", (json.dumps(to_plain(config), indent=2) + "\n").encode())
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The system gives the lock back when the process ends, however it does."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training in {folder}: wait for its end, or choose another --out") from None
        except OSError:  # a file system without locks
            pass
        yield


def _refuse_other_things(folder: Path) -> None:
    """A run writes a config.json, which is the heart of a model's folder, too."""
    if file := next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None):
        raise UsageError(f"--out {folder}: {file} is a file; name a new or an empty folder")
    path = folder / "config.json"
    if path.exists():
        content = files.read_json(path)
        runs_own = isinstance(content, dict) and "optimizer" in content
    else:
        names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} if folder.is_dir() else set()
        runs_own = not names or CHECKPOINTS in names
    if not runs_own:
        raise UsageError(f"--out {folder}: holds other things than a run; name a new or an empty folder")


def _refuse_another_run(config: Config) -> None:
    path = config.out / "config.json"
    if not (path.exists() and checkpoint.in_use(config.out / CHECKPOINTS)):
        return
    free = FREE | ({"steps"} if config.optimizer.schedule in ("inverse_sqrt", "constant") else set())
    changed = sorted(set(differences(files.read_json(path), to_plain(config))) - free)
    if changed:
        way_on = f"choose another --out, with --start.model {config.out / 'model'} to train its model on, or remove it"
        raise ValueError(f"{config.out} holds a run with another {', '.join(changed)}; {way_on}")


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Dotted names of the fields in which two plain configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = {**old, **new}
        return [x for name in names for x in differences(old.get(name), new.get(name), f"{place}.{name}" if place else name)]
    return [] if old == new else [place]
