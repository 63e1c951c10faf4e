"""How many threads or processes are worth starting."""

import os


def usable_cores() -> int:
    """Cores that this process may run on: fewer than the machine's under `taskset` or in a container with a set of its own.

    A limit on time (`docker run --cpus`) is not seen.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
