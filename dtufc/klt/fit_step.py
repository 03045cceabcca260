"""The fit of the entropy model of one step, second generation.

    units ─ trellis search ─> symbols ─ coarse histograms ─ groups of components ─ bank of tables ─┐
                 └──────────────────────── symbols by these tables <──────────────────────────────┘

Vectors go through a turn in blocks that stay in a core's cache. Sums are of integers, so that the tables
do not depend on the order of blocks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from dtufc.kernels import kernel
from dtufc.klt import contexts, lanes, trellis
from dtufc.klt.entropy import CENTROIDS, group, to_bank, to_frequencies
from dtufc.klt.fit_tables import BIN
from dtufc.klt.tables import Tables, in_units

REACH = 127
"""Largest magnitude in a table: it has 255 symbols at most, and its escape."""
WIDE = 16.0
"""Standard deviation of a component's symbols above which low bits stand beside the tables."""
BANK = 32  # tables of a quantiser at most
ROUNDS = 12  # of symbols by tables and tables by symbols, where there are no tables to begin with
SETTLING = 3  # rounds of grouping where there is a grouping to begin with
COLUMNS = 64  # vectors in a block
FEWEST = 4  # vectors of a mode
GAUSSIAN = (np.pi / 2) ** 0.5  # standard deviation over mean magnitude
ROW = 256  # places of a quantiser's symbols -REACH .. REACH in a histogram

MIDDLE = int(BIN[REACH])
BINS = 2 * MIDDLE + 1
"""Of the coarse histogram of a quantiser."""


def _places() -> np.ndarray:
    """The coarse bin of each place in the histograms of both quantisers, (2 * ROW,) int32."""
    symbols = np.minimum(np.arange(ROW) - REACH, REACH)
    one = MIDDLE + np.sign(symbols) * BIN[np.abs(symbols)]
    return np.concatenate([one, one + BINS]).astype(np.int32)


PLACES = _places()


@dataclass(frozen=True)
class Sample:
    """Vectors in the modes that they have."""

    blocks: Sequence[tuple[int, np.ndarray]]
    """Modes, and (D, COLUMNS at most) float32 of vectors of each."""
    modes: int
    """K."""
    magnitude: np.ndarray
    """(D,) float64: the mean of the components' magnitudes."""

    @classmethod
    def of(cls, y: Sequence[np.ndarray], own: np.ndarray, bits: np.ndarray | None = None) -> Self:
        """Of vectors in every mode, K times (R, D), and the mode of each (R,).

        Args:
            bits: (K, R), about what each takes in every mode. A rare mode has those, too, that lose
                least by it: an estimate by tables of nothing is cheap and wrong.
        """
        blocks, total = [], np.zeros(y[0].shape[1])
        for mode, each in enumerate(y):
            rows = np.flatnonzero(own == mode)
            total += np.abs(each[rows]).sum(0, dtype=np.float64)
            if len(rows) < FEWEST and bits is not None:
                rows = np.argsort(bits[mode] - bits.min(0), kind="stable")[:FEWEST]
            mine = each[rows]
            for first in range(0, len(mine), COLUMNS):
                blocks.append((mode, np.ascontiguousarray(mine[first : first + COLUMNS].T)))
        return cls(blocks, len(y), total / max(1, len(own)))

    @cached_property
    def sizes(self) -> np.ndarray:
        """(K,): vectors of each mode."""
        out = np.zeros(self.modes, np.int64)
        for mode, each in self.blocks:
            out[mode] += each.shape[1]
        return out

    def low_bits(self, fine: float) -> np.ndarray:
        """(D,) int32: how many low bits of each component's symbols are as good as random. Magnitudes
        tell it, as a few giants would raise the mean square of a component that is small elsewhere."""
        spread = GAUSSIAN * self.magnitude / (2 * fine)  # of symbols
        return np.maximum(0, np.ceil(np.log2(np.maximum(spread, 1e-9) / WIDE))).astype(np.int32)


def fit_tables(
    sample: Sample,
    fine: float,
    weight: float,
    start: Tables | None = None,
    rounds: int = ROUNDS,
    bank: int = BANK,
) -> Tables:
    """Tables of one step: symbols by tables and tables by symbols, in turns.

    Args:
        fine: the fine step. weight: what a bit costs, in squared fine steps.
        start: tables of a like step: turns converge slowly from none.
        rounds: turns. bank: tables of a quantiser at most.
    """
    step = _Step(sample, fine, bank)
    tables = step.guess() if start is None else replace(start, shift=step.shift)
    for number in range(rounds):
        tables = step.turn(tables, weight, regroup=number == 0)
    return tables


def fit_contexts(sample: Sample, fine: float, weight: float, tables: Tables) -> Tables:
    """The tables with versions by context, of the symbols that are found with them.

    Args:
        fine, weight: as of :func:`fit_tables`.
    """
    return replace(tables, contexts=_Step(sample, fine).versions(tables, weight))


class _Step:
    """Vectors at one step.

    Args:
        fine: the fine step. bank: tables of a quantiser at most.
    """

    def __init__(self, sample: Sample, fine: float, bank: int = BANK):
        self.sample, self.shift, self.bank = sample, sample.low_bits(fine), bank
        self.units = [in_units(each, 1 / fine) for _, each in sample.blocks]
        self.places = [np.empty(each.shape, np.uint16) for _, each in sample.blocks]
        self.width = len(self.shift)
        self.code = np.empty((self.width, COLUMNS), np.uint16)
        self.symbols = np.empty((self.width, COLUMNS), np.int32)
        self.costs, self.columns = np.empty(COLUMNS), np.arange(COLUMNS)

    def guess(self) -> Tables:
        """Tables of symbols chosen one by one with a dead zone, alike in both quantisers."""
        coarse, magnitudes = self._room()
        for mode, units, places in self._each():
            _guess(units, self.shift, PLACES, places, coarse[mode], magnitudes[mode])
        coarse[:, :, BINS:] = coarse[:, :, :BINS]
        pooled, sums, chosen = self._pool(coarse, 2 * magnitudes, None)
        pooled[:, ROW:] = pooled[:, :ROW]
        return self._tables(pooled, sums, chosen)

    def turn(self, before: Tables, weight: float, regroup: bool) -> Tables:
        """Tables of the symbols that are found with the tables ``before``.

        Args:
            regroup: whether components are grouped anew, or the groups of ``before`` move on. Groups
                that have died out come back by the first way alone.
        """
        parameters = _parameters(before, weight)
        # or tables that have shrunk would never grow again
        parameters[:, 8:] = np.iinfo(np.int32).max
        coarse, magnitudes = self._room()
        for mode, units, places in self._each():
            self._search(before, parameters, mode, units, places.shape[1])
            _count(
                self.code, self.symbols, self.shift, before.first_size, PLACES, places,
                coarse[mode], magnitudes[mode],
            )  # fmt: skip
        return self._tables(*self._pool(coarse, magnitudes, None if regroup else before.chosen[0]))

    def _search(self, tables: Tables, parameters, mode: int, units: np.ndarray, count: int) -> None:
        """Find the symbols of a block of ``count`` vectors -> self.code, self.symbols."""
        trellis.search(
            units, tables.chosen[:, mode], self.shift, parameters, tables.low, tables.size,
            self.columns[:count], self.code, self.symbols, self.costs,
        )  # fmt: skip

    def versions(self, tables: Tables, weight: float) -> contexts.Contexts:
        """Versions of tables of this step."""
        parameters, bins = tables.parameters(weight), contexts.bins()
        known = contexts.expected(tables.freqs, tables.low, tables.chosen)
        joint = np.zeros((len(tables.freqs), contexts.BINS, lanes.ROW), np.int64)
        for mode, units, places in self._each():
            few = places.shape[1]
            self._search(tables, parameters, mode, units, few)
            contexts.count(self.code[:, :few], mode, tables.magnitudes, known, bins, joint)
        return contexts.fit(joint, tables.freqs)

    def _each(self) -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
        """Mode, units and places of each block."""
        modes = (mode for mode, _ in self.sample.blocks)
        return zip(modes, self.units, self.places, strict=True)

    def _room(self) -> tuple[np.ndarray, np.ndarray]:
        """Coarse histograms of both quantisers (K, D, 2 BINS), and sums of magnitudes (K, D)."""
        shape = self.sample.modes, self.width
        return np.zeros((*shape, 2 * BINS), np.int32), np.zeros(shape, np.int64)

    def _pool(
        self, coarse: np.ndarray, magnitudes: np.ndarray, start: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Histograms of the groups of components that are alike (T, 2 ROW), sums of what quantisation
        left over (T, 2, 2 CENTROIDS - 1), in units, and the group of each component (K, D).

        Args:
            start: (K, D), groups to begin with.
        """
        flat = coarse.reshape(-1, 2 * BINS).astype(np.float32)
        spread = magnitudes.ravel() / np.maximum(flat.sum(1), 1)
        if start is None:
            chosen = group(flat, spread, self.bank)
        else:
            chosen = group(flat, spread, self.bank, start.ravel(), SETTLING)
        chosen = chosen.reshape(magnitudes.shape).astype(np.int32)
        pooled = np.zeros((chosen.max() + 1, 2 * ROW), np.int64)
        sums = np.zeros((len(pooled), 2, 2 * CENTROIDS - 1), np.int64)
        for mode, units, places in self._each():
            _pool(units, places, self.shift, chosen[mode], pooled, sums)
        return pooled, sums, chosen

    def _tables(self, pooled: np.ndarray, sums: np.ndarray, chosen: np.ndarray) -> Tables:
        """What :meth:`_pool` gives -> tables."""
        pairs = pooled.reshape(-1, 2, ROW).transpose(1, 0, 2)  # (2, T, ROW)
        seen = np.flatnonzero(pairs.any((0, 1))) - REACH
        reach = min(max(int(np.abs(seen).max(initial=1)), CENTROIDS), REACH)
        near = slice(REACH - reach, REACH + reach + 1)
        banks = [
            to_bank(pairs[q, :, near], sums[:, q] / trellis.UNIT, lanes.PRECISION) for q in (0, 1)
        ]
        return Tables(
            freqs=(*banks[0].freqs, *banks[1].freqs),
            low=np.concatenate([bank.offset for bank in banks]),
            centroid=np.concatenate([bank.centroid for bank in banks]),
            chosen=np.stack([chosen, chosen + len(pooled)]),
            shift=self.shift,
            modes=to_frequencies(np.append(self.sample.sizes + 0.5, 0), lanes.PRECISION),
        )


def _parameters(tables: Tables, weight: float) -> np.ndarray:
    """As :meth:`dtufc.klt.tables.Tables.parameters`, but for last digits, in a tenth of the time: all
    polynomials together, by normal equations."""
    rates, counted = tables.rates
    powers = np.arange(rates.shape[1], dtype=np.float64)[:, None] ** np.arange(3)
    squares = np.square(counted)
    gram = np.einsum("tm,ma,mb->tab", squares, powers, powers, optimize=True)
    fitted = np.linalg.solve(gram, (squares * rates) @ powers)
    return tables.parameters_of(weight, fitted)


@kernel
def _guess(units, shift, bins, places, coarse, magnitudes):
    """As :func:`_count`, of symbols of quantiser 0 that are told from the values alone."""
    for i in range(places.shape[0]):
        for r in range(places.shape[1]):
            v = units[i, r]
            k = (abs(v) + np.int32(0.7 * trellis.UNIT)) // np.int32(2 * trellis.UNIT)
            m = (k if v > 0 else -k) >> shift[i]
            m = min(max(m, -REACH), REACH)
            places[i, r] = m + REACH
            coarse[i, bins[m + REACH]] += 1
            magnitudes[i] += abs(m)


@kernel
def _count(code, symbols, shift, first, bins, places, coarse, magnitudes):
    """Add the symbols of a block to the coarse histograms of their components.

    Args:
        code, symbols: (D, COLUMNS), as :func:`dtufc.klt.trellis.search` writes them.
        first: the first table of quantiser 1. bins: PLACES.
        places: (D, R) uint16, written: where in a histogram (2 ROW,) each symbol counts.
        coarse: (D, 2 BINS) int32. magnitudes: (D,) int64.
    """
    edge, least, most = np.int32(first << 8), np.int32(-REACH), np.int32(REACH)
    flat, counts = places.ravel(), coarse.ravel()
    count, width = places.shape[1], coarse.shape[1]
    for i in range(places.shape[0]):
        low, total = np.int32(shift[i]), np.int32(0)
        for r in range(count):
            m = min(max(np.int32(symbols[i, r] >> low), least), most)
            second = np.int32(ROW if np.int32(code[i, r]) >= edge else 0)
            places[i, r] = np.uint16(m + most + second)
            total += np.int32(abs(m))
        magnitudes[i] += total
        own, base = np.uint64(i * count), np.uint64(i * width)
        for r in range(count):
            counts[base + np.uint64(bins[flat[own + np.uint64(r)]])] += 1


@kernel
def _pool(units, places, shift, table, pooled, sums):
    """Add the symbols of a block to the histograms of their tables.

    Args:
        units: (D, >= R). places: (D, R), as :func:`_count` writes them. table: (D,) int32.
        pooled: (T, 2 ROW) int64. sums: (T, 2, 2 CENTROIDS - 1) int64.
    """
    counts, totals = pooled.ravel(), sums.ravel()
    for i in range(places.shape[0]):
        base = np.uint64(table[i] * 2 * ROW)
        kinds = np.uint64(table[i] * 2 * (2 * CENTROIDS - 1))
        for r in range(places.shape[1]):
            place = np.int64(places[i, r])
            counts[base + np.uint64(place)] += 1
            q, k = place >> 8, (place & 255) - REACH
            if shift[i] == 0 and -CENTROIDS < k < CENTROIDS:
                sign = 1 if k > 0 else -1 if k < 0 else 0
                kind = np.uint64(q * (2 * CENTROIDS - 1) + k + CENTROIDS - 1)
                totals[kinds + kind] += units[i, r] - trellis.UNIT * (2 * k - q * sign)
