"""Commands of this package in processes that have imported what they need.

Importing torch and compiled kernels takes seconds, more than the coding of a folder of small features.
Here a server (multiprocessing's forkserver) imports them once, and each command is a process forked from
it: its own memory, its own log, stopped by a signal like any other.
"""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dtufc import locks
from dtufc.paths import PACKAGE

PRELOADED = ["torch", "scipy.stats", "dtufc.evaluate", "dtufc.rans", "dtufc.klt.codec",
             "dtufc.CompressAI.codec"]  # fmt: skip
"""Imported before the first command; none of it starts threads."""
THREADS = "OMP_NUM_THREADS"
_machines: set[str] = set()


def preload_machines(scripts: Iterable[Path]) -> None:
    """Have the server import the models' libraries too, for the machines' own scripts.

    It pays where one process runs many of them. To be called before the first command. A forked process
    cannot use an accelerator that torch has started, so that where there is one nothing is done.

    Args:
        scripts: of machines; those outside this package run as ever.
    """
    import torch

    if torch.accelerator.is_available():
        return
    for script in scripts:
        module = _machine_module(script)
        if module and (script.parent / "halves.py").is_file():
            _machines.add(module)
            PRELOADED.append(f"{module.rpartition('.')[0]}.halves")


def machine_module(script: Path) -> str | None:
    """The module of a machine's script where the server has it; ``None`` where it runs by itself."""
    module = _machine_module(script)
    return module if module in _machines else None


def _machine_module(script: Path) -> str | None:
    if not script.is_relative_to(PACKAGE):
        return None
    return ".".join([PACKAGE.name, *script.relative_to(PACKAGE).with_suffix("").parts])


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
