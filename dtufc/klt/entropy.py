"""Integer entropy tables of quantised components, the code lengths they promise, and the choice of
symbols by rate and distortion.

At one step, a component's symbols are coded with one of a bank of tables. The bank is found by k-means
over the components' histograms, distance being the code length (Lloyd's algorithm with a Kullback-
Leibler distortion): components of like shape share a table, so that little data makes good tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dtufc import rans
from dtufc.kernels import kernel

REACH = 1023
"""Largest magnitude that a table may hold; what lies beyond is escaped."""
CENTROIDS = 3
"""Magnitudes below this, of either sign, are reconstructed at their mean, others where they are."""


@dataclass(frozen=True)
class Bank:
    """The tables of one step."""

    freqs: tuple[np.ndarray, ...]
    """Per table, (size + 1,) int32: frequencies of its symbols and of the escape, sum 2^16."""
    offset: np.ndarray
    """(T,) int32: each table's lowest symbol."""
    centroid: np.ndarray
    """(T, 2 CENTROIDS - 1) float32: what is added to symbols of small magnitude at decoding."""

    def tables(self) -> rans.Tables:
        """What the rANS coder takes."""
        length = np.array([len(freq) + 1 for freq in self.freqs], dtype=np.int32)
        cdf = np.zeros((len(self.freqs), length.max()), dtype=np.int32)
        for row, freq in zip(cdf, self.freqs, strict=True):
            row[1 : len(freq) + 1] = np.cumsum(freq)
        return rans.Tables(cdf, length, self.offset)

    def bits(self) -> np.ndarray:
        """Code lengths of the symbols -reach .. reach with every table, (T, 2 reach + 1) float32.

        ``reach`` is the largest magnitude that any table holds, plus one.
        """
        ends = [o + len(f) - 1 for o, f in zip(self.offset, self.freqs, strict=True)]
        reach = int(max(np.abs(self.offset).max(), np.abs(ends).max())) + 1
        out = np.empty((len(self.freqs), 2 * reach + 1), dtype=np.float32)
        symbols = np.arange(-reach, reach + 1)
        for row, freq, low in zip(out, self.freqs, self.offset, strict=True):
            lengths = rans.PRECISION - np.log2(freq)
            away = np.where(
                symbols < low, 2 * (low - symbols) - 1, 2 * (symbols - low - len(freq) + 1)
            )
            row[:] = lengths[-1] + 2 * np.floor(np.log2(np.maximum(away, 0) + 1)) + 1
            inside = (symbols >= low) & (symbols < low + len(freq) - 1)
            row[inside] = lengths[:-1]
        return out


def mean_squares(freqs: Sequence[np.ndarray], low: np.ndarray) -> np.ndarray:
    """(T,) float64: the mean square of each table's symbols; escaped ones count as the first beyond it.

    Args:
        freqs: T times (size + 1,), the escape last. low: (T,) the lowest symbols.
    """
    out = np.empty(len(freqs))
    for t, (freq, first) in enumerate(zip(freqs, low.tolist(), strict=True)):
        symbols = first + np.arange(len(freq))
        symbols[-1] = max(-first, symbols[-2]) + 1
        out[t] = freq @ np.square(symbols) / freq.sum()
    return out


def fit_bank(
    counts: np.ndarray, sums: np.ndarray, size: int, precision: int = rans.PRECISION
) -> tuple[Bank, np.ndarray]:
    """The bank of one step, and each component's table (G,) int64.

    Args:
        counts: (G, 2 M + 1) histograms of symbols -M .. M, what lies beyond counted at the ends.
        sums: (G, 2 CENTROIDS - 1) sums of (value / step - symbol) over the small symbols.
        size: tables at most.
        precision: bits of the tables' frequencies.
    """
    counts = counts.astype(np.float32)
    reach = counts.shape[1] // 2
    symbols = np.abs(np.arange(-reach, reach + 1))
    spread = counts @ symbols / np.maximum(counts.sum(1), 1)
    chosen = group(_coarsen(counts), spread, size)
    member = _groups(chosen)[1]
    return to_bank(member @ counts, member @ sums, precision), chosen


def group(
    coarse: np.ndarray,
    spread: np.ndarray,
    size: int,
    start: np.ndarray | None = None,
    rounds: int = 12,
) -> np.ndarray:
    """The table of each component (G,) int64, without gaps.

    Args:
        coarse: (G, B) float32 histograms. spread: (G,) mean magnitudes.
        size: tables at most.
        start: (G,) a guess; else groups of like spread.
        rounds: of groups by tables and tables by groups, at most.
    """
    chosen = start
    if chosen is None:  # finest where components differ most: among the loud ones
        edges = np.quantile(np.log2(spread + 2**-6), np.linspace(0, 1, size + 1)[1:-1])
        chosen = np.searchsorted(edges, np.log2(spread + 2**-6))
    common = (
        4 * coarse.sum(0) / max(1.0, float(coarse.sum())) + 1e-3
    )  # no table finds any impossible
    for _ in range(rounds):
        chosen, member = _groups(chosen)
        pooled = member @ coarse + common
        better = (coarse @ -np.log2(pooled / pooled.sum(1, keepdims=True)).T).argmin(1)
        if (better == chosen).all():
            break
        chosen = better
    return _groups(chosen)[0]


def to_bank(pooled: np.ndarray, totals: np.ndarray, precision: int = rans.PRECISION) -> Bank:
    """The bank of histograms (T, 2 M + 1) and of sums (T, 2 CENTROIDS - 1) of what was left over.

    Args:
        precision: bits of the tables' frequencies.
    """
    reach = pooled.shape[1] // 2
    freqs, offset = zip(*(_integers(p, precision) for p in _smooth(pooled)), strict=True)
    small = pooled[:, reach - CENTROIDS + 1 : reach + CENTROIDS]
    centroid = (totals / np.maximum(small, 8)).astype(np.float32)  # few seen: nearer to none
    return Bank(freqs, np.array(offset, np.int32), centroid)


def _coarsen(counts: np.ndarray) -> np.ndarray:
    """Histograms (G, 2 M + 1) with wider bins the farther from 0, (G, fewer): enough to tell which
    are alike."""
    reach = counts.shape[1] // 2
    wide = np.unique(np.round(np.geomspace(8, 8192, 64)).astype(int))
    first = np.concatenate([np.arange(8), wide])
    first = first[first <= reach]  # bins of magnitudes begin here, of either sign
    starts = np.concatenate([[0], reach + 1 - first[:1:-1], reach + first])
    return np.add.reduceat(counts, starts, axis=1)


def _groups(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group numbers without gaps (G,) int64, and who is in which (T, G) float32 of 0 and 1."""
    used, chosen = np.unique(chosen, return_inverse=True)
    return chosen, (chosen == np.arange(len(used))[:, None]).astype(np.float32)


def _smooth(pooled: np.ndarray) -> np.ndarray:
    """Histograms (T, 2 M + 1) -> probabilities above 0: a few made-up symbols of a Laplacian of the
    same spread, and one of a wide one."""
    reach = pooled.shape[1] // 2
    symbols = np.abs(np.arange(-reach, reach + 1))
    mean = (pooled @ symbols + 0.1) / (pooled.sum(1) + 1)
    out = pooled.astype(np.float64)
    for scale, weight in ((mean, 4.0), (4 * mean + 1, 0.5)):
        prior = np.exp(-symbols / np.maximum(scale, 0.05)[:, None])
        out += weight * prior / prior.sum(1, keepdims=True)
    out += 1e-6
    return out / out.sum(1, keepdims=True)


def _integers(p: np.ndarray, precision: int) -> tuple[np.ndarray, int]:
    """Probabilities of -M .. M -> integer frequencies of a shorter range and the escape; its start."""
    reach = len(p) // 2
    tail = 2.0 ** -min(precision, 14)  # each side: rarer symbols than that are cheaper to escape
    low = int(np.searchsorted(np.cumsum(p), tail))
    high = len(p) - int(np.searchsorted(np.cumsum(p[::-1]), tail))  # exclusive
    low, high = min(low, reach), max(high, reach + 1)
    kept = np.append(p[low:high], max(p[:low].sum() + p[high:].sum(), 2.0**-15))
    return to_frequencies(kept, precision), low - reach


def to_frequencies(weights: np.ndarray, precision: int = rans.PRECISION) -> np.ndarray:
    """Weights (n,), n below 2^precision -> int32 frequencies of at least 1 with the sum 2^precision."""
    total = 1 << precision
    freq = 1 + np.floor(weights / weights.sum() * (total - len(weights))).astype(np.int32)
    left = total - int(freq.sum())  # at most n
    freq[np.argsort(weights)[len(weights) - left :]] += 1
    return freq


@kernel
def choose(y, table, bits, centroid, weight, limit, symbols):
    """Symbols of least (error / step)^2 + weight * bits; the cost of each row.

    Args:
        y: (R, D) float32, values over the step, magnitudes below 2^24.
        table: (D,) the table of each component.
        bits: (T, 2 M + 1) code lengths. centroid: (T, 2 CENTROIDS - 1).
        limit: (R,) the cost at which a row is given up, with what it has cost so far.
        symbols: (R, D) int32, filled; of no meaning in rows that were given up.

    Returns:
        cost (R,) float64 and bits (R,) float64.
    """
    reach = bits.shape[1] // 2
    costs = np.zeros(y.shape[0])
    rates = np.zeros(y.shape[0])
    for r in range(y.shape[0]):
        for i in range(y.shape[1]):
            if costs[r] >= limit[r]:
                break
            v, t = y[r, i], table[i]
            near = np.int64(np.round(v))
            best, kept, rate = np.inf, near, 0.0
            step = 1 if near > 0 else -1
            for trial in range(3):
                q = near - trial * step
                if trial == 2 or (trial == 1 and near == 0):
                    q = 0
                length = np.float64(bits[t, min(max(q, -reach), reach) + reach])
                if q > reach or q < -reach:
                    length += 2 * np.log2(abs(q) / reach)
                error = np.float64(v) - q
                if -CENTROIDS < q < CENTROIDS:
                    error -= centroid[t, q + CENTROIDS - 1]
                cost = error * error + weight * length
                if cost < best:
                    best, kept, rate = cost, q, length
                if q == 0:
                    break
            symbols[r, i] = kept
            costs[r] += best
            rates[r] += rate
    return costs, rates


@kernel
def reconstruct(symbols, table, centroid, out):
    """Symbols (R, D) -> values over the step (R, D) float32, given the table (D,) of each component."""
    for r in range(symbols.shape[0]):
        for i in range(symbols.shape[1]):
            q = symbols[r, i]
            v = np.float32(q)
            if -CENTROIDS < q < CENTROIDS:
                v += centroid[table[i], q + CENTROIDS - 1]
            out[r, i] = v
