"""The work of ``bench_transform.py``."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from bench_transform import BenchConfig
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from dtufc.transform.fit import fit_codebook
from dtufc.transform.mapping import Mapping


class Row(NamedTuple):
    """One comparison."""

    what: str
    values: int
    ours_s: float
    theirs: str
    theirs_s: float
    mse_ratio: float | None = None
    """Ours over theirs."""

    @property
    def speedup(self) -> float:
        return self.theirs_s / self.ours_s


def best_time(function: Callable[[], object], runs: int = 5) -> float:
    """Seconds of the fastest of several runs after a first one that is not counted."""
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@threadpool_limits.wrap(limits=1)
def bench(cfg: BenchConfig) -> list[Row]:
    """Measure everything."""
    rng = np.random.default_rng(cfg.seed)
    scale = 100 if cfg.small else 1
    few = (rng.standard_normal(2_000_000 // scale) ** 3).astype(np.float32)
    many = rng.standard_normal(10_000_000 // scale).astype(np.float32)
    return [bench_fit(few), *bench_mapping(many)]


def bench_fit(x: np.ndarray) -> Row:
    """Time and MSE of the fit, both in float64 on the same values."""
    ours_s = best_time(lambda: fit_codebook([x], "kmeans", 256))
    codebook, _ = fit_codebook([x], "kmeans", 256)
    start = time.perf_counter()
    model = KMeans(256, n_init=1, random_state=0).fit(x[:, None])
    theirs_s = time.perf_counter() - start
    theirs = np.sort(model.cluster_centers_[:, 0].astype(np.float64))
    ratio = mean_squared_error(x, codebook) / mean_squared_error(x, theirs)
    return Row("fit, 256 centres", x.size, ours_s, "sklearn KMeans", theirs_s, ratio)


def mean_squared_error(x: np.ndarray, centres: np.ndarray) -> float:
    """MSE of the nearest centre, in float64."""
    nearest = centres[np.searchsorted((centres[:-1] + centres[1:]) / 2, x)]
    return float(np.mean((x - nearest) ** 2))


def bench_mapping(x: np.ndarray) -> list[Row]:
    """Forward and inverse with a codebook fitted to the values."""
    codebook, _ = fit_codebook([x], "kmeans", 256)
    mapping = Mapping(codebook)
    borders, centres = (codebook[:-1] + codebook[1:]) / 2, codebook.astype(np.float32)
    u = mapping.forward(x)

    def lookup() -> np.ndarray:
        return centres[np.clip(np.rint(u * 256), 0, 255).astype(np.int64)]

    digitize_s = best_time(lambda: np.digitize(x, borders), 2)
    forward_s = best_time(lambda: mapping.forward(x))
    inverse_s, lookup_s = best_time(lambda: mapping.inverse(u)), best_time(lookup)
    return [
        Row("forward, nearest", x.size, forward_s, "np.digitize", digitize_s),
        Row("inverse, nearest", x.size, inverse_s, "numpy indexing", lookup_s),
    ]
