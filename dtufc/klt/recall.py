"""A memory (:mod:`dtufc.klt.memory`) with dependent quantisation: the choice of modes and references,
and what is decoded with them.

    y = basis_m (x - mean_m) - prediction_m(reference) ─ estimate of each mode ─ best ─ trellis search

First each vector takes the best mode that refers to no other vector. All are decoded so; then those
that cost less as what they differ in from an earlier one take that, and are searched again.
"""

from functools import lru_cache

import numpy as np

from dtufc.klt import coder, trellis
from dtufc.klt.memory import Memory, settle
from dtufc.klt.tables import Tables, in_units

FAR = 2.0**23
"""Largest value that is searched, in fine steps: 64ths of it are integers of 32 bits."""
NEVER = 2.0**62


class Recall:
    """The choice for vectors (R, C, 1) float32 at one step.

    Args:
        fine: the fine step. weight: of a bit, in squared fine steps.
    """

    def __init__(
        self, transform, tables: Tables, memory: Memory, vectors, fine: float, weight: float
    ):
        self.transform, self.tables, self.memory, self.vectors = transform, tables, memory, vectors
        self.fine, self.weight = fine, weight
        self.bit = weight * trellis.UNIT**2
        self.parameters = tables.parameters(weight)
        count = len(vectors)
        self.cost = np.full(count, np.inf)
        self.modes, self.references = np.zeros(count, np.int32), np.zeros(count, np.int64)
        self.units = np.zeros((transform.components, count), np.int32)

    def quantise(self, length: int | None) -> coder.Quantised:
        """Modes, references and symbols.

        Args:
            length: rows of a sequence; None: no vector refers to an earlier one.
        """
        forward = lru_cache(maxsize=1)(self._forward)
        for mode in range(self.memory.first):
            units, cost = self._attempt(forward(mode), mode)
            self._keep(cost < self.cost, mode, units, cost)
        for mode, entry, known in self.memory.from_dictionary(self.transform, self.vectors):
            units, cost = self._attempt(forward(mode), mode, known)
            cost += self.bit * self.memory.bits
            self._keep(cost < self.cost, mode, units, cost, entry)
        code = np.empty((self.transform.components, len(self.vectors)), np.uint16)
        symbols = np.empty(code.shape, np.int32)
        every = np.arange(len(self.vectors))
        self._search(every, code, symbols)
        if length:
            late = self._refer(forward, symbols, length)
            self._search(late, code, symbols)
        escapes = int(np.count_nonzero((code & 255) == trellis.ESCAPE))
        return coder.Quantised(self.modes, code, symbols, escapes, self.references)

    def _refer(self, forward, symbols: np.ndarray, length: int) -> np.ndarray:
        """Take references to earlier vectors where they pay -> the rows (n,) that have one now."""
        y = self.tables.values_of(symbols, self.modes) * np.float32(self.fine)
        decoded = recall(self.transform, self.memory, self.modes, self.references, y)
        found = self.memory.from_earlier(self.transform, self.vectors, decoded, length)
        trials = [
            (mode, rows, known, self._attempt(forward(mode), mode, known)[1])
            for mode, rows, known in found
        ]
        taken, _ = settle(self.cost, trials, length, self.bit)
        for number, (mode, rows, known, cost) in enumerate(trials):
            mine = taken == number
            if mine.any():
                self._keep(mine, mode, self._attempt(forward(mode), mode, known)[0], cost, rows)
        return np.flatnonzero(taken >= 0)

    def _forward(self, mode: int) -> np.ndarray:
        return coder.forward(self.transform, self.vectors, mode)

    def _attempt(self, y: np.ndarray, mode: int, known: np.ndarray | None = None):
        """What is searched of all vectors in a mode, and about what each costs, (R,) float64.

        Args:
            y: (D, R). known: (R, D), what is predicted.
        """
        if known is not None:
            y = y - known.T
        limit = np.float32(FAR * self.fine)
        units = in_units(np.clip(y, -limit, limit), 1 / self.fine)
        cost = np.empty(units.shape[1], np.int64)
        tables = self.tables.chosen[0, mode]
        trellis.estimate(units, tables, self.tables.shift, self.parameters, cost)
        cost = cost[: y.shape[1]] + float(self.tables.mode_cost(mode, self.weight))
        cost[np.abs(y).max(0) > limit] = NEVER  # a prediction that is far off
        return units, cost

    def _keep(self, better: np.ndarray, mode: int, units, cost, references=0) -> None:
        """Let the vectors ``better`` (R,) bool have a mode and references (R,)."""
        self.cost[better], self.modes[better] = cost[better], mode
        self.references[better] = np.broadcast_to(references, better.shape)[better]
        self.units[:, better] = units[:, better]

    def _search(self, rows: np.ndarray, code: np.ndarray, symbols: np.ndarray) -> None:
        """Find the symbols of some vectors, in the modes that they have."""
        modes, units = self.modes[rows], self.units[:, rows]
        for mode in np.unique(modes).tolist():
            each = coder.of_mode(units, modes, mode)
            columns = rows[modes == mode]
            coder.search(self.tables, each, mode, self.parameters, columns, code, symbols)


def recall(
    transform, memory: Memory, modes: np.ndarray, references: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Modes and references (R,) and components (D, R) -> vectors (R, C, 1) float32."""
    out = np.empty((len(modes), *transform.mean.shape[1:]), np.float32)
    for mode, mine in coder.by_value(modes):  # ascending: what refers to other rows comes last
        each = np.ascontiguousarray(y[:, mine])
        known = memory.prediction(transform, mode, references[mine], out)
        if mode >= memory.first:
            each += known.T
        out[mine] = coder.inverse(transform, each, mode)
    return out
