"""The fit of a linear prediction (:mod:`dtufc.klt.prediction`), and whether it pays.

    tokens ─ modes, roughly quantised ─ pairs of neighbours by mode ─ matrices ─ what is left ─ bases

A mode without a forecast gets a companion with one: of the tokens that take the mode, what the tokens
before them tell beyond the mode's mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtufc.feature import FeatureFacts
from dtufc.klt import fit_ladder
from dtufc.klt.bases import Bases, Candidate, outer
from dtufc.klt.fit_memory import LEAST, TOLD, UNSEEN, Sequences
from dtufc.klt.fit_tables import WEIGHT, Coded, Decode, Late, dead_zone, measure, scale
from dtufc.klt.model import MAX_UNIT, PER_OCTAVE, RUNGS, KltModel, Layout, Transform
from dtufc.klt.prediction import LARGEST, SMALLEST, Prediction, fade
from dtufc.klt.race import FEW, MAX_BASES, Race, compare, in_threads

FAR = 3.0  # times the median length of a difference from the mean: more is no usual token
HELD = 5  # of so many usual pairs in a row one block tells the shrinkage
BLOCK = 64  # pairs of a block
POOLED = (0.01, 0.1, 1.0)
OWN = (0.3, 1.0, 3.0, np.inf)
"""Shrinkage of the matrix of all modes and of how those of single ones differ: shares of the variance of
components that count as noise."""
PRIOR = 8  # vectors' worth of belief in the common mean of what is left
LONGEST = 0.95
"""What is left of a difference from token to token, at most."""
MOST = 6e4  # magnitude of what a matrix may hold: float16 ends at 65504


class Forecasts:
    """Modes with a forecast, beside those of a transform, and the vectors for their tables.

    Args:
        known: tokens of whole files, that matrices and bases are made of.
        few: tokens that tables are made of.
        plain: the transform of the modes without a forecast.
        grade: about where the tokens before are quantised.
    """

    def __init__(
        self, known: Sequences, few: Sequences, best: Candidate, plain: Transform, bases: Bases,
        grade: int,
    ):  # fmt: skip
        self.few, self.plain, self.bases = few, plain, bases
        self.first = plain.layout.clusters
        step = plain.step(grade)
        self.noise = max(step**2 / 12, SMALLEST**2)  # as that of quantisation, in every direction
        own, decoded = self._rough(known.x, step)
        self.mean, self.reach = _usual(known.x)
        pairs = known.before > 0
        pairs &= self._is_usual(known.x[:, :, 0]) & np.roll(self._is_usual(decoded), 1)
        at = np.flatnonzero(pairs)
        self.pairs = len(at)
        if not self.pairs:
            return
        before, own = fade(decoded[at - 1], self.mean, self.reach), own[at]
        behind = known.x[at, :, 0] - plain.mean[own, :, 0]
        matrices, means, left = self._regress(before, behind, own)
        power = np.sqrt(np.square(before, dtype=np.float64).mean(0))
        unit = np.clip(power, max(SMALLEST, 1e-6 * power.max()), LARGEST).astype(np.float32)
        scaled = np.clip(matrices * unit[:, None] / unit, -MOST, MOST)
        scaled = scaled.astype(np.float16).astype(np.float32)
        self.prediction = Prediction(self.first, self.mean, unit, scaled, self.reach)
        seconds = [outer(left[own == k][:, :, None], bases.device) for k in range(self.first)]
        common = sum(seconds) / self.pairs
        sizes, belief = np.bincount(own, minlength=self.first), best.shrinkage
        found = [
            bases.eigenbasis((second + belief * common) / max(size + belief, 1))
            for second, size in zip(seconds, sizes, strict=True)
        ]
        layout = replace(plain.layout, clusters=2 * self.first)
        means = np.clip(plain.mean + means[:, :, None], -MAX_UNIT, MAX_UNIT)
        basis = np.concatenate([plain.basis, np.stack(found)])
        self.transform = Transform(layout, np.concatenate([plain.mean, means]), basis, plain.unit)

    def _is_usual(self, x: np.ndarray) -> np.ndarray:
        """Which of the tokens (R, C) are, (R,) bool."""
        return np.linalg.norm(x - self.mean, axis=1) <= self.reach

    def _rough(self, x: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
        """The mode of each token (R, C, 1), by a guess (R,), and about what it is decoded to (R, C)."""
        step = np.float32(step)
        cheapest, own = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
        decoded = np.empty(x.shape[:2], np.float32)
        for mode in range(self.first):
            y = self.plain.forward(x, mode)
            cost = measure(y, step)
            better = cost < cheapest
            cheapest[better], own[better] = cost[better], mode
            y = dead_zone(scale(y[better], step)).astype(np.float32) * step
            decoded[better] = self.plain.inverse(y, mode)[:, :, 0]
        return own, decoded

    def _regress(
        self, before: np.ndarray, behind: np.ndarray, own: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The matrix of each mode (K, C, C), the means of what they leave (K, C), and what is left
        (n, C) of the pairs.

        Args:
            before, behind: (n, C), away from the mean and from the mode's mean. own: (n,) the modes.
        """
        held = np.arange(len(own)) // BLOCK % HELD == 0
        centre = np.stack([_mean(before[own == k]) for k in range(self.first)])
        shift = np.stack([_mean(behind[own == k]) for k in range(self.first)])
        f, b = before - centre[own], behind - shift[own]
        power, basis = np.linalg.eigh(_second(f[~held], f[~held]) / max(1, (~held).sum()))
        basis = basis.astype(np.float32)
        power = np.maximum(power, 0) + self.noise
        f = f @ basis
        across = _second(f[~held], b[~held]) / max(1, (~held).sum())
        pooled = [(across / ((1 + share) * power)[:, None]).astype(np.float32) for share in POOLED]
        best = min(pooled, key=lambda each: self._score(b[held] - f[held] @ each, own[held]))
        found = np.repeat(best[None], self.first, 0)
        if self.first > 1:
            rest = b - f @ best
            ways = {share: self._own(f, rest, own, ~held, power, share) for share in OWN}
            score = {
                share: self._score(rest[held] - _by_mode(f[held], own[held], way), own[held])
                for share, way in ways.items()
            }
            share = min(score, key=score.__getitem__)
            found = found + self._own(f, rest, own, np.ones(len(own), bool), power, share)
        found = np.stack([_contract(each @ basis, power) @ basis.T for each in found])
        b -= _by_mode(f, own, found)
        matrices = basis @ found
        means = shift - np.einsum("kc,kcd->kd", centre, matrices)
        return matrices, means, b

    def _own(self, f, b, own, told, power, share: float) -> np.ndarray:
        """How the matrix of each mode differs from that of all, (K, C, C) float32, over components."""
        out = np.zeros((self.first, f.shape[1], b.shape[1]), np.float32)
        if np.isinf(share):
            return out
        for k in range(self.first):
            mine = told & (own == k)
            second = _second(f[mine], f[mine])
            trust = share * mine.sum() + PRIOR
            second[np.diag_indices_from(second)] += trust * power + mine.sum() * self.noise
            out[k] = np.linalg.solve(second, _second(f[mine], b[mine]))
        return out

    def _score(self, left: np.ndarray, own: np.ndarray) -> float:
        """What is left of vectors (n, C), as bits of the components of their modes."""
        total = 0.0
        for k in range(self.first):
            mine = left[own == k]
            if len(mine):
                power = np.square(mine @ self.plain.basis[k], dtype=np.float64).mean(0)
                floor = max((self.plain.unit / 64) ** 2, SMALLEST**2)
                total += len(mine) * np.log2(np.maximum(power, floor)).sum()
        return total

    @cached_property
    def y(self) -> list[np.ndarray]:
        """What is coded of the vectors for tables (R, C) in each mode without a forecast."""
        return [self.plain.forward(self.few.x, mode) for mode in range(self.first)]

    @property
    def coded(self) -> Coded:
        """The vectors for tables in all modes."""
        return Coded(self.y, late=self.late)

    def late(self, own: np.ndarray, decode: Decode) -> Late:
        """What is coded in the modes with a forecast, and which vectors cannot have them, as bits.

        Args:
            own: (R,) the other mode of each vector. decode: what becomes of them.
        """
        x, decoded = self.few.x, np.empty(self.few.x.shape[:2], np.float32)
        for mode, y in enumerate(self.y):
            mine = own == mode
            decoded[mine] = self.plain.inverse(decode(y[mine], mode), mode)[:, :, 0]
        before = np.roll(decoded, 1, axis=0)
        alone = np.where(self.few.before > 0, 0.0, np.inf)
        ys = []
        for mode in range(self.first, 2 * self.first):
            known = self.prediction.forecast(before, mode)
            ys.append(self.transform.forward(x - known[:, :, None], mode))
        return ys, [alone] * self.first


@dataclass(frozen=True)
class Way:
    """A codec that is compared."""

    transform: Transform
    coded: Callable[[], Coded]
    prediction: Prediction | None


def affordable(layout: Layout, facts: FeatureFacts) -> bool:
    """Whether features of this kind may be forecast: tokens, all layers together, in bases that are not
    too large."""
    channels = facts.views.channels(facts.shape) or 0
    size = 2 * layout.clusters * channels**2
    sound = layout.rotate and layout.centre and layout.layers == "joint"
    return sound and not facts.views.is_map and (layout.clusters == 1 or size <= MAX_BASES)


def try_prediction(
    paths: Sequence[Path], race: Race, best: Candidate
) -> tuple[Forecasts | None, dict[str, Any]]:
    """Modes with a forecast, where they lower the rate at equal error by LEAST or more, on files that
    were held out; and what was measured.

    Args:
        paths: all files that ``race`` was of.
    """
    facts, every = race.facts, race.folds[1].every
    told = [path for number, path in enumerate(paths) if number % every]
    plain, bases = race.transform(best), race.part(best.layout).bases
    found = fit_forecasts(told, race, best, plain, bases, TOLD)
    about: dict[str, Any] = {"pairs": found.pairs}
    if not found.pairs:
        return None, about
    unseen = Sequences.read(paths[::every], facts, UNSEEN)
    ways = [
        Way(plain, lambda: Coded.plain(plain, found.few.x), None),
        Way(found.transform, lambda: found.coded, found.prediction),
    ]
    found.y  # noqa: B018  made once, before threads ask for it
    grades = _grades(race)
    jobs = [(way, grade) for way in ways for grade in grades]
    points = in_threads(lambda job: _measure(facts, *job, unseen), jobs)
    curves = [points[: len(grades)], points[len(grades) :]]
    before, after = compare(curves)
    about |= {"log2_rate": after - before, "bpfp_mse_without": curves[0], "bpfp_mse": curves[1]}
    return found if after - before <= -LEAST else None, about


def fit_forecasts(
    paths: Sequence[Path],
    race: Race,
    best: Candidate,
    plain: Transform,
    bases: Bases,
    values: int = FEW,
) -> Forecasts:
    """Modes with a forecast of some files.

    Args:
        plain, bases: of the best layout. values: at most that tables are made of.
    """
    known, few = (Sequences.read(paths, race.facts, each) for each in (race.cfg.sample, values))
    grades = _grades(race)
    return Forecasts(known, few, best, plain, bases, grades[len(grades) // 2])


def _grades(race: Race) -> list[int]:
    """Where layouts are compared, in 128ths, ascending."""
    return [round(each * PER_OCTAVE) for each in sorted(race.cfg.compared_at)]


def _measure(facts: FeatureFacts, way: Way, grade: int, unseen: Sequences) -> tuple[float, float]:
    """Bits per point and MSE of tokens that nothing was fitted on, in format 2."""
    tables = next(fit_ladder.fit(way.transform, way.coded(), [grade], WEIGHT))
    model = KltModel(facts, way.transform, (tables,) * RUNGS, WEIGHT, prediction=way.prediction)
    bits = error = 0.0
    for first, last, length in unseen.files:
        x = unseen.x[first:last]
        modes, symbols, spent, raw, _ = model.quantise(x, grade, length, most=model.plain)
        decoded = model.restore(modes, symbols, grade)
        decoded[raw] = x[raw]
        if way.prediction is not None:
            way.prediction.restore(decoded, modes, length, raw)
        bits += spent.sum()
        error += float(np.sum(np.square(decoded - x, dtype=np.float64)))
    return float(bits / unseen.x.size), error / unseen.x.size


def _usual(x: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean of usual tokens of x (R, C, 1), (C,) float32, and how far from it they lie."""
    x = x[:, :, 0]
    away = np.linalg.norm(x - np.median(x, axis=0), axis=1)
    usual = x[away <= FAR * np.median(away)]
    mean = np.clip(usual.mean(0, dtype=np.float64), -LARGEST, LARGEST).astype(np.float32)
    reach = FAR * float(np.median(np.linalg.norm(usual - mean, axis=1)))
    return mean, min(max(reach, SMALLEST), LARGEST)


def _mean(x: np.ndarray) -> np.ndarray:
    """The mean of vectors (n, C), (C,) float32; shrunk to 0 where they are few."""
    return (x.sum(0, dtype=np.float64) / (len(x) + PRIOR)).astype(np.float32)


def _second(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum of the products of vectors (n, C) and (n, D), (C, D) float64."""
    return (torch.from_numpy(x).T @ torch.from_numpy(y)).double().numpy()


def _contract(matrix: np.ndarray, power: np.ndarray) -> np.ndarray:
    """A matrix (C, C) between components as one that makes no difference longer, measured in their
    standard deviations. So two decoders whose last bits differ stay together, however long a chain is.

    Args:
        power: (C,) mean squares of the components.
    """
    spread = np.sqrt(power)
    left, values, right = np.linalg.svd(spread[:, None] * matrix / spread)
    if values[0] <= LONGEST:
        return matrix
    short = (left * np.minimum(values, LONGEST)) @ right
    return (short / spread[:, None] * spread).astype(np.float32)


def _by_mode(f: np.ndarray, own: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Vectors (n, C) by the matrices (K, C, D) of their modes (n,), (n, D)."""
    out = np.zeros((len(f), matrices.shape[2]), np.float32)
    for k, matrix in enumerate(matrices):
        out[own == k] = f[own == k] @ matrix
    return out
