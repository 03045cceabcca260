"""Entropy tables of the ladder's steps, from vectors in the bases of a transform.

    y ─ / step ─ symbols ─ histograms ─ bank of tables ─┐
           └────────── symbols by these tables <────────┘    in turns

Each vector counts in the cluster that codes it most cheaply. Neighbouring steps differ by 9%, so
that a step takes over clusters and tables of the one before, and goes on from there.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from dtufc import rans
from dtufc.devices import limit_threads
from dtufc.kernels import kernel
from dtufc.klt.entropy import (
    CENTROIDS,
    REACH,
    choose,
    group,
    reconstruct,
    to_bank,
    to_frequencies,
)
from dtufc.klt.model import MAX_VALUE, Rung, Transform

WEIGHT = 0.12  # of a bit in squared steps: near -dD/dR = ln 2 / 6 of a fine uniform quantiser
BANK = 48  # tables of a step at most, where nothing else is asked for
CHAIN = 4  # steps that follow each other; half an octave


Late = tuple[list[np.ndarray], list[np.ndarray]]
"""Vectors in further modes, L times (R, D), and the bits that each of them takes beside, (R,)."""
Decode = Callable[[np.ndarray, int], np.ndarray]
"""Vectors (r, D) of a mode -> what they are decoded to."""


@dataclass(frozen=True)
class Coded:
    """What is coded of a sample of vectors in each mode."""

    y: Sequence[np.ndarray]
    """K times (R, D)."""
    bits: Sequence[np.ndarray] | None = None
    """K times (R,): of each vector beside mode and symbols; None: there are none."""
    late: Callable[[np.ndarray, Decode], Late] | None = None
    """Further modes, which depend on how the vectors are coded in these: on the mode of each (R,), and
    on what decodes them."""
    owners: np.ndarray | None = None
    """(R,) the mode of each, where it is known."""
    tables: int = BANK
    """Of a step, at most."""

    @property
    def beside(self) -> Sequence[np.ndarray]:
        """K times (R,): of each vector beside mode and symbols."""
        return self.bits or [np.zeros(len(self.y[0]))] * len(self.y)

    @classmethod
    def plain(
        cls,
        transform: Transform,
        sample: np.ndarray,
        owners: np.ndarray | None = None,
        tables: int = BANK,
    ) -> Self:
        """Vectors (R, C, S) in the basis of each cluster."""
        y = [transform.forward(sample, k) for k in range(transform.layout.clusters)]
        return cls(y, owners=owners, tables=tables)


def fit_ladder(transform: Transform, coded: Coded, grades: Sequence[int]) -> list[Rung]:
    """Tables of neighbouring steps, on as many threads as torch has; the result does not depend on how
    many.

    Args:
        grades: qualities in 128ths, ascending.
    """
    chains = [grades[first : first + CHAIN] for first in range(0, len(grades), CHAIN)]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=limit_threads, initargs=(1,)) as pool:
        found = pool.map(lambda chain: fit_chain(transform, coded, chain), chains)
        return [rung for rungs in found for rung in rungs]


def fit_chain(transform: Transform, coded: Coded, grades: Sequence[int]) -> list[Rung]:
    """Tables of a few neighbouring steps, ascending; they are made from the finest to the coarsest."""
    found: list[Rung] = []
    rung = rows = counts = None
    for grade in reversed(grades):
        step = np.float32(transform.step(grade))
        if rung is None:
            y, bits = list(coded.y), coded.beside
            own, rung = _first_guess(coded, y, bits, step)
            if coded.late is not None:
                more = coded.late(own, _decoder(rung, step))
                y, bits = [*y, *more[0]], [*bits, *more[1]]
                own, rung = _first_guess(coded, y, bits, step)
            counts = np.bincount(own, minlength=len(y))
            rows = np.concatenate([each[own == k] for k, each in enumerate(y)])
        scaled = np.split(scale(rows, step), np.cumsum(counts)[:-1])
        symbols = [spend(each, rung, k)[0] for k, each in enumerate(scaled)]
        rung = fit_tables(scaled, symbols, rung, coded.tables)
        found.insert(0, rung)
    return found


def _decoder(rung: Rung, step: np.float32) -> Decode:
    """What tables and step make of vectors."""

    def decode(y: np.ndarray, mode: int) -> np.ndarray:
        symbols = spend(scale(y, step), rung, mode)[0]
        out = np.empty(symbols.shape, np.float32)
        reconstruct(symbols, rung.chosen[mode], rung.bank.centroid, out)
        return out * step

    return decode


def _first_guess(
    coded: Coded, y: Sequence[np.ndarray], bits: Sequence[np.ndarray], step: np.float32
) -> tuple[np.ndarray, Rung]:
    """The mode of each vector, and tables of a dead zone's symbols."""
    searched = len(y) > 1 and coded.owners is None
    own = np.zeros(len(y[0]), np.int64) if coded.owners is None else coded.owners
    if searched:  # the basis that packs best
        own = np.argmin([measure(each, step) + b for each, b in zip(y, bits, strict=True)], axis=0)
    mine = [scale(each[own == k], step) for k, each in enumerate(y)]
    rung = fit_tables(mine, [dead_zone(each) for each in mine], None, coded.tables)
    return (assign(y, bits, rung, step, own) if searched else own), rung


def assign(
    y: Sequence[np.ndarray],
    bits: Sequence[np.ndarray],
    rung: Rung,
    step: np.float32,
    own: np.ndarray,
) -> np.ndarray:
    """The mode in which each vector costs least, (R,) int64.

    Args:
        y: K times (R, D). bits: K times (R,), beside mode and symbols.
        own: a guess, which spares most of the work.
    """
    cheapest = np.empty(len(own))
    for k, each in enumerate(y):
        mine = own == k
        cheapest[mine] = spend(scale(each[mine], step), rung, k)[1] + WEIGHT * bits[k][mine]
    found = own.copy()
    for k, each in enumerate(y):
        others = np.flatnonzero((own != k) & np.isfinite(bits[k]))
        more = WEIGHT * bits[k][others]
        cost = spend(scale(each[others], step), rung, k, cheapest[others] - more)[1] + more
        better = others[cost < cheapest[others]]
        found[better], cheapest[others] = k, np.minimum(cost, cheapest[others])
    return found


def scale(y: np.ndarray, step: np.float32) -> np.ndarray:
    """Values over the step, within what symbols can tell."""
    return np.clip(y / step, -MAX_VALUE, MAX_VALUE)


def dead_zone(y: np.ndarray) -> np.ndarray:
    """Symbols (R, D) int32 of scaled values, by a quantiser that knows no tables."""
    return np.trunc(y + np.copysign(np.float32(0.35), y)).astype(np.int32)


def spend(
    y: np.ndarray, rung: Rung, cluster: int, limit: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Symbols (R, D) of scaled values and what each row costs.

    Args:
        limit: (R,) costs above which a row's own need not be found.
    """
    symbols = np.empty(y.shape, np.int32)
    index = WEIGHT * (rans.PRECISION - np.log2(rung.clusters[cluster]))
    limit = np.full(len(y), np.inf) if limit is None else limit - index
    tables = rung.chosen[cluster], rung.bits, rung.bank.centroid
    return symbols, choose(y, *tables, WEIGHT, limit, symbols)[0] + index


def fit_tables(
    scaled: Sequence[np.ndarray],
    symbols: Sequence[np.ndarray],
    before: Rung | None,
    size: int,
) -> Rung:
    """Tables for the values and symbols of each cluster, K times (R, D).

    Args:
        before: tables of a like step, whose groups of components are where the search begins.
        size: tables at most.
    """
    clusters, width = len(scaled), scaled[0].shape[1]
    coarse = np.zeros((clusters * width, 2 * BINS - 1), np.float32)
    magnitudes = np.zeros(clusters * width)
    for k, q in enumerate(symbols):
        count_bins(q, k * width, BIN, coarse, magnitudes)
    spread = magnitudes / np.maximum(coarse.sum(1), 1)
    chosen = group(coarse, spread, size, None if before is None else before.chosen.ravel())
    chosen = chosen.reshape(clusters, width).astype(np.int32)
    largest = max(int(np.abs(q).max(initial=1)) for q in symbols)
    reach = min(max(largest, CENTROIDS), REACH)
    pooled = np.zeros((chosen.max() + 1, 2 * reach + 1), np.int64)
    sums = np.zeros((len(pooled), 2 * CENTROIDS - 1))
    for k, (y, q) in enumerate(zip(scaled, symbols, strict=True)):
        pool_symbols(y, q, chosen[k], pooled, sums)
    sizes = np.append([len(q) + 0.5 for q in symbols], 0)  # an escape is never used
    return Rung(to_bank(pooled, sums), chosen, to_frequencies(sizes))


def _bins() -> np.ndarray:
    """The bin of each magnitude 0 .. REACH: wider bins the farther from 0, enough to tell which
    histograms are alike."""
    wide = np.unique(np.round(np.geomspace(8, 8192, 64)).astype(int))
    first = np.concatenate([np.arange(8), wide])  # magnitude with which each begins
    return np.searchsorted(first, np.arange(REACH + 1), "right") - 1


BIN = _bins()
BINS = int(BIN[-1]) + 1


@kernel
def measure(y, step):
    """About the bits of each row (R,) float64: the sum of log2(1 + abs(value) / step) over (R, D)."""
    out = np.zeros(y.shape[0])
    for r in range(y.shape[0]):
        total, product = 0.0, 1.0
        for i in range(y.shape[1]):
            product *= 1.0 + min(np.float64(abs(y[r, i])) / step, 1e30)
            if product > 1e250:
                total += np.log2(product)
                product = 1.0
        out[r] = total + np.log2(product)
    return out


@kernel
def count_bins(symbols, first, bins, counts, magnitudes):
    """Add symbols (R, D) to the coarse histograms of their components, and their magnitudes.

    Args:
        first: the row of ``counts`` that component 0 has. bins: (M + 1,) of magnitudes 0 .. M.
        counts: (G, 2 B - 1). magnitudes: (G,).
    """
    middle, largest = counts.shape[1] // 2, len(bins) - 1
    for r in range(symbols.shape[0]):
        for i in range(symbols.shape[1]):
            q = symbols[r, i]
            size = min(abs(q), largest)
            place = bins[size] if q > 0 else -bins[size]
            counts[first + i, middle + place] += 1
            magnitudes[first + i] += size


@kernel
def pool_symbols(y, symbols, table, counts, sums):
    """Add symbols (R, D), and what quantisation left over, to the histograms of their tables.

    Args:
        y: (R, D) values over the step. table: (D,). counts: (T, 2 M + 1). sums: (T, 2 CENTROIDS - 1).
    """
    reach = counts.shape[1] // 2
    for r in range(symbols.shape[0]):
        for i in range(symbols.shape[1]):
            q, t = symbols[r, i], table[i]
            counts[t, min(max(q, -reach), reach) + reach] += 1
            if -CENTROIDS < q < CENTROIDS:
                sums[t, q + CENTROIDS - 1] += y[r, i] - q
