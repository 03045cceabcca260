"""How long every command takes to start, and a codec to load: ``python scripts/bench_start.py``.

    python scripts/bench_start.py                         --help of every command
    python scripts/bench_start.py --codecs DIR [DIR ...]  what loading these codec folders takes, too

Each runs in a process of its own. Printed are user and system CPU-seconds and the largest memory; times
are the best of ``--repeats``. The bars: 1.5 CPU-seconds for ``--help``, 1 for ``load_codec`` of a tiny
codec after the import of its libraries, which has a row of its own.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config
from dtufc.errors import UserError
from dtufc.paths import REPOSITORY
from dtufc.records import format_table
from dtufc.shipped import codec_folder

PATTERNS = ("coding/*.py", "coding/*/*.py", "machines/*/*.py", "scripts/*.py")
WITHOUT_FLAGS = (
    "scripts/fuzz_streams.py", "scripts/small_codecs.py", "coding/integrations/lmcache_serde.py",
)  # fmt: skip
"""Not commands with flags: one job from end to end, and modules."""
MIB = 1 / 2**20 if sys.platform == "darwin" else 1 / 2**10
"""Of a unit of ``ru_maxrss``: bytes on macOS, KiB elsewhere."""

IMPORTS = """import json, pathlib, sys, dtufc
folder = pathlib.Path(sys.argv[1])
dtufc.codecs()[json.loads((folder / "config.json").read_text())["codec"]].load_class()
"""
LOAD = """import time
start = time.process_time()
dtufc.load_codec(folder)
print(time.process_time() - start)
"""


@dataclass(frozen=True)
class StartConfig:
    """What is started."""

    repeats: int = 2
    """Each time is the best of so many."""
    codecs: list[Path] = field(default_factory=list)
    """Codec folders, or names of shipped codecs, that are loaded."""

    def __post_init__(self):
        if self.repeats < 1:
            raise UserError(f"repeats: expected at least 1, got {self.repeats}")


@dataclass(frozen=True)
class StartRow:
    """One command, or one codec folder."""

    command: str
    cpu_s: float
    peak_mib: float
    """Of the process; a codec's is that after its imports."""


def commands() -> list[str]:
    """Every command with flags, relative to the repository."""
    found = [path for pattern in PATTERNS for path in sorted(REPOSITORY.glob(pattern))]
    names = [path.relative_to(REPOSITORY).as_posix() for path in found]
    return [name for name in names if name not in WITHOUT_FLAGS]


def start(argv: Sequence[str], folder: Path) -> tuple[float, float]:
    """CPU-seconds and peak memory (MiB) of ``python argv``, run in a folder.

    Raises:
        UserError: it failed.
    """
    process = subprocess.Popen([sys.executable, *argv], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)  # of this process alone, unlike RUSAGE_CHILDREN
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"python {' '.join(argv)} ended with status {process.returncode}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * MIB


def load(folder: Path) -> float:
    """CPU-seconds of ``load_codec`` after the imports.

    Raises:
        UserError: it failed.
    """
    argv = [sys.executable, "-c", IMPORTS + LOAD, str(folder)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"{folder}: load_codec ended with status {done.returncode}")
    return float(done.stdout.split()[-1])


def bench(cfg: StartConfig) -> list[StartRow]:
    """Start every command, and load every codec."""

    def best(argv: Sequence[str], folder: Path) -> tuple[float, float]:
        return min(start(argv, folder) for _ in range(cfg.repeats))

    rows = []
    for command in commands():
        path = REPOSITORY / command
        rows.append(StartRow(command, *best([path.name, "--help"], path.parent)))
    for folder in map(codec_folder, cfg.codecs):
        imports, peak = best(["-c", IMPORTS, str(folder)], Path.cwd())
        loads = min(load(folder) for _ in range(cfg.repeats))
        rows.append(StartRow(f"{folder}: imports", imports, peak))
        rows.append(StartRow(f"{folder}: load_codec", loads, peak))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        print(format_table(bench(config.parse(StartConfig, argv, __doc__))))


if __name__ == "__main__":
    main()
