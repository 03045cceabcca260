"""Vectors to bytes and back, second generation.

    vectors ─ transform of a mode ─ y ─ trellis search ─> table symbols ─ rANS lanes ─> string
                                                      └─> low bits, escapes ─────────> side string

Arrays of components are (D, R): what one step of the lanes takes lies side by side.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from dtufc.kernels import kernel
from dtufc.klt import lanes, side, trellis
from dtufc.klt.tables import Tables, in_units
from dtufc.simd import WIDTH, load, splat, to_bits

MOST = 1 << 30  # magnitude of a symbol
INFINITE = 0x7F800000  # as a float's bits
NEVER = 1 << 62  # more than any vector costs
FEW = 16  # rows below which products of vectors as rows are faster than as columns
ROWS = 1024
"""Vectors that are transformed at a time where there are several modes."""


@dataclass(frozen=True)
class Quantised:
    """Symbols of R vectors."""

    modes: np.ndarray
    """(R,) int32."""
    code: np.ndarray
    """(D, R) uint16, as :func:`dtufc.klt.trellis.search` writes it."""
    symbols: np.ndarray
    """(D, R) int32."""
    escapes: int
    references: np.ndarray | None = None
    """(R,) int64, of a model with a memory."""


def by_value(modes: np.ndarray) -> list[tuple[int, np.ndarray | slice]]:
    """The modes that some of the vectors (R,) have, ascending, and which these are."""
    found = np.flatnonzero(np.bincount(modes)).tolist()
    if len(found) == 1:
        return [(found[0], slice(None))]
    return [(mode, modes == mode) for mode in found]


def forward(transform, vectors: np.ndarray, mode: int) -> np.ndarray:
    """(R, C, S) -> components (D, R) float32."""
    if vectors.shape[2] > 1:
        return np.ascontiguousarray(transform.forward(vectors, mode).T)
    x = vectors[:, :, 0] - transform.mean[mode, :, 0]
    if transform.basis is None:
        return np.ascontiguousarray(x.T)
    if len(x) < FEW:
        return np.ascontiguousarray(transform.product(x, transform.basis[mode]).T)
    return (torch.from_numpy(transform.basis[mode]).T @ torch.from_numpy(x).T).numpy()


def inverse(transform, y: np.ndarray, mode: int) -> np.ndarray:
    """Components (D, R) -> (R, C, S) float32."""
    if transform.mean.shape[2] > 1:
        return transform.inverse(np.ascontiguousarray(y.T), mode)
    if transform.basis is None or y.shape[1] == 1:
        return transform.inverse(y.T, mode)
    x, mean = torch.from_numpy(y).T, torch.from_numpy(transform.mean[mode, :, 0])
    return torch.addmm(mean, x, torch.from_numpy(transform.basis[mode]).T).numpy()[:, :, None]


def quantise(
    transform, tables: Tables, vectors, fine: float, weight: float, tried: np.ndarray | None = None
) -> Quantised:
    """The cheapest mode, by an estimate, and symbols of each vector.

    Args:
        vectors: (R, C, S) float32. fine: the fine step. weight: of a bit, in squared fine steps.
        tried: (R, K) bool, the modes that are tried on each vector; None: all.
    """
    count, parameters = len(vectors), tables.parameters(weight)
    code = np.empty((transform.components, count), np.uint16)
    symbols = np.empty(code.shape, np.int32)
    modes = np.zeros(count, np.int32)
    escapes = 0
    for first in range(0, count, ROWS):
        part = slice(first, first + ROWS)
        mine = None if tried is None else tried[part]
        for mode, rows, units in pick(
            transform, tables, vectors[part], fine, weight, parameters, mine
        ):
            columns = first + rows
            modes[columns] = mode
            escapes += search(tables, units, mode, parameters, columns, code, symbols)
    return Quantised(modes, code, symbols, escapes)


def search(tables: Tables, units, mode: int, parameters, columns, code, symbols) -> int:
    """Find the symbols of vectors of one mode -> how many are escaped.

    Args:
        units: (D, >= n) int32, as :func:`dtufc.klt.tables.in_units` gives it.
        columns: (n,) where each vector lies in ``code`` and ``symbols`` (D, R), which are written.
    """
    return trellis.search(
        units, tables.chosen[:, mode], tables.shift, parameters, tables.low, tables.size, columns,
        code, symbols, np.empty(len(columns)),
    )  # fmt: skip


def pick(
    transform, tables: Tables, vectors, fine: float, weight: float, parameters, tried
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """The modes that vectors take, with the rows (n,) of each, and what is searched of these.

    Args:
        tried: (R, K) bool, or None, as of :func:`quantise`.
    """
    count, clusters = len(vectors), transform.layout.clusters
    every = np.arange(count)
    if clusters == 1:
        return [(0, every, in_units(forward(transform, vectors, 0), 1 / fine))]
    cheapest, modes = np.full(count, NEVER), np.zeros(count, np.int64)
    trials = []
    for mode in range(clusters) if tried is None else np.flatnonzero(tried.any(0)).tolist():
        rows = every if tried is None else np.flatnonzero(tried[:, mode])
        mine = vectors if tried is None else vectors[rows]
        units, cost = attempt(transform, tables, mine, mode, fine, weight, parameters)
        better = rows[cost < cheapest[rows]]
        cheapest[rows] = np.minimum(cheapest[rows], cost)
        modes[better] = mode
        trials.append((mode, rows, units))
    found = []
    for mode, rows, units in trials:
        taken = modes[rows] == mode
        if taken.any():
            found.append((mode, rows[taken], of_mode(units, modes[rows], mode)))
    return found


def attempt(
    transform, tables: Tables, vectors, mode: int, fine: float, weight: float, parameters
) -> tuple[np.ndarray, np.ndarray]:
    """What is searched of vectors (R, C, S) in a mode, and about what each costs, (R,) int64."""
    units = in_units(forward(transform, vectors, mode), 1 / fine)
    cost = np.empty(units.shape[1], np.int64)
    trellis.estimate(units, tables.chosen[0, mode], tables.shift, parameters, cost)
    return units, cost[: len(vectors)] + tables.mode_cost(mode, weight)


def of_mode(units: np.ndarray, modes: np.ndarray, mode: int) -> np.ndarray:
    """The columns of units (D, >= R) whose vectors (R,) have a mode, padded for the search."""
    taken = modes == mode
    if taken.all():
        return units
    mine = units[:, : len(modes)][:, taken]
    padded = np.zeros((len(mine), -(-mine.shape[1] // trellis.BLOCK) * trellis.BLOCK), np.int32)
    padded[:, : mine.shape[1]] = mine
    return padded


def encode(tables: Tables, found: Quantised, check: int) -> tuple[bytes, bytes]:
    """The strings of the lanes and of what stands beside them."""
    beside = b""
    if len(tables.wide_shift):
        beside = side.pack_low(found.symbols, tables.shift)
    if found.escapes:
        at, column = _find(found.code, found.escapes)
        beside += write_escapes(tables, at, found.code[at, column], found.symbols[at, column])
    count = lanes.lanes_for(tables.average_of(np.bincount(found.modes)), len(found.modes))
    string = lanes.encode(
        found.code, found.modes, tables.mode_table, tables.slots, count, zlib.crc32(beside, check)
    )  # fmt: skip
    return string, beside


def write_escapes(tables: Tables, at, code, symbols) -> bytes:
    """The string of escaped symbols, component by component.

    Args:
        at, code, symbols: (n,) component, code and symbol of each.
    """
    table = code >> 8
    shift = tables.shift[at]
    k = symbols.astype(np.int64) >> shift
    return side.encode(side.number(k, shift, tables.low[table], tables.size[table]))


def _find(code: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    at, column = np.empty((2, count), np.int64)
    _find_escaped(code, at, column)
    return at, column


@kernel
def _find_escaped(code, at, column):
    """Where the escapes of code (D, R) are."""
    flat, wide, count = code.ravel(), code.shape[1], 0
    escape = splat(trellis.ESCAPE)
    for first in range(0, len(flat), WIDTH):
        some = min(WIDTH, len(flat) - first)
        if some < WIDTH or to_bits((load(flat, np.uint64(first)) & splat(255)) == escape) > 0:
            for place in range(first, first + some):
                if (flat[place] & 255) == trellis.ESCAPE:
                    at[count], column[count] = place // wide, place % wide
                    count += 1


@kernel
def _find_infinite(y, at, column):
    """Where y (D, R) is infinite."""
    flat, wide, count = y.ravel(), y.shape[1], 0
    infinite = splat(INFINITE)
    for first in range(0, len(flat), WIDTH):
        some = min(WIDTH, len(flat) - first)
        bits = load(flat, np.uint64(first)) if some == WIDTH else infinite
        if to_bits((bits & splat(0x7FFFFFFF)) == infinite) > 0:
            for place in range(first, first + some):
                if abs(flat[place]) == np.inf:
                    at[count], column[count] = place // wide, place % wide
                    count += 1


def decode(
    tables: Tables, string: bytes, beside: bytes, count: int, check: int, symbols: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Modes (R,) int32, components (D, R) float32 in fine steps, and, where asked for, symbols (D, R)
    int32.

    Raises:
        LaneError, ValueError: damaged, or too short for so many vectors.
    """
    check_room(tables, string, beside, count)
    reader = lanes.Reader(string, count)
    modes = np.zeros(count, np.int32)
    if tables.mode_table >= 0:
        modes = reader.modes(tables.slots, tables.mode_table)
        if modes.max() >= tables.chosen.shape[1]:
            raise lanes.LaneError("a vector's mode is none")
    low_bits = side.unpack_low(beside, tables.wide_shift, count)
    y = np.empty((len(tables.shift), count), np.float32)
    kept = np.empty(y.shape if symbols else (0, 0), np.int32)
    hashes, escapes = reader.components(
        modes, tables.pairs, tables.slots, tables.values, tables.wide, low_bits, tables.low, y, kept
    )
    reader.finish((int(hashes) ^ zlib.crc32(beside, check)) & 0xFFFFFFFF)
    rest = beside[side.low_bytes(tables.wide_shift, count) :]
    if escapes:
        at = np.empty(escapes, np.int64)
        column = np.empty_like(at)
        _find_infinite(y, at, column)
        quantiser = (y[at, column] < 0).astype(np.int64)
        k = read_escapes(tables, rest, modes[column], low_bits[:, column], quantiser, at)
        y[at, column] = 2 * k - quantiser * np.sign(k)
        if symbols:
            kept[at, column] = k
    elif rest:
        raise lanes.LaneError("bytes behind the escaped symbols")
    return modes, y, kept


def check_room(tables: Tables, string: bytes, beside: bytes, count: int) -> None:
    """Refuse strings that are too short for what is announced, before memory is taken for it.

    Raises:
        LaneError: they hold no ``count`` vectors.
    """
    if count * tables.least > 8 * (len(string) + len(beside)):
        raise lanes.LaneError("truncated: fewer bytes than so many symbols take")


def read_escapes(tables: Tables, data: bytes, modes, low_bits, quantiser, at) -> np.ndarray:
    """Escaped symbols (n,) int64, component by component.

    Args:
        modes, quantiser, at: (n,) mode, quantiser and component of each. low_bits: (S, n) int32.

    Raises:
        ValueError: the bytes hold other ones.
    """
    table = tables.chosen[quantiser, modes, at]
    shift = tables.shift[at]
    k = side.symbol(side.decode(data, len(at)), shift, tables.low[table], tables.size[table])
    if len(low_bits):
        k = (k << shift) | np.where(shift > 0, low_bits[tables.wide[1, at], np.arange(len(at))], 0)
    if np.abs(k).max() > MOST:
        raise ValueError("an escaped symbol is out of range")
    return k


def restore(transform, modes: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Components (D, R) -> vectors (R, C, S) float32."""
    if len(transform.mean) == 1:
        return inverse(transform, y, 0)
    out = np.empty((len(modes), *transform.mean.shape[1:]), np.float32)
    for mode, mine in by_value(modes):
        out[mine] = inverse(transform, np.ascontiguousarray(y[:, mine]), mode)
    return out
