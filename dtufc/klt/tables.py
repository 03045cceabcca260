"""The entropy model of one step, second generation: tables of 12 bits for the lanes of
:mod:`dtufc.klt.lanes` and the two quantisers of :mod:`dtufc.klt.trellis`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dtufc.kernels import kernel
from dtufc.klt import lanes, trellis
from dtufc.klt.entropy import CENTROIDS, fit_banks, mean_squares, to_frequencies

REACH = 127
"""Largest magnitude in a table: it has 255 symbols at most, and its escape."""
WIDE = 16.0
"""Standard deviation of a component's symbols above which low bits stand beside the tables."""
BANK = 32  # tables of a quantiser at most
ROUNDS = 12  # of symbols by tables and tables by symbols


@dataclass(frozen=True, eq=False)
class Tables:
    """Tables of both quantisers, those of quantiser 0 first."""

    freqs: tuple[np.ndarray, ...]
    """T times (size + 1,) int32: frequencies of the symbols and of the escape, sum 2^12."""
    low: np.ndarray
    """(T,) int32: each table's lowest symbol."""
    centroid: np.ndarray
    """(T, 2 CENTROIDS - 1) float32, in fine steps: what is added to symbols of small magnitude."""
    chosen: np.ndarray
    """(2, K, D) int32: the table of each quantiser, mode and component."""
    shift: np.ndarray
    """(D,) int32: low bits of each component."""
    modes: np.ndarray
    """(K + 1,) int32: frequencies of the modes and of an escape that is never used, sum 2^12."""

    @cached_property
    def size(self) -> np.ndarray:
        """(T,) int32: symbols of each table beside the escape."""
        return np.array([len(freq) - 1 for freq in self.freqs], np.int32)

    @cached_property
    def slots(self) -> lanes.Slots:
        """The coder's form; the table of the modes is the last."""
        return lanes.Slots.of((*self.freqs, self.modes), np.append(self.low, 0))

    @cached_property
    def pairs(self) -> np.ndarray:
        """(D * K * 2,) uint16: the tables of each component and mode, side by side."""
        return np.ascontiguousarray(self.chosen.transpose(2, 1, 0)).astype(np.uint16).ravel()

    @property
    def mode_table(self) -> int:
        """The table of the modes; -1 where there is one mode."""
        return len(self.freqs) if self.chosen.shape[1] > 1 else -1

    @cached_property
    def wide(self) -> np.ndarray:
        """(2, D) int32: low bits of each component, and its row among those that have any."""
        return np.stack([self.shift, np.cumsum(self.shift > 0) - 1]).astype(np.int32)

    @cached_property
    def wide_shift(self) -> np.ndarray:
        """Low bits of the components that have any."""
        return self.shift[self.shift > 0]

    @cached_property
    def least(self) -> float:
        """The fewest bits that a vector takes."""
        bits = self.slots.least[self.chosen].min((0, 1)).sum() + self.shift.sum()
        return float(bits + (self.slots.least[-1] if self.mode_table >= 0 else 0))

    @cached_property
    def bits(self) -> np.ndarray:
        """(T, ROW) float64: code lengths of table symbols; of the escape, of the nearest beyond."""
        out = np.full((len(self.freqs), lanes.ROW), np.inf)
        for row, freq in zip(out, self.freqs, strict=True):
            row[: len(freq) - 1] = lanes.PRECISION - np.log2(freq[:-1])
            row[trellis.ESCAPE] = lanes.PRECISION - np.log2(freq[-1]) + 2
        return out

    @cached_property
    def values(self) -> np.ndarray:
        """(T * ROW,) float32: what table symbols stand for, in fine steps; an escape's is infinite."""
        place = np.arange(lanes.ROW)
        k = self.low[:, None] + place
        second = np.arange(len(self.freqs)) >= self.first_size
        out = (2 * k - np.where(second[:, None], np.sign(k), 0)).astype(np.float32)
        for q in range(1 - CENTROIDS, CENTROIDS):
            out += np.where(k == q, self.centroid[:, q + CENTROIDS - 1, None], 0)
        escape = np.where(second, -np.inf, np.inf)[:, None]
        return np.where(place == trellis.ESCAPE, escape, out).astype(np.float32).ravel()

    @property
    def first_size(self) -> int:
        """Tables of quantiser 0."""
        return int(self.chosen[0].max()) + 1

    @cached_property
    def average(self) -> np.ndarray:
        """(K,) float64: bits that a vector of each mode takes, if the tables are right."""
        entropy = np.array([-(f / f.sum() * np.log2(f / f.sum())).sum() for f in self.freqs])
        return entropy[self.chosen].mean(0).sum(1) + self.shift.sum()

    def average_of(self, modes: np.ndarray) -> float:
        """Bytes of vectors, about, given how many (up to K,) there are of each mode."""
        return float(self.average[: len(modes)] @ modes) / 8

    @cached_property
    def power(self) -> np.ndarray:
        """(K, D): mean squares of the components, in squared steps, by the tables of quantiser 0."""
        squares = mean_squares(self.freqs, self.low)[self.chosen[0]]
        return squares * 4.0**self.shift * (2 * trellis.FINE) ** 2

    @cached_property
    def heads(self) -> np.ndarray:
        """(K,) float64: bits of the modes."""
        return lanes.PRECISION - np.log2(self.modes[:-1])

    def mode_cost(self, mode: int, weight: float) -> int:
        """What a mode's bits cost, in 4096ths of a squared fine step."""
        return int(weight * trellis.UNIT**2 * float(self.heads[mode]))

    def promised(self, code: np.ndarray, modes: np.ndarray) -> np.ndarray:
        """(R,) float64: bits of code (D, R) and modes (R,)."""
        bits = self.bits.ravel()[code].sum(0)
        if self.mode_table >= 0:
            bits += self.heads[modes]
        return bits + self.shift.sum()

    def values_of(self, symbols: np.ndarray, modes: np.ndarray) -> np.ndarray:
        """Symbols (D, R) int32 -> components (D, R) float32 in fine steps."""
        y = np.empty(symbols.shape, np.float32)
        trellis.values_of(
            symbols, self.chosen, modes, self.shift, self.low, self.size, self.values, y
        )
        return y

    @cached_property
    def _parameters(self) -> dict[float, np.ndarray]:
        """Those that were asked for last."""
        return {}

    def parameters(self, weight: float) -> np.ndarray:
        """(T + 1, PARAMETERS) int32 of :func:`dtufc.klt.trellis.search`.

        Args:
            weight: what a bit costs, in squared fine steps.
        """
        known = self._parameters
        if weight not in known:
            known.clear()
            known[weight] = self._make_parameters(weight)
        return known[weight]

    def _make_parameters(self, weight: float) -> np.ndarray:
        unit = weight * trellis.UNIT**2
        out = np.zeros((len(self.freqs) + 1, trellis.PARAMETERS), np.int32)
        out[-1, 8:] = np.iinfo(np.int32).max  # symbols with low bits: rates hardly differ
        high = self.low + self.size - 1
        rate, fitted = self._rates
        out[:-1, :3] = np.minimum(unit * rate[:, :3], trellis.MOST)
        out[:-1, 3:6] = np.clip(unit * fitted, -trellis.MOST, trellis.MOST)
        shift = (self.centroid - self.centroid[:, ::-1]) / 2  # away from 0, of either sign
        out[:-1, 6:8] = trellis.UNIT * shift[:, CENTROIDS : CENTROIDS + 2]
        out[:-1, 8], out[:-1, 9] = high, -self.low
        return out

    @cached_property
    def _rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Bits of each table's magnitudes (T, FAR + 1), those of the likelier sign, and of a polynomial
        of degree 2 through those from 3 on, (T, 3)."""
        magnitude = np.arange(trellis.FAR + 1)
        rates, fits = [], []
        for freq, low in zip(self.freqs, self.low.tolist(), strict=True):
            high = low + len(freq) - 2
            found = np.zeros((2, trellis.FAR + 1))
            for row, k in zip(found, (magnitude, -magnitude), strict=True):
                inside = (k >= low) & (k <= high)
                row[inside] = freq[k[inside] - low]
            likely = found.max(0)
            away = np.maximum(magnitude - max(high, -low), 1)
            escape = lanes.PRECISION - np.log2(freq[-1]) + 1 + 2 * np.floor(np.log2(away))
            rate = np.where(likely > 0, lanes.PRECISION - np.log2(np.maximum(likely, 1)), escape)
            part = slice(3, max(high, -low, 3) + 4)
            weight = np.sqrt(np.maximum(likely[part], 0.25))[:, None]
            powers = magnitude[part, None] ** np.arange(3)
            rates.append(rate)
            fits.append(np.linalg.lstsq(weight * powers, weight[:, 0] * rate[part], rcond=None)[0])
        return np.array(rates), np.array(fits)


def fit_tables(
    values: Sequence[np.ndarray], weight: float, start: Tables | None = None, rounds: int = ROUNDS
) -> Tables:
    """Tables of one step: symbols by tables and tables by symbols, in turns.

    Args:
        values: K times (D, R) float32: vectors of each mode, in fine steps.
        weight: what a bit costs, in squared fine steps.
        start: tables of a like step: turns converge slowly from none.
        rounds: turns.
    """
    units = [in_units(y, 1.0) for y in values]
    shift = low_bits(values)
    own = [y.shape[1] for y in values]
    tables = _guess(values, shift) if start is None else replace(start, shift=shift)
    for _ in range(rounds):
        parameters = tables.parameters(weight).copy()
        parameters[:, 8:] = np.iinfo(
            np.int32
        ).max  # or tables that have shrunk would never grow again
        members = enumerate(zip(units, own, strict=True))
        found = [choose(tables, parameters, m, u, n)[:2] for m, (u, n) in members]
        modes = range(len(values))
        tables = _from_symbols(values, found, modes, own, shift, tables.first_size)
    return tables


def _guess(values: Sequence[np.ndarray], shift: np.ndarray) -> Tables:
    """Tables of symbols chosen one by one with a dead zone, alike in both quantisers."""
    symbols = [np.trunc(y / 2 + np.copysign(np.float32(0.35), y)).astype(np.int32) for y in values]
    codes = [
        (np.full(k.shape, 256 * q, np.uint16), k) for k in symbols for q in (0, 1)
    ]  # two tables
    modes = [m for m in range(len(values)) for _ in (0, 1)]
    own = [y.shape[1] for y in values]
    return _from_symbols([values[m] for m in modes], codes, modes, own, shift)


def in_units(y: np.ndarray, scale: float) -> np.ndarray:
    """Values (D, R) -> what :func:`dtufc.klt.trellis.search` takes, of fine steps of 1 / scale."""
    columns = -(-y.shape[1] // trellis.BLOCK) * trellis.BLOCK
    out = np.empty((y.shape[0], columns), np.int32)
    trellis.to_units(y, np.float32(scale * trellis.UNIT), out)
    return out


def choose(tables: Tables, parameters, mode: int, units: np.ndarray, count: int):
    """Code (D, R) uint16, symbols (D, R) int32, costs (R,) and escapes of vectors of one mode."""
    code = np.empty((len(units), count), np.uint16)
    symbols = np.empty(code.shape, np.int32)
    costs = np.empty(count)
    escapes = trellis.search(
        units, tables.chosen[:, mode], tables.shift, parameters, tables.low, tables.size,
        np.arange(count), code, symbols, costs,
    )  # fmt: skip
    return code, symbols, costs, escapes


def low_bits(values: Sequence[np.ndarray]) -> np.ndarray:
    """(D,) int32: how many low bits of each component's symbols are as good as random."""
    count = max(1, sum(y.shape[1] for y in values))
    power = sum(np.square(y, dtype=np.float64).sum(1) for y in values) / count
    spread = np.sqrt(power) / 2  # of symbols
    return np.maximum(0, np.ceil(np.log2(np.maximum(spread, 1e-9) / WIDE))).astype(np.int32)


def _from_symbols(values, codes, modes, own, shift, first=1) -> Tables:
    """Tables of the symbols found; ``first``: how many tables quantiser 0 had."""
    width, count = len(shift), len(own)
    largest = max(int((np.abs(k) >> shift[:, None]).max(initial=1)) for _, k in codes)
    reach = min(max(largest, CENTROIDS), REACH)
    counts = np.zeros((2, count * width, 2 * reach + 1), np.int32)
    sums = np.zeros((2, count * width, 2 * CENTROIDS - 1))
    for y, (code, k), mode in zip(values, codes, modes, strict=True):
        _count(y, code, k, shift, first, mode * width, reach, counts, sums)
    (first, second), table = fit_banks(counts, sums, BANK, lanes.PRECISION)
    chosen = np.stack([table, table + len(first.freqs)]).reshape(2, count, width)
    return Tables(
        freqs=(*first.freqs, *second.freqs),
        low=np.append(first.offset, second.offset).astype(np.int32),
        centroid=np.concatenate([first.centroid, second.centroid]),
        chosen=chosen.astype(np.int32),
        shift=shift,
        modes=to_frequencies(np.append(np.array(own) + 0.5, 0), lanes.PRECISION),
    )


@kernel
def _count(y, code, symbols, shift, first, group, reach, counts, sums):
    """Add symbols (D, R) and what quantisation left over to the histograms of quantiser and component.

    Args:
        y: (D, R) in fine steps. first: the first table of quantiser 1.
        group: the row of ``counts`` (2, G, ...) that component 0 has.
    """
    for i in range(symbols.shape[0]):
        g = group + i
        for r in range(symbols.shape[1]):
            k, q = symbols[i, r], np.int64((code[i, r] >> 8) >= first)
            m = k >> shift[i]
            counts[q, g, min(max(m, -reach), reach) + reach] += 1
            if shift[i] == 0 and -CENTROIDS < k < CENTROIDS:
                sign = 1 if k > 0 else -1 if k < 0 else 0
                sums[q, g, k + CENTROIDS - 1] += y[i, r] - (2 * k - q * sign)
