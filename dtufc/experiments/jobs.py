"""Commands as subprocesses: logged, shown as progress bars, several side by side if asked."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dtufc import locks
from dtufc.errors import UserError

_TAIL_LINES = 20


@dataclass(frozen=True)
class Job:
    """One command."""

    title: str
    """What the progress bar says."""
    command: list[str]
    """Program and arguments."""
    log: Path
    """Its output, stdout and stderr; begins with the command."""
    rows: Path | None = None
    """A CSV that gains a row per step: the progress."""
    steps: int = 1
    """Rows when it is done."""
    why: str = ""
    """Why it is run, in words."""

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
    threads = max(1, (os.cpu_count() or 1) // parallel) if parallel > 1 else None
    # a terminated driver takes its commands along: the signal becomes an exit, `finally` does the rest
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    waiting = list(jobs)
    running: list[tuple[Job, subprocess.Popen, tqdm]] = []
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                bar = tqdm(total=job.steps, desc=job.title, file=sys.stdout, mininterval=1)
                running.append((job, _start(job, threads), bar))
            time.sleep(0.2)
            for entry in list(running):
                job, process, bar = entry
                status = process.poll()
                done = job.steps if status == 0 else min(_count_rows(job.rows), job.steps)
                if done != bar.n or sys.stdout.isatty():  # a log gets a line per step, no more
                    bar.n = done
                    bar.refresh()
                if status is not None:
                    running.remove(entry)
                    bar.close()
                    if status != 0:
                        raise JobError(_failure(job, status))
    finally:
        signal.signal(signal.SIGTERM, previous)
        for _, process, bar in running:
            process.terminate()
            process.wait()
            bar.close()


def _start(job: Job, threads: int | None) -> subprocess.Popen:
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w") as log:
        log.write(job.line + "\n")
        log.flush()
        return locks.start(
            job.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment,
        )  # fmt: skip


def _count_rows(path: Path | None) -> int:
    if path is None or not path.is_file():
        return 0
    return max(0, len(path.read_text().splitlines()) - 1)


def _failure(job: Job, status: int) -> str:
    lines = job.log.read_text(errors="replace").replace("\r", "\n").splitlines()
    tail = "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:])
    return f"{job.title}: ended with status {status}; the end of {job.log}:\n{tail}"
