"""A job that any number of workers share through a folder, with nothing between them but files.

    OUTPUT/part-00000.jsonl            a unit's result: there, whole, or not there
    OUTPUT/_job/job.json               the plan and the settings, written once
    OUTPUT/_job/listing-*.jsonl        the names that the plan's units point into
    OUTPUT/_job/done/part-00000.json   a unit's counts, for the report
    OUTPUT/_job/leases/part-00000      who works on a unit; its holder touches it, and one left alone is taken over

A unit's result depends on the job alone, and a part appears by one rename. So a worker may die anywhere, and two that do the
same unit write the same part: leases save work, correctness does not rest on them. The folder needs exclusive creation, rename
and hard links, as local disks, NFS, Lustre and Filestore have them; its own clock judges leases, not the workers' clocks.
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from trocr_jax import files
from trocr_jax.files import FilesError

from .units import Unit

VERSION = 9
POLL = 1.0
"""Seconds between looks at what others do."""
MOST_BETWEEN = 15.0
"""Seconds between two touches of a lease, however long an untouched one is left alone."""


@dataclass(frozen=True)
class BatchJob:
    """What all workers of a job share.

    Attributes:
        folder: OUTPUT.
        settings: everything a result depends on beside the images.
        units: all units, in the order of their numbers.
        listing: the file that units of kind "listing" point into.
        suffix: that of the parts' names, with its dot.
    """

    folder: Path
    settings: dict[str, Any]
    units: tuple[Unit, ...]
    listing: Path
    suffix: str

    def part(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}{self.suffix}"

    def counts(self, number: int) -> Path:
        return self.folder / "_job" / "done" / f"part-{number:05d}.json"

    def lease(self, number: int) -> Path:
        return self.folder / "_job" / "leases" / f"part-{number:05d}"

    def done(self) -> set[int]:
        """Numbers of the units whose parts are there."""
        ours = (name for name in os.listdir(self.folder) if name.startswith("part-") and name.endswith(self.suffix))
        return {int(number) for name in ours if (number := name[5 : -len(self.suffix)]).isdigit()}


def open_job(folder: Path) -> BatchJob | None:
    """The job that was begun in a folder, or None.

    Raises:
        FilesError: it is damaged or of another version.
    """
    path = folder / "_job" / "job.json"
    if not path.exists():
        return None
    content = files.read_json(path, limit=math.inf)  # ours: a million units are 70 MB
    if content.get("version") != VERSION:
        raise FilesError(f"{path}: of another version of trocr-jax batch; choose another OUTPUT")
    try:
        units, settings = tuple(Unit(**unit) for unit in content["units"]), content["settings"]
        return BatchJob(folder, settings, units, folder / "_job" / content["listing"], f".{settings['format']}")
    except (KeyError, TypeError):
        raise FilesError(f"{path}: damaged; choose another OUTPUT") from None


def begin_job(folder: Path, settings: dict[str, Any], plan: Callable[[BinaryIO], list[Unit]]) -> BatchJob:
    """Plans a job and publishes it. Where several workers do so at once, one plan wins and all get that.

    Raises:
        FilesError: the folder holds other things, or cannot be written.
    """
    inner, token = folder / "_job", secrets.token_hex(4)
    listing, draft = inner / f"listing-{token}.jsonl", inner / f"draft-{token}"
    try:
        _make_folders(folder)
        files.write_atomically(draft, json.dumps(_planned(listing, settings, plan)).encode())
        (inner / "clock").touch()
        os.link(draft, inner / "job.json")
    except OSError as error:
        _discard(listing)
        if not os.path.exists(inner / "job.json"):  # else another worker was quicker, and perhaps swept up already
            raise FilesError(f"{folder}: no job can be begun ({error.strerror})") from error
    except Exception:
        _discard(listing)
        raise
    finally:
        _discard(draft)
    job = open_job(folder)
    assert job is not None
    return job


def _discard(path: Path) -> None:
    """Removes a file if it is there, whatever is wrong with its folder: that has been or will be said."""
    with suppress(OSError):
        path.unlink()


def _make_folders(folder: Path) -> None:
    """Raises FilesError where the folder holds other things than a job."""
    inner = folder / "_job"
    strange = [name for name in os.listdir(folder) if name != "_job"] if folder.exists() else []
    if strange and not (inner / "job.json").exists():
        raise FilesError(f"{folder}: holds {strange[0]!r} and no job; choose an empty OUTPUT")
    for name in ("leases", "done"):
        (inner / name).mkdir(parents=True, exist_ok=True)


def _planned(listing: Path, settings: dict[str, Any], plan: Callable[[BinaryIO], list[Unit]]) -> dict[str, Any]:
    """The content of job.json, of a plan whose listing is on the disk."""
    with open(listing, "wb") as file:
        units = [unit.to_json() for unit in plan(file)]
        os.fsync(file.fileno())
    return {"version": VERSION, "settings": settings, "listing": listing.name, "units": units}


@dataclass
class Worker:
    """One process's share of a job: claims units, keeps its leases alive, stores results.

    Args:
        job: shared.
        expiry: seconds after which an untouched lease is taken over. A holder on this machine is looked for directly.
    """

    job: BatchJob
    expiry: float = 60.0
    stopped: threading.Event = field(default_factory=threading.Event)
    held: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._heart.start()

    def claim(self, waiting: Callable[[int], None] = lambda count: None) -> int | None:
        """A unit that nobody works on; None when all are done, or after `close`. Waits while others hold the rest.

        Args:
            waiting: called once with how many units others hold.
        """
        told = False
        while not self.stopped.is_set():
            left = set(range(len(self.job.units))) - self.job.done()
            if not left:
                return None
            number = self._claim_one(left - self.held)
            if number is not None:
                return number
            if not told and left - self.held:
                waiting(len(left - self.held))
                told = True
            self.stopped.wait(POLL)
        return None

    def finish(self, number: int, content: bytes, counts: dict[str, Any]) -> None:
        """Stores a unit's counts and its part, and gives the lease back.

        Raises:
            FilesError: the disk is full, or the folder is gone.
        """
        part = self.job.part(number)
        try:
            files.write_atomically(self.job.counts(number), json.dumps(counts).encode())
            files.write_atomically(part, content)
        except FilesError:
            if not part.exists():  # else another worker took the unit over, and may have swept our temporary file away
                self.stopped.set()
                raise
        self._release(number)

    def close(self) -> None:
        """Stops claiming and gives all leases back."""
        self.stopped.set()
        self._heart.join()
        for number in list(self.held):
            self._release(number)

    def sweep(self) -> None:
        """Removes what killed workers left. For a job that is done."""
        inner = self.job.folder / "_job"
        left = [*self.job.folder.glob(".part-*"), *(inner / "done").glob(".part-*"), *(inner / "leases").iterdir()]
        drafts = [*inner.glob("draft-*"), *inner.glob(".draft-*")]
        listings = [path for path in inner.glob("listing-*") if path != self.job.listing]
        for path in left + drafts + listings:
            path.unlink(missing_ok=True)

    def _claim_one(self, numbers: set[int]) -> int | None:
        """Claims one of these units if it can, a free one first; in no order, so that workers seldom want the same."""
        names = os.listdir(self.job.lease(0).parent)
        leased = {int(name[5:]) for name in names if name.startswith("part-") and name[5:].isdigit()}
        free, taken = list(numbers - leased), list(numbers & leased)
        for candidates, take in ((free, self._create), (taken, self._take_over)):
            random.shuffle(candidates)
            for number in candidates:
                if take(number):
                    self.held.add(number)
                    if not self.job.part(number).exists():
                        return number
                    self._release(number)  # done and given back since we looked
        return None

    def _create(self, number: int) -> bool:
        lease = self.job.lease(number)
        try:
            with open(lease, "x", encoding="utf-8") as file:
                file.write(json.dumps(identity()))
        except FileExistsError:
            return False
        except OSError as error:
            with suppress(OSError):
                lease.unlink(missing_ok=True)
            raise FilesError(f"{lease}: cannot be written ({error.strerror})") from error
        return True

    def _take_over(self, number: int) -> bool:
        """Whether the lease's holder is gone and the lease now ours. Two who do so at once both work: that is harmless."""
        lease = self.job.lease(number)
        try:
            if not (is_dead(lease.read_bytes()) or self._now() - lease.stat().st_mtime > self.expiry):
                return False
            lease.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        return self._create(number)

    def _now(self) -> float:
        """The time of the machine that keeps the folder."""
        clock = self.job.folder / "_job" / "clock"
        os.utime(clock)
        return clock.stat().st_mtime

    def _beat(self) -> None:
        while not self.stopped.wait(min(self.expiry / 4, MOST_BETWEEN)):
            for number in list(self.held):
                with suppress(OSError):  # taken over, or the folder is away for a moment
                    os.utime(self.job.lease(number))

    def _release(self, number: int) -> None:
        self.held.discard(number)
        with suppress(OSError):
            self.job.lease(number).unlink()


def identity() -> dict[str, Any]:
    """What tells this process from every other."""
    return {**_namespace(), "pid": os.getpid(), "started": started(os.getpid())}


def _namespace() -> dict[str, str | None]:
    """The machine, its start and the namespace in which a process's number means something: containers may share a name and a
    kernel, but not their numbers.
    """
    boot = pids = None
    with suppress(OSError):  # no Linux
        boot, pids = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "pids": pids}


def is_dead(lease: bytes) -> bool:
    """Whether a lease's holder ran on this machine and runs no more; False where that is unknown."""
    try:
        holder = json.loads(lease)
        here = all(holder[key] == value for key, value in _namespace().items())
        return here and Path("/proc/self").exists() and started(holder["pid"]) != holder["started"]
    except (ValueError, KeyError, TypeError):  # not yet written, or cut off by a crash
        return False


def started(process: int) -> str | None:
    """When a process began, in the kernel's ticks; None where it is gone or there is no /proc."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def disk_full(error: BaseException | None) -> bool:
    """Whether a FilesError came of a full disk or quota."""
    cause = error.__cause__ if error else None
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
