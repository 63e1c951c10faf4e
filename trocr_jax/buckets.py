"""The few sizes that batches are filled up to, so that few programs are compiled."""

from __future__ import annotations


def bucket(count: int) -> int:
    """The batch that so many images are filled up to: 1, 2, 4, 8, ..."""
    return 1 << (count - 1).bit_length()


def buckets(largest: int) -> list[int]:
    """All buckets up to the largest."""
    return [1 << i for i in range(largest.bit_length())]
