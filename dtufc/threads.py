"""How many threads the libraries of a process use, told before it starts."""

import os

VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Environment variables of torch's and numba's threads."""


def thread_environment(count: int) -> dict[str, str]:
    """Environment variables of a process whose libraries use ``count`` threads."""
    return dict.fromkeys(VARIABLES, str(count))


def cores() -> int:
    """Cores that this process may use: as many threads as torch has where nothing tells it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
