"""The work of ``bench_klt_layouts.py``."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_klt_layouts import LayoutsConfig
from benches.fit import code, fit

from dtufc import files
from dtufc.paths import REPOSITORY, RUN_JSON

WAYS = {
    "one": [],
    "low": ["--compared_at", "[-2.5,-1.5,-0.5]"],
    "high": ["--compared_at", "[2.5,3.5,4.5]"],
    "two": ["--layouts", "two"],
}
"""Flags of fit_klt.py. Features with giant tokens take other qualities by default, but not here."""


@dataclass(frozen=True)
class Fitted:
    """A codec."""

    fit: str
    layout: str
    megabytes: float
    cpu_seconds: float
    """Of the fit, on all cores."""


@dataclass(frozen=True)
class Rates:
    """Bits per point at an error; nan where a codec does not come to it."""

    nmse: float
    one: float
    low: float
    high: float
    two: float
    change: str
    """Of two layouts against one."""


def bench(cfg: LayoutsConfig) -> tuple[list[Fitted], list[Rates]]:
    """Fit in each way, and code the held-out features with each."""
    qualities = np.arange(cfg.first, cfg.last + 0.25, 0.5).tolist()
    common = ["--features", cfg.features, "--format", cfg.format, *cfg.flags]
    common += ["--machine", cfg.machine] if cfg.machine else []
    common += ["--clusters", cfg.clusters] if cfg.clusters else []
    fitted, bits = [], {}
    with tempfile.TemporaryDirectory() as name:
        for way, flags in WAYS.items():
            folder = Path(name) / way
            cpu = fit(REPOSITORY, [*common, "--output", folder, *flags])[1]
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
            fitted.append(Fitted(way, files.read_json(folder / RUN_JSON)["layout"], size, cpu))
            curve, power = code(folder, cfg.held_out, qualities)
            bits[way] = rates_at(curve, power, cfg.nmses)
    rows = []
    for nmse, *each in zip(cfg.nmses, *bits.values(), strict=True):
        one, *_, two = each
        change = "" if np.isnan(two / one) else f"{100 * (two / one - 1):+.1f} %"
        rows.append(Rates(nmse, *each, change))
    return fitted, rows


def rates_at(curve: list[tuple[float, float]], power: float, nmses: list[float]) -> list[float]:
    """Bits per point at errors, of a curve of bits and MSE by ascending quality."""
    bits, mse = np.log(np.maximum(np.array(curve), 1e-30)).T
    at = np.log(np.array(nmses) * power)
    return np.exp(np.interp(at, mse[::-1], bits[::-1], np.nan, np.nan)).tolist()
