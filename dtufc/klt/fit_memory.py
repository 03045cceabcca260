"""The memory of a token codec: dictionary, bases and gains, from pairs of like training vectors.

    vectors ─ nearest of other files, nearest before ─ pairs, by likeness ─ basis of what differs ─ gains

Pairs of vectors that are more or less alike are modes of their own, with tables of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dtufc.feature import FeatureFacts
from dtufc.klt.bases import Bases, outer
from dtufc.klt.fit_klt import FitConfig
from dtufc.klt.fit_tables import WEIGHT, Coded, Decode, Late, fit_chain
from dtufc.klt.memory import WINDOW, Memory, nearest, nearest_before
from dtufc.klt.model import PER_OCTAVE, RUNGS, KltModel, Layout, Transform
from dtufc.klt.race import MAX_BASES, compare, in_threads
from dtufc.klt.statistics import spaced

ENTRIES = 8192  # vectors in the dictionary at most
ENTRY_VALUES = 8_000_000  # values of all of them at most
FIXED, EARLIER = 3, 2  # modes of either kind: pairs that are more or less alike
LEAST = 0.02  # of log2 of the rate, that a memory must save
TOLD, UNSEEN = 2_000_000, 600_000  # values at most by which this is told
BELIEF = 0.3  # of the channels: vectors' worth of belief in the common covariance


@dataclass(frozen=True)
class Sequences:
    """Vectors of whole files."""

    x: np.ndarray
    """(R, C, 1) float32."""
    files: list[tuple[int, int, int]]
    """First row, last row (exclusive) and rows of a sequence, of each file."""

    @classmethod
    def read(cls, paths: Sequence[Path], facts: FeatureFacts, values: int) -> "Sequences":
        """Some of the files, of about so many values at most."""
        size = facts.read(paths[0]).size
        found, files, first = [], [], 0
        for path in paths[:: -(-len(paths) * size // values)]:
            x = facts.read(path)
            found.append(facts.views.to_vectors(x, 1))
            files.append((first, first + len(found[-1]), facts.views.sequence(x.shape) or 1))
            first += len(found[-1])
        return cls(np.concatenate(found), files)

    @cached_property
    def before(self) -> np.ndarray:
        """(R,) int64: rows before each in its sequence."""
        return np.concatenate([np.arange(last - first) % t for first, last, t in self.files])

    def nearest_before(self, x: np.ndarray, known: np.ndarray) -> np.ndarray:
        """The row before each of its sequence that is nearest, (R,) int64, -1 for none."""
        rows = np.empty(len(x), np.int64)
        for first, last, length in self.files:
            found = nearest_before(x[first:last], known[first:last], length)[:, 0]
            rows[first:last] = np.where(found < 0, -1, found + first)
        return rows


class Remembered:
    """A memory, and the vectors it was made of in all of its modes.

    Args:
        plain: the transform of the modes without a reference.
    """

    def __init__(self, known: Sequences, plain: Transform, bases: Bases):
        self.known, self.first = known, plain.layout.clusters
        rows = spaced(len(known.x), min(ENTRIES, max(1, ENTRY_VALUES // known.x.shape[1])))
        self.barred = np.empty((len(known.x), 2), np.int64)
        for first, last, _ in known.files:
            self.barred[first:last] = np.searchsorted(rows, (first, last))
        middle = bases.known.mean[:, 0]
        away = known.x[rows, :, 0] - middle
        unit = np.maximum(np.abs(away).max(0) / 127, 1e-30).astype(np.float32)
        stored = np.round(away / unit).astype(np.int8)
        gain = np.ones((0, known.x.shape[1]), np.float32)
        draft = Memory(self.first, 0, stored, unit, middle, gain)
        means, found, gains = list(plain.mean), list(plain.basis), []
        common = bases.common
        z = (known.x[:, :, 0] - middle) @ common
        entries = (draft.entries[:, :, 0] - middle) @ common
        pairs = [(entries[nearest(z, entries, self.barred)], np.full(len(z), True), FIXED)]
        before = known.nearest_before(z, z)
        pairs.append((z[np.maximum(before, 0)], before >= 0, EARLIER))
        for like, there, count in pairs:
            for mine in _classes(z, like, there, count):
                basis, gain = _fit_mode(z[mine], like[mine], bases)
                means.append(bases.known.mean)
                found.append(basis)
                gains.append(gain)
        layout = replace(plain.layout, clusters=len(means))
        self.transform = Transform(layout, np.stack(means), np.stack(found), plain.unit)
        self.memory = replace(draft, fixed=FIXED, gain=np.stack(gains))

    @cached_property
    def _known(self) -> list[np.ndarray]:
        """What is predicted of the vectors in the modes that refer to the dictionary."""
        out = []
        for mode in range(self.first, self.memory.earlier):
            there = self.memory.predict(self.transform, mode, self.memory.entries)
            x = self.transform.forward(self.known.x, mode)
            out.append(there[nearest(x, there, self.barred)])
        return out

    @cached_property
    def y(self) -> list[np.ndarray]:
        """What is coded of the vectors (R, C) in each mode that refers to no earlier vector."""
        known = [0.0] * self.first + self._known
        return [
            self.transform.forward(self.known.x, mode) - each for mode, each in enumerate(known)
        ]

    @property
    def coded(self) -> Coded:
        """The same with the bits of references, and the other modes, for tables."""
        bits = [0.0] * self.first + [self.memory.bits] * self.memory.fixed
        return Coded(self.y, [np.full(len(self.known.x), each) for each in bits], self.late)

    def late(self, own: np.ndarray, decode: Decode) -> Late:
        """What is coded in the modes that refer to earlier vectors, and the bits of their references.

        Args:
            own: (R,) the other mode of each vector, in which the references are coded.
            decode: what becomes of them.
        """
        decoded = np.empty_like(self.known.x)
        for mode, y in enumerate(self.y):
            mine = own == mode
            out = decode(y[mine], mode)
            if mode >= self.first:
                out += self._known[mode - self.first][mine]
            decoded[mine] = self.transform.inverse(out, mode)
        ys, bits = [], []
        before = self.known.before
        for mode in range(self.memory.earlier, self.transform.layout.clusters):
            x = self.transform.forward(self.known.x, mode)
            there = self.memory.predict(self.transform, mode, decoded)
            rows = self.known.nearest_before(x, there)
            ys.append(x - there[np.maximum(rows, 0)])
            price = np.log2(np.clip(before, 1, WINDOW))
            bits.append(np.where(rows < 0, np.inf, price))
        return ys, bits


def affordable(layout: Layout, facts: FeatureFacts) -> bool:
    """Whether features of this kind may have a memory: tokens, all layers together, in a basis that is
    not too large."""
    channels = facts.views.channels(facts.shape) or 0
    size = 2 * (layout.clusters + FIXED + EARLIER) * channels**2
    sound = layout.rotate and layout.centre and layout.layers == "joint"
    return sound and not facts.views.is_map and size <= MAX_BASES


def try_memory(
    paths: Sequence[Path],
    every: int,
    facts: FeatureFacts,
    plain: Transform,
    bases: Bases,
    cfg: FitConfig,
) -> tuple[bool, dict[str, Any]]:
    """Whether a memory lowers the rate at equal error on files that it was not made of, by LEAST or
    more; and what was measured.

    Args:
        every: the first of so many files is held out.
        plain, bases: of the other files.
    """
    told = Sequences.read([path for n, path in enumerate(paths) if n % every], facts, TOLD)
    unseen = Sequences.read(paths[::every], facts, UNSEEN)
    remembered = Remembered(told, plain, bases)
    ways = [(plain, Coded.plain(plain, told.x), None)]
    ways.append((remembered.transform, remembered.coded, remembered.memory))

    def at(way: int, grade: int) -> tuple[float, float]:
        transform, coded, memory = ways[way]
        rung = fit_chain(transform, coded, [grade])[0]
        model = KltModel(facts, transform, (rung,) * RUNGS, WEIGHT, memory=memory)
        bits = error = 0.0
        for first, last, length in unseen.files:
            x = unseen.x[first:last]
            modes, symbols, spent, _, references = model.quantise(x, grade, length)
            decoded = model.restore(modes, symbols, grade, references=references)
            bits += spent.sum()
            error += float(np.sum(np.square(decoded - x, dtype=np.float64)))
        return float(bits / unseen.x.size), error / unseen.x.size

    grades = [round(quality * PER_OCTAVE) for quality in sorted(cfg.compared_at)]
    remembered.y  # noqa: B018  made once, before threads ask for it
    found = in_threads(lambda job: at(*job), [(way, grade) for way in (0, 1) for grade in grades])
    curves = [found[: len(grades)], found[len(grades) :]]
    before, after = compare(curves)
    told_of = {"log2_rate": after - before, "bpfp_mse_without": curves[0], "bpfp_mse": curves[1]}
    return after - before <= -LEAST, told_of


def _classes(z: np.ndarray, like: np.ndarray, there: np.ndarray, count: int) -> list[np.ndarray]:
    """Which pairs are more or less alike, ``count`` times (R,) bool of about equally many.

    Args:
        there: (R,) which pairs there are.
    """
    ratio = np.square(z - like).sum(1) / np.maximum(np.square(z).sum(1), 1e-30)
    edges = np.quantile(ratio[there], np.linspace(0, 1, count + 1)[1:-1])
    group = np.searchsorted(edges, ratio)
    return [there & (group == k) for k in range(count)]


def _fit_mode(z: np.ndarray, like: np.ndarray, bases: Bases) -> tuple[np.ndarray, np.ndarray]:
    """Basis (C, C) and gains (C,) of pairs of vectors in the common basis (n, C)."""
    missing = z - _gain(z, like) * like
    second = bases.common @ outer(missing[:, :, None], bases.device) @ bases.common.T
    covariance = bases.known.covariance
    share = np.trace(second) / max(np.trace(covariance), 1e-30) / max(len(z), 1)
    basis = bases.eigenbasis(second + BELIEF * len(covariance) * share * covariance)
    turn = bases.common.T @ basis
    return basis, _gain(z @ turn, like @ turn).astype(np.float16).astype(np.float32)


def _gain(z: np.ndarray, like: np.ndarray) -> np.ndarray:
    """(C,) float32: least squares of z by ``like``, component by component."""
    gain = (z * like).sum(0) / np.maximum(np.square(like).sum(0), 1e-30)
    return np.clip(gain, 0, 1).astype(np.float32)
