"""The fit of a klt codec: the work of :mod:`dtufc.klt.fit_klt`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from tqdm import tqdm

from dtufc import locks, provenance, rans
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts, list_features
from dtufc.klt import ladder
from dtufc.klt.entropy import CENTROIDS, REACH, choose, count, fit_bank, to_frequencies
from dtufc.klt.fit_klt import FitConfig
from dtufc.klt.model import (
    LOWEST,
    MAX_UNIT,
    MAX_VALUE,
    PER_OCTAVE,
    RUNGS,
    RUNGS_PER_OCTAVE,
    KltModel,
    Layout,
    Rung,
    Transform,
)
from dtufc.klt.post_filter import PostFilter, neighbours

WEIGHT = 0.12  # of a bit in squared steps: near -dD/dR = ln 2 / 6 of a fine uniform quantiser
LARGEST = 0.999 * MAX_UNIT  # of a unit and of a mean, so that float32 rounds it to none above
FEW = 3_000_000  # values at most that tables are made of
FULL = ((0.0, 1.0), (0.0, 1.0))
HELD_OUT = ((0.0, 0.8), (0.8, 1.0))  # of a single file: what is fitted on, and what is held out
MAX_BASES = 32_000_000  # bytes of all bases as float16 in a mixture
ROUNDS = 3  # of symbols by tables and tables by symbols


@dataclass(frozen=True)
class Candidate:
    """A layout and how it is fitted."""

    layout: Layout
    shrinkage: float
    """Vectors' worth of belief in the common covariance (mixtures) or in its diagonal (one)."""

    def __str__(self) -> str:
        return f"{self.layout}, shrinkage {self.shrinkage:g}"


@dataclass(frozen=True)
class Statistics:
    """What is kept of some files' vectors (R, C, S)."""

    rows: int
    """R, of all files."""
    mean: np.ndarray
    """(C, S) float32."""
    covariance: np.ndarray
    """(C, C) float64, over rows and positions, around the mean."""
    sample: np.ndarray
    """(r, C, S) float32, some of the vectors."""
    layers: tuple[Self, ...] = ()
    """Those of each layer, where a vector is of one layer; the sample is theirs, one after the other."""

    @property
    def square(self) -> float:
        """Mean of the squared values."""
        own = np.mean(np.square(self.mean, dtype=np.float64))
        return float(own + np.trace(self.covariance) / len(self.covariance))

    def __add__(self, other: Self) -> Self:
        """Those of both sets of files."""
        rows = self.rows + other.rows
        mean = (self.rows * self.mean + other.rows * other.mean) / np.float32(rows)
        apart = (self.mean - other.mean).astype(np.float64)
        between = apart @ apart.T * (self.rows * other.rows / rows / self.mean.shape[1])
        second = self.rows * self.covariance + other.rows * other.covariance + between
        sample = np.concatenate([self.sample, other.sample])
        return type(self)(rows, mean, second / rows, sample)

    def apart(self, layers: int) -> Self:
        """Those of vectors of one layer each, of vectors of all layers together."""
        cuts = np.split(np.arange(len(self.covariance)), layers)
        each = tuple(
            type(self)(
                self.rows, self.mean[cut], self.covariance[np.ix_(cut, cut)], self.sample[:, cut]
            )
            for cut in cuts
        )
        return replace(reduce(add, each), layers=each)

    def thinned(self, layout: Layout, limit: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Evenly spaced vectors of the sample, ``limit`` values at most, and the cluster of each, (r,)
        int32, where its layer decides it."""
        sample = thin(self.sample, limit)
        if layout.layers != "own":
            return sample, None
        own = np.repeat(np.arange(layout.clusters, dtype=np.int32), len(self.layers[0].sample))
        return sample, own[evenly(len(own), len(sample))]


def measure(
    paths: Sequence[Path],
    facts: FeatureFacts,
    block: int,
    share: float,
    seed: int,
    part: tuple[float, float] = (0.0, 1.0),
) -> Statistics:
    """Read files twice: means first, then covariance and a share of the vectors as the sample.

    Args:
        part: first and last place of the vectors that are taken, as shares of each file's.
    """

    def read() -> Iterator[np.ndarray]:
        for path in paths:
            vectors = facts.views.to_vectors(facts.read(path), block)
            first, last = (round(place * len(vectors)) for place in part)
            yield vectors[first:last]

    total, rows = 0.0, 0
    for x in read():
        total, rows = total + x.sum(0, dtype=np.float64), rows + len(x)
    mean = np.clip(total / rows, -LARGEST, LARGEST).astype(np.float32)
    channels, positions = mean.shape
    second = torch.zeros(channels, channels, dtype=torch.float64)
    rng = np.random.default_rng(seed)
    kept = []
    for x in read():
        centred = torch.from_numpy(x - mean).transpose(1, 2).reshape(-1, channels)
        second += (centred.T @ centred).double()
        kept.append(x[rng.random(len(x)) < share])
    return Statistics(rows, mean, second.numpy() / (rows * positions), np.concatenate(kept))


def eigenbasis(covariance: np.ndarray) -> np.ndarray:
    """Eigenvectors as columns, the largest eigenvalue first, in the precision that is stored."""
    exact = torch.from_numpy(covariance)
    if len(covariance) > 1024:  # twice as fast, and float16 keeps less anyway
        exact = exact.float()
    return torch.linalg.eigh(exact)[1].flip(1).numpy().astype(np.float16).astype(np.float32)


def fit_transform(known: Statistics, candidate: Candidate, seed: int) -> Transform:
    """Means and bases of a layout."""
    layout = candidate.layout
    if layout.layers == "own":
        one = replace(candidate, layout=replace(layout, clusters=1, layers="shared"))
        each = [fit_transform(layer, one, seed) for layer in known.layers]
        means, bases = (np.concatenate([getattr(t, n) for t in each]) for n in ("mean", "basis"))
        unit = float(np.sqrt(np.mean([transform.unit**2 for transform in each])))
        return Transform(layout, means, bases, unit)
    mean = known.mean if layout.centre else np.zeros_like(known.mean)
    covariance = known.covariance
    unit = np.trace(covariance) / len(covariance) if layout.centre else known.square
    unit = min(max(float(np.sqrt(unit)), 1e-30), LARGEST)
    if not layout.rotate:
        return Transform(layout, mean[None], None, unit)
    diagonal = np.diag(np.diag(covariance))
    part = candidate.shrinkage / (known.rows + candidate.shrinkage)
    shrunk = (1 - part) * covariance + part * diagonal
    transform = Transform(replace(layout, clusters=1), mean[None], eigenbasis(shrunk)[None], unit)
    if layout.clusters == 1:
        return transform
    return fit_mixture(known, candidate, transform, seed)


def fit_mixture(known: Statistics, candidate: Candidate, start: Transform, seed: int) -> Transform:
    """A mixture of transforms: hard assignment by Gaussian code length at a middle rate, in turns with
    means and covariances of the assigned, shrunk to the common ones."""
    x, layout = known.sample, candidate.layout
    y = start.forward(x, 0)
    noise = 0.1 * start.unit**2  # what is below it needs no bits, and tells nothing of the cluster
    leading = y.reshape(len(x), len(known.covariance), -1)[:, :32].reshape(len(x), -1)
    leading = leading / np.sqrt(leading.var(0) + noise) ** 0.5
    _, own = kmeans2(leading, layout.clusters, iter=20, minit="++", seed=seed)
    for _ in range(12):
        sizes = np.bincount(own, minlength=layout.clusters)
        means, bases, costs = [], [], []
        for cluster in range(layout.clusters):
            mine = x[own == cluster]
            share = candidate.shrinkage
            mean = (mine.sum(0) + 8 * known.mean) / (len(mine) + 8)
            mean = np.clip(mean, -LARGEST, LARGEST)
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


def fit_rung(
    transform: Transform,
    y: Sequence[np.ndarray],
    grade: int,
    size: int,
    owners: np.ndarray | None = None,
) -> Rung:
    """Tables of one step: symbols by tables and tables by symbols, in turns.

    Args:
        y: the sample in each cluster's basis, K times (R, D).
        size: tables at most.
        owners: (R,) the cluster of each, where it is known.
    """
    clusters = range(len(y))
    scaled = [scale(each, np.float32(transform.step(grade))) for each in y]
    own = np.zeros(len(y[0]), np.int64) if owners is None else owners
    searched = len(y) > 1 and owners is None
    if searched:  # a first guess: the basis that packs best
        own = np.argmin([np.log2(1 + np.abs(each)).sum(1) for each in scaled], axis=0)
    rung = None
    for turn in range(ROUNDS):
        mine = [scaled[k][own == k] for k in clusters]
        rung = fit_tables(mine, [spend(each, rung, k)[0] for k, each in enumerate(mine)], size)
        if turn == 0 and searched:
            own = assign(scaled, rung, own)
    return rung


def assign(scaled: Sequence[np.ndarray], rung: Rung, own: np.ndarray) -> np.ndarray:
    """The cluster in which each vector costs least, (R,) int64.

    Args:
        scaled: K times (R, D). own: a guess, which spares most of the work.
    """
    cheapest = np.empty(len(own))
    for k, y in enumerate(scaled):
        cheapest[own == k] = spend(y[own == k], rung, k)[1]
    for k, y in enumerate(scaled):
        cost = spend(y, rung, k, cheapest)[1]
        better = cost < cheapest
        own, cheapest = np.where(better, k, own), np.minimum(cost, cheapest)
    return own


def in_bases(transform: Transform, sample: np.ndarray) -> list[np.ndarray]:
    """Vectors (R, C, S) in the basis of each cluster, K times (R, D)."""
    return [transform.forward(sample, k) for k in range(transform.layout.clusters)]


def scale(y: np.ndarray, step: np.float32) -> np.ndarray:
    """Values over the step, within what symbols can tell."""
    return np.clip(y / step, -MAX_VALUE, MAX_VALUE)


def spend(
    y: np.ndarray, rung: Rung | None, cluster: int, limit: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Symbols (R, D) of scaled values and what each row costs; without tables, a dead zone's.

    Args:
        limit: (R,) costs above which a row's own need not be found.
    """
    if rung is None:
        symbols = np.trunc(y + np.copysign(np.float32(0.35), y)).astype(np.int32)
        return symbols, np.zeros(len(y))
    symbols = np.empty(y.shape, np.int32)
    index = WEIGHT * (rans.PRECISION - np.log2(rung.clusters[cluster]))
    limit = np.full(len(y), np.inf) if limit is None else limit - index
    tables = rung.chosen[cluster], rung.bits, rung.bank.centroid
    return symbols, choose(y, *tables, WEIGHT, limit, symbols)[0] + index


def fit_tables(scaled: Sequence[np.ndarray], symbols: Sequence[np.ndarray], size: int) -> Rung:
    """``size`` tables at most for the values and symbols of each cluster, K times (R, D)."""
    clusters, width = len(scaled), scaled[0].shape[1]
    largest = max(int(np.abs(q).max(initial=1)) for q in symbols)
    reach = min(max(largest, CENTROIDS), REACH)
    counts = np.zeros((clusters * width, 2 * reach + 1), np.int32)
    sums = np.zeros((clusters * width, 2 * CENTROIDS - 1))
    for k, (y, q) in enumerate(zip(scaled, symbols, strict=True)):
        count(y, q, k * width, reach, counts, sums)
    bank, chosen = fit_bank(counts, sums, size)
    sizes = np.append([len(q) + 0.5 for q in symbols], 0)  # an escape is never used
    freqs = to_frequencies(sizes)
    return Rung(bank, chosen.reshape(clusters, width).astype(np.int32), freqs)


def candidates(known: Statistics, block: int, cfg: FitConfig) -> list[Candidate]:
    """What is worth trying for features of this kind."""
    channels, rows = len(known.covariance), len(known.sample)
    straight = Layout(rotate=False, block=block, clusters=1, centre=True)
    rotated = replace(straight, rotate=True)
    out = [Candidate(straight, 0.0), Candidate(replace(straight, centre=False), 0.0)]
    out += [Candidate(rotated, share * channels) for share in (0.0, 0.3)]
    for clusters in cfg.clusters or (4, 8, 16):
        affordable = 2 * clusters * channels**2 <= MAX_BASES
        if clusters > 1 and rows >= 16 * clusters and affordable:
            mixture = replace(rotated, clusters=clusters)
            out += [Candidate(mixture, share * channels) for share in (0.25, 0.5, 1.0)]
    return out


def layered(known: Statistics, cfg: FitConfig) -> list[Candidate]:
    """What is worth trying beside where vectors are of one layer each: all of :func:`candidates` that
    turns channels, and a basis per layer."""
    shared = [each for each in candidates(known, 1, cfg) if each.layout.rotate]
    shared = [replace(each, layout=replace(each.layout, layers="shared")) for each in shared]
    own = [
        replace(each, layout=replace(each.layout, clusters=len(known.layers), layers="own"))
        for each in shared
        if each.layout.clusters == 1
    ]
    return (own if cfg.format == 1 else []) + shared


def blocks(facts: FeatureFacts) -> list[int]:
    """Sides of blocks worth trying: none, 4, 8, and the whole of a small map."""
    size = facts.views.sides(facts.shape)
    if size is None:
        return [1]
    sides = {1, 4, 8}
    height, width = size
    if height is not None and height == width and height <= 16:
        sides.add(height)
    return sorted(side for side in sides if height is None or side <= max(height, width or side))


def validate(
    known: Statistics,
    unseen: Statistics,
    facts: FeatureFacts,
    candidate: Candidate,
    cfg: FitConfig,
) -> list[tuple[float, float]]:
    """Bits per point and MSE on vectors of held-out files at some qualities."""
    transform = fit_transform(known, candidate, cfg.seed)
    grades = [round(quality * PER_OCTAVE) for quality in sorted(cfg.compared_at)]
    sample, owners = known.thinned(candidate.layout, FEW)
    y = in_bases(transform, sample)
    vectors, own = unseen.thinned(candidate.layout, FEW)
    points = []
    for grade in grades:
        rung = fit_rung(transform, y, grade, cfg.tables, owners)
        model = KltModel(facts, transform, (rung,) * RUNGS, WEIGHT)
        clusters, symbols, bits, _ = model.quantise(vectors, grade, own)
        error = model.restore(clusters, symbols, grade) - vectors
        points.append((bits.sum() / vectors.size, float(np.mean(np.square(error)))))
    return points


def compare(curves: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """Mean log2 of each curve's rate over the range of MSE that all of them reach (Bjontegaard's
    measure, piecewise linear)."""
    logs = [np.log2(np.maximum(np.array(curve), 1e-30)) for curve in curves]  # (points, 2)
    low = max(log[:, 1].min() for log in logs)
    high = min(log[:, 1].max() for log in logs)
    at = np.linspace(low, high, 33)
    return [float(np.interp(at, log[::-1, 1], log[::-1, 0]).mean()) for log in logs]


def search(
    paths: Sequence[Path], facts: FeatureFacts, cfg: FitConfig
) -> tuple[Candidate, Statistics, list[dict[str, Any]]]:
    """The best candidate by cross-validation on every fifth file (of a single file: on its last fifth),
    the statistics of all files, and what was tried.

    Raises:
        UserError: a single file has too few vectors to hold some out.
    """
    held, rest, parts = paths[::5], [path for path in paths if path not in paths[::5]], FULL
    if not rest:
        held, rest, parts = paths, paths, HELD_OUT
    share = min(1.0, cfg.sample / sum(facts.read(path).size for path in paths))
    tried: list[Candidate] = []
    curves = []
    known: dict[int, Statistics] = {}
    layers = 1 if facts.views.is_map else facts.shape[1]
    for block in blocks(facts):
        if parts is HELD_OUT:
            count = facts.views.count_vectors(facts.read(paths[0]).shape, block)
            if count < 3:
                continue  # none to hold out
        told, unseen = (
            measure(some, facts, block, share, cfg.seed, part)
            for some, part in zip((rest, held), parts, strict=True)
        )
        known[block] = told + unseen
        plans = [(told, unseen, each) for each in candidates(told, block, cfg)]
        if layers > 1:
            parts_of = told.apart(layers), unseen.apart(layers)
            plans += [(*parts_of, each) for each in layered(parts_of[0], cfg)]
        for here, there, candidate in tqdm(plans, desc=f"layouts, block {block}"):
            tried.append(candidate)
            curves.append(validate(here, there, facts, candidate, cfg))
    if not curves:
        raise UserError(f"{paths[0]}: a single file of so few vectors; klt takes two files or more")
    scores = compare(curves)
    best = int(np.argmin(scores))
    record = [
        {"layout": str(candidate), "log2_rate": score - scores[best], "bpfp_mse": curve}
        for candidate, score, curve in zip(tried, scores, curves, strict=True)
    ]
    layout = tried[best].layout
    found = known[layout.block]
    return tried[best], found if layout.layers == "joint" else found.apart(layers), record


def thin(vectors: np.ndarray, limit: int) -> np.ndarray:
    """Evenly spaced vectors (R, C, S) of at most ``limit`` values in all."""
    rows = max(1, limit // max(1, vectors[0].size))
    if len(vectors) <= rows:
        return vectors
    return vectors[evenly(len(vectors), rows)]


def evenly(count: int, chosen: int) -> np.ndarray:
    """``chosen`` evenly spaced places of ``count``, (chosen,) int64."""
    return np.linspace(0, count - 1, chosen).astype(int)


def fit_filter(
    paths: Sequence[Path], known: Statistics, model: KltModel
) -> tuple[PostFilter | None, list[dict[str, float]]]:
    """The post-filter of token features, by least squares over some of the files, coded.

    Returns:
        the filter, or None where it helps at no step; and what it does to the MSE of every fifth file,
        fitted on the others, at the steps where this was measured.
    """
    channels = len(known.covariance)
    basis = None if model.transform.layout.clusters == 1 else eigenbasis(known.covariance)
    taps = np.zeros((RUNGS, channels, 2), np.float32)
    post = PostFilter(taps, np.zeros(channels, np.float32), known.mean[:, 0], basis)

    def components(x: np.ndarray) -> np.ndarray:
        return model.transform.forward(x, 0) if basis is None else post.components(x[:, :, 0])

    size = model.facts.read(paths[0]).size
    features = [model.facts.read(path) for path in paths[:: -(-len(paths) * size // FEW)]]
    for x in features:
        seen = np.abs(components(model.to_vectors(x))).max(0)
        np.maximum(post.limit, seen, out=post.limit)
    measured = range(0, RUNGS, RUNGS_PER_OCTAVE // 2)
    changes = []
    for place in tqdm(measured, desc="post-filter"):
        grade = LOWEST * PER_OCTAVE + place * (PER_OCTAVE // RUNGS_PER_OCTAVE)
        square, cross, error = (np.zeros((2, channels, *end)) for end in ((2, 2), (2,), ()))
        rows = np.zeros(2)
        for i, x in enumerate(features):
            vectors, owners = model.to_vectors(x), model.transform.layout.owners(x.shape)
            clusters, symbols, _, raw = model.quantise(vectors, grade, owners)
            y = components(model.restore(clusters, symbols, grade))
            missing = (components(vectors) - y)[~raw]
            length = model.facts.views.sequence(x.shape)
            told = np.stack([y, neighbours(y, length)], axis=2)[~raw]  # (rows, C, 2)
            fold = int(i % 5 == 0)
            square[fold] += np.einsum("rci,rcj->cij", told, told)
            cross[fold] += np.einsum("rci,rc->ci", told, missing)
            error[fold] += np.square(missing).sum(0)
            rows[fold] += len(missing)
        found = _least_squares(square[0], cross[0], error[0], rows[0])
        gain = 2 * (found * cross[1]).sum() - np.einsum("ci,cij,cj->", found, square[1], found)
        change = -gain / max(error[1].sum(), 1e-30)
        changes.append({"quality": grade / PER_OCTAVE, "mse": float(change)})
        if change < -1e-3:
            taps[place] = _least_squares(square.sum(0), cross.sum(0), error.sum(0), rows.sum())
    for place in range(RUNGS):  # between two steps, between their taps
        before = place - place % measured.step
        after = min(before + measured.step, RUNGS - 1)
        share = (place - before) / measured.step
        taps[place] = (1 - share) * taps[before] + share * taps[after]
    taps[:] = taps.astype(np.float16)
    return (post if taps.any() else None), changes


def _least_squares(
    square: np.ndarray, cross: np.ndarray, error: np.ndarray, rows: float
) -> np.ndarray:
    """(C, 2) taps of (C, 2, 2) and (C, 2) moments over rows, and the (C,) squared errors that they are
    to lower. Taps are taken to lie within a tenth of 0, so that those of a component of which next to
    nothing is sent are next to none."""
    ridge = 1e-3 * np.trace(square, axis1=1, axis2=2) + 100 * error / max(rows, 1) + 1e-30
    return np.linalg.solve(square + ridge[:, None, None] * np.eye(2), cross[:, :, None])[:, :, 0]


def fit(cfg: FitConfig) -> KltModel:
    """Fit and write the codec folder.

    Raises:
        FeatureError, FileNotFoundError, UserError: no features, or unsound ones, or of another kind
            than the facts say; the message names the file.
    """
    paths = list_features(cfg.features)
    facts = cfg.facts()
    if facts.views.channels(facts.shape) is None:
        raise UserError(f"shape: a klt codec takes a fixed number of channels, got {facts.shape}")
    with locks.hold(cfg.output):
        return _fit(cfg, paths, facts)


def _fit(cfg: FitConfig, paths: Sequence[Path], facts: FeatureFacts) -> KltModel:
    run = provenance.Run(cfg.output, cfg, cfg.stamp())
    best, known, tried = search(paths, facts, cfg)
    transform = fit_transform(known, best, cfg.seed)
    width = PER_OCTAVE // RUNGS_PER_OCTAVE
    grades = tqdm([LOWEST * PER_OCTAVE + width * n for n in range(RUNGS)], desc="tables")
    sample, owners = known.thinned(best.layout, FEW)
    if cfg.format == 2:
        rungs = ladder.fit(transform, sample, grades, WEIGHT)
    else:
        y = in_bases(transform, sample)
        rungs = [fit_rung(transform, y, grade, cfg.tables, owners) for grade in grades]
    model = KltModel(facts, transform, tuple(rungs), WEIGHT)
    made_by = {"files": len(paths), "vectors": known.rows, "seed": cfg.seed, "tried": tried}
    if cfg.post_filter and not facts.views.is_map:
        post, made_by["post_filter"] = fit_filter(paths, known, model)
        model = replace(model, post=post)
    model.save(cfg.output, cfg.quality, made_by)
    run.finish(layout=str(best), vectors=known.rows)
    return model
