"""Compiled look-ups behind the mapping: value -> level -> u, and u -> value.

A level is the number of float32 thresholds below a value. Two halves find it: a table over the
upper bits of the value's integer key (a *cell*) gives the level of the cell's lowest value, and a
branchless binary search over the few thresholds that can lie inside one cell does the rest. The
number of its steps is the same for every value, so the processor has nothing to guess.

The key of a float32 is its bit pattern as an integer of the same order: 128 cells an octave where
the thresholds span many octaves, finer cells where they lie close together.

All arithmetic on values is float32 comparison or float64 interpolation, in a fixed order: the same
numbers come out on every device that follows IEEE 754.
"""

from typing import NamedTuple

import numpy as np

from dtufc.kernels import kernel

TABLE_BITS = 16


class Cells(NamedTuple):
    """The table over keys: cell = (clip(key, lowest, highest) - lowest) >> shift."""

    base: np.ndarray
    """(cells,) uint16, the level of the lowest value of each cell."""
    lowest: int
    highest: int
    shift: int
    step: int
    """The power of two that starts the search within a cell; 0 where no cell needs any."""


@kernel(inline="always")
def monotone_key(pattern):
    """Bit pattern of a float32 as int32 -> integer in the order of the floats, -0.0 below 0.0."""
    return pattern ^ ((pattern >> 31) & 0x7FFFFFFF)


def keys(values: np.ndarray) -> np.ndarray:
    """float32 -> int64 keys, in the same order; 0.0 and -0.0 both give 0."""
    pattern = (np.ascontiguousarray(values, np.float32) + np.float32(0)).view(np.int32)
    return monotone_key(pattern.astype(np.int64))


def floor_float32(values: np.ndarray) -> np.ndarray:
    """float64 -> the largest float32 not above it; for float32 x, x > v iff x > floor(v)."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def build_cells(thresholds: np.ndarray) -> Cells:
    """The table for non-decreasing float32 ``thresholds`` (L - 1,)."""
    key = keys(thresholds)
    lowest, highest = int(key[0]), int(key[-1]) + 1
    shift = max(0, (highest - lowest).bit_length() - TABLE_BITS)
    edges = lowest + (np.arange(((highest - lowest) >> shift) + 2) << shift)
    below = np.searchsorted(key, edges, side="left")
    most = int(np.diff(below).max())
    return Cells(
        below[:-1].astype(np.uint16), lowest, highest, shift, (1 << most.bit_length()) >> 1
    )


def pad_thresholds(thresholds: np.ndarray, step: int) -> np.ndarray:
    """Append +infinity along the last axis so that a search of ``step`` never leaves the array."""
    shape = (*thresholds.shape[:-1], 2 * step + 1)
    return np.concatenate([thresholds, np.full(shape, np.inf, np.float32)], axis=-1)


@kernel(inline="always")
def _search(value, level, thresholds, step):
    """Level of a value: branchless binary search upwards from ``level``."""
    while step > 0:
        level += step * (value > thresholds[level + step - 1])
        step >>= 1
    return level


@kernel(inline="always")
def _first_level(pattern, cells):
    """Level of the lowest value of the cell that a bit pattern lies in."""
    key = min(max(monotone_key(np.int64(pattern)), cells.lowest), cells.highest)
    return np.int64(cells.base[(key - cells.lowest) >> cells.shift])


@kernel
def discrete_shared(x, patterns, cells, thresholds, scale, out):
    """out = level * scale for flat float32 ``x``, ``patterns`` its int32 view."""
    for k in range(x.size):
        level = _search(x[k], _first_level(patterns[k], cells), thresholds, cells.step)
        out[k] = np.float32(level) * scale


@kernel
def discrete_channels(x, thresholds, step, scale, out):
    """out = level * scale for ``x`` (N, C, points) and one row of ``thresholds`` a channel."""
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            row = thresholds[c]
            for k in range(x.shape[2]):
                out[n, c, k] = np.float32(_search(x[n, c, k], 0, row, step)) * scale


@kernel(inline="always")
def _interpolate(value, level, centres, slopes):
    """Position of a value on the piecewise linear scale of levels, in [0, L - 1], float64."""
    position = level + (np.float64(value) - centres[level]) * slopes[level]
    return min(max(position, np.float64(level)), np.float64(centres.size - 1))


@kernel
def continuous_shared(x, patterns, cells, thresholds, centres, slopes, scale, out):
    """As ``discrete_shared``, with the fraction of the way to the next centre added."""
    for k in range(x.size):
        level = _search(x[k], _first_level(patterns[k], cells), thresholds, cells.step)
        out[k] = np.float32(_interpolate(x[k], level, centres, slopes) * scale)


@kernel
def continuous_channels(x, thresholds, step, centres, slopes, scale, out):
    """As ``discrete_channels``, with the fraction of the way to the next centre added."""
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            row = thresholds[c]
            for k in range(x.shape[2]):
                level = _search(x[n, c, k], 0, row, step)
                position = _interpolate(x[n, c, k], level, centres[c], slopes[c])
                out[n, c, k] = np.float32(position * scale)


@kernel
def restore_discrete(u, centres, out):
    """Centre of the level nearest to u * L (ties to even), clamped; ``u`` is (N, C, points)."""
    levels = np.float32(centres.shape[1])
    last = np.float32(centres.shape[1] - 1)
    for n in range(u.shape[0]):
        for c in range(u.shape[1]):
            row = centres[c]
            for k in range(u.shape[2]):
                position = u[n, c, k] * levels
                position = position if position > 0 else np.float32(0)  # NaN goes to level 0
                position = position if position < last else last
                out[n, c, k] = row[np.uint32(np.rint(position))]


@kernel
def restore_continuous(u, centres, out):
    """Linear interpolation of float64 ``centres`` (C, L) at u * L, clamped."""
    levels, last = np.float64(centres.shape[1]), np.float64(centres.shape[1] - 1)
    for n in range(u.shape[0]):
        for c in range(u.shape[1]):
            row = centres[c]
            for k in range(u.shape[2]):
                position = np.float64(u[n, c, k]) * levels
                position = position if position > 0 else 0.0
                position = position if position < last else last
                level = np.int64(position)
                above = row[min(level + 1, row.size - 1)]
                step = (position - level) * (above - row[level])
                out[n, c, k] = np.float32(row[level] + step)
