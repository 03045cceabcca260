"""The fit of the entropy models of all steps, second generation.

y ─ mode of each vector ─ trellis search ─ histograms ─> tables of a step ─ start of the next

Steps go in chains of neighbours, from the coarse to the fine, each on a thread of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from dtufc.devices import limit_threads
from dtufc.klt import trellis
from dtufc.klt.contexts import MOST_TABLES
from dtufc.klt.fit_step import BANK, Sample, fit_contexts, fit_tables
from dtufc.klt.fit_tables import Coded, Decode, measure
from dtufc.klt.model import Transform
from dtufc.klt.tables import Tables, choose, in_units
from dtufc.overlap import overlap

CHAIN = 4
"""Steps that follow each other; half an octave."""
TURNS = 2
"""Turns of symbols and tables at a step that starts from tables of a like one."""
SHARE = 4
"""Of so many vectors one makes the tables that a chain begins with."""
AGAIN = 2
"""Times that modes are told and tables made of them before a chain's first step."""
EVERY = 2
"""Steps after which modes are told anew."""
TRIED = 4
"""Modes that are tried on a vector at most, those of the least guess."""


def fit(
    transform: Transform,
    coded: Coded,
    grades: Iterable[int],
    weight: float,
    contexts: bool = False,
) -> Iterator[Tables]:
    """Tables of one step after the other, from the coarsest on, on as many threads as torch has; the
    result does not depend on how many.

    Args:
        transform: with the modes of ``coded``. grades: qualities in 128ths, ascending.
        weight: of a bit, in squared steps. contexts: give tables versions by context.
    """

    def code(chain: Sequence[int], _: None) -> list[Tables]:
        limit_threads(1)
        return _fit_chain(transform, coded, chain, weight / trellis.FINE**2, contexts)

    for _, found in overlap(_chains(grades), lambda chain: None, code, torch.get_num_threads()):
        yield from found


def _chains(grades: Iterable[int]) -> Iterator[list[int]]:
    rest = iter(grades)
    while chain := list(islice(rest, CHAIN)):
        yield chain


def _fit_chain(
    transform: Transform, coded: Coded, grades: Sequence[int], weight: float, contexts: bool
) -> list[Tables]:
    """Tables of neighbouring steps, ascending.

    Args:
        weight: of a bit, in squared fine steps.
    """
    found: list[Tables] = []
    vectors = sample = tables = None
    bank = MOST_TABLES // 2 if contexts else BANK
    for number, grade in enumerate(grades):
        fine = trellis.FINE * transform.step(grade)
        if vectors is None:
            vectors, tables = _begin(coded, fine, weight, bank)
        if sample is None or (number % EVERY == 0 and not vectors.alone):
            sample = vectors.sample(tables, fine, weight)
        tables = fit_tables(sample, fine, weight, tables, TURNS, bank)
        found.append(fit_contexts(sample, fine, weight, tables) if contexts else tables)
    return found


def _begin(coded: Coded, fine: float, weight: float, bank: int) -> tuple["_Vectors", Tables]:
    """The vectors in all modes, and tables to begin with."""
    vectors = _Vectors(coded.y, coded.beside, fine)
    tables = vectors.guess(fine, weight, bank)
    if coded.late is not None:
        own = vectors.own(tables, fine, weight)
        y, beside = coded.late(own, _decoder(tables, fine, weight))
        vectors = _Vectors([*coded.y, *y], [*coded.beside, *beside], fine)
        tables = vectors.guess(fine, weight, bank)
    for _ in range(0 if vectors.alone else AGAIN):
        tables = fit_tables(vectors.sample(tables, fine, weight), fine, weight, tables, TURNS, bank)
    return vectors, tables


class _Vectors:
    """Vectors in every mode.

    Args:
        y: K times (R, D). beside: K times (R,), bits beside mode and symbols.
        fine: the fine step of a guess of their modes, which knows no tables.
    """

    def __init__(self, y: Sequence[np.ndarray], beside: Sequence[np.ndarray], fine: float):
        self.y, self.beside = y, beside
        self.alone = len(y) == 1
        if self.alone:
            self.bits = np.zeros((1, len(y[0])))
        else:
            step = np.float32(fine / trellis.FINE)
            self.bits = np.stack([measure(each, step) for each in y]) + np.stack(beside)

    def guess(self, fine: float, weight: float, bank: int) -> Tables:
        """Tables of some vectors in the modes that are guessed."""
        few, bits = [each[::SHARE] for each in self.y], self.bits[:, ::SHARE]
        return fit_tables(Sample.of(few, bits.argmin(0), bits), fine, weight, bank=bank)

    def sample(self, tables: Tables, fine: float, weight: float) -> Sample:
        """The vectors in their modes by these tables."""
        return Sample.of(self.y, self.own(tables, fine, weight), self.bits)

    def own(self, tables: Tables, fine: float, weight: float) -> np.ndarray:
        """The mode in which each vector costs least by these tables, (R,) int64."""
        own, cheapest = np.zeros(self.bits.shape[1], np.int64), np.full(self.bits.shape[1], np.inf)
        if self.alone:
            return own
        parameters, most = tables.parameters(weight), min(TRIED, len(self.y))
        limit = np.partition(self.bits, most - 1, axis=0)[most - 1]
        for mode, (each, beside) in enumerate(zip(self.y, self.beside, strict=True)):
            rows = np.flatnonzero((self.bits[mode] <= limit) & np.isfinite(beside))
            units = in_units(np.ascontiguousarray(each[rows].T), 1 / fine)
            found = np.empty(units.shape[1], np.int64)
            trellis.estimate(units, tables.chosen[0, mode], tables.shift, parameters, found)
            cost = found[: len(rows)] + tables.mode_cost(mode, weight)
            cost = cost + weight * trellis.UNIT**2 * beside[rows]
            better = cost < cheapest[rows]
            own[rows[better]] = mode
            cheapest[rows] = np.minimum(cost, cheapest[rows])
        return own


def _decoder(tables: Tables, fine: float, weight: float) -> Decode:
    """What tables and step make of vectors."""
    parameters = tables.parameters(weight)

    def decode(y: np.ndarray, mode: int) -> np.ndarray:
        units = in_units(np.ascontiguousarray(y.T), 1 / fine)
        symbols = choose(tables, parameters, mode, units, len(y))[1]
        found = tables.values_of(symbols, np.full(len(y), mode, np.int32))
        return np.ascontiguousarray(found.T) * np.float32(fine)

    return decode
