"""Vectors to bytes and back, second generation.

    vectors ─ transform of a mode ─ y ─ trellis search ─> table symbols ─ rANS lanes ─> string
                                                      └─> low bits, escapes ─────────> side string

Arrays of components are (D, R): what one step of the lanes takes lies side by side.
"""

import zlib
from typing import NamedTuple

import numpy as np
import torch

from dtufc.kernels import kernel
from dtufc.klt import lanes, side, trellis
from dtufc.klt.tables import Tables, in_units
from dtufc.simd import WIDTH, load, splat, to_bits

INFINITE = 0x7F800000  # as a float's bits
NEVER = 1 << 62  # more than any vector costs
FEW = 16  # rows below which products of vectors as rows are faster than as columns
NO_SYMBOLS = np.empty((0, 0), np.int32)
ROWS = 1024
"""Vectors that are transformed at a time where there are several modes."""


class Quantised(NamedTuple):
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
    x = (vectors - transform.mean[mode]).reshape(len(vectors), -1)
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
    shape = transform.components, count
    code, symbols = np.empty(shape, np.uint16), np.empty(shape, np.int32)
    modes, every, escapes = np.zeros(count, np.int32), np.arange(count), 0
    for first in range(0, count, ROWS):
        part = slice(first, first + ROWS)
        mine = None if tried is None else tried[part]
        for mode, rows, units in pick(
            transform, tables, vectors[part], fine, weight, parameters, mine
        ):
            columns = every[part][rows]
            if mode > 0:
                modes[columns] = mode
            escapes += search(tables, units, mode, parameters, columns, code, symbols)
    return Quantised(modes, code, symbols, escapes)


def search(tables: Tables, units, mode: int, parameters, columns, code, symbols) -> int:
    """Find the symbols of vectors of one mode -> how many are escaped.

    Args:
        units: (D, n) int32, as :func:`dtufc.klt.tables.in_units` gives it.
        columns: (n,) where each vector lies in ``code`` and ``symbols`` (D, R), which are written.
    """
    return trellis.search(
        units, tables.chosen[:, mode], tables.shift, parameters, tables.low, tables.size, columns,
        code, symbols, np.empty(len(columns)),
    )  # fmt: skip


def pick(
    transform, tables: Tables, vectors, fine: float, weight: float, parameters, tried
) -> list[tuple[int, np.ndarray | slice, np.ndarray]]:
    """The modes that vectors take, with the rows (n,) of each, and what is searched of these.

    Args:
        tried: (R, K) bool, or None, as of :func:`quantise`.
    """
    count, clusters = len(vectors), transform.layout.clusters
    if clusters == 1:
        return [(0, slice(None), in_units(forward(transform, vectors, 0), 1 / fine))]
    every = np.arange(count)
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
    cost = np.empty(len(vectors), np.int64)
    trellis.estimate(units, tables.chosen[0, mode], tables.shift, parameters, cost)
    return units, cost + tables.mode_cost(mode, weight)


def of_mode(units: np.ndarray, modes: np.ndarray, mode: int) -> np.ndarray:
    """The columns of units (D, R) whose vectors (R,) have a mode."""
    taken = modes == mode
    return np.ascontiguousarray(units if taken.all() else units[:, taken])


def encode(tables: Tables, found: Quantised, check: int) -> tuple[bytes, bytes]:
    """The strings of the lanes and of what stands beside them."""
    beside = b""
    if len(tables.wide_shift):
        beside = side.pack_low(found.symbols, tables.shift)
    if found.escapes:
        beside += write_escapes(tables, tables.every, found.code, found.symbols, found.escapes)
    count, lane_count = len(found.modes), 1  # one vector takes one, whatever its size
    if count > 1:
        lane_count = lanes.lanes_for(tables.average_of(np.bincount(found.modes)), count)
    string = lanes.encode(
        tables.coded(found.code, found.modes), found.modes, tables.mode_table, tables.slots, lane_count,
        zlib.crc32(beside, check),
    )  # fmt: skip
    return string, beside


def write_escapes(tables: Tables, at, code, symbols, count: int) -> bytes:
    """The string of escaped symbols, component by component.

    Args:
        at: (n,) int64, the component of each row. code, symbols: (n, R). count: escapes among them.
    """
    out = np.zeros(1 + 9 * count, np.uint8)
    end = _write_escapes(at, code, symbols, tables.shift, tables.low, tables.size, out)
    return out[:end].tobytes()


@kernel
def _write_escapes(at, code, symbols, shift, low, size, out):
    """See :func:`write_escapes`.

    Returns:
        how many bytes were written.
    """
    flat, wide, bit = code.ravel(), code.shape[1], 0
    escape = splat(trellis.ESCAPE)
    for first in range(0, len(flat), WIDTH):
        some = min(WIDTH, len(flat) - first)
        if some == WIDTH and to_bits((load(flat, np.uint64(first)) & splat(255)) == escape) == 0:
            continue
        for place in range(first, first + some):
            if (flat[place] & 255) == trellis.ESCAPE:
                row, table = place // wide, flat[place] >> 8
                k, mine = symbols[row, place % wide], shift[at[row]]
                bit = side.put_escape(k, mine, low[table], size[table], out, bit)
    return (bit + 7) >> 3


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
    kept = np.empty(y.shape, np.int32) if symbols else NO_SYMBOLS
    hashes, escapes = reader.components(
        modes, tables.pairs, tables.slots, tables.values, tables.wide, low_bits, tables.low,
        tables.magnitudes, tables.limits, y, kept,
    )  # fmt: skip
    reader.finish((int(hashes) ^ zlib.crc32(beside, check)) & 0xFFFFFFFF)
    rest = beside[side.low_bytes(tables.wide_shift, count) :]
    if escapes:
        end = _read_escapes(
            _escaped(rest, escapes), y, kept, modes, low_bits, tables.chosen, tables.wide, tables.low,
            tables.size,
        )  # fmt: skip
        side.check_end(end, len(rest))
    elif rest:
        raise lanes.LaneError("bytes behind the escaped symbols")
    return modes, y, kept


def _escaped(data: bytes, count: int) -> np.ndarray:
    """The bytes of ``count`` escaped symbols, uint8.

    Raises:
        ValueError: they are too few.
    """
    if count > 8 * len(data):
        raise ValueError("the escaped symbols are truncated")
    return np.frombuffer(data, np.uint8)


@kernel
def _read_escapes(data, y, symbols, modes, low_bits, chosen, wide, low, size):
    """Replace what is infinite in y (D, R), and what stands in its place in symbols (D, R) where these
    have a size.

    Returns:
        the bit behind the last escape, or what is wrong.
    """
    flat, count, bit = y.ravel(), y.shape[1], 0
    infinite, keep = splat(INFINITE), symbols.size > 0
    for first in range(0, len(flat), WIDTH):
        some = min(WIDTH, len(flat) - first)
        bits = load(flat, np.uint64(first)) if some == WIDTH else infinite
        if to_bits((bits & splat(0x7FFFFFFF)) == infinite) == 0:
            continue
        for place in range(first, first + some):
            if abs(flat[place]) == np.inf:
                i, r = place // count, place % count
                quantiser = 1 if flat[place] < 0 else 0
                table, shift = chosen[quantiser, modes[r], i], wide[0, i]
                beside = low_bits[wide[1, i], r] if shift > 0 else 0
                k, bit = side.take_escape(data, bit, shift, low[table], size[table], beside)
                if bit < 0:
                    return bit
                sign = 1 if k > 0 else -1 if k < 0 else 0
                flat[place] = 2 * k - quantiser * sign
                if keep:
                    symbols[i, r] = k
    return bit


def check_room(tables: Tables, string: bytes, beside: bytes, count: int) -> None:
    """Refuse strings that are too short for what is announced, before memory is taken for it.

    Raises:
        LaneError: they hold no ``count`` vectors.
    """
    if count * tables.least > 8 * (len(string) + len(beside)):
        raise lanes.LaneError("truncated: fewer bytes than so many symbols take")


def read_escapes(tables: Tables, data: bytes, modes, low_bits, quantiser, at) -> np.ndarray:
    """Escaped symbols (n,) int64, component by component, where it is known which they are.

    Args:
        modes, quantiser, at: (n,) mode, quantiser and component of each. low_bits: (S, n) int32.

    Raises:
        ValueError: the bytes hold other ones.
    """
    out, table = np.empty(len(at), np.int64), tables.chosen[quantiser, modes, at]
    end = _read_listed(
        _escaped(data, len(at)), at, table, low_bits, tables.wide, tables.low, tables.size, out
    )
    side.check_end(end, len(data))
    return out


@kernel
def _read_listed(data, at, table, low_bits, wide, low, size, out):
    """See :func:`read_escapes`, which returns ``out``.

    Args:
        table: (n,) the table of each.

    Returns:
        as :func:`_read_escapes`.
    """
    bit = 0
    for n in range(len(at)):
        t, shift = table[n], wide[0, at[n]]
        beside = low_bits[wide[1, at[n]], n] if shift > 0 else 0
        out[n], bit = side.take_escape(data, bit, shift, low[t], size[t], beside)
        if bit < 0:
            return bit
    return bit


def restore(transform, modes: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Components (D, R) -> vectors (R, C, S) float32."""
    if len(transform.mean) == 1:
        return inverse(transform, y, 0)
    out = np.empty((len(modes), *transform.mean.shape[1:]), np.float32)
    for mode, mine in by_value(modes):
        out[mine] = inverse(transform, np.ascontiguousarray(y[:, mine]), mode)
    return out
