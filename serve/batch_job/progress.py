"""What a batch job tells a person while it runs and at its end."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from trocr_jax import files
from trocr_jax.terminal import printable

from .work import BatchJob

CALM = 10.0
"""Seconds between signs of life in a log file."""


def remark(message: str) -> None:
    """Says one line on stderr as `terminal.remark` does, without breaking a bar that is drawn there."""
    tqdm.write(f"trocr-jax: {printable(message)}", file=sys.stderr)


class ProgressBar:
    """A bar on stderr over the images of the whole job, with rate and time left, and remarks above it.

    Shards whose images nobody has counted are taken to be as long as those that were read.

    Attributes:
        lines: in the units that this process has stored.
    """

    def __init__(self, job: BatchJob):
        self.job, self.lines = job, 0
        self._counted = all(unit.lines is not None for unit in job.units)
        self._stored: list[int] = []
        total = self._images(range(len(job.units))) if self._counted else None
        calm = 0.1 if sys.stderr.isatty() else CALM
        unit, done = "page" if job.settings["page"] else "line", self._images(job.done())
        self._bar: Any = tqdm(total=total, initial=done, unit=unit, mininterval=calm, file=sys.stderr)

    def advance(self, images: int) -> None:
        """Counts images that this process has read."""
        self._bar.update(images)

    def stored(self, images: int, lines: int) -> None:
        """Counts a unit that this process has stored, and what other workers have stored in the meantime."""
        self._stored.append(images)
        self.lines += lines
        if not self._counted:
            self._bar.total = round(sum(self._stored) / len(self._stored) * len(self.job.units))
        others = self._images(self.job.done()) - self._bar.n
        if self._counted and others > 0:
            self._bar.update(others)

    def waiting(self, units: int) -> None:
        """Says that other workers hold the last units."""
        remark(f"waiting for {units} units that other workers hold")

    def close(self) -> None:
        self._bar.close()

    def _images(self, numbers: Any) -> int:
        return sum(self.job.units[number].lines or 0 for number in numbers)


@dataclass(frozen=True)
class Share:
    """What this process did of a job.

    Attributes:
        lines: how many it read.
        seconds: from its start to its end.
        startup: how many of these passed until the device had its first images: loading, compiling, decoding the first window.
        waited: share of the time after that in which the device had nothing to do.
    """

    lines: int = 0
    seconds: float = 0.0
    startup: float = 0.0
    waited: float = 0.0

    def cost(self, price_per_hour: float | None) -> float | None:
        """The cost of 1,000 lines, in the price's currency; None without price or lines."""
        return None if price_per_hour is None or not self.lines else price_per_hour * self.seconds / 3.6 / self.lines

    def told(self, price_per_hour: float | None) -> str:
        """The share in a sentence."""
        cost = self.cost(price_per_hour)
        money = "" if cost is None else f"; {cost:.4f} for 1,000 lines at {price_per_hour:g} an hour"
        return (
            f"here: {self.lines:,} lines in {self.seconds:,.1f} s, {self._rate:,.1f} lines/s; until the first batch "
            f"{self.startup:,.1f} s, after it the device waited {self.waited:.1%} of the time{money}"
        )

    def to_dict(self, price_per_hour: float | None) -> dict[str, Any]:
        """The share in numbers."""
        return {
            "lines": self.lines, "seconds": round(self.seconds, 3), "lines_per_second": round(self._rate, 2),
            "startup_seconds": round(self.startup, 3), "device_waited": round(self.waited, 4),
            "cost_per_1000": self.cost(price_per_hour),
        }  # fmt: skip

    @property
    def _rate(self) -> float:
        return self.lines / self.seconds if self.seconds else 0.0


def report(job: BatchJob, share: Share, price_per_hour: float | None) -> int:
    """Tells about the whole job and this process's share of it; 1 where images failed."""
    counts = [_counts(job, number) for number in range(len(job.units))]
    images, lines = (sum(unit[what] for unit in counts) for what in ("images", "lines"))
    errors, flags = (sum((Counter(unit[what]) for unit in counts), Counter()) for what in ("errors", "flags"))
    read = f"{images:,} pages with {lines:,} lines" if job.settings["page"] else f"{lines:,} lines"
    print(f"{read} in {len(counts):,} parts in {job.folder}; {errors.total():,} could not be read", file=sys.stderr)
    for kind, count in errors.most_common():
        print(f"  {count:>9,}  {printable(kind)}", file=sys.stderr)
    if flags:
        print(f"lines to look at: {', '.join(f'{count:,} {flag}' for flag, count in flags.most_common())}", file=sys.stderr)
    if share.lines:
        print(share.told(price_per_hour), file=sys.stderr)
    pages = {"pages": images} if job.settings["page"] else {}
    summary = {
        **pages, "lines": lines, "parts": len(counts), "errors": dict(errors.most_common()),
        "flags": dict(flags.most_common()), "output": str(job.folder),
        "here": share.to_dict(price_per_hour),
    }  # fmt: skip
    print(json.dumps(summary, ensure_ascii=False), flush=True)
    return 1 if errors else 0


def _counts(job: BatchJob, number: int) -> dict[str, Any]:
    """A unit's counts. Raises FilesError where they are not as `output.count` makes them."""
    path = job.counts(number)
    counts = files.read_json(path)
    kinds = {"images": int, "lines": int, "errors": dict, "flags": dict}
    if any(not isinstance(counts.get(name), kind) for name, kind in kinds.items()):
        raise files.FilesError(f"{path}: damaged; without {job.part(number).name} the same command reads that part again")
    return counts
