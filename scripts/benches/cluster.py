"""The measurements of ``bench_cluster.py``."""

import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_cluster import ClusterBenchConfig

from dtufc import extras, files
from dtufc.codec import load_codec
from dtufc.corpora import code, ray_engine, sources
from dtufc.corpora.shards import ShardFacts
from dtufc.errors import UserError
from dtufc.experiments.jobs import Job
from dtufc.experiments.ray_engine import Needs, RayEngine
from dtufc.feature import write_feature
from dtufc.paths import RUN_JSON

JOB_FEATURES = 8
"""Features that a command codes."""
SLACK = 0.25
"""Share of the time beyond the best possible from which on it is starting that bounds."""


@dataclass(frozen=True)
class ClusterRow:
    """Some work on some workers."""

    what: str
    workers: int
    simulated: str
    """``yes`` where nothing was computed."""
    count: int
    seconds: float
    per_second: float
    busy: float
    """Share of the workers' time that went into the work, as long as it takes on one worker."""
    bound: str
    """What bounds the rate."""


class WaitingActor:
    """Stands for :class:`dtufc.corpora.ray_engine.ShardActor`: takes as long, and codes nothing. The
    seconds per shard are told as the name of the model."""

    def __init__(self, cfg: code.CodeConfig):
        self._cfg = cfg

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        told: dict[str, list[Any]] = {"number": [], "facts": [], "problem": []}
        for text in batch["work"]:
            work = code.Work.load(str(text))
            time.sleep(float(self._cfg.model))
            facts = ShardFacts(str(work.number), len(work.entries), 0, {})
            told["number"].append(work.number)
            told["facts"].append(facts.dump())
            told["problem"].append("")
        return told


def bench(cfg: ClusterBenchConfig) -> list[ClusterRow]:
    """Measure commands, then features; real ones first."""
    extras.load("ray")
    found: list[ClusterRow] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _write_features(cfg, root)
        for workers in sorted(cfg.workers):
            with _nodes(workers) as address:
                jobs = [_coding(cfg, root, n) for n in range(cfg.jobs * workers)]
                spent = _run(address, root, jobs, workers)
                found.append(_row("commands", workers, len(jobs), spent, _known(found, "commands")))
                start, rate, count = _code(cfg, root, address, workers)
                known = _known(found, "features")
                seconds = count / rate
                found.append(_row("features", workers, count, seconds, known, start))
        for workers in sorted(cfg.simulated):
            with _nodes(1, cores=workers) as address:
                durations = _durations(cfg, found, cfg.jobs * workers)
                jobs = [
                    Job(f"wait {n}", ["sleep", f"{each:.3f}"], root / f"wait{n}.log")
                    for n, each in enumerate(durations)
                ]
                spent = _run(address, root, jobs, workers)
                found.append(_simulated("commands", workers, durations, len(jobs), spent))
                each = _shard_seconds(cfg, found)
                if each is not None:
                    count = cfg.shards * workers
                    start, rate, features = _code(cfg, root, address, workers, each)
                    row = _simulated("features", workers, [each] * count, features, features / rate)
                    found.append(row)
    return found


def _write_features(cfg: ClusterBenchConfig, root: Path) -> None:
    (facts, *_) = load_codec(cfg.codec).known
    rng = np.random.default_rng(0)
    most = max([*cfg.workers, *cfg.simulated])
    for n in range(cfg.shards * most * cfg.shard_samples):
        if n < max(cfg.workers) * cfg.shards * cfg.shard_samples or n < JOB_FEATURES:
            shape = (1, 1, 64 + n % 32, facts.smallest[3])
            x = np.cumsum(rng.standard_normal(shape), axis=2).astype(facts.dtype)
            write_feature(root / "features" / f"f{n:06d}.npy", x)
            if n < JOB_FEATURES:
                write_feature(root / "few" / f"f{n:06d}.npy", x)


@contextlib.contextmanager
def _nodes(count: int, cores: int = 1) -> Iterator[str]:
    """The address of a cluster of so many nodes on this machine, beside a head without cores."""
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=cores, **options)
        yield cluster.address
    finally:
        cluster.shutdown()


def _coding(cfg: ClusterBenchConfig, root: Path, number: int) -> Job:
    out = root / "coded" / str(number)
    command = [sys.executable, "-m", "dtufc.evaluate", "--codec", str(cfg.codec)]
    command += ["--features", str(root / "few"), "--output", str(out)]
    return Job(f"code {number}", command, out / "evaluate.log")


def _run(address: str, root: Path, jobs: Sequence[Job], workers: int) -> float:
    """Seconds that the commands take when the workers' processes are there."""
    with (
        RayEngine.open(address, root, Needs(1, 0, 0)) as engine,
        contextlib.redirect_stdout(sys.stderr),
    ):
        engine.run(
            [Job(f"begin {n}", ["sleep", "1"], root / f"begin{n}.log") for n in range(workers)]
        )
        start = time.perf_counter()
        engine.run(jobs)
        return time.perf_counter() - start


def _code(
    cfg: ClusterBenchConfig, root: Path, address: str, workers: int, wait: float | None = None
) -> tuple[float, float, int]:
    """Seconds to the first shard, features per second from there on, and features in all.

    Args:
        wait: seconds per shard of actors that code nothing; ``None``: they code.
    """
    out = root / f"corpus{workers}"
    options = {"address": address, "engine": "ray", "shard_samples": cfg.shard_samples}
    coding = code.CodeConfig(
        codec=[cfg.codec], input=[str(root / "features")], output=str(out), workers=workers,
        model="" if wait is None else f"{wait:.4f}", **options,
    ).absolute()  # fmt: skip
    names = [*coding.tensors()]
    entries = sources.list_entries(coding.locations, names)
    count = cfg.shards * workers * cfg.shard_samples
    works = code.plan(coding, names, [*itertools.islice(itertools.cycle(entries), count)])
    actor = ray_engine.ShardActor if wait is None else WaitingActor
    begun, times, done = time.perf_counter(), [], []
    for facts in ray_engine.code_on_cluster(coding, works, actor):
        times.append(time.perf_counter())
        done.append(facts.samples)
    if len(times) <= workers:
        raise UserError("shards: expected more, so that there is a rate after the first ones")
    first = times[workers - 1]  # every actor has started by then, or the others were faster
    rate = sum(done[workers:]) / (times[-1] - first)
    return times[0] - begun, rate, sum(done)


def _known(found: Sequence[ClusterRow], what: str) -> ClusterRow | None:
    """The row of one worker."""
    return next((row for row in found if row.what == what and row.workers == 1), None)


def _row(
    what: str, workers: int, count: int, seconds: float, one: ClusterRow | None, start: float = 0
) -> ClusterRow:
    rate = count / seconds
    busy = 1.0 if one is None else rate / (workers * one.per_second)
    bound = "one core per worker" if busy > 1 - SLACK else "the cores of this machine"
    if start:
        bound += f"; {start:.1f} s to the first shard"
    return ClusterRow(what, workers, "", count, seconds, rate, busy, bound)


def _durations(cfg: ClusterBenchConfig, found: Sequence[ClusterRow], count: int) -> list[float]:
    """Seconds of simulated commands: those of the records in turn, or those of one worker."""
    if cfg.recorded is None:
        one = _known(found, "commands")
        return [1 / one.per_second] * count
    records = sorted(cfg.recorded.rglob(RUN_JSON))
    walls = [files.read_json(path).get("wall_s") for path in records]
    seconds = [wall * cfg.scale for wall in walls if isinstance(wall, int | float)]
    if not seconds:
        raise UserError(f"recorded: {cfg.recorded}: no {RUN_JSON} with wall_s")
    return [*itertools.islice(itertools.cycle(seconds), count)]


def _shard_seconds(cfg: ClusterBenchConfig, found: Sequence[ClusterRow]) -> float | None:
    one = _known(found, "features")
    return None if one is None else cfg.shard_samples / one.per_second


def _simulated(
    what: str, workers: int, durations: Sequence[float], count: int, seconds: float
) -> ClusterRow:
    work = sum(durations)
    best = max(max(durations), work / workers)
    if seconds > best * (1 + SLACK):
        bound = "starting and telling of tasks"
    elif max(durations) > work / workers:
        bound = "the longest command"
    else:
        bound = "the work"
    busy = work / workers / seconds
    return ClusterRow(what, workers, "yes", count, seconds, count / seconds, busy, bound)
