"""The fit of a linear prediction (:mod:`dtufc.klt.prediction`), and whether it pays.

pairs of neighbours ─ second moments ─ eigenvectors ─ shrinkage, by pairs held out ─> matrix
tokens ─ minus forecasts ─> residuals, features for the race of layouts
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dtufc.feature import FeatureFacts, write_feature
from dtufc.klt import fit_ladder
from dtufc.klt.bases import Candidate
from dtufc.klt.fit_memory import Sequences
from dtufc.klt.fit_tables import WEIGHT, Coded
from dtufc.klt.model import PER_OCTAVE, RUNGS, KltModel
from dtufc.klt.prediction import SMALLEST, Prediction
from dtufc.klt.race import FEW, Race, compare, in_threads
from dtufc.klt.statistics import LARGEST, read_folds
from dtufc.klt.weighting import weighed_facts

LEAST = 0.02  # of log2 of the rate, that a prediction must save
TOLD, UNSEEN = 2_000_000, 600_000  # values at most by which this is told
SOME = 3_000_000  # values at most by which it is told what a usual token is
FAR = 3.0  # times the median length of a difference from the mean: more is no usual token
SHRINKAGES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Of the matrix: shares of a component's variance that count as noise."""
NOISE = 1 / 96
"""Of the mean variance: what quantisation leaves, so that components below it are not forecast by."""
MOST = 6e4  # magnitude of what the matrix may hold: float16 ends at 65504


@dataclass
class Pairs:
    """Second moments of usual tokens and of those behind them, away from the mean."""

    before: np.ndarray
    """(C, C) float64: of the tokens before."""
    across: np.ndarray
    """(C, C) float64: of those with the tokens behind."""
    count: int = 0

    @classmethod
    def none(cls, channels: int) -> "Pairs":
        return cls(*np.zeros((2, channels, channels)))

    def add(self, before: np.ndarray, behind: np.ndarray, device: str) -> None:
        """Take pairs (n, C) and (n, C)."""
        there = torch.from_numpy(before).to(device)
        self.before += (there.T @ there).double().cpu().numpy()
        self.across += (there.T @ torch.from_numpy(behind).to(device)).double().cpu().numpy()
        self.count += len(before)


@dataclass(frozen=True)
class Predicted:
    """A prediction, and the race of layouts of what it leaves."""

    prediction: Prediction
    paths: Sequence[Path]
    """Files of residuals."""
    race: Race
    best: Candidate
    told: dict[str, Any]
    """What was measured of prediction and race."""


def try_prediction(
    paths: Sequence[Path], race: Race, best: Candidate, device: str, room: Path
) -> tuple[Predicted | None, dict[str, Any]]:
    """A prediction where it lowers the rate at equal error by LEAST or more, on files that were held
    out; and what was measured.

    Args:
        paths: of the tokens that ``race`` was of. room: folder for the residuals.
    """
    facts, cfg = race.facts, race.cfg
    every = race.folds[best.layout.block].every
    prediction, told = fit_prediction(paths, every, facts, device)
    if prediction is None:
        return None, told
    left = write_residuals(paths, facts, prediction, room)
    inner = weighed_facts(len(prediction.mean))
    folds = read_folds(left, inner, [1], cfg.sample, FEW, cfg.seed, device)
    other = Race(folds, inner, cfg, device)
    found = other.run()
    unseen, values = [], 0
    for path in paths[::every]:
        x = facts.read(path)
        unseen.append(x)
        values += x.size
        if values > UNSEEN:
            break
    curves = [
        curve(race, best, unseen, None),
        curve(other, found, [as_tokens(x, facts) for x in unseen], prediction),
    ]
    before, after = compare(curves)
    told |= {"log2_rate": after - before, "bpfp_mse_without": curves[0], "bpfp_mse": curves[1]}
    if after - before > -LEAST:
        return None, told
    return Predicted(prediction, left, other, found, told), told


def curve(
    race: Race, best: Candidate, unseen: Sequence[np.ndarray], prediction: Prediction | None
) -> list[tuple[float, float]]:
    """Bits per point and MSE of a layout at the qualities at which layouts are compared, in format 2,
    every token forecast by the decoded one before it.

    Args:
        race: of residuals where there is a prediction. unseen: features that nothing was fitted on.
    """
    transform = race.transform(best)
    sample, _ = race.part(best.layout).told.thinned(best.layout, TOLD)
    coded = Coded.plain(transform, sample)

    def at(grade: int) -> tuple[float, float]:
        tables = next(fit_ladder.fit(transform, coded, [grade], WEIGHT))
        model = KltModel(race.facts, transform, (tables,) * RUNGS, WEIGHT, prediction=prediction)
        bits = error = 0.0
        for x in unseen:
            vectors, length = model.to_vectors(x), x.shape[2]
            modes, symbols, spent, raw, _ = model.quantise(
                vectors, grade, length, most=best.layout.clusters
            )
            decoded = model.restore(modes, symbols, grade)
            decoded[raw] = vectors[raw]
            if prediction is not None:
                prediction.restore(decoded, length, raw)
            bits += spent.sum()
            error += float(np.sum(np.square(decoded - vectors, dtype=np.float64)))
        size = sum(x.size for x in unseen)
        return bits / size, error / size

    return in_threads(at, [round(each * PER_OCTAVE) for each in sorted(race.cfg.compared_at)])


def as_tokens(x: np.ndarray, facts: FeatureFacts) -> np.ndarray:
    """A feature (N, L, T, C) as one of one layer (N, 1, T, L C)."""
    vectors = facts.views.to_vectors(x, 1)
    return vectors.reshape(len(x), 1, -1, vectors.shape[1])


def fit_prediction(
    paths: Sequence[Path], every: int, facts: FeatureFacts, device: str
) -> tuple[Prediction | None, dict[str, Any]]:
    """The prediction of the files' tokens, and what was measured; None where there are no neighbours.

    Args:
        every: the first of so many files is held out, and tells the shrinkage.

    Raises:
        FeatureError: a file is no sound feature of this kind; the message names it.
    """
    mean, reach = _usual(paths, facts)
    told, unseen, size = Pairs.none(len(mean)), [], 0
    for number, path in enumerate(paths):
        for before, behind in _neighbours(path, facts, mean, reach):
            if number % every:
                told.add(before, behind, device)
            elif size < SOME:
                unseen.append((before, behind))
                size += before.size
    if not told.count or not unseen:
        return None, {"pairs": told.count}
    power = np.sqrt(np.diag(told.before) / told.count)
    scale = np.clip(power, max(SMALLEST, 1e-6 * power.max()), LARGEST).astype(np.float32)
    before, behind = (np.concatenate(each) for each in zip(*unseen, strict=True))
    drafts = [Prediction(mean, scale, matrix, reach) for matrix in _matrices(told, scale)]
    gains = [_gain(draft, before, behind) for draft in drafts]
    best = int(np.argmax(gains))
    about = {"pairs": told.count, "shrinkage": SHRINKAGES[best], "bits": gains[best]}
    return drafts[best], about


def write_residuals(
    paths: Sequence[Path], facts: FeatureFacts, prediction: Prediction, room: Path
) -> list[Path]:
    """What tokens differ in from their forecasts, a file for each of the ``paths``, in the folder
    ``room``."""
    found = []
    for number, path in enumerate(paths):
        x = as_tokens(facts.read(path), facts)
        left = prediction.residuals(x.reshape(-1, x.shape[3], 1), x.shape[2])
        found.append(room / f"residual{number:08d}.npy")
        write_feature(found[-1], left.reshape(x.shape))
    return found


def _usual(paths: Sequence[Path], facts: FeatureFacts) -> tuple[np.ndarray, float]:
    """The mean of usual tokens (C,) float32, and how far from it they lie."""
    x = Sequences.read(paths, facts, SOME).x[:, :, 0]
    away = np.linalg.norm(x - np.median(x, axis=0), axis=1)
    usual = x[away <= FAR * np.median(away)]
    mean = np.clip(usual.mean(0, dtype=np.float64), -LARGEST, LARGEST).astype(np.float32)
    reach = FAR * float(np.median(np.linalg.norm(usual - mean, axis=1)))
    return mean, min(max(reach, SMALLEST), LARGEST)


def _neighbours(
    path: Path, facts: FeatureFacts, mean: np.ndarray, reach: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Usual tokens (n, C) of a file and the usual ones behind them, away from the mean, of each
    sequence."""
    for each in as_tokens(facts.read(path), facts)[:, 0] - mean:
        usual = np.linalg.norm(each, axis=1) <= reach
        both = usual[:-1] & usual[1:]
        if both.any():
            yield each[:-1][both], each[1:][both]


def _matrices(pairs: Pairs, scale: np.ndarray) -> Iterator[np.ndarray]:
    """The best linear forecast from a token with noise, (C, C) float32 of float16 values over scaled
    channels, for each of the SHRINKAGES."""
    before, across = pairs.before / pairs.count, pairs.across / pairs.count
    power, basis = np.linalg.eigh(before)
    power = np.maximum(power, 0)
    noise = np.minimum(power, NOISE * power.mean())
    turned = basis.T @ across
    for share in SHRINKAGES:
        weight = np.maximum((1 + share) * power + noise, SMALLEST**2)
        scaled = basis @ (turned / weight[:, None]) * scale[:, None] / scale
        yield np.clip(scaled, -MOST, MOST).astype(np.float16).astype(np.float32)


def _gain(prediction: Prediction, before: np.ndarray, behind: np.ndarray) -> float:
    """Bits per point that forecasts save at high rates, by the variances of components that are larger
    than the noise.

    Args:
        before, behind: (n, C), away from the mean.
    """
    missing = behind - prediction.forecast(before + prediction.mean)
    powers = [
        np.maximum(np.linalg.eigvalsh((x.T @ x).astype(np.float64) / len(x)), 0)
        for x in (behind, missing)
    ]
    noise = max(NOISE * powers[0].mean(), SMALLEST**2)
    first, after = (np.log2(np.maximum(each, noise)).mean() / 2 for each in powers)
    return float(first - after)
