"""Commands as subprocesses: logged, shown as progress bars, several side by side if asked.

How far a command is, its own progress bar says: the last one in its log is shown.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from dtufc import locks
from dtufc.errors import UserError
from dtufc.experiments import forked
from dtufc.experiments.forked import Forked
from dtufc.threads import thread_environment

_TAIL_LINES = 20
_TAIL_BYTES = 4096
_BAR = re.compile(r"([^\r\n|%]*?):?\s+\d+%\|[^|]*\|\s*(\d+)/(\d+)")
"""A bar of tqdm: what it is about, steps done, steps in all."""
_LINE = re.compile(r"[\r\n]")
_LOG_PERIOD = 10
"""Seconds between lines where the output is no terminal."""
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


@dataclass(frozen=True)
class Job:
    """One command."""

    title: str
    """What the progress bar says."""
    command: list[str]
    """Program and arguments."""
    log: Path
    """Its output, stdout and stderr; begins with the command."""
    why: str = ""
    """Why it is run, in words."""
    module: str | None = None
    """Of a command ``python -m module`` or ``python script`` that is forked from a process which has
    imported it, see :mod:`dtufc.experiments.forked`; not where it computes on a GPU."""
    gpu: bool = False
    """Whether it computes on a GPU where there is one."""
    again: Callable[[], Sequence["Job"]] | None = field(default=None, compare=False, repr=False)
    """What of it is left to do, planned anew from what is there: nothing or one command. ``None``:
    nobody can tell."""

    @property
    def line(self) -> str:
        """The command as it is typed."""
        return " ".join(f"'{part}'" if set(part) & set(' []{}"') else part for part in self.command)


class JobError(UserError):
    """A command failed; the text ends with the tail of its log."""


def run_jobs(jobs: Sequence[Job], parallel: int = 1) -> None:
    """Run all jobs, ``parallel`` at a time; each gets an equal share of the cores.

    Raises:
        JobError: one ended with another status than 0. The others that run are stopped; what they
            had finished stays.
    """
    parallel = max(1, min(parallel, len(jobs)))
    threads = max(1, (os.cpu_count() or 1) // parallel) if parallel > 1 else None
    # a terminated driver takes its commands along: the signal becomes an exit, `finally` does the rest
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    waiting = list(jobs)
    running: list[tuple[Job, subprocess.Popen | Forked, tqdm]] = []
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                running.append((job, _start(job, threads), open_bar(job)))
            time.sleep(0.2)
            for entry in list(running):
                job, process, bar = entry
                status = process.poll()
                show(bar, job.log, finished=status == 0)
                if status is not None:
                    running.remove(entry)
                    bar.close()
                    if status != 0:
                        raise JobError(failure(job, status))
    finally:
        signal.signal(signal.SIGTERM, previous)
        for _, process, bar in running:
            process.terminate()
            process.wait()
            bar.close()


def _start(job: Job, threads: int | None) -> subprocess.Popen | Forked:
    environment = dict(os.environ)
    if threads is not None:
        environment |= thread_environment(threads)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w") as log:
        log.write(job.line + "\n")
        log.flush()
        if job.module is not None and not (job.gpu and forked.has_accelerator()):
            first = 3 if job.command[1] == "-m" else 2
            return Forked(job.module, job.command[first:], job.log, environment)
        return locks.start(
            job.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment,
        )  # fmt: skip


def open_bar(job: Job) -> tqdm:
    """The progress bar of a command."""
    return tqdm(total=1, desc=job.title, file=sys.stdout, bar_format=_FORMAT)


def show(bar: tqdm, log: Path, finished: bool) -> None:
    """Show how far the command of a log is."""
    stage, done, total = read_progress(log) or ("", 0, 1)
    if finished:
        stage, done = "", total
    changed = (stage, done, total) != (bar.postfix or "", bar.n, bar.total)
    waits = time.time() - bar.last_print_t < _LOG_PERIOD
    if finished or sys.stdout.isatty() or (changed and not waits):
        bar.n, bar.total = done, total
        bar.set_postfix_str(stage, refresh=False)
        bar.last_print_t = time.time()
        bar.refresh()


def read_progress(log: Path) -> tuple[str, int, int] | None:
    """The last progress bar in a log: its title, steps done, steps in all; ``None`` if there is none."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    for line in reversed(_LINE.split(text)):
        bars = [bar for bar in _BAR.findall(line) if int(bar[2])]
        if bars:
            return bars[-1][0].strip(), int(bars[-1][1]), int(bars[-1][2])
    return None


def failure(job: Job, status: int) -> str:
    """What to say of a command that ended with this status: the tail of its log."""
    lines = job.log.read_text(errors="replace").replace("\r", "\n").splitlines()
    tail = "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:])
    return f"{job.title}: ended with status {status}; the end of {job.log}:\n{tail}"
