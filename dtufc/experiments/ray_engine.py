"""The commands of a batch as tasks of Ray: each on a node that has the cores and GPUs it needs.

The data root lies on a file system that all nodes share, and the package at the same path on each. A
command reads and writes there as it does on one machine, its log included, so that the driver shows
progress from the logs and plans the next stage by the stamps.

A command is lost when its worker or its node dies. It is then planned anew from what is there: nothing
is left to do, or the rest is done on another node. The command itself holds the lock of the folder that
it writes (:mod:`dtufc.locks`), so that one that was only thought dead is waited for.
"""

import contextlib
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from tqdm import tqdm

from dtufc import cluster, locks
from dtufc.errors import UserError
from dtufc.experiments.jobs import Job, JobError, failure, open_bar, show
from dtufc.threads import thread_environment

PERIOD = 0.2
"""Seconds between looks at a command."""
SHARED_WAIT = 30
"""Seconds until what one node wrote must be seen on another: shared file systems cache."""
CANCEL_WAIT = 30
"""Seconds that commands have to end after another has failed."""
INFEASIBLE_PERIOD = 60
"""Seconds between lines about commands that no node has room for."""


@dataclass(frozen=True)
class Needs:
    """What a command needs of a node."""

    cpus: int
    """Cores. Its threads are as many."""
    gpus: float | None
    """GPUs of a command that can use one; ``None``: one where the cluster has any, else none."""
    retries: int
    """How many times a command is begun again after its worker or node died."""


def run_command(
    command: Sequence[str], folder: Path, log: Path, proof: Path, threads: int, attempt: int
) -> int:
    """In a worker: run a command to its end -> its status.

    Args:
        folder: where it is run, if this node has it; relative paths count from there.
        log: its output; begun anew at the first attempt, gone on with at others.
        proof: a file that the driver wrote; it is seen where the data root is shared.
        threads: of the command.
        attempt: 0 at first.

    Raises:
        UserError: the data root or the command is not on this node.
    """
    node = socket.gethostname()
    if not _await(proof.exists):
        raise UserError(
            f"data_root: {proof.parent} of the driver is not seen on node {node}; expected a folder "
            "that all nodes share"
        )
    environment = os.environ | thread_environment(threads)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a" if attempt else "w") as file:
        file.write(f"{Job('', [*command], log).line}\non node {node}, attempt {attempt + 1}\n")
        file.flush()
        try:
            process = locks.start(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=environment, cwd=folder if folder.is_dir() else None,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename}: not on node {node}; expected the driver's environment at the same "
                "path on all nodes"
            ) from error
        try:
            # a task that is cancelled is interrupted between two looks, not within a system call
            while (status := process.poll()) is None:
                time.sleep(PERIOD)
            return status
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _await(holds: Callable[[], bool]) -> bool:
    """Wait for what another node has written to be seen here -> whether it is."""
    deadline = time.monotonic() + SHARED_WAIT
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(PERIOD)
    return True


@dataclass
class _Running:
    """A command that Ray has, waiting or running."""

    job: Job
    attempt: int
    bar: tqdm | None = None
    """Shown as soon as a worker has begun its log."""

    def show(self, finished: bool = False) -> None:
        if self.bar is None and (finished or self.job.log.is_file()):
            self.bar = open_bar(self.job)
        if self.bar is not None:
            with contextlib.suppress(FileNotFoundError):
                show(self.bar, self.job.log, finished)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class RayEngine:
    """Runs the commands of a batch on a cluster."""

    def __init__(self, ray: ModuleType, proof: Path, needs: Needs):
        self._ray, self._proof, self._needs = ray, proof, needs
        self._task = ray.remote(run_command)
        self._lost = cluster.losses(ray)
        self._told = 0.0

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs, as many at once as the cluster has room for.

        Raises:
            JobError: one ended with another status than 0, or its workers died too often. The others
                are cancelled; what they had finished stays.
            UserError: a node does not see the data root or the environment.
        """
        for job in jobs:
            job.log.unlink(missing_ok=True)  # of an earlier run; a new one says that a worker began
        running = {self._submit(job, 0): _Running(job, 0) for job in jobs}
        try:
            while running:
                done, _ = self._ray.wait([*running], num_returns=1, timeout=PERIOD)
                for task in done:
                    running |= self._end(task, running.pop(task))
                for each in running.values():
                    each.show()
                if not done:
                    self._tell_infeasible([each.job for each in running.values()])
        finally:
            self._cancel(running)

    def _submit(self, job: Job, attempt: int) -> Any:
        gpus = self._gpus() if job.gpu else 0
        # retries are ours: Ray would begin again what is done already
        options = {"num_cpus": self._needs.cpus, "num_gpus": gpus, "max_retries": 0}
        places = (Path.cwd(), job.log.resolve(), self._proof)
        task = self._task.options(name=job.title, **options)
        return task.remote(job.command, *places, self._needs.cpus, attempt)

    def _gpus(self) -> float:
        if self._needs.gpus is not None:
            return self._needs.gpus
        return 1 if self._ray.cluster_resources().get("GPU", 0) else 0

    def _end(self, task: Any, each: _Running) -> dict[Any, _Running]:
        """What comes of a task that has ended: nothing more, or another attempt."""
        job = each.job
        try:
            status = self._ray.get(task)
        except self._lost as error:
            each.close()
            return self._again(each, type(error).__name__)
        except self._ray.exceptions.RayTaskError as error:
            each.close()
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise
        except self._ray.exceptions.RayError as error:
            each.close()
            raise JobError(f"{job.title}: {error}") from error
        each.show(finished=status == 0)
        each.close()
        if status != 0:
            raise JobError(failure(job, status))
        _await(lambda: job.again is None or not job.again())  # the next stage is planned by it
        return {}

    def _again(self, each: _Running, reason: str) -> dict[Any, _Running]:
        """What is left to do of a lost command."""
        job, attempt = each.job, each.attempt + 1
        left = [job] if job.again is None else job.again()
        if not left:
            print(
                f"{job.title}: its worker or node was lost ({reason}), when all was done",
                flush=True,
            )
            return {}
        if attempt > self._needs.retries:
            raise JobError(
                f"{job.title}: its worker or node was lost {attempt} times ({reason}); see {job.log}"
            )
        print(
            f"{job.title}: its worker or node was lost ({reason}); attempt {attempt + 1}",
            flush=True,
        )
        return {self._submit(rest, attempt): _Running(rest, attempt) for rest in left}

    def _tell_infeasible(self, jobs: Sequence[Job]) -> None:
        """Say now and then that commands wait for a node that the cluster does not have yet."""
        if time.monotonic() - self._told < INFEASIBLE_PERIOD:
            return
        self._told = time.monotonic()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for job in jobs:
            gpus = self._gpus() if job.gpu else 0
            room = any(
                node.get("CPU", 0) >= self._needs.cpus and node.get("GPU", 0) >= gpus
                for node in nodes
            )
            if not room:
                print(
                    f"{job.title}: waits for a node with {self._needs.cpus} cores and {gpus:g} GPUs; "
                    "the cluster has none",
                    flush=True,
                )

    def _cancel(self, running: dict[Any, _Running]) -> None:
        for task, each in running.items():
            self._ray.cancel(task)
            each.close()
        if running:
            self._ray.wait([*running], num_returns=len(running), timeout=CANCEL_WAIT)

    @classmethod
    @contextlib.contextmanager
    def open(cls, address: str, data_root: Path, needs: Needs) -> Iterator[Self]:
        """An engine, connected while the block runs.

        Args:
            address: of the cluster, see :func:`dtufc.cluster.connect`.
            data_root: shared by all nodes, at the same path.

        Raises:
            UserError: Ray is not installed, or there is no cluster at the address.
        """
        root = data_root.resolve()
        with cluster.connect(address) as ray:
            root.mkdir(parents=True, exist_ok=True)
            proof = root / f".cluster-{secrets.token_hex(8)}"
            proof.write_text(socket.gethostname())
            try:
                yield cls(ray, proof, needs)
            finally:
                proof.unlink(missing_ok=True)
