"""What refilling slots gains over static batches, in decoding steps, for lines of given lengths.

A static batch runs whole chunks of its loop until its longest line has ended; a slot is given the next line at the next look of
the host, every `device.STEPS` steps. Counted, not timed: a step costs about the same in both.

    python -m trocr_jax.serve.refill --mean 10.96 --spread 3.5
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trocr_jax.batching.device import STEPS
from trocr_jax.cli import program
from trocr_jax.generation.loop import whole_chunks


@dataclass(frozen=True)
class Config:
    mean: float = 31_959 / 2_915
    """Tokens a line, the end token counted; the default is that of IAM's test lines."""
    spread: float = 3.5
    """Standard deviation of the lengths, drawn from a gamma distribution."""
    lines: int = 2_915
    """How many lines."""
    batch_sizes: tuple[int, ...] = (8, 32, 128, 256)
    """Lines that are decoded at the same time; each is counted."""
    seed: int = 0
    """Seed of the lengths."""


def run(config: Config) -> int:
    """A row a batch size, then a JSON line."""
    lengths = draw(config)
    rows = [row(lengths, batch) for batch in config.batch_sizes]
    for r in rows:
        print("batch {batch:>4}: static {static:>6} steps, refilled {refilled:>6}, gain {gain:.2f}, fill {fill:.0%}".format(**r))
    print(json.dumps({"mean": float(np.mean(lengths)), "spread": config.spread, "results": rows}))
    return 0


def draw(config: Config) -> list[int]:
    """Lengths of at least 1."""
    shape = (config.mean / config.spread) ** 2
    drawn = np.random.default_rng(config.seed).gamma(shape, config.mean / shape, config.lines)
    return np.maximum(1, np.rint(drawn)).astype(int).tolist()


def row(lengths: Sequence[int], batch: int) -> dict[str, float]:
    """Steps of both ways for one number of slots; fill is the share of slot steps that give a token."""
    still, moving = static(lengths, batch), refilled(lengths, batch)
    return {
        "batch": batch, "static": still, "refilled": moving, "gain": still / moving, "fill": sum(lengths) / (moving * batch)
    }  # fmt: skip


def static(lengths: Sequence[int], batch: int) -> int:
    """Steps when each batch waits for its longest line."""
    return sum(whole_chunks(max(lengths[i : i + batch])) for i in range(0, len(lengths), batch))


def refilled(lengths: Sequence[int], batch: int) -> int:
    """Steps when a free slot takes the next line."""
    free_at = np.zeros(batch, int)
    for length in lengths:
        slot = int(free_at.argmin())
        free_at[slot] += math.ceil(length / STEPS) * STEPS
    return int(free_at.max())


if __name__ == "__main__":
    raise SystemExit(program("trocr_jax.serve.refill"))
