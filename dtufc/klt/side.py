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
MOST = 1 << 30  # magnitude of a symbol
DAMAGED, TOO_LARGE = -1, -2
"""In place of the next bit: the bytes end before the number does; the symbol is beyond MOST."""


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
    return -(-count * int(shift.sum()) // 8) if len(shift) else 0


# Of one escape each, for the kernels of dtufc/klt/coder.py; a place in the string is a bit's number.


@kernel
def put_escape(k, shift, low, size, out, bit):
    """Write an escaped symbol -> the next bit.

    Args:
        shift: low bits of its component. low, size: of its table. out: bytes, zero from ``bit`` on.
    """
    return put(number(np.int64(k) >> shift, shift, low, size), out, bit)


@kernel
def take_escape(data, bit, shift, low, size, beside):
    """The way back -> the symbol, and the next bit, DAMAGED or TOO_LARGE.

    Args:
        beside: the symbol's low bits.
    """
    value, bit = take(data, bit)
    k = (symbol(value, shift, low, size) << shift) | np.int64(beside)
    return k, TOO_LARGE if bit >= 0 and abs(k) > MOST else bit


def check_end(end: int, size: int) -> None:
    """Refuse escapes that end at a bit which is none, or not in the last of ``size`` bytes.

    Raises:
        ValueError: they do.
    """
    if end == TOO_LARGE:
        raise ValueError("an escaped symbol is out of range")
    if end < 0 or (end + 7) >> 3 != size:
        raise ValueError("the escaped symbols are damaged")


@kernel
def number(k, shift, low, size):
    """An escaped symbol without its low bits -> what is coded for it, from 1."""
    above, below, apart = _ends(shift, low, size)
    if k >= above:
        return 2 * ((k - above) >> apart) + 1
    return 2 * ((below - k) >> apart) + 2


@kernel
def symbol(value, shift, low, size):
    """The way back of :func:`number`."""
    above, below, apart = _ends(shift, low, size)
    half = (value - 1) >> 1
    return above + (half << apart) if value & 1 else below - (half << apart)


@kernel
def _ends(shift, low, size):
    """The first symbols above and below a table, and log2 of how far apart those beyond are."""
    above, below = np.int64(low) + size, np.int64(low) - 1
    if shift > 0:
        return above, below, 0
    return above + (above & 1), below - (below & 1), 1


@kernel
def put(value, out, bit):
    """Write a number from 1 on in Elias-gamma code -> the next bit."""
    bits = 0
    while value >> (bits + 1):
        bits += 1
    bit += bits  # as many zeros
    for b in range(bits, -1, -1):
        out[bit >> 3] |= np.uint8(((value >> b) & 1) << (bit & 7))
        bit += 1
    return bit


@kernel
def take(data, bit):
    """The way back -> the number, and the next bit or DAMAGED."""
    bits, end, value = 0, 8 * len(data), np.int64(0)
    while bit < end and not (data[bit >> 3] >> (bit & 7)) & 1:
        bits, bit = bits + 1, bit + 1
    if bits > MAX_BITS or bit + bits >= end:
        return value, DAMAGED
    for _ in range(bits + 1):
        value = (value << 1) | ((data[bit >> 3] >> (bit & 7)) & 1)
        bit += 1
    return value, bit
