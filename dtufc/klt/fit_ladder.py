"""The fit of the entropy models of all steps, second generation.

y ─ mode of each vector ─ trellis search ─ histograms ─> tables of a step ─ start of the next
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dtufc.klt import trellis
from dtufc.klt.fit_tables import CHAIN, Coded, Decode, measure
from dtufc.klt.model import Transform
from dtufc.klt.tables import ROUNDS, Tables, choose, fit_tables, in_units

TURNS = 3
"""Turns of symbols and tables at a step, after the first: each step starts from the one before."""
FEWEST = 4
"""Vectors at least that a mode's tables are made of."""
Modes = Sequence[np.ndarray]
"""The vectors in each mode, K times (D, R), or what they cost beside, K times (R,)."""


def fit(
    transform: Transform, coded: Coded, grades: Iterable[int], weight: float
) -> Iterator[Tables]:
    """Tables of one step after the other, from the coarsest on.

    Args:
        transform: with the modes of ``coded``. weight: of a bit, in squared steps.
    """
    y, bits = [np.ascontiguousarray(each.T) for each in coded.y], coded.beside
    weight /= trellis.FINE**2
    first = tables = None
    late: tuple[Modes, Modes] = ([], [])
    for number, grade in enumerate(grades):
        fine = trellis.FINE * transform.step(grade)
        if coded.late is not None and number % CHAIN == 0:
            first, own = _fit_step(y, bits, first, fine, weight)
            found = coded.late(own, _decoder(first, fine, weight))
            late = [np.ascontiguousarray(each.T) for each in found[0]], found[1]
        tables, _ = _fit_step([*y, *late[0]], [*bits, *late[1]], tables, fine, weight)
        yield tables


def _fit_step(
    y: Modes, bits: Modes, start: Tables | None, fine: float, weight: float
) -> tuple[Tables, np.ndarray]:
    """Tables of one step, and the mode of each vector (R,).

    Modes are told in two ways, of which the cheaper one goes on: by the tables of the step before, and
    by tables made of a guess that knows none. At a coarse step all vectors cost next to nothing in any
    mode, and modes that are rare there would stay rare by the first way alone.

    Args:
        start: tables of the step before.
    """

    def fit_to(own: np.ndarray, start: Tables | None) -> Tables:
        mine = [
            np.ascontiguousarray(each[:, members(own, k)]) / np.float32(fine)
            for k, each in enumerate(y)
        ]
        return fit_tables(mine, weight, start, ROUNDS if start is None else TURNS)

    def members(own: np.ndarray, k: int) -> np.ndarray:
        """The vectors of a mode; of a rare one those that lose least by it, for an estimate by tables
        of nothing is cheap and wrong."""
        mine = np.flatnonzero(own == k)
        if len(mine) >= FEWEST or len(y) == 1:
            return mine
        return np.argsort(every[k] - cheapest, kind="stable")[:FEWEST]

    if len(y) == 1:
        own = np.zeros(y[0].shape[1], np.int64)
        return fit_to(own, start), own
    step = np.float32(fine / trellis.FINE)
    guess = [measure(np.ascontiguousarray(each.T), step) for each in y]
    every = [cost + beside for cost, beside in zip(guess, bits, strict=True)]
    own, cheapest = np.argmin(every, axis=0), np.min(every, axis=0)
    ways = [fit_to(own, start)]
    if start is not None:
        ways.append(fit_to(_assign(y, bits, start, fine, weight)[0], start))
    found = [_assign(y, bits, tables, fine, weight) for tables in ways]
    best = min(range(len(ways)), key=lambda way: found[way][1])
    own = found[best][0]
    return fit_to(own, ways[best]), own


def _assign(
    y: Modes, bits: Modes, tables: Tables, fine: float, weight: float
) -> tuple[np.ndarray, float]:
    """The mode of each vector (R,), and about what all of them cost."""
    parameters = tables.parameters(weight)
    costs = []
    for mode, (each, beside) in enumerate(zip(y, bits, strict=True)):
        units = in_units(each, 1 / fine)
        cost = np.empty(units.shape[1], np.int64)
        trellis.estimate(units, tables.chosen[0, mode], tables.shift, parameters, cost)
        own = cost[: each.shape[1]] + tables.mode_cost(mode, weight)
        costs.append(own + weight * trellis.UNIT**2 * beside)
    return np.argmin(costs, axis=0), float(np.min(costs, axis=0).sum())


def _decoder(tables: Tables, fine: float, weight: float) -> Decode:
    """What tables and step make of vectors."""
    parameters = tables.parameters(weight)

    def decode(y: np.ndarray, mode: int) -> np.ndarray:
        units = in_units(np.ascontiguousarray(y.T), 1 / fine)
        symbols = choose(tables, parameters, mode, units, len(y))[1]
        found = tables.values_of(symbols, np.full(len(y), mode, np.int32))
        return np.ascontiguousarray(found.T) * np.float32(fine)

    return decode
