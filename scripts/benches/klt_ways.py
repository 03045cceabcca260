"""The work of ``bench_klt_ways.py``."""

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_klt_ways import WaysConfig
from benches.fit import code, fit

from dtufc import files
from dtufc.paths import REPOSITORY, RUN_JSON


@dataclass(frozen=True)
class Fitted:
    """A codec."""

    way: str
    layout: str
    megabytes: float
    cpu_seconds: float
    """Of the fit, on all cores."""


@dataclass(frozen=True)
class Rate:
    """Bits per point at an error; nan where a codec does not come to it."""

    nmse: float
    way: str
    bpfp: float
    change: str
    """Against the first way."""


def bench(cfg: WaysConfig) -> tuple[list[Fitted], list[Rate]]:
    """Fit in each way, and code the held-out features with each."""
    qualities = np.arange(cfg.first, cfg.last + 0.25, 0.5).tolist()
    common = ["--features", cfg.features] + (["--machine", cfg.machine] if cfg.machine else [])
    fitted, bits = [], {}
    with tempfile.TemporaryDirectory() as name:
        for number, way in enumerate(cfg.ways):
            folder = Path(name) / str(number)
            cpu = fit(REPOSITORY, [*common, "--output", folder, *shlex.split(way)])[1]
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6
            layout = files.read_json(folder / RUN_JSON)["layout"]
            fitted.append(Fitted(way or "as usual", layout, size, cpu))
            bits[fitted[-1].way] = rates_at(*code(folder, cfg.held_out, qualities), cfg.nmses)
    rows = []
    for nmse, *each in zip(cfg.nmses, *bits.values(), strict=True):
        for way, found in zip(bits, each, strict=True):
            change = found / each[0] - 1
            told = "" if found is each[0] or np.isnan(change) else f"{100 * change:+.1f} %"
            rows.append(Rate(nmse, way, found, told))
    return fitted, rows


def rates_at(curve: list[tuple[float, float]], power: float, nmses: list[float]) -> list[float]:
    """Bits per point at errors, of a curve of bits and MSE by ascending quality."""
    bits, mse = np.log(np.maximum(np.array(curve), 1e-30)).T
    at = np.log(np.array(nmses) * power)
    return np.exp(np.interp(at, mse[::-1], bits[::-1], np.nan, np.nan)).tolist()
