"""The metric of a feature from gradients of the half behind: the work of :mod:`dtufc.klt.fit_metric`.

gradients ─ outer products, over importances ─ F ─ root ─ weighed tokens ─ components ─┐
     └───────────────────────── what an error of a token costs ────────────────────────┴─ importances
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dtufc import provenance
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts, list_features, load_facts
from dtufc.klt.fit_metric import MetricConfig
from dtufc.klt.importance import FAR, Probed, fit_importance, to_classes
from dtufc.klt.weighting import Predictor, Weighting, weight_of
from dtufc.machines.machine import Machine
from dtufc.machines.opening import open_machine

TURNS = 2
"""Of metric and importances, which depend on each other."""
HELD = 4  # the last of so many parts of the samples tells what is promised
SHRINKAGES = (0.03, 0.1, 0.3, 0.6)
DIVERGENCES = (0.04, 0.008)
"""Nats per token for which bits are promised."""


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


@dataclass(frozen=True)
class Promise:
    """Bits that an ideal codec takes for a divergence of the answers."""

    weighed: str
    """none, channels, or tokens: channels, and tokens by their importance."""
    kl: float
    """Nats per token."""
    bits: float
    """Per point."""


def measure(cfg: MetricConfig) -> dict[str, Any]:
    """Measure and write the file; what is told of it.

    Raises:
        FileNotFoundError, UserError: no such machine or features, or it has no gradients.
    """
    measured = capture(cfg, open_machine(cfg.machine, cfg.options), load_facts(cfg.machine))
    weighting, told = choose(measured, cfg)
    told |= {
        "machine": cfg.machine, "samples": len(measured.x), "draws": cfg.draws, "seed": cfg.seed,
        "channels": weighting.channels,
    }  # fmt: skip
    weighting.save(cfg.output, told | {"environment": provenance.environment()})
    return told


def choose(measured: Measured, cfg: MetricConfig) -> tuple[Weighting, dict[str, Any]]:
    """The weighting, of the shrinkage that promises the fewest bits on samples that it was not fitted
    to; the shrinkage and what it promises there."""
    last = len(measured.x) - max(1, len(measured.x) // HELD)
    told, unseen = measured.part(slice(0, last)), measured.part(slice(last, None))
    tried = {}
    for shrinkage in SHRINKAGES if cfg.shrinkage is None else (cfg.shrinkage,):
        weighting = weigh(told, replace(cfg, shrinkage=shrinkage))
        tried[shrinkage] = weighting, promise(told, unseen, weighting)
    best = min(tried, key=lambda shrinkage: np.log2(tried[shrinkage][1]).sum())
    draft, bits = tried[best]
    ways = {"none": promise(told, unseen, None), "channels": bits}
    if draft.predictor is not None:
        ways |= {"channels": promise(told, unseen, replace(draft, predictor=None)), "tokens": bits}
    promises = [
        {"weighed": way, "kl": kl, "bits": bits}
        for way, found in ways.items()
        for kl, bits in zip(DIVERGENCES, found, strict=True)
    ]
    found = weigh(measured, replace(cfg, shrinkage=best))
    return found, {"shrinkage": best, "promises": promises}


def promise(told: Measured, unseen: Measured, weighting: Weighting | None) -> list[float]:
    """Bits per point at the DIVERGENCES, by reverse water-filling over components that are Gaussian.

    Args:
        told: what variances are of. unseen: whose gradients tell what errors cost.
        weighting: None: the error is that of the channels.
    """
    channels, slopes = told.x.shape[2], unseen.slopes.mean(1)
    shares = [(0, slopes.reshape(-1, channels))]
    z = told.x.reshape(-1, channels)
    if weighting is not None:
        z = weighting.forward(z)[0]
        slopes = weighting.inverse(slopes)
        n, t = slopes.shape[:2]
        seen = weighting.forward(unseen.x.reshape(n * t, channels))[0]
        classes = weighting.told(seen, np.tile(unseen.position, n))
        flat = slopes.reshape(n * t, channels)
        shares = [(each, flat[classes == each]) for each in np.unique(classes).tolist()]
    away = torch.from_numpy(z - z.mean(0))
    values, basis = torch.linalg.eigh((away.T @ away).double() / len(away))
    power = values.clamp(min=1e-30).numpy()
    costs = [
        (each, len(mine), np.square(mine @ basis.float().numpy()).mean(0, dtype=np.float64))
        for each, mine in shares
    ]
    total = sum(count for _, count, _ in costs)
    top = np.log2(power.max())
    curve = []
    for level in np.arange(top - 48, top + 12, 0.25):  # log2 of the largest error of a component
        bits = kl = 0.0
        for each, count, cost in costs:
            error = np.minimum(power, 2.0 ** (level - each))
            bits += count / total * np.log2(power / error).mean() / 2
            kl += count / total * (error * cost).sum() / 2
        curve.append((np.log(max(kl, 1e-30)), bits))
    logs, bits = np.array(curve).T
    return [float(np.interp(np.log(kl), logs, bits)) for kl in DIVERGENCES]


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
        predictor, known = _predictor(measured, weighting, cfg.focus)
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


def _predictor(
    measured: Measured, weighting: Weighting, focus: float
) -> tuple[Predictor, np.ndarray]:
    """How importances are told, and log2 of those of the tokens (n, T), as far as steps follow them."""
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
    importance = fit_importance(probed, sigma, t, focus)
    known = importance.log2(y, np.tile(behind, n), np.tile(measured.position, n))
    return Predictor(mean, basis, importance), known.reshape(n, t)
