"""Fit a codebook to features: DT-UFC's transform (arXiv 2506.16495), with the exact optimum.

``kmeans``   the L centres of the least squared error over all values, the global optimum
``density``  equal counts: L quantiles of the values at i / (L - 1)
``uniform``  L evenly spaced centres from the least value to the greatest

Where the values have fewer distinct ones than L, all of them are centres and the levels left over lie
between them.
"""

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dtufc.errors import UserError
from dtufc.feature import FeatureError
from dtufc.transform.choices import (
    ASSIGNMENTS,
    TRANSFORM_TYPES,
    Assignment,
    Normalise,
    TransformType,
)
from dtufc.transform.histogram import MAX_REFINED, Histogram, Points, bin_ends, distinct
from dtufc.transform.kmeans import optimal_centres, squared_error
from dtufc.transform.mapping import Mapping
from dtufc.transform.options import MAX_BIT_DEPTH
from dtufc.transform.samples import Samples, Truncation, normalisation

EXACT_VALUES = 1 << 20
"""Up to so many values (of a channel, if each has its codebook) all distinct ones are sorted; more
go through the histogram."""
CHANNEL_VALUES = 1 << 24
"""Values held at a time when each channel has its codebook: as many channels as that allows are
gathered in one pass over the files. A single channel beyond it is streamed."""
MAX_ROUNDS = 16
"""Times that bins of the histogram are chosen and resolved."""
MAX_RESOLVED = 1 << 13
"""Bins resolved in all, at most: each may hold 4096 values."""
SPREAD_SHARE = 1e-2
"""Bins are resolved until the squared error inside the others is below this share of the fit's."""


def fit_mapping(
    paths: Sequence[Path],
    transform_type: TransformType,
    bit_depth: int,
    *,
    rows: int = 0,
    seed: int = 0,
    trun_low: Truncation = None,
    trun_high: Truncation = None,
    per_channel: bool = False,
    assignment: Assignment = "nearest",
    normalise: Normalise = "none",
    channel_axes: Sequence[int] = (1, 3),
) -> tuple[Mapping, dict[str, Any]]:
    """Fit a mapping on feature files.

    Args:
        paths: .npy features (N, C, H, W).
        transform_type: kmeans, density or uniform.
        bit_depth: 1 .. 12, log2 of the number of levels.
        rows: tokens (axis H) sampled a file; 0 takes all.
        seed: of the sampling.
        trun_low, trun_high: values are clipped to them first; one for all, or one per channel.
        per_channel: a codebook for each channel (axis C).
        assignment: of the mapping returned; the codebook does not depend on it.
        normalise: none, mean or scale, of each channel, before the codebook.
        channel_axes: the axes that tell channels apart, for normalising.

    Returns:
        The mapping, and a record of plain values: options, file names, numbers of values and of
        distinct points, min, max, the MSE of every assignment on these values (as they are after
        normalisation), seconds.

    Memory: one file, and some 100 MB for the histogram or the channels at hand, whatever the number
    of files; more only where narrow data make bins resolve into their values (8192 x 4096 at most).

    Raises:
        FeatureError, FileNotFoundError: a file is no sound feature; the message names it.
        UserError: an option is impossible; the message names it.
    """
    if transform_type not in TRANSFORM_TYPES:
        raise UserError(f"transform_type: expected one of {TRANSFORM_TYPES}, got {transform_type}")
    if not 1 <= bit_depth <= MAX_BIT_DEPTH:
        raise UserError(f"bit_depth: expected 1 .. {MAX_BIT_DEPTH}, got {bit_depth}")
    start = time.perf_counter()
    samples = Samples(paths, rows, seed, trun_low, trun_high)
    if normalise != "none":
        samples = normalisation(samples, normalise, channel_axes)
    levels = 1 << bit_depth
    if per_channel:
        fits = [fit_codebook(data, transform_type, levels) for data in _channels(samples)]
        codebooks = np.stack([codebook for codebook, _ in fits])
    else:
        fits = [fit_codebook(samples, transform_type, levels)]
        codebooks = fits[0][0]
    facts = [fact for _, fact in fits]
    mapping = Mapping(codebooks, assignment, samples.offset, samples.scale)
    seconds = time.perf_counter() - start
    record = {
        "transform_type": transform_type,
        "bit_depth": bit_depth,
        "assignment": assignment,
        "per_channel": per_channel,
        "normalise": normalise,
        "rows": rows,
        "seed": seed,
        "trun_low": trun_low,
        "trun_high": trun_high,
        "files": [Path(path).name for path in paths],
        "values": sum(fact["values"] for fact in facts),
        "distinct_points": sum(fact["distinct_points"] for fact in facts),
        "min": min(fact["min"] for fact in facts),
        "max": max(fact["max"] for fact in facts),
        "mse": assignment_errors(samples, codebooks),
        "fit_seconds": seconds,
    }
    return mapping, record


def fit_codebook(
    data: Iterable[np.ndarray], transform_type: TransformType, levels: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Fit one codebook to all values of ``data``, arrays of any shape that can be gone over again.

    Returns:
        (levels,) float64, strictly increasing; and the number of values, the number of weighted
        points that stood for them, min and max.
    """
    source = _Source(data)
    if transform_type == "kmeans":
        centres = _fit_kmeans(source, levels)
    elif transform_type == "density":
        centres = _fit_density(source, levels)
    else:
        centres = np.unique(np.linspace(source.low, source.high, levels))
    facts = {
        "values": source.points.count,
        "distinct_points": source.points.values.size,
        "min": source.low,
        "max": source.high,
    }
    return fill_levels(centres, levels), facts


def fill_levels(values: np.ndarray, levels: int) -> np.ndarray:
    """Add levels to ``values`` (m,), strictly increasing, 1 <= m <= levels, until there are enough.

    The new ones go in equal numbers, evenly spaced, into the gaps. A lone value v gets neighbours on
    both sides, in steps of ``|v| / 2^20`` (2^-20 around 0): far enough apart for float32.

    Returns:
        (levels,) float64, strictly increasing, holding all of ``values``.
    """
    if values.size == levels:
        return values
    if values.size == 1:
        value = values[0]
        step = max(abs(value) or 1.0, 1e-30) * 2.0**-20
        return value + step * (np.arange(levels) - levels // 2)
    gaps = values.size - 1
    ends = np.arange(gaps + 1) * (levels - values.size) // gaps
    position = np.arange(values.size) + ends  # level that each value becomes
    return np.interp(np.arange(levels), position, values)


def assignment_errors(samples: Iterable[np.ndarray], codebooks: np.ndarray) -> dict[str, float]:
    """Mean squared error of forward and inverse over all values, for every assignment."""
    mappings = {name: Mapping(codebooks, name) for name in ASSIGNMENTS}
    errors, count = dict.fromkeys(mappings, 0.0), 0
    for x in samples:
        count += x.size
        for name, mapping in mappings.items():
            difference = mapping.inverse(mapping.forward(x)).astype(np.float64) - x
            errors[name] += float(np.vdot(difference, difference))
    return {name: error / count for name, error in errors.items()}


class _Source:
    """The weighted values of a data set: all distinct ones, or a histogram that can be resolved."""

    def __init__(self, data: Iterable[np.ndarray]):
        self._data = data
        self._histogram: Histogram | None = None
        self._resolved = 0
        self.low, self.high = math.inf, -math.inf
        kept: list[np.ndarray] = []
        for values in data:
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))
            kept.append(values.ravel())
            if self._histogram is None and sum(map(np.size, kept)) > EXACT_VALUES:
                self._histogram = Histogram()
            if self._histogram is not None:
                for array in kept:
                    self._histogram.add(array)
                kept.clear()
        if self._histogram is None:
            self.points = distinct(np.concatenate(kept))
        else:
            self.points = self._histogram.points()

    def resolve(self, bins: np.ndarray) -> bool:
        """Resolve these bins into their values, 1024 a pass -> whether there was room for any."""
        bins = bins[: MAX_RESOLVED - self._resolved]
        if bins.size == 0:
            return False
        for first in range(0, bins.size, MAX_REFINED):
            self._histogram.refine(self._data, bins[first : first + MAX_REFINED])
        self._resolved += bins.size
        self.points = self._histogram.points()
        return True


def _fit_kmeans(source: _Source, levels: int) -> np.ndarray:
    """Optimal centres; bins are resolved where it matters.

    That is where the error inside bins is not small against the fit's (several centres would fall
    into one bin), and where a border between clusters cuts a bin. All other bins belong to one
    centre as a whole, with exact sums, so that the result is optimal for the values themselves.
    """
    points = source.points
    centres = optimal_centres(points.values, points.weights, levels)
    for _ in range(MAX_ROUNDS):
        wide, cut = _wide_bins(points, centres), _cut_bins(points, centres)
        chosen = np.concatenate([wide, np.setdiff1d(cut, wide)])
        if not source.resolve(chosen):
            break
        points = source.points
        centres = optimal_centres(points.values, points.weights, levels)
    return centres


def _wide_bins(points: Points, centres: np.ndarray) -> np.ndarray:
    """Bins to resolve, the largest inner error first, until the rest is within SPREAD_SHARE."""
    order = np.argsort(-points.spread, kind="stable")
    spread = points.spread[order]
    total = squared_error(points.values, points.weights, centres) + spread.sum()
    rest = np.cumsum(spread[::-1])[::-1]  # inner error of this bin and all smaller ones
    return points.bins[order[(rest > SPREAD_SHARE * total) & (spread > 0)]]


def _cut_bins(points: Points, centres: np.ndarray) -> np.ndarray:
    """Bins of several values that hold a border between two clusters."""
    inexact = np.flatnonzero(points.spread)
    low, high = bin_ends(points.bins[inexact])
    borders = (centres[:-1] + centres[1:]) / 2
    inside = np.searchsorted(borders, low, "left") < np.searchsorted(borders, high, "left")
    return points.bins[inexact[inside]]


def _fit_density(source: _Source, levels: int) -> np.ndarray:
    """The distinct ones among the L quantiles np.interp(i / (L - 1), j / (n - 1), sorted values).

    A value that fills several quantiles is one centre; :func:`fill_levels` places the rest.
    """
    count = source.points.count
    position = np.linspace(0, 1, levels) * (count - 1)
    below = np.floor(position).astype(np.int64)
    ranks = np.stack([below, np.minimum(below + 1, count - 1)])
    for _ in range(MAX_ROUNDS):
        points = source.points
        index = np.searchsorted(np.cumsum(points.weights), ranks, side="right")
        inexact = np.unique(points.bins[index[points.spread[index] > 0]])
        if not source.resolve(inexact):
            break
    lower, upper = points.values[index]
    quantiles = lower + (position - below) * (upper - lower)
    first = np.concatenate([[True], np.diff(quantiles.astype(np.float32)) > 0])
    return quantiles[first]


def _channels(samples: Samples) -> Iterable[Iterable[np.ndarray]]:
    """The values of channel 0, of channel 1, ..., each to be gone over again."""
    shapes = [x.shape for x in samples]
    channels = shapes[0][1]
    for path, shape in zip(samples.paths, shapes, strict=True):
        if shape[1] != channels:
            raise FeatureError(
                f"{path}: {shape[1]} channels, but {samples.paths[0]} has {channels}; "
                "per_channel needs the same in all files"
            )
    values = sum(math.prod(shape) // channels for shape in shapes)
    if values > CHANNEL_VALUES:
        yield from (_Channel(samples, c) for c in range(channels))
        return
    group = CHANNEL_VALUES // values
    for first in range(0, channels, group):
        part = slice(first, first + group)
        rows = [np.moveaxis(x[:, part], 1, 0).reshape(-1, x[:, 0].size) for x in samples]
        yield from ([row] for row in np.concatenate(rows, axis=1))


class _Channel:
    """One channel of the samples, read again at every pass."""

    def __init__(self, samples: Samples, channel: int):
        self._samples, self._channel = samples, channel

    def __iter__(self):
        return (x[:, self._channel] for x in self._samples)
