"""Fit the codec without a network: ``python fit_klt.py --features DIR --output DIR``.

Takes training features of one kind, tries layouts (basis, blocks, mixtures of Karhunen-Loeve
transforms, shrinkage of their covariances, weight of a bit) on a part of the files, keeps the one with
the lowest rate at equal MSE on the others, and fits it to all. The files are read one by one, twice;
statistics and a bounded sample of vectors are all that is kept.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from tqdm import tqdm

from coding import config, rans, records
from coding.feature import FeatureFacts, list_features, load_facts, read_feature
from coding.klt.arrange import is_map, to_vectors
from coding.klt.entropy import CENTROIDS, REACH, choose, count, fit_bank, to_frequencies
from coding.klt.model import (
    LOWEST,
    MAX_VALUE,
    PER_OCTAVE,
    RUNGS,
    RUNGS_PER_OCTAVE,
    WEIGHTS,
    KltModel,
    Layout,
    Rung,
    Transform,
)
from coding.packing import Packing

WEIGHT = 0.12  # of a bit in squared steps: near -dD/dR = ln 2 / 6 of a fine uniform quantiser
BANK = 48  # tables of a step at most
FEW = 6_000_000  # values at most that tables are made of
MAX_BASES = 32_000_000  # bytes of all bases as float16 in a mixture
ROUNDS = 3  # of symbols by tables and tables by symbols
VALIDATED = (-0.5, 0.5, 1.5, 2.5)  # qualities at which layouts are compared


@dataclass(frozen=True)
class FitConfig:
    """Fitting of a klt codec."""

    features: Path
    """Folder of training features of one kind."""
    output: Path
    """Codec folder."""
    machine: str | None = None
    """Machine preset or YAML with the facts of the features; without one they are tokens x channels,
    as many as the first file has."""
    clusters: list[int] | None = None
    """Mixtures to try; null tries 1, 4, 8 and 16 where there are vectors enough."""
    quality: float = 1.0
    """What the codec takes where nothing is asked for: log2 of the feature's standard deviation over
    the step."""
    sample: int = 24_000_000
    """Values at most that are kept to fit mixtures and tables on."""
    seed: int = 0
    """Of the sample and the mixtures."""

    def __post_init__(self):
        if self.clusters is not None and (not self.clusters or min(self.clusters) < 1):
            raise ValueError(f"clusters: expected numbers of at least 1, got {self.clusters}")


@dataclass(frozen=True)
class Candidate:
    """A layout and how it is fitted."""

    layout: Layout
    shrinkage: float
    """Vectors' worth of belief in the common covariance (mixtures) or in its diagonal (one)."""

    def __str__(self) -> str:
        return f"{self.layout}, shrinkage {self.shrinkage:g}"


class Statistics:
    """Mean, covariance over channels and a sample of the vectors of some files, by block size."""

    def __init__(self, paths: Sequence[Path], facts: FeatureFacts, block: int, cfg: FitConfig):
        self.paths, self.facts, self.block, self.cfg = paths, facts, block, cfg
        self._measure()

    def _vectors(self) -> Iterator[np.ndarray]:
        for path in self.paths:
            yield to_vectors(read_checked(path, self.facts), self.facts.packing, self.block)

    def _measure(self) -> None:
        """Two passes: means and counts, then covariance and the sample."""
        total, rows = 0.0, 0
        for x in self._vectors():
            total, rows = total + x.sum(0, dtype=np.float64), rows + len(x)
        self.rows = rows
        self.mean = (total / rows).astype(np.float32)  # (C, S)
        channels, positions = self.mean.shape
        second = torch.zeros(channels, channels, dtype=torch.float64)
        share = min(1.0, self.cfg.sample / (rows * self.mean.size))
        rng = np.random.default_rng(self.cfg.seed)
        kept = []
        for x in self._vectors():
            centred = torch.from_numpy(x - self.mean).transpose(1, 2).reshape(-1, channels)
            second += (centred.T @ centred).double()
            wanted = rng.random(len(x)) < share
            kept.append(x[wanted])
        self.covariance = second.numpy() / (rows * positions)
        self.sample = np.concatenate(kept)
        self.square = float(np.mean(np.square(self.sample, dtype=np.float64)))
        self.few = thin(self.sample, FEW)


def read_checked(path: Path, facts: FeatureFacts) -> np.ndarray:
    """A feature of the kind.

    Raises:
        ValueError: it is another.
    """
    x = read_feature(path)
    if why := facts.mismatch(x):
        raise ValueError(f"{path}: {why}")
    return x


def guess_facts(path: Path) -> FeatureFacts:
    """Tokens x channels of the first file's width."""
    x = read_feature(path)
    shape = [None, x.shape[1], None, x.shape[3]]
    return FeatureFacts("feature", path.parent.name, shape, Packing(), x.dtype.name)


def eigenbasis(covariance: np.ndarray) -> np.ndarray:
    """Eigenvectors as columns, the largest eigenvalue first, in the precision that is stored."""
    exact = torch.from_numpy(covariance)
    if len(covariance) > 1024:  # twice as fast, and float16 keeps less anyway
        exact = exact.float()
    return torch.linalg.eigh(exact)[1].flip(1).numpy().astype(np.float16).astype(np.float32)


def fit_transform(known: Statistics, candidate: Candidate) -> Transform:
    """Means and bases of a layout."""
    layout = candidate.layout
    mean = known.mean if layout.centre else np.zeros_like(known.mean)
    covariance = known.covariance
    unit = np.trace(covariance) / len(covariance) if layout.centre else known.square
    unit = max(float(np.sqrt(unit)), 1e-30)
    if not layout.rotate:
        return Transform(layout, mean[None], None, unit)
    diagonal = np.diag(np.diag(covariance))
    part = candidate.shrinkage / (known.rows + candidate.shrinkage)
    shrunk = (1 - part) * covariance + part * diagonal
    transform = Transform(replace(layout, clusters=1), mean[None], eigenbasis(shrunk)[None], unit)
    if layout.clusters == 1:
        return transform
    return fit_mixture(known, candidate, transform)


def fit_mixture(known: Statistics, candidate: Candidate, start: Transform) -> Transform:
    """A mixture of transforms: hard assignment by Gaussian code length at a middle rate, in turns with
    means and covariances of the assigned, shrunk to the common ones."""
    x, layout = known.sample, candidate.layout
    y = start.forward(x, 0)
    noise = 0.1 * start.unit**2  # what is below it needs no bits, and tells nothing of the cluster
    leading = y.reshape(len(x), len(known.covariance), -1)[:, :32].reshape(len(x), -1)
    leading = leading / np.sqrt(leading.var(0) + noise) ** 0.5
    _, own = kmeans2(leading, layout.clusters, iter=20, minit="++", seed=known.cfg.seed)
    for _ in range(12):
        sizes = np.bincount(own, minlength=layout.clusters)
        means, bases, costs = [], [], []
        for cluster in range(layout.clusters):
            mine = x[own == cluster]
            share = candidate.shrinkage
            mean = (mine.sum(0) + 8 * known.mean) / (len(mine) + 8)
            centred = (mine - mean).transpose(0, 2, 1).reshape(-1, x.shape[1])
            second = centred.T.astype(np.float64) @ centred + share * known.covariance
            basis = eigenbasis(second / (len(centred) + share))
            means.append(mean)
            bases.append(basis)
        transform = Transform(layout, np.stack(means), np.stack(bases), start.unit)
        for cluster in range(layout.clusters):
            z = transform.forward(x, cluster)
            z = np.square(z)
            mine = z[own == cluster]
            common = z.mean(0) if not len(mine) else mine.mean(0)
            power = (mine.sum(0) + 8 * common) / (len(mine) + 8) + noise
            prior = np.log2((sizes[cluster] + 1) / (len(x) + layout.clusters))
            costs.append(0.5 * (np.log2(power).sum() + z @ (1 / power) / np.log(2)) - prior)
        before, own = own, np.argmin(costs, axis=0)
        if (before == own).mean() > 0.999:
            break
    return transform


def fit_rung(transform: Transform, sample: np.ndarray, grade: int) -> Rung:
    """Tables of one step: symbols by tables and tables by symbols, in turns."""
    step = np.float32(transform.unit * 2.0 ** (-grade / PER_OCTAVE))
    layout, width = transform.layout, transform.components
    scaled = [transform.forward(sample, k) / step for k in range(layout.clusters)]
    scaled = [np.clip(y, -MAX_VALUE, MAX_VALUE) for y in scaled]
    rough = [np.trunc(y + np.copysign(np.float32(0.35), y)).astype(np.int32) for y in scaled]
    if layout.clusters > 1:  # a first guess: the basis that packs best
        spent = [np.log2(1 + np.abs(y)).sum(1) for y in scaled]
        own = np.argmin(spent, axis=0)
    else:
        own = np.zeros(len(sample), np.int64)
    rung = None
    for _ in range(ROUNDS):
        if rung is not None:
            costs = []
            for k, y in enumerate(scaled):
                tables = rung.chosen[k], rung.bits, rung.bank.centroid
                cost, _ = choose(y, *tables, WEIGHT, rough[k])
                costs.append(cost + WEIGHT * (rans.PRECISION - np.log2(rung.clusters[k])))
            own = np.argmin(costs, axis=0)
        rung = fit_tables(scaled, rough, own, width)
    return rung


def fit_tables(
    scaled: Sequence[np.ndarray], symbols: Sequence[np.ndarray], own: np.ndarray, width: int
) -> Rung:
    """Tables for symbols (K times (R, D)) of which each row takes those of its cluster."""
    clusters = len(scaled)
    largest = max(int(np.abs(q[own == k]).max(initial=1)) for k, q in enumerate(symbols))
    reach = min(max(largest, CENTROIDS), REACH)
    counts = np.zeros((clusters * width, 2 * reach + 1), np.int32)
    sums = np.zeros((clusters * width, 2 * CENTROIDS - 1))
    for k, (y, q) in enumerate(zip(scaled, symbols, strict=True)):
        mine = own == k
        group = np.full(int(mine.sum()), k * width)
        count(y[mine], q[mine], group, reach, counts, sums)
    bank, chosen = fit_bank(counts, sums, BANK)
    sizes = np.append(np.bincount(own, minlength=clusters) + 0.5, 0)  # an escape is never used
    freqs = to_frequencies(sizes)
    return Rung(bank, chosen.reshape(clusters, width).astype(np.int32), freqs)


def candidates(known: Statistics, cfg: FitConfig) -> list[Candidate]:
    """What is worth trying for features of this kind."""
    channels, rows = len(known.covariance), len(known.sample)
    straight = Layout(rotate=False, block=known.block, clusters=1, centre=True)
    rotated = replace(straight, rotate=True)
    out = [Candidate(straight, 0.0), Candidate(replace(straight, centre=False), 0.0)]
    out += [Candidate(rotated, share * channels) for share in (0.0, 0.3)]
    for clusters in cfg.clusters or (4, 8, 16):
        affordable = 2 * clusters * channels**2 <= MAX_BASES
        if clusters > 1 and rows >= 16 * clusters and affordable:
            mixture = replace(rotated, clusters=clusters)
            out += [Candidate(mixture, share * channels) for share in (0.25, 0.5, 1.0)]
    return out


def blocks(facts: FeatureFacts) -> list[int]:
    """Sides of blocks worth trying: none, 4, 8, and the whole of a small map."""
    if not is_map(facts.packing):
        return [1]
    sides = {1, 4, 8}
    height, width = facts.shape[2:]
    if height is not None and height == width and height <= 16:
        sides.add(height)
    return sorted(side for side in sides if height is None or side <= max(height, width or side))


def validate(
    known: Statistics, held_out: np.ndarray, candidate: Candidate
) -> list[tuple[float, float]]:
    """Bits a point and MSE on held-out vectors (R, C, S) at some qualities."""
    transform = fit_transform(known, candidate)
    points = []
    for quality in VALIDATED:
        grade = round(quality * PER_OCTAVE)
        rung = fit_rung(transform, known.few, grade)
        model = KltModel(known.facts, transform, (rung,) * RUNGS, WEIGHT)
        clusters, symbols, bits, _ = model.quantise(held_out, grade)
        error = model.restore(clusters, symbols, grade) - held_out
        points.append((bits.sum() / held_out.size, float(np.mean(np.square(error)))))
    return points


def compare(curves: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """Mean log2 of each curve's rate over the range of MSE that all of them reach (Bjontegaard's
    measure, piecewise linear)."""
    logs = [np.log2(np.maximum(np.array(curve), 1e-30)) for curve in curves]  # (points, 2)
    low = max(log[:, 1].min() for log in logs)
    high = min(log[:, 1].max() for log in logs)
    at = np.linspace(low, high, 33)
    return [float(np.interp(at, log[::-1, 1], log[::-1, 0]).mean()) for log in logs]


def search(paths: Sequence[Path], facts: FeatureFacts, cfg: FitConfig) -> tuple[Candidate, list]:
    """The best candidate by cross-validation on every fifth file, and what was tried."""
    held = paths[::5] if len(paths) > 1 else paths
    rest = [path for path in paths if path not in held] or paths
    tried: list[Candidate] = []
    curves = []
    for block in blocks(facts):
        known = Statistics(rest, facts, block, cfg)
        vectors = [to_vectors(read_checked(p, facts), facts.packing, block) for p in held]
        held_out = thin(np.concatenate(vectors), FEW // 2)
        for candidate in tqdm(candidates(known, cfg), desc=f"layouts, block {block}"):
            tried.append(candidate)
            curves.append(validate(known, held_out, candidate))
    scores = compare(curves)
    best = int(np.argmin(scores))
    record = [
        {"layout": str(candidate), "log2_rate": score - scores[best], "bpfp_mse": curve}
        for candidate, score, curve in zip(tried, scores, curves, strict=True)
    ]
    return tried[best], record


def thin(vectors: np.ndarray, limit: int) -> np.ndarray:
    """Evenly spaced vectors (R, C, S) of at most ``limit`` values in all."""
    rows = max(1, limit // max(1, vectors[0].size))
    if len(vectors) <= rows:
        return vectors
    return vectors[np.linspace(0, len(vectors) - 1, rows).astype(int)]


def fit(cfg: FitConfig) -> KltModel:
    """Fit and write the codec folder.

    Raises:
        FeatureError, FileNotFoundError, ValueError: no features, or unsound ones, or of another kind
            than the facts say; the message names the file.
    """
    paths = list_features(cfg.features)
    facts = load_facts(cfg.machine) if cfg.machine else guess_facts(paths[0])
    if not is_map(facts.packing) and None in (facts.shape[1], facts.shape[3]):
        raise ValueError("shape: a klt codec of token features takes a fixed C and W")
    if is_map(facts.packing) and facts.shape[1] is None:
        raise ValueError("shape: a klt codec of maps takes a fixed C")
    run = records.Run(cfg.output, cfg)
    best, tried = search(paths, facts, cfg)
    known = Statistics(paths, facts, best.layout.block, cfg)
    transform = fit_transform(known, best)
    width = PER_OCTAVE // RUNGS_PER_OCTAVE
    grades = [LOWEST * PER_OCTAVE + width * n for n in range(RUNGS)]
    rungs = [fit_rung(transform, known.few, grade) for grade in tqdm(grades, desc="tables")]
    model = KltModel(facts, transform, tuple(rungs), WEIGHT)
    made_by = {"files": len(paths), "vectors": known.rows, "seed": cfg.seed, "tried": tried}
    model.save(cfg.output, cfg.quality, made_by)
    run.finish(layout=str(best), vectors=known.rows)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(FitConfig, argv, __doc__)
        start = time.time()
        model = fit(cfg)
        size = (cfg.output / WEIGHTS).stat().st_size
        print(
            f"{model.transform.layout}, {size / 1e6:.2f} MB, {time.time() - start:.0f} s "
            f"-> {cfg.output}"
        )


if __name__ == "__main__":
    main()
