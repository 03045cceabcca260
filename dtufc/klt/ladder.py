"""The entropy models of all steps, second generation: their fit, and how they are stored."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dtufc.klt import trellis
from dtufc.klt.coder import forward
from dtufc.klt.tables import Tables, fit_tables, in_units

TURNS = 3
"""Turns of symbols and tables at a step, after the first: each step starts from the one before."""


def fit(transform, sample: np.ndarray, grades: Iterable[int], weight: float) -> Iterator[Tables]:
    """Tables of one step after the other.

    Args:
        sample: (R, C, S) float32. weight: of a bit, in squared steps.
    """
    clusters = range(transform.layout.clusters)
    y = [forward(transform, sample, mode) for mode in clusters]
    tables = None
    own = np.argmin([np.log2(1 + np.abs(each) / transform.unit).sum(0) for each in y], axis=0)
    for grade in grades:
        fine = trellis.FINE * transform.step(grade)
        if tables is not None and len(clusters) > 1:
            own = _assign(y, tables, fine, weight / trellis.FINE**2)
        mine = [
            np.ascontiguousarray(y[mode][:, own == mode]) / np.float32(fine) for mode in clusters
        ]
        more = {} if tables is None else {"start": tables, "rounds": TURNS}
        tables = fit_tables(mine, weight / trellis.FINE**2, **more)
        yield tables


def _assign(y: Sequence[np.ndarray], tables: Tables, fine: float, weight: float) -> np.ndarray:
    """The mode of each vector (R,)."""
    parameters = tables.parameters(weight)
    costs = []
    for mode, each in enumerate(y):
        units = in_units(each, 1 / fine)
        cost = np.empty(units.shape[1], np.int64)
        trellis.estimate(units, tables.chosen[0, mode], tables.shift, parameters, cost)
        costs.append(cost[: each.shape[1]] + tables.mode_cost(mode, weight))
    return np.argmin(costs, axis=0)


def arrays(rungs: Sequence[Tables]) -> dict[str, np.ndarray]:
    """The stored form."""
    freqs = [freq for tables in rungs for freq in tables.freqs]
    banks = np.array([[t.first_size, len(t.freqs) - t.first_size] for t in rungs], np.int32)
    chosen = np.stack([tables.chosen for tables in rungs])
    chosen[:, 1] -= banks[:, :1, None]  # (RUNGS, 2, K, D): of each quantiser's own bank
    return {
        "freqs": np.concatenate(freqs).astype(np.int32),
        "sizes": np.array([len(freq) for freq in freqs], np.int32),
        "banks": banks,
        "offset": np.concatenate([tables.low for tables in rungs]),
        "centroid": np.concatenate([tables.centroid for tables in rungs]),
        "chosen": chosen.astype(np.uint8),
        "shift": np.stack([tables.shift for tables in rungs]).astype(np.uint8),
        "clusters": np.stack([tables.modes for tables in rungs]).astype(np.int32),
    }


def rungs(arrays: dict[str, np.ndarray]) -> tuple[Tables, ...]:
    """The entropy models from their stored form."""
    ends = np.cumsum(arrays["sizes"])[:-1]
    freqs = np.split(arrays["freqs"], ends)
    out, first = [], 0
    for row, (one, two) in enumerate(arrays["banks"].tolist()):
        own = slice(first, first + one + two)
        chosen = arrays["chosen"][row].astype(np.int32)
        chosen[1] += one
        out.append(
            Tables(
                freqs=tuple(freqs[own]),
                low=arrays["offset"][own],
                centroid=arrays["centroid"][own],
                chosen=chosen,
                shift=arrays["shift"][row].astype(np.int32),
                modes=arrays["clusters"][row],
            )
        )
        first += one + two
    return tuple(out)
