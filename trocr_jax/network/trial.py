"""A kernel of a device's own is tried on random numbers before it is used: jax does not know every device and driver."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

TOLERANCE = 0.03
"""Largest allowed error, as a share of the largest value; bfloat16 has about three digits."""


def works(name: str, worst: Callable[[], float]) -> bool:
    """Whether `worst`, which runs the kernel and gives its largest error, runs and is below TOLERANCE; a warning says why not."""
    with ThreadPoolExecutor(1) as thread:  # a program may be under way in this one, or copies to the device forbidden
        try:
            off = thread.submit(worst).result()
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            if off <= TOLERANCE:
                return True
            reason = f"its results are off by {off:.2g}"
    warnings.warn(f"{name} cannot be used here ({reason}); the plain one is slower", stacklevel=3)
    return False
