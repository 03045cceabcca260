"""Commands of this package in processes that have imported what they need.

Importing torch and compiled kernels takes seconds, more than the coding of a folder of small features.
Here a server (multiprocessing's forkserver) imports them once, and each command is a process forked from
it: its own memory, its own log, stopped by a signal like any other.
"""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dtufc import locks

PRELOADED = ["torch", "scipy.stats", "dtufc.evaluate", "dtufc.rans", "dtufc.klt.codec",
             "dtufc.CompressAI.codec"]  # fmt: skip
"""Imported before the first command; none of it starts threads."""
THREADS = "OMP_NUM_THREADS"


class Forked:
    """A command ``python -m module argv`` of this package, with the methods of a Popen that jobs need.

    Args:
        log: its output is appended there, stdout and stderr.
        environment: of the command, in place of this process's.
    """

    def __init__(self, module: str, argv: Sequence[str], log: Path, environment: Mapping[str, str]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        arguments = (module, [*argv], str(log), dict(environment))
        self._process = context.Process(target=_run, args=arguments)
        before = os.environ.get(THREADS)
        os.environ[THREADS] = "1"  # of the server, which must not fork with threads beside it
        try:
            self._process.start()
        finally:
            os.environ.pop(THREADS) if before is None else os.environ.update({THREADS: before})

    def poll(self) -> int | None:
        """The status; ``None`` while it runs."""
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode


def _run(module: str, argv: list[str], log: str, environment: dict[str, str]) -> None:
    """In the forked process: what ``python -m module`` does."""
    locks.end_with_parent()
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    # torch read its number of threads when it was imported, which was before
    torch.set_num_threads(int(environment.get(THREADS) or os.cpu_count() or 1))
    sys.argv = [f"-m {module}", *argv]
    importlib.import_module(module).main(argv)
