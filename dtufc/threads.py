"""How many threads the libraries of a process use, told before it starts."""

VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Environment variables of torch's and numba's threads."""


def thread_environment(count: int) -> dict[str, str]:
    """Environment variables of a process whose libraries use ``count`` threads."""
    return dict.fromkeys(VARIABLES, str(count))
