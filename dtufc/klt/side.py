"""What stands beside the lanes: the low bits of large symbols, and the symbols that no table holds.

    string:  low bits, vector by vector, to a whole byte ─ escapes, component by component

Where a component's symbols spread widely, the lowest bits are as good as random. They are sent as they
are, so that tables stay small; how many a component has is the same in every vector, so that any of
them is found at once. An escape is the number of the symbol beyond its table's end, above and below in
turn, in Elias-gamma code. Where there are no low bits, escaped symbols are even
(:mod:`dtufc.klt.trellis`), and only these are counted.
"""

import numpy as np

from dtufc.kernels import kernel

MAX_BITS = 32  # of a gamma code behind its prefix: symbols are below 2^31


def pack_low(symbols: np.ndarray, shift: np.ndarray) -> bytes:
    """The low bits of symbols (D, R), ``shift`` (D,) of each row."""
    out = np.zeros(low_bytes(shift, symbols.shape[1]), np.uint8)
    _pack_low(symbols, shift, out)
    return out.tobytes()


def unpack_low(data: bytes, shift: np.ndarray, count: int) -> np.ndarray:
    """The way back: (S, R) int32 of the S rows that have low bits, of ``count`` vectors.

    Args:
        shift: (S,) of these rows.

    Raises:
        ValueError: there are not so many bits.
    """
    if not len(shift):
        return np.empty((0, count), np.int32)
    if 8 * len(data) < count * int(shift.sum()):
        raise ValueError("the low bits are truncated")
    out = np.empty((len(shift), count), np.int32)
    _unpack_low(np.frombuffer(data, np.uint8), shift, out)
    return out


@kernel
def _pack_low(symbols, shift, out):
    width, first = shift.sum(), 0
    for i in range(symbols.shape[0]):
        if shift[i] == 0:
            continue
        for r in range(symbols.shape[1]):
            at = r * width + first
            for bit in range(shift[i]):
                out[at >> 3] |= np.uint8(((symbols[i, r] >> bit) & 1) << (at & 7))
                at += 1
        first += shift[i]


@kernel
def _unpack_low(data, shift, out):
    width, first = shift.sum(), 0
    for i in range(out.shape[0]):
        for r in range(out.shape[1]):
            at, found = r * width + first, 0
            for bit in range(shift[i]):
                found |= ((data[at >> 3] >> (at & 7)) & 1) << bit
                at += 1
            out[i, r] = found
        first += shift[i]


def low_bytes(shift: np.ndarray, count: int) -> int:
    """Bytes of :func:`pack_low`."""
    return -(-count * int(shift.sum()) // 8)


def number(k: np.ndarray, shift: np.ndarray, low: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Escaped symbols without their low bits -> what is coded for them, from 1; all (n,) int64.

    Args:
        low, size: of each one's table.
    """
    above, below, apart = _ends(shift, low, size)
    return np.where(k >= above, 2 * ((k - above) // apart) + 1, 2 * ((below - k) // apart) + 2)


def symbol(number: np.ndarray, shift: np.ndarray, low: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The way back of :func:`number`."""
    above, below, apart = _ends(shift, low, size)
    half = (number - 1) >> 1
    return np.where(number & 1, above + half * apart, below - half * apart)


def _ends(shift: np.ndarray, low: np.ndarray, size: np.ndarray):
    """The first symbols above and below a table, and how far apart those beyond are."""
    above, below = low + size, low - 1
    even = shift == 0
    return above + (above & even), below - (below & even), np.where(even, 2, 1)


def encode(numbers: np.ndarray) -> bytes:
    """Elias-gamma codes of numbers (n,) from 1 on."""
    out = np.zeros(1 + 9 * len(numbers), np.uint8)
    return out[: _write(numbers.astype(np.int64), out)].tobytes()


def decode(data: bytes, count: int) -> np.ndarray:
    """The way back: (count,) int64.

    Raises:
        ValueError: the bytes hold fewer numbers, or more.
    """
    if count > 8 * len(data):
        raise ValueError("the escaped symbols are truncated")
    out = np.empty(count, np.int64)
    if _read(np.frombuffer(data, np.uint8), out) != len(data):
        raise ValueError("the escaped symbols are damaged")
    return out


@kernel
def _write(numbers, out):
    at = 0
    for value in numbers:
        bits = 0
        while value >> (bits + 1):
            bits += 1
        at += bits  # as many zeros
        for b in range(bits, -1, -1):
            out[at >> 3] |= np.uint8(((value >> b) & 1) << (at & 7))
            at += 1
    return (at + 7) >> 3


@kernel
def _read(data, out):
    """Bytes that were read, or -1."""
    at, end = 0, 8 * len(data)
    for n in range(len(out)):
        bits = 0
        while at < end and not (data[at >> 3] >> (at & 7)) & 1:
            bits, at = bits + 1, at + 1
        if bits > MAX_BITS or at + bits >= end:
            return -1
        value = np.int64(0)
        for _ in range(bits + 1):
            value = (value << 1) | ((data[at >> 3] >> (at & 7)) & 1)
            at += 1
        out[n] = value
    return (at + 7) >> 3
