"""The metric of a feature from gradients of the half behind: the work of :mod:`dtufc.klt.fit_metric`.

gradients ─ outer products, over importances ─ F ─ root ─ weighed tokens ─ components ─┐
     └───────────────────────── what an error of a token costs ────────────────────────┴─ importances
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dtufc import locks, provenance
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts, list_features, load_facts
from dtufc.klt.fit_metric import MetricConfig
from dtufc.klt.weighting import Predictor, Weighting
from dtufc.kv.fit import weight_of
from dtufc.kv.importance import FAR, Probed, fit_importance, saved, to_classes
from dtufc.machines.machine import Machine
from dtufc.machines.opening import open_machine

TURNS = 2
"""Of metric and importances, which depend on each other."""
HELD = 4  # of so many samples the last tells what importances save


@dataclass(frozen=True)
class Measured:
    """Tokens of some training features and their gradients."""

    x: np.ndarray
    """(n, T, C) float32."""
    slopes: np.ndarray
    """(n, draws, T, C) float32."""
    position: np.ndarray
    """(T,) of each token in its sequence."""

    def part(self, samples: slice) -> "Measured":
        return Measured(self.x[samples], self.slopes[samples], self.position)


def measure(cfg: MetricConfig) -> dict[str, Any]:
    """Measure and write the file; what is told of it.

    Raises:
        FileNotFoundError, UserError: no such machine or features, or it has no gradients.
    """
    with locks.hold(cfg.output):
        measured = capture(cfg, open_machine(cfg.machine, cfg.options), load_facts(cfg.machine))
        weighting = weigh(measured, cfg)
        told = {
            "machine": cfg.machine, "samples": len(measured.x), "draws": cfg.draws, "seed": cfg.seed,
            "shrinkage": cfg.shrinkage, "channels": weighting.channels,
        }  # fmt: skip
        if cfg.importance:
            told["saved"] = saved_by(measured, cfg)
        weighting.save(cfg.output, told | {"environment": provenance.environment()})
    return told


def capture(cfg: MetricConfig, machine: Machine, facts: FeatureFacts) -> Measured:
    """Tokens and gradients of some of the training features.

    Raises:
        UserError: maps, or files that are of none of the machine's samples or of several lengths.
    """
    if facts.views.is_map:
        raise UserError(f"machine: {cfg.machine} has feature maps; a metric is for tokens")
    paths = list_features(cfg.features)
    known = {sample.name: sample for sample in machine.samples("train")}
    places = np.unique(np.linspace(0, len(paths) - 1, cfg.samples).astype(int))
    generator = torch.Generator().manual_seed(cfg.seed)
    rows, slopes, lengths = [], [], set()
    for path in tqdm([paths[place] for place in places], desc="gradients", unit="sample"):
        if path.stem not in known:
            raise UserError(f"{path}: no training sample of {cfg.machine} has this name")
        x = facts.read(path)
        drawn = machine.slopes(known[path.stem], x, cfg.draws, generator)
        rows.append(facts.views.to_vectors(x, 1)[:, :, 0])
        slopes.append(np.stack([facts.views.to_vectors(each, 1)[:, :, 0] for each in drawn]))
        lengths.add((len(rows[-1]), facts.views.sequence(x.shape) or len(rows[-1])))
    if len(lengths) > 1:
        raise UserError(f"features: expected files of as many tokens, got {sorted(lengths)}")
    count, length = lengths.pop()
    found = np.stack(slopes)
    read = found.any((0, 1, 3))  # what is behind no answer, as a text's last token, tells nothing
    if not read.any():
        raise UserError("machine: no answer depends on the features")
    return Measured(np.stack(rows)[:, read], found[:, :, read], (np.arange(count) % length)[read])


def weigh(measured: Measured, cfg: MetricConfig) -> Weighting:
    """The metric, and how importances are told."""
    over = np.ones(measured.x.shape[:2])
    for _ in range(TURNS if cfg.importance else 1):
        root, unroot = metric_of(measured.slopes, over, cfg)
        weighting = Weighting(root.astype(np.float32), unroot.astype(np.float32))
        if not cfg.importance:
            break
        predictor, known = _predictor(measured, weighting)
        over = 2.0 ** to_classes(known)
        weighting = Weighting(weighting.root, weighting.unroot, predictor)
    return weighting


def metric_of(
    slopes: np.ndarray, over: np.ndarray, cfg: MetricConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The root of the Fisher information and its inverse, (C, C) float64; (C,) of its diagonal.

    Args:
        slopes: (n, draws, T, C). over: (n, T): importances that are not the channels' matter.
    """
    scaled = slopes / np.sqrt(over, dtype=np.float32)[:, None, :, None]
    flat = torch.from_numpy(scaled.reshape(-1, slopes.shape[-1]))
    if not cfg.diagonal:
        return weight_of(((flat.T @ flat).double() / len(flat)).numpy(), cfg.shrinkage)
    power = flat.double().square().mean(0).numpy()
    mean = max(power.mean(), float(np.finfo(np.float32).tiny))
    root = np.sqrt((1 - cfg.shrinkage) * power + cfg.shrinkage * mean)
    return root, 1 / root


def costs(slopes: np.ndarray, weighting: Weighting) -> np.ndarray:
    """(n, T): what an error of each token costs, where the metric's own average costs 1."""
    return np.square(weighting.inverse(slopes)).mean(-1).mean(1, dtype=np.float64)


def _predictor(measured: Measured, weighting: Weighting) -> tuple[Predictor, np.ndarray]:
    """How importances are told, and log2 of those of the tokens (n, T)."""
    n, t, channels = measured.x.shape
    z = weighting.forward(measured.x.reshape(n * t, channels))[0]
    mean = z.mean(0, dtype=np.float64).astype(np.float32)
    away = torch.from_numpy(z - mean)
    values, vectors = torch.linalg.eigh((away.T @ away).double() / len(away))
    basis = vectors.flip(1).numpy().astype(np.float16).astype(np.float32)
    sigma = values.flip(0).clamp(min=0).sqrt().numpy()
    sigma = np.maximum(sigma, 1e-6 * sigma[0] + 1e-20)
    y = (z - mean) @ basis
    behind = np.full(t, FAR)
    probed = Probed(
        y.reshape(n, t, channels), costs(measured.slopes, weighting), behind, measured.position
    )
    importance = fit_importance(probed, sigma, t)
    known = importance.log2(y, np.tile(behind, n), np.tile(measured.position, n))
    return Predictor(mean, basis, importance), known.reshape(n, t)


def saved_by(measured: Measured, cfg: MetricConfig) -> float:
    """Bits per point at high rates that steps by importance save over one step, on samples that none of
    it was fitted to."""
    last = len(measured.x) - max(1, len(measured.x) // HELD)
    told, unseen = measured.part(slice(0, last)), measured.part(slice(last, None))
    weighting = weigh(told, cfg)
    n, t, channels = unseen.x.shape
    z = weighting.forward(unseen.x.reshape(n * t, channels))[0]
    classes = weighting.predictor.classes(z, np.tile(unseen.position, n))
    return saved(costs(unseen.slopes, weighting), classes.reshape(n, t).astype(np.float64))
