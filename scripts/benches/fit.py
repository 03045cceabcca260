"""The work of ``bench_fit.py``."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_fit import BenchConfig
from benches.klt import World

from dtufc import files
from dtufc.codec import CONFIG_JSON, load_codec
from dtufc.errors import UserError
from dtufc.feature import list_features, read_feature, write_feature
from dtufc.klt.race import compare
from dtufc.paths import REPOSITORY, RUN_JSON

SCRIPT = "coding/klt/fit_klt.py"
TESTED = 20_000_000  # values of held-out features that are coded, about


@dataclass(frozen=True)
class FitRow:
    """One way to fit."""

    fit: str
    layout: str
    candidates: int
    """How many were tried."""
    seconds: float
    cpu_seconds: float
    peak_gib: float
    time_ratio: float
    """Its seconds over the first row's."""
    cpu_ratio: float
    """The same of the seconds of all cores."""
    rate: str
    """Its bytes at equal error against the first row's."""
    bpfp: str
    """At the qualities, with the NMSE of each."""


def bench(cfg: BenchConfig) -> list[FitRow]:
    """Fit in each way, code the held-out features with each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = _features(cfg, folder)
        ways = {search: (REPOSITORY, ["--search", search]) for search in cfg.searches}
        if cfg.before:
            ways[cfg.before] = _checkout(cfg.before, folder / "before"), []
        common = ["--machine", cfg.machine] if cfg.machine else []
        common += ["--clusters", str(cfg.clusters)] if cfg.clusters else []
        common += ["--format", str(cfg.format)]
        small = folder / "small"
        for number in range(4):
            write_feature(small / f"{number}.npy", World(16).tokens(200))
        rows, curves = [], []
        for way, (tree, flags) in ways.items():
            warm = ["--features", small, "--output", folder / f"warm_{way}"]
            fit(tree, [*warm, "--format", cfg.format])  # compiles
            output = folder / f"codec_{way}"
            spent = fit(tree, ["--features", train, "--output", output, *common, *flags])
            curve, power = code(output, test, cfg.qualities)
            curves.append(curve)
            scores = compare(curves) if len(curve) > 1 else [0.0] * len(curves)
            seconds, cpu, peak = spent
            rows.append(
                FitRow(
                    fit=way,
                    layout=files.read_json(output / RUN_JSON)["layout"],
                    candidates=len(files.read_json(output / CONFIG_JSON)["made_by"]["tried"]),
                    seconds=seconds,
                    cpu_seconds=cpu,
                    peak_gib=peak / 2**30,
                    time_ratio=seconds / (rows[0].seconds if rows else seconds),
                    cpu_ratio=cpu / (rows[0].cpu_seconds if rows else cpu),
                    rate=f"{2 ** (scores[-1] - scores[0]) - 1:+.2%}",
                    bpfp=", ".join(f"{bits:.3f} ({mse / power:.4f})" for bits, mse in curve),
                )
            )
        return rows


def _features(cfg: BenchConfig, folder: Path) -> tuple[Path, Path]:
    """Folders to fit on and to code."""
    if cfg.features is not None and cfg.held_out is not None:
        return cfg.features, cfg.held_out
    world = World(cfg.channels)
    count = -(-cfg.tokens // cfg.tokens_per_file)
    for number in range(count + 10):
        part = "train" if number < count else "test"
        write_feature(folder / part / f"{number:05d}.npy", world.tokens(cfg.tokens_per_file))
    return folder / "train", folder / "test"


def _checkout(revision: str, folder: Path) -> Path:
    """The code of an earlier commit.

    Raises:
        UserError: there is no such commit.
    """
    folder.mkdir()
    command = ["git", "-C", REPOSITORY, "archive", revision, "dtufc", "coding", "configs"]
    packed = subprocess.run(command, capture_output=True)
    if packed.returncode:
        raise UserError(f"before: {packed.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
    return folder


def fit(tree: Path, flags: list) -> tuple[float, float, int]:
    """Fit by the code of ``tree`` -> seconds, seconds of all cores, peak of memory in bytes."""
    command = [sys.executable, str(tree / SCRIPT), *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"{' '.join(command)}: ended with status {process.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def code(
    folder: Path, features: Path, qualities: list[float]
) -> tuple[list[tuple[float, float]], float]:
    """Bits per point, all bytes counted, and MSE at each quality; and the features' variance."""
    loaded, taken, room = load_codec(folder), [], TESTED
    for path in list_features(features):
        if room > 0:
            taken.append(read_feature(path))
            room -= taken[-1].size
    points = sum(x.size for x in taken)
    curve = []
    for quality in sorted(qualities):
        codec, size, error = loaded.at_quality(quality), 0, 0.0
        for x in taken:
            data = codec.encode(x)
            size += len(data)
            error += float(np.sum(np.square(codec.decode(data).astype(np.float64) - x)))
        curve.append((8 * size / points, error / points))
    return curve, float(np.var(np.concatenate([x.ravel() for x in taken]), dtype=np.float64))
