"""Distinct values and how often they occur, from any number of values in bounded memory.

A float32 is its integer key (:func:`dtufc.transform.lookup.monotone_key`): the upper 20 bits are its
*bin*, the lower 12 its place inside, on a linear scale. A histogram of all 2^20 bins (24 MB) keeps,
as exact integers, the number of values in each bin and the sum and sum of squares of their places. So

- values that came from float16 or bfloat16 are kept exactly, one value a bin;
- other values are kept as the bin's mean and its squared error about it, both exact;
- a second pass over the data resolves chosen bins into all of their 4096 values.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dtufc.kernels import kernel
from dtufc.transform.lookup import monotone_key

PLACE_BITS = 12
PLACES = 1 << PLACE_BITS
BINS = 1 << (32 - PLACE_BITS)
MAX_REFINED = 1024
"""Bins that one pass resolves: 1024 x 4096 counts of 8 bytes."""


@dataclass(frozen=True)
class Points:
    """Weighted values, increasing, that stand for a set of values.

    Guarantee: sum_t (weight_t (value_t - c)^2 + spread_t) is the squared error of all values about c.
    """

    values: np.ndarray
    """(n,) float64, strictly increasing."""
    weights: np.ndarray
    """(n,) float64, how many values each point stands for."""
    spread: np.ndarray
    """(n,) float64, squared error of those values about the point; 0 where they are all equal."""
    bins: np.ndarray
    """(n,) int64, the histogram's bin of each point; meaningful where ``spread`` is not 0."""

    @property
    def count(self) -> int:
        """How many values the points stand for."""
        return int(self.weights.sum())


def distinct(values: np.ndarray) -> Points:
    """Every distinct value of an array in memory; -0.0 is 0.0."""
    unique, counts = np.unique(values.ravel() + np.float32(0), return_counts=True)
    zeros = np.zeros(unique.size)
    return Points(unique.astype(np.float64), counts.astype(np.float64), zeros, zeros.astype(int))


class Histogram:
    """Counts of float32 values by bin; :meth:`add` values, then take :meth:`points`."""

    def __init__(self):
        self._bins = np.zeros((BINS, 3), np.int64)  # values, sum of places, sum of their squares
        self._exact: dict[int, np.ndarray] = {}  # bin -> (PLACES,) counts

    def add(self, values: np.ndarray) -> None:
        """Count finite float32 (or float16) values of any shape."""
        _count_bins(_patterns(values), self._bins)

    def refine(self, data: Iterable[np.ndarray], bins: np.ndarray) -> None:
        """Resolve up to 1024 bins exactly by another pass over all values that were added."""
        slot = np.full(BINS, -1, np.int32)
        slot[bins] = np.arange(bins.size, dtype=np.int32)
        counts = np.zeros((bins.size, PLACES), np.int64)
        for values in data:
            _count_places(_patterns(values), slot, counts)
        for index, row in zip(bins.tolist(), counts, strict=True):
            used = np.flatnonzero(row)
            self._exact[index] = np.stack([used, row[used]])

    def points(self) -> Points:
        """The weighted values known so far: one a bin, or all values of a refined bin."""
        bins = np.flatnonzero(self._bins[:, 0])
        count, total, squares = self._bins[bins].T
        mean = total / count  # in places
        # n sum p^2 - (sum p)^2 is 0 exactly where all places agree; it may pass 2^63, so p is
        # counted from the mean's integer part
        whole = total // count
        first, second = total - whole * count, squares - (2 * total - whole * count) * whole
        spread = np.maximum(second - first / count * first, 0.0)
        lowest, unit = _scale(bins)
        values, spread = lowest + mean * unit, spread * unit * unit
        if not self._exact:
            return Points(values, count.astype(np.float64), spread, bins)
        keep = ~np.isin(bins, np.fromiter(self._exact, np.int64))
        columns = [(values[keep], count[keep].astype(np.float64), spread[keep], bins[keep])]
        for index, (places, counts) in self._exact.items():
            start, width = _scale(np.array([index]))
            zeros = np.zeros(places.size)
            columns.append(
                (start + places * width, counts.astype(np.float64), zeros, zeros + index)
            )
        values, weights, spread, bins = map(np.concatenate, zip(*columns, strict=True))
        order = np.argsort(values, kind="stable")
        return Points(values[order], weights[order], spread[order], bins[order].astype(np.int64))


def bin_ends(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value that each bin can hold, float64."""
    lowest, unit = _scale(bins)
    return lowest, lowest + (PLACES - 1) * unit


def _patterns(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).reshape(-1).view(np.int32)


def _scale(bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value of the first place of each bin, and the distance between places, float64."""
    key = (bins - BINS // 2) << PLACE_BITS
    edges = np.stack([key, key + 1]).astype(np.int32)
    lowest, second = monotone_key(edges).astype(np.int32).view(np.float32).astype(np.float64)
    return lowest, second - lowest


@kernel(inline="always")
def _key(pattern):
    """Key of a float32 from 0 to 2^32 - 1; -0.0 counts as 0.0."""
    key = monotone_key(np.int64(pattern)) + 0x80000000
    return key + (key == 0x7FFFFFFF)


@kernel
def _count_bins(patterns, bins):
    for pattern in patterns:
        key = _key(pattern)
        place = key & (PLACES - 1)
        row = bins[key >> PLACE_BITS]
        row[0] += 1
        row[1] += place
        row[2] += place * place


@kernel
def _count_places(patterns, slot, counts):
    for pattern in patterns:
        key = _key(pattern)
        index = slot[key >> PLACE_BITS]
        if index >= 0:
            counts[index, key & (PLACES - 1)] += 1
