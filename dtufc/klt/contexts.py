"""Tables by context: what a vector's earlier symbols tell of the next one.

Components of a vector are large together and small together. So each table of
:class:`~dtufc.klt.tables.Tables` comes in CLASSES versions, and how large the symbols of the vector have
been so far says which of them codes the next symbol::

    activity of a vector:   a <- a - a / 64 + 16 |k|          |k| up to 15, of its symbols in order
    expected activity:      the same of the magnitudes that the tables expect
    class of a symbol:      how many of its table's bounds a / expected reaches

Only symbols of the same vector count, so that vectors stay independent and lanes take their steps
together, as without contexts. All of it is done in integers. The search for symbols knows the common
version of the tables alone.

H. Schwarz et al., *Quantization and entropy coding in the versatile video coding standard* (2021),
chooses its contexts by a local sum of magnitudes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dtufc.kernels import kernel
from dtufc.klt.entropy import to_frequencies
from dtufc.klt.lanes import CLASSES, DECAY, PRECISION, ROW, UNIT
from dtufc.klt.trellis import ESCAPE

MOST_TABLES = 62
"""Of both quantisers: a version is told by 8 bits, and the modes have a table as well."""
MOST = 15
"""Magnitude above which symbols are taken for that of this one."""
EVEN = 1 << UNIT
"""Activity that is added to both sides of the ratio: a first symbol knows nothing."""
RATIO = 64
"""What a ratio of 1 is in the bounds."""
EDGES = np.round(RATIO * 2.0 ** (np.arange(1, 24) / 3 - 4)).astype(np.int64)
"""Bounds that a fit chooses from: a third of an octave apart, from a sixteenth to sixteen."""
BINS = len(EDGES) + 1
PRIOR = 16.0
"""Symbols' worth of belief in the common version."""


@dataclass(frozen=True, eq=False)
class Contexts:
    """Versions of T tables."""

    freqs: tuple[np.ndarray, ...]
    """T * CLASSES times (size + 1,) int32, as the tables' own: same symbols, sum 2^12."""
    bounds: np.ndarray
    """(T, CLASSES - 1) uint16, in 64ths of the expected activity, ascending."""

    @cached_property
    def bits(self) -> np.ndarray:
        """(T * CLASSES, ROW) float64: code lengths of table symbols."""
        return code_lengths(self.freqs)


def code_lengths(freqs: Sequence[np.ndarray]) -> np.ndarray:
    """(T, ROW) float64 of T tables: bits of table symbols; of the escape, of the nearest beyond."""
    out = np.full((len(freqs), ROW), np.inf)
    for row, freq in zip(out, freqs, strict=True):
        row[: len(freq) - 1] = PRECISION - np.log2(freq[:-1])
        row[ESCAPE] = PRECISION - np.log2(freq[-1]) + 2
    return out


def magnitudes(low: np.ndarray) -> np.ndarray:
    """(T * ROW,) uint8: what table symbols add to the activity, up to MOST.

    Args:
        low: (T,) int32: each table's lowest symbol.
    """
    place = np.arange(ROW)
    found = np.minimum(np.abs(low[:, None].astype(np.int64) + place), MOST)
    return np.where(place == ESCAPE, MOST, found).astype(np.uint8).ravel()


def expected(freqs: Sequence[np.ndarray], low: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(D, K) int64: the activity that the tables expect before each component, and EVEN.

    Args:
        freqs, low, chosen: as of :class:`dtufc.klt.tables.Tables`.
    """
    known = magnitudes(low).reshape(-1, ROW).astype(np.int64)
    means = [
        freq[:-1] @ row[: len(freq) - 1] + freq[-1] * MOST
        for freq, row in zip(freqs, known, strict=True)
    ]
    return _expected(np.array(means, np.int64), chosen) + EVEN


@kernel
def _expected(means, chosen):
    """Args: means: (T,) int64, in 2^-PRECISION."""
    modes, components = chosen.shape[1:]
    out = np.empty((components, modes), np.int64)
    for k in range(modes):
        activity = 0
        for i in range(components):
            out[i, k] = activity >> (PRECISION + 1 - UNIT)
            activity += means[chosen[0, k, i]] + means[chosen[1, k, i]] - (activity >> DECAY)
    return out


def thresholds(known: np.ndarray, bounds: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(D * K * 2 * (CLASSES - 1),) uint16: the activity that each class begins at, by component, mode
    and quantiser.

    Args:
        known: (D, K), as :func:`expected` returns it. bounds: (T, CLASSES - 1).
        chosen: (2, K, D) int32.
    """
    mine = bounds[chosen.transpose(2, 1, 0)].astype(np.int64)  # (D, K, 2, CLASSES - 1)
    found = known[:, :, None, None] * mine // RATIO - EVEN
    return np.clip(found, 0, 0xFFFF).astype(np.uint16).ravel()


@kernel
def assign(code, modes, first, magnitude, limits, count):
    """The versions of tables that symbols are coded with, (D, R) uint16.

    Args:
        code: (D, R) uint16, as :func:`dtufc.klt.trellis.search` writes it. modes: (R,) int32.
        first: tables of quantiser 0. count: K.
        magnitude, limits: as :func:`magnitudes` and :func:`thresholds` return them.
    """
    out = np.empty(code.shape, np.uint16)
    activity = np.zeros(code.shape[1], np.int32)
    for i in range(code.shape[0]):
        for r in range(code.shape[1]):
            place, a = np.int32(code[i, r]), activity[r]
            second = 1 if place >> 8 >= first else 0
            own = (CLASSES - 1) * (2 * (i * count + modes[r]) + second)
            version = 0
            for c in range(CLASSES - 1):
                version += 1 if a >= limits[own + c] else 0
            table = (place >> 8) * CLASSES + version
            out[i, r] = (table << 8) | (place & 255)
            activity[r] = a - (a >> DECAY) + (np.int32(magnitude[place]) << UNIT)
    return out


@kernel
def count(code, mode, magnitude, known, bins, joint):
    """Count the symbols of vectors of one mode by how active these are.

    Args:
        code, magnitude: as of :func:`assign`. mode: of all vectors.
        known: (D, K), as :func:`expected` returns it. bins: (n,) of ratios 0 .. n - 1 and above.
        joint: (T, BINS, ROW) int64, added to.
    """
    activity = np.zeros(code.shape[1], np.int32)
    for i in range(code.shape[0]):
        usual = known[i, mode]
        for r in range(code.shape[1]):
            place, a = np.int32(code[i, r]), activity[r]
            ratio = min(RATIO * (a + EVEN) // usual, len(bins) - 1)
            joint[place >> 8, bins[ratio], place & 255] += 1
            activity[r] = a - (a >> DECAY) + (np.int32(magnitude[place]) << UNIT)


def bins() -> np.ndarray:
    """The bin of each ratio, in 64ths, (n,) int64."""
    return np.searchsorted(EDGES, np.arange(EDGES[-1] + 1), side="right")


def fit(joint: np.ndarray, freqs: Sequence[np.ndarray]) -> Contexts:
    """The versions that code counted symbols in the fewest bits.

    Args:
        joint: (T, BINS, ROW), as :func:`count` leaves it. freqs: of the tables.
    """
    versions, bounds = [], np.empty((len(freqs), CLASSES - 1), np.uint16)
    for table, (counts, freq) in enumerate(zip(joint, freqs, strict=True)):
        mine = np.concatenate([counts[:, : len(freq) - 1], counts[:, ESCAPE:]], 1)
        ends = cut(mine)
        bounds[table] = EDGES[np.array(ends) - 1]
        for part in np.split(mine, ends):
            weights = part.sum(0) + PRIOR * freq / freq.sum()
            versions.append(to_frequencies(weights, PRECISION))
    return Contexts(tuple(versions), bounds)


def cut(counts: np.ndarray) -> list[int]:
    """Where rows (BINS, n) are cut into CLASSES runs, none of them empty, that code their symbols in the
    fewest bits: ascending numbers of rows."""
    bits = _bits_of_runs(counts)
    best, came = bits[0], []
    for _ in range(CLASSES - 1):
        through = best[:, None] + bits  # (where the last run begins, where it ends)
        came.append(through.argmin(0))
        best = through.min(0)
    ends = [len(counts)]
    for each in reversed(came):
        ends.append(int(each[ends[-1]]))
    return ends[:0:-1]


@kernel
def _bits_of_runs(counts):
    """Bits of the symbols of rows first .. end - 1, (rows + 1, rows + 1); infinite where there are no
    rows."""
    rows, width = counts.shape
    out = np.full((rows + 1, rows + 1), np.inf)
    run = np.empty(width)
    for first in range(rows):
        run[:] = 0
        for end in range(first + 1, rows + 1):
            whole, bits = 0.0, 0.0
            for k in range(width):
                run[k] += counts[end - 1, k]
                if run[k] > 0:
                    whole += run[k]
                    bits -= run[k] * np.log2(run[k])
            out[first, end] = bits + (whole * np.log2(whole) if whole > 0 else 0.0)
    return out
