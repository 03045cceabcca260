"""One writer per output folder, and children that end with their parent.

A lock belongs to a process and is released by the system, however the process ends. Who finds a folder
locked says so and waits.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dtufc.files import PART

LOCK = ".lock"
"""The file in a folder that its writer locks; it holds the writer's process id."""
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@contextlib.contextmanager
def hold(folder: str | Path) -> Iterator[None]:
    """Be the only process that writes into a folder; made if it is not there.

    Waits while another process holds it. What a killed process left half-written, in the folder and in
    those folders below it that have no lock of their own, is removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(f"{folder}: waiting for process {file.read().strip()}, which writes there",
                  flush=True)  # fmt: skip
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _sweep(folder)
        yield


def _sweep(folder: Path) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(PART):
                Path(entry).unlink(missing_ok=True)
            elif entry.is_dir(follow_symlinks=False) and not Path(entry, LOCK).exists():
                _sweep(Path(entry))


def start(command: Sequence[str], **options: Any) -> subprocess.Popen:
    """Start a command that is terminated when this process ends, even by SIGKILL (on Linux)."""
    return subprocess.Popen(command, preexec_fn=_end_with(os.getpid()), **options)


def run(command: Sequence[str], **options: Any) -> int:
    """Run such a command to its end -> its status."""
    with start(command, **options) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def end_with_parent() -> None:
    """Have this process terminated when its parent ends."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_with(parent: int) -> Any:
    def ask() -> None:
        end_with_parent()
        if os.getppid() != parent:  # it ended before it could be asked
            os._exit(1)

    return ask if _LIBC is not None else None
