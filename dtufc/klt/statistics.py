"""What a fit keeps of its files: moments and a sample of their vectors, from one pass.

    files ─ x (N, C, H, W) ─ minus a common shift ─┬─ sums of positions, per size of block
                                                   ├─ second moments of channels, in float64
                                                   └─ a share of the vectors

Second moments are summed by matrix products of float32 over some thousand vectors at a time; the shift,
the mean of the first file, keeps them small. Memory does not grow with the files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch

from dtufc.feature import FeatureFacts, read_array
from dtufc.klt.model import MAX_UNIT, Layout

LARGEST = 0.999 * MAX_UNIT  # of a unit and of a mean, so that float32 rounds it to none above
STRIPE = 1024  # columns of a matrix of second moments that are made at a time
MOST = 20  # of so many files one is held out, where there are plenty
LAST_FIFTH = ((0.0, 0.8), (0.8, 1.0))  # of a single file: what is fitted on, and what is held out


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

    @classmethod
    def of_sample(cls, sample: np.ndarray) -> Self:
        """Vectors alone, whose moments nobody asks for."""
        channels = sample.shape[1]
        return cls(len(sample), sample[0], np.zeros((channels, channels)), sample)

    @property
    def square(self) -> float:
        """Mean of the squared values."""
        own = np.mean(np.square(self.mean, dtype=np.float64))
        return float(own + np.trace(self.covariance) / len(self.covariance))

    def apart(self, layers: int) -> Self:
        """Those of vectors of one layer each, of vectors of all layers together."""
        cuts = np.split(np.arange(len(self.covariance)), layers)
        each = tuple(
            type(self)(
                self.rows, self.mean[cut], self.covariance[np.ix_(cut, cut)], self.sample[:, cut]
            )
            for cut in cuts
        )
        mean = np.mean([one.mean for one in each], axis=0)
        away = [(one.mean - mean).astype(np.float64) for one in each]  # (C, S)
        between = sum(one @ one.T for one in away) / mean.shape[1]
        covariance = (sum(one.covariance for one in each) + between) / layers
        sample = np.concatenate([one.sample for one in each])
        return type(self)(layers * self.rows, mean, covariance, sample, each)

    def thinned(self, layout: Layout, limit: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Evenly spaced vectors of the sample, ``limit`` values at most, and the cluster of each, (r,)
        int32, where its layer decides it."""
        owners = None
        if layout.layers == "own":
            owners = np.repeat(
                np.arange(layout.clusters, dtype=np.int32), len(self.layers[0].sample)
            )
        return thin(self.sample, owners, limit)


class SecondMoments:
    """Sum of the outer products of vectors of C channels.

    Args:
        device: torch device of the products.
    """

    def __init__(self, channels: int, device: str):
        self.total = np.zeros((channels, channels))
        """(C, C) float64; below the diagonal, and in stripes on it, until :meth:`finish`."""
        self.count, self.device = 0, device
        self.waiting: list[np.ndarray] = []
        self.room = max(2048, channels // 2)  # vectors at a time, so that the sum is seldom touched

    def add(self, x: np.ndarray) -> None:
        """Take vectors (R, C) float32."""
        self.waiting.append(x)
        self.count += len(x)
        if sum(map(len, self.waiting)) >= self.room:
            self._flush()

    def _flush(self) -> None:
        if not self.waiting:
            return
        x = torch.from_numpy(np.concatenate(self.waiting)).to(self.device)
        self.waiting.clear()
        for first in range(0, x.shape[1], STRIPE):
            last = min(first + STRIPE, x.shape[1])
            self.total[first:last, :last] += (x[:, first:last].T @ x[:, :last]).cpu().numpy()

    def finish(self) -> None:
        """Take what waits, and fill what lies above the diagonal."""
        self._flush()
        for first in range(0, len(self.total), STRIPE):
            last = first + STRIPE
            self.total[first:last, last:] = self.total[last:, first:last].T


class Moments:
    """Moments and a sample of vectors of one size of block."""

    def __init__(self, shift: np.ndarray, positions: int):
        self.shift = shift.astype(np.float64)[:, None]  # (C, 1)
        self.rows, self.sum = 0, np.zeros((len(shift), positions))
        self.kept: list[np.ndarray] = []

    def add(self, vectors: np.ndarray, shifted: np.ndarray, kept: np.ndarray) -> None:
        """Take vectors (R, C, S), less the shift, and those of them that ``kept`` (R,) bool names."""
        self.rows += len(vectors)
        self.sum += shifted.sum(0, dtype=np.float64)
        self.kept.append(vectors[kept])

    def statistics(self, second: Sequence[SecondMoments], *more: Self) -> Statistics:
        """Those of these vectors and of ``more``, whose second moments are in ``second``."""
        parts = (self, *more)
        rows = sum(part.rows for part in parts)
        apart = sum(part.sum for part in parts) / rows  # (C, S), of the mean from the shift
        covariance = second[0].total.copy()
        for other in second[1:]:
            covariance += other.total
        covariance /= sum(each.count for each in second)
        covariance -= apart @ apart.T / apart.shape[1]
        mean = np.clip(self.shift + apart, -LARGEST, LARGEST).astype(np.float32)
        sample = np.concatenate([kept for part in parts for kept in part.kept])
        return Statistics(rows, mean, covariance, sample)


@dataclass(frozen=True)
class Folds:
    """The two parts of the files, at one size of block."""

    told: Statistics
    """What candidates are fitted on."""
    unseen: np.ndarray
    """(r, C, S) float32: a sample of what they are compared on."""
    rows: int
    """Vectors of both."""
    share: float
    """Of them that were held out."""
    every: int
    """Of so many files the first is held out."""
    _all: tuple[Moments, Moments, tuple[SecondMoments, SecondMoments]]

    def everything(self) -> Statistics:
        """Of both parts together."""
        told, unseen, second = self._all
        return told.statistics(second, unseen)


def read_folds(
    paths: Sequence[Path],
    facts: FeatureFacts,
    blocks: Sequence[int],
    sample: int,
    held: int,
    seed: int,
    device: str,
) -> dict[int, Folds]:
    """Read files once: moments and samples of what is fitted on and of what is held out, which is every
    fifth file; where there are plenty, fewer; of a single file the last fifth of its vectors.

    Args:
        blocks: sizes of blocks, for each of which there is a result, but for those at which a single
            file has too few vectors.
        sample: values at most that are kept of each.
        held: values that are enough to hold out.
        device: torch device of the matrix products.

    Raises:
        FeatureError: a file is no sound feature of this kind; the message names it.
    """
    values = sum(read_array(path, lazily=True).size for path in paths)
    share = min(1.0, sample / values)
    every = min(max(5, values // held), MOST)
    rng = np.random.default_rng(seed)
    own = len(paths) == 1 or not _divides(blocks, facts)
    moments: dict[int, list[Moments]] = {}
    second: dict[int, tuple[SecondMoments, SecondMoments]] = {}
    shift = None
    for number, path in enumerate(paths):
        x = facts.read(path)
        for block in blocks:
            vectors = facts.views.to_vectors(x, block)
            if len(paths) == 1 and len(vectors) < 3:
                continue
            if shift is None:
                shift = vectors.mean((0, 2), dtype=np.float64)
                shift = np.clip(shift, -LARGEST, LARGEST).astype(np.float32)
            if block not in moments:
                moments[block] = [Moments(shift, block**2) for _ in range(2)]
                if own or not second:  # else the vectors of all sizes are the same values
                    second[block] = tuple(SecondMoments(len(shift), device) for _ in range(2))
            for fold, part in _parts(vectors, number, every, len(paths)):
                shifted = part - shift[:, None]
                kept = rng.random(len(part)) < share
                moments[block][fold].add(part, shifted, kept)
                if block in second:
                    second[block][fold].add(shifted.transpose(0, 2, 1).reshape(-1, len(shift)))
    for pair in second.values():
        pair[0].finish(), pair[1].finish()
    found = {}
    for block, (told, unseen) in moments.items():
        pair = second[block if block in second else min(second)]
        known, rows = told.statistics(pair[:1]), told.rows + unseen.rows
        held_out = np.concatenate(unseen.kept)
        found[block] = Folds(known, held_out, rows, unseen.rows / rows, every, (told, unseen, pair))
    return found


def thin(
    vectors: np.ndarray, owners: np.ndarray | None, limit: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Evenly spaced vectors (R, C, S) of at most ``limit`` values in all, and their owners (R,)."""
    rows = max(1, limit // max(1, vectors[0].size))
    if len(vectors) <= rows:
        return vectors, owners
    places = spaced(len(vectors), rows)
    return vectors[places], None if owners is None else owners[places]


def spaced(count: int, most: int) -> np.ndarray:
    """At most ``most`` evenly spaced places of ``count``."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def _divides(blocks: Sequence[int], facts: FeatureFacts) -> bool:
    """Whether blocks of all sizes hold the same values, none of them continued over an edge."""
    sides = facts.views.sides(facts.shape)
    return sides is None or all(side and side % block == 0 for side in sides for block in blocks)


def _parts(
    vectors: np.ndarray, number: int, every: int, count: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(fold, vectors) of a file: 0 is fitted on, 1 is held out."""
    if count > 1:
        yield int(number % every == 0), vectors
        return
    for fold, part in enumerate(LAST_FIFTH):
        first, last = (round(place * len(vectors)) for place in part)
        yield fold, vectors[first:last]
