"""How long every command takes to start: ``python scripts/bench_start.py``.

Runs each command with ``--help``, and prints user and system CPU-seconds and the largest memory. Times
are the best of ``--repeats``. The bar is 1.5 CPU-seconds.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtufc import config
from dtufc.errors import UserError
from dtufc.paths import REPOSITORY
from dtufc.records import format_table

PATTERNS = ("coding/*.py", "coding/*/*.py", "machines/*/*.py", "scripts/*.py")
WITHOUT_FLAGS = ("scripts/quickstart.py", "scripts/small_codecs.py")
"""Not commands with flags: one job from end to end, and a module."""
MIB = 1 / 2**20 if sys.platform == "darwin" else 1 / 2**10
"""Of a unit of ``ru_maxrss``: bytes on macOS, KiB elsewhere."""


@dataclass(frozen=True)
class StartConfig:
    """What is started."""

    repeats: int = 2
    """Each time is the best of so many."""

    def __post_init__(self):
        if self.repeats < 1:
            raise UserError(f"repeats: expected at least 1, got {self.repeats}")


@dataclass(frozen=True)
class StartRow:
    """One command."""

    command: str
    cpu_s: float
    peak_mib: float


def commands() -> list[str]:
    """Every command with flags, relative to the repository."""
    found = [path for pattern in PATTERNS for path in sorted(REPOSITORY.glob(pattern))]
    names = [path.relative_to(REPOSITORY).as_posix() for path in found]
    return [name for name in names if name not in WITHOUT_FLAGS]


def start(command: str) -> tuple[float, float]:
    """CPU-seconds and peak memory (MiB) of ``--help``.

    Raises:
        UserError: it failed.
    """
    path = Path(REPOSITORY / command)
    process = subprocess.Popen(
        [sys.executable, path.name, "--help"], cwd=path.parent, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)  # of this process alone, unlike RUSAGE_CHILDREN
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{command} --help ended with status {process.returncode}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * MIB


def bench(cfg: StartConfig) -> list[StartRow]:
    """Start every command."""
    rows = []
    for command in commands():
        cpu, peak = zip(*(start(command) for _ in range(cfg.repeats)), strict=True)
        rows.append(StartRow(command, min(cpu), min(peak)))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        print(format_table(bench(config.parse(StartConfig, argv, __doc__))))


if __name__ == "__main__":
    main()
