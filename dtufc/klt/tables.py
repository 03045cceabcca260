"""The entropy model of one step, second generation: tables of 12 bits for the lanes of
:mod:`dtufc.klt.lanes` and the two quantisers of :mod:`dtufc.klt.trellis`. :mod:`dtufc.klt.fit_step`
makes it.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dtufc.klt import contexts, lanes, trellis
from dtufc.klt.contexts import CLASSES, Contexts
from dtufc.klt.entropy import CENTROIDS, mean_squares

OUTLYING = [trellis.FAR // 4, trellis.FAR // 2, trellis.FAR]
"""Magnitudes whose escapes count in a polynomial, so that what lies far off is never cheap."""


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
    contexts: Contexts | None = None
    """Versions of the tables by context, where they were found to help."""

    @cached_property
    def size(self) -> np.ndarray:
        """(T,) int32: symbols of each table beside the escape."""
        return np.array([len(freq) - 1 for freq in self.freqs], np.int32)

    @cached_property
    def every(self) -> np.ndarray:
        """(D,) int64: the components."""
        return np.arange(len(self.shift))

    @cached_property
    def slots(self) -> lanes.Slots:
        """The coder's form, of the tables' versions where there are such; the table of the modes is the
        last."""
        if self.contexts is None:
            return lanes.Slots.of((*self.freqs, self.modes), np.append(self.low, 0))
        low = np.repeat(self.low, CLASSES)
        return lanes.Slots.of((*self.contexts.freqs, self.modes), np.append(low, 0))

    @cached_property
    def magnitudes(self) -> np.ndarray:
        """(T * ROW,) uint8: what table symbols add to the activity of a vector."""
        return contexts.magnitudes(self.low)

    @cached_property
    def limits(self) -> np.ndarray:
        """As :func:`dtufc.klt.contexts.thresholds` returns them; empty where there are no contexts."""
        if self.contexts is None:
            return np.empty(0, np.uint16)
        known = contexts.expected(self.freqs, self.low, self.chosen)
        return contexts.thresholds(known, self.contexts.bounds, self.chosen)

    def coded(self, code: np.ndarray, modes: np.ndarray) -> np.ndarray:
        """Code (D, R) with the tables' versions in the place of tables; as it is without contexts."""
        if self.contexts is None:
            return code
        return contexts.assign(
            code, modes, self.first_size, self.magnitudes, self.limits, self.chosen.shape[1]
        )

    @cached_property
    def pairs(self) -> np.ndarray:
        """(D * K * 2,) uint16: the tables of each component and mode, side by side."""
        return np.ascontiguousarray(self.chosen.transpose(2, 1, 0)).astype(np.uint16).ravel()

    @cached_property
    def mode_table(self) -> int:
        """The table of the modes; -1 where there is one mode."""
        return len(self.slots.least) - 1 if self.chosen.shape[1] > 1 else -1

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
        least = self.slots.least[:-1].reshape(len(self.freqs), -1).min(1)
        bits = least[self.chosen].min((0, 1)).sum() + self.shift.sum()
        return float(bits + (self.slots.least[-1] if self.mode_table >= 0 else 0))

    @cached_property
    def bits(self) -> np.ndarray:
        """(T, ROW) float64: code lengths of table symbols, of their versions where there are such."""
        return contexts.code_lengths(self.freqs) if self.contexts is None else self.contexts.bits

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

    def bits_of(self, code: np.ndarray, modes: np.ndarray) -> np.ndarray:
        """(D, R) float64: bits of each symbol of code (D, R), low bits beside it left out."""
        return self.bits.ravel()[self.coded(code, modes)]

    def promised(self, code: np.ndarray, modes: np.ndarray) -> np.ndarray:
        """(R,) float64: bits of code (D, R) and modes (R,)."""
        bits = self.bits_of(code, modes).sum(0)
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
        return self.parameters_of(weight, self._fitted)

    @cached_property
    def _fitted(self) -> np.ndarray:
        """(T, 3): the polynomials of the bits of magnitudes from 3 on."""
        powers = np.arange(trellis.FAR + 1)[:, None] ** np.arange(3)
        out = []
        for rate, counted in zip(*self.rates, strict=True):
            part = np.flatnonzero(counted)
            weighed = counted[part, None] * powers[part]
            out.append(np.linalg.lstsq(weighed, counted[part] * rate[part], rcond=None)[0])
        return np.array(out)

    def parameters_of(self, weight: float, fitted: np.ndarray) -> np.ndarray:
        """:meth:`parameters`, given the polynomials of the bits of magnitudes from 3 on, (T, 3)."""
        unit = weight * trellis.UNIT**2
        out = np.zeros((len(self.freqs) + 1, trellis.PARAMETERS), np.int32)
        out[-1, 8:] = np.iinfo(np.int32).max  # symbols with low bits: rates hardly differ
        high = self.low + self.size - 1
        out[:-1, :3] = np.minimum(unit * self.rates[0][:, :3], trellis.MOST)
        out[:-1, 3:6] = np.clip(unit * fitted, -trellis.MOST, trellis.MOST)
        shift = (self.centroid - self.centroid[:, ::-1]) / 2  # away from 0, of either sign
        out[:-1, 6:8] = trellis.UNIT * shift[:, CENTROIDS : CENTROIDS + 2]
        out[:-1, 8], out[:-1, 9] = high, -self.low
        return out

    @cached_property
    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Bits of each table's magnitudes (T, FAR + 1), those of the likelier sign; and how much each of
        them counts in a polynomial of degree 2, (T, FAR + 1), 0 where it does not."""
        magnitude = np.arange(trellis.FAR + 1)
        rates, counted = np.zeros((2, len(self.freqs), trellis.FAR + 1))
        for t, (freq, low) in enumerate(zip(self.freqs, self.low.tolist(), strict=True)):
            high = low + len(freq) - 2
            found = np.zeros((2, trellis.FAR + 1))
            for row, k in zip(found, (magnitude, -magnitude), strict=True):
                inside = (k >= low) & (k <= high)
                row[inside] = freq[k[inside] - low]
            likely = found.max(0)
            away = np.maximum(magnitude - max(high, -low), 1)
            escape = lanes.PRECISION - np.log2(freq[-1]) + 1 + 2 * np.floor(np.log2(away))
            part = slice(3, max(high, -low, 3) + 4)
            rates[t] = np.where(
                likely > 0, lanes.PRECISION - np.log2(np.maximum(likely, 1)), escape
            )
            counted[t, part] = np.sqrt(np.maximum(likely[part], 0.25))
            counted[t, OUTLYING] = np.maximum(counted[t, OUTLYING], 0.5)
        return rates, counted


def in_units(y: np.ndarray, scale: float) -> np.ndarray:
    """Values (D, R) -> what :func:`dtufc.klt.trellis.search` takes, of fine steps of 1 / scale."""
    out = np.empty(y.shape, np.int32)
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
