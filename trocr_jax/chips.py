"""Published rates of TPU chips, and what they make of a program's cost. Estimates, not measurements; no jax here.

Rates are those of docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, 2026. Some versions of v5e's page give its bandwidth as
800 GiB/s (859 GB/s).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        flops: peak bfloat16 operations a second.
        bandwidth: bytes a second from its memory.
        clock: cycles a second: the peak over what its matrix units do in a cycle, of which v4 and v5p have 8 of 128 x 128, v5e 4
            of these, and v6e what 4 of 256 x 256 do.
        memory: bytes.
        dollars: an hour on demand in a US region, from cloud.google.com/tpu/pricing, for v5e, v5p and v6e as quoted from it in
            August 2026, for v4 in 2025; prices differ and change, so programs take another one.
    """

    flops: float
    bandwidth: float
    clock: float
    memory: int
    dollars: float


CHIPS = {
    "v4": Chip(275e12, 1200e9, 1.05e9, 32 * 2**30, 3.22),
    "v5e": Chip(197e12, 819e9, 1.5e9, 16 * 2**30, 1.20),
    "v5p": Chip(459e12, 2765e9, 1.75e9, 95 * 2**30, 4.20),
    "v6e": Chip(918e12, 1638e9, 1.75e9, 32 * 2**30, 2.70),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:2x2".

    Raises:
        ValueError: its rates are not known here.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise ValueError(f"no rates are known for {name}; known: {', '.join(CHIPS)}")
    return CHIPS[name]


@dataclass(frozen=True)
class Cost:
    """What a chip has to do: seconds, and bytes from and to its main memory. Costs add up and multiply."""

    seconds: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.seconds * times, self.bytes * times)


def estimate(cost: Cost, chip: Chip, lines: int, chips: int, dollars: float | None = None) -> dict[str, float]:
    """What a batch's cost on one chip means for all chips together. Their number changes the rate, not the price.

    Args:
        lines: how many lines of the batch each chip reads.
        dollars: price of a chip per hour; by default the listed price.
    """
    rate = lines * chips / cost.seconds
    price = dollars_per_thousand(rate, (chip.dollars if dollars is None else dollars) * chips)
    return {
        "mb_per_line": round(cost.bytes / lines / 1e6, 1),
        "estimated_lines_per_s": round(rate, 1), "estimated_dollars_per_1000": round(price, 6),
    }  # fmt: skip


def dollars_per_thousand(lines_per_second: float, dollars_per_hour: float) -> float:
    """What 1,000 lines cost on something that reads `lines_per_second` and is paid by the hour."""
    return 1000 / lines_per_second / 3600 * dollars_per_hour
