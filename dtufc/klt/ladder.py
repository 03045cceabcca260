"""The stored form of the entropy models of all steps, second generation, which
:mod:`dtufc.klt.fit_ladder` makes."""

from collections.abc import Callable, Sequence

import numpy as np

from dtufc.klt.contexts import CLASSES, Contexts
from dtufc.klt.tables import Tables


def arrays(rungs: Sequence[Tables]) -> dict[str, np.ndarray]:
    """The stored form."""
    freqs = [freq for tables in rungs for freq in tables.freqs]
    banks = np.array([[t.first_size, len(t.freqs) - t.first_size] for t in rungs], np.int32)
    chosen = np.stack([tables.chosen for tables in rungs])
    chosen[:, 1] -= banks[:, :1, None]  # (RUNGS, 2, K, D): of each quantiser's own bank
    out = {
        "freqs": np.concatenate(freqs).astype(np.int32),
        "sizes": np.array([len(freq) for freq in freqs], np.int32),
        "banks": banks,
        "offset": np.concatenate([tables.low for tables in rungs]),
        "centroid": np.concatenate([tables.centroid for tables in rungs]),
        "chosen": chosen.astype(np.uint8),
        "shift": np.stack([tables.shift for tables in rungs]).astype(np.uint8),
        "clusters": np.stack([tables.modes for tables in rungs]).astype(np.int32),
    }
    known = [tables.contexts for tables in rungs if tables.contexts is not None]
    if known:
        versions = [freq for each in known for freq in each.freqs]
        out["context_freqs"] = np.concatenate(versions).astype(np.uint16)
        out["context_bounds"] = np.concatenate([each.bounds for each in known])
    return out


def rungs(arrays: dict[str, np.ndarray]) -> tuple[Tables, ...]:
    """The entropy models from their stored form."""
    ends = np.cumsum(arrays["sizes"])[:-1]
    freqs = np.split(arrays["freqs"], ends)
    versions = _versions(arrays)
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
                contexts=versions(own),
            )
        )
        first += one + two
    return tuple(out)


def _versions(arrays: dict[str, np.ndarray]) -> Callable[[slice], Contexts | None]:
    """The contexts of some of all tables, from their stored form."""
    if "context_freqs" not in arrays:
        return lambda own: None
    ends = np.cumsum(np.repeat(arrays["sizes"], CLASSES))[:-1]
    freqs = np.split(arrays["context_freqs"].astype(np.int32), ends)
    bounds = arrays["context_bounds"]

    def of(own: slice) -> Contexts:
        mine = slice(own.start * CLASSES, own.stop * CLASSES)
        return Contexts(tuple(freqs[mine]), bounds[own])

    return of
