"""Commands of this package in processes that have imported what they need.

Importing torch and compiled kernels takes seconds, more than the coding of a folder of small features.
Here a server (multiprocessing's forkserver) imports them once, and each command is a process forked from
it: its own memory, its own log, its own number of threads, stopped by a signal like any other. It gives
the files, byte for byte, that the command gives by itself.

A process that is forked cannot use an accelerator that torch has started, so that commands which may use
one run by themselves.
"""

import fcntl
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dtufc import locks
from dtufc.paths import PACKAGE
from dtufc.threads import cores

PRELOADED = ["torch", "scipy.stats", "dtufc.evaluate", "dtufc.rans", "dtufc.klt.codec",
             "dtufc.CompressAI.codec"]  # fmt: skip
"""Imported before the first command; none of it leaves a team of threads, which a fork would lose."""
THREADS = "OMP_NUM_THREADS"
_machines: set[str] = set()


def has_accelerator() -> bool:
    """Whether torch finds an accelerator here, such as a GPU."""
    import torch

    return torch.accelerator.is_available()


def preload(module: str) -> None:
    """Have the server import a module of this package too. To be called before the first command."""
    if module not in PRELOADED:
        PRELOADED.append(module)


def preload_machines(scripts: Iterable[Path]) -> None:
    """Have the server import the models' libraries too, for the machines' own scripts.

    It pays where one process runs many of them. To be called before the first command. Where there is
    an accelerator nothing is done.

    Args:
        scripts: of machines; those outside this package run as ever.
    """
    if has_accelerator():
        return
    for script in scripts:
        module = _machine_module(script)
        if module and (script.parent / "halves.py").is_file():
            _machines.add(module)
            preload(f"{module.rpartition('.')[0]}.halves")


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
        arguments = (module, [*argv], str(log), dict(environment), os.getcwd())
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


def _run(module: str, argv: list[str], log: str, environment: dict[str, str], folder: str) -> None:
    """In the forked process: what ``python -m module`` does."""
    _end_with_driver()
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    # torch read its number of threads when it was imported, which was before
    torch.set_num_threads(int(environment.get(THREADS) or cores()))
    sys.argv = [f"-m {module}", *argv]
    importlib.import_module(module).main(argv)


def _end_with_driver() -> None:
    """Have this process terminated when the one that asked for it ends, even by SIGKILL (on Linux).

    The server lives as long as one of its processes does, so that its end is not enough: the pipe by
    which the command came is closed with the driver, and the system tells of it by a signal.
    """
    locks.end_with_parent()
    if not hasattr(fcntl, "F_SETSIG"):
        return
    driver = multiprocessing.parent_process()
    fcntl.fcntl(driver.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(driver.sentinel, fcntl.F_SETSIG, signal.SIGTERM)
    flags = fcntl.fcntl(driver.sentinel, fcntl.F_GETFL)
    fcntl.fcntl(driver.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
    if not driver.is_alive():  # it ended before it could be asked
        os._exit(1)
