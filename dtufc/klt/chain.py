"""From token to token, compiled: forecasts, and the symbols of tokens that are forecast.

A token takes three products with a matrix of C x C. One after the other they wait for memory more than
for sums, so matrices are read as float16, which loses nothing: they were stored so. Encoder and decoder
share :func:`forecast` and :func:`add`. Numbers are float32.
"""

from typing import NamedTuple

import numpy as np

from dtufc.kernels import kernel
from dtufc.klt import trellis
from dtufc.klt.coder import NEVER
from dtufc.simd import widen


class Forecasts(NamedTuple):
    """What kernels take of a :class:`dtufc.klt.prediction.Prediction`."""

    first: int
    mean: np.ndarray
    scale: np.ndarray
    reach: float
    matrices: np.ndarray
    """(M, C, C) bits of float16, a row what a channel takes of those before."""


class Bases(NamedTuple):
    """What kernels take of a :class:`dtufc.klt.model.Transform` of tokens."""

    means: np.ndarray
    """(K, C)."""
    rows: np.ndarray
    """(K, C, C) bits of float16, a row a component."""


class Symbols(NamedTuple):
    """What kernels take of :class:`dtufc.klt.tables.Tables`, and what bits of modes cost."""

    chosen: np.ndarray
    shift: np.ndarray
    parameters: np.ndarray
    low: np.ndarray
    size: np.ndarray
    values: np.ndarray
    heads: np.ndarray
    """(K,) int64."""


class Limits(NamedTuple):
    """What symbols can tell."""

    fine: float
    """The fine step."""
    most: float
    norm: float
    """The largest magnitude and the largest length."""


class Without(NamedTuple):
    """The best mode of each token of those without a forecast."""

    modes: np.ndarray
    """(R,) int32."""
    costs: np.ndarray
    sizes: np.ndarray
    """(R,) int64: what it costs there, and the sum of its magnitudes."""
    least: np.ndarray
    """(R,) int64: the least such sum in any of them."""


@kernel(fastmath={"contract", "reassoc"})
def dots(rows, x, out):
    """The product of each row (D, C), bits of float16, with x (C,), into out (D,)."""
    for i in range(rows.shape[0]):
        total = np.float32(0)
        for j in range(rows.shape[1]):
            total += x[j] * widen(rows[i, j])
        out[i] = total


@kernel(fastmath={"contract"})
def add(y, rows, out):
    """Rows (D, C), bits of float16, each times its y (D,), onto out (C,)."""
    count = rows.shape[0] // 4 * 4
    for i in range(0, count, 4):
        a, b, c, d = y[i], y[i + 1], y[i + 2], y[i + 3]
        for j in range(rows.shape[1]):
            out[j] += (
                a * widen(rows[i, j]) + b * widen(rows[i + 1, j])
                + c * widen(rows[i + 2, j]) + d * widen(rows[i + 3, j])
            )  # fmt: skip
    for i in range(count, rows.shape[0]):
        for j in range(rows.shape[1]):
            out[j] += y[i] * widen(rows[i, j])


@kernel
def forecast(before, mode, known, out):
    """What a token is expected to be, (C,), by the one before it (C,), in a mode that has a forecast.

    Args:
        known: :class:`Forecasts`.
    """
    away = before - known.mean
    length = np.float64(0)
    for value in away:
        length += np.float64(value) * np.float64(value)
    length = np.sqrt(length)
    if length > known.reach:
        away *= np.float32((known.reach / length) ** 2)
    dots(known.matrices[mode - known.first], away / known.scale, out)
    out *= known.scale


@kernel
def inverse(y, modes, bases):
    """Components (R, C) of tokens in their modes (R,) -> what was coded of them (R, C).

    Args:
        bases: :class:`Bases`.
    """
    out = np.empty_like(y)
    for mode in range(len(bases.means)):
        for row in range(len(y)):
            if modes[row] == mode:
                out[row] = bases.means[mode]
                add(y[row], bases.rows[mode], out[row])
    return out


@kernel
def restore(x, modes, raw, length, before, known):
    """What was coded of tokens becomes tokens, in place.

    Args:
        x: (R, C), sequences of ``length`` in a row. modes: (R,). raw: (R,) bool, tokens already.
        before: (N, C), the tokens before the sequences; (0, C) where there are none.
        known: :class:`Forecasts`.
    """
    expected = np.empty(x.shape[1], np.float32)
    for t in range(0 if len(before) else 1, length):
        for mode in range(known.first, known.first + len(known.matrices)):
            for s in range(len(x) // length):
                row = s * length + t
                if modes[row] == mode and not raw[row]:
                    forecast(x[row - 1] if t else before[s], mode, known, expected)
                    x[row] += expected


@kernel
def search(
    x, length, before, tried, without, known, bases, symbols, limits, modes, code, found, raw
):
    """Modes and symbols of tokens, one after the other, with the forecasts that a decoder will have.

    Args:
        x: (R, C), sequences of ``length`` in a row.
        before: (N, C), the tokens before the sequences; (0, C) where there are none.
        tried: (R, first) bool, the modes of which those with a forecast that belong to them are tried.
        without, known, bases, symbols, limits: :class:`Without`, :class:`Forecasts`, :class:`Bases`,
            :class:`Symbols`, :class:`Limits`.
        modes: (R,) int32. code: (D, R) uint16. found: (D, R) int32. All written.
        raw: (R,) bool, what no symbols can tell without a forecast; cleared where it has one.
    """
    count, channels, clusters = len(x) // length, x.shape[1], len(bases.means)
    tokens = np.zeros((count, channels), np.float32)
    tokens[: len(before)] = before
    y = np.empty((count, channels), np.float32)
    trials = clusters - known.first
    work = (
        np.empty((trials, channels), np.float32), np.empty((trials, channels), np.float32),
        np.empty((channels, 1), np.int32), np.empty(trials, np.int64), np.empty(trials, np.int64),
    )  # fmt: skip
    rows = np.empty(count, np.int64)
    for t in range(length):
        for s in range(count):
            row = s * length + t
            best = -1
            if t > 0 or len(before) > 0:
                some = tried[row]
                best = _try(
                    x[row], tokens[s], some, row, without, known, bases, symbols, limits, work
                )
            if best >= 0:
                modes[row], raw[row] = known.first + best, False
                tokens[s], y[s] = work[0][best], work[1][best]
            else:
                mode = without.modes[row]
                modes[row], tokens[s] = mode, 0
                own = bases.means[0] if raw[row] else x[row]
                dots(bases.rows[mode], own - bases.means[mode], y[s])
        for mode in range(clusters):
            n = 0
            for s in range(count):
                if modes[s * length + t] == mode:
                    rows[n] = s
                    n += 1
            if n > 0:
                _code(y, rows[:n], mode, t, length, bases, symbols, limits, tokens, code, found)
        for s in range(count):
            if raw[s * length + t]:
                tokens[s] = x[s * length + t]


@kernel
def _try(x, before, tried, row, without, known, bases, symbols, limits, work):
    """The best mode of a token (C,), less ``first``; -1 where it is the one without a forecast.

    Args:
        before: (C,), the token before. tried: (first,), as of :func:`search`.
        work: written, by mode: forecast, components, and what they cost; the modes that were not tried
            have no size.
    """
    expected, y, units, costs, sizes = work
    least = without.least[row]
    for i in range(len(costs)):
        sizes[i] = -1
        if not tried[i % known.first]:
            continue
        mode = known.first + i
        forecast(before, mode, known, expected[i])
        left = x - expected[i]
        if _is_far(left, limits.most, limits.norm):
            continue
        dots(bases.rows[mode], left - bases.means[mode], y[i])
        trellis.to_units(y[i].reshape(-1, 1), np.float32(trellis.UNIT / limits.fine), units)
        trellis.estimate(
            units, symbols.chosen[0, mode], symbols.shift, symbols.parameters, costs[i : i + 1]
        )
        costs[i] += symbols.heads[mode]
        sizes[i] = np.abs(units).sum()
        least = min(least, sizes[i])
    best, cheapest = -1, NEVER
    if is_near(without.sizes[row], least, len(y[0])):
        cheapest = without.costs[row]
    for i in range(len(costs)):
        if sizes[i] >= 0 and costs[i] < cheapest and is_near(sizes[i], least, len(y[0])):
            best, cheapest = i, costs[i]
    return best


@kernel
def is_near(size, least, channels):
    """Whether a mode may be taken in which a token's magnitudes, in 64ths of a fine step, sum to
    ``size``, and in another to ``least``: of what lies far off estimates know little."""
    return size <= 2 * least + trellis.UNIT * channels


@kernel
def _is_far(x, most, norm):
    """Whether x (C,) has a value beyond ``most`` or is longer than ``norm``."""
    largest, length = np.float32(0), np.float64(0)
    for value in x:
        largest = max(largest, abs(value))
        length += np.float64(value) * np.float64(value)
    return largest > most or np.sqrt(length) > norm


@kernel
def _code(y, rows, mode, t, length, bases, symbols, limits, tokens, code, found):
    """Find the symbols of tokens ``t`` of sequences that have one mode, and decode them.

    Args:
        y: (N, C), components of each sequence's token. rows: (n,) sequences.
        tokens: (N, C), forecasts, which become tokens. code, found: (D, R), written.
    """
    count, n = y.shape[1], len(rows)
    few = np.empty((count, n), np.float32)
    for j in range(n):
        few[:, j] = y[rows[j]]
    units = np.empty((count, n), np.int32)
    trellis.to_units(few, np.float32(trellis.UNIT / limits.fine), units)
    own, k = np.empty((count, n), np.uint16), np.empty((count, n), np.int32)
    trellis.search(
        units, symbols.chosen[:, mode], symbols.shift, symbols.parameters, symbols.low,
        symbols.size, np.arange(n), own, k, np.empty(n),
    )  # fmt: skip
    trellis.values_of(
        k, symbols.chosen, np.full(n, mode, np.int32), symbols.shift, symbols.low, symbols.size,
        symbols.values, few,
    )  # fmt: skip
    few *= np.float32(limits.fine)
    for j in range(n):
        row = rows[j] * length + t
        code[:, row], found[:, row] = own[:, j], k[:, j]
        token = bases.means[mode].copy()
        add(few[:, j].copy(), bases.rows[mode], token)
        tokens[rows[j]] += token  # as restore() does after inverse(): to the last bit
