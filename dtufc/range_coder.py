"""Range coder for short strings: symbols with static integer tables -> bytes, and back.

G. Martin, *Range encoding: an algorithm for removing redundancy from a digitised message* (1979). It
takes the tables of :mod:`dtufc.rans` and codes the same symbols, but its string ends with the symbols:
rANS writes a state of 8 bytes, of which 31 bits are a checksum, and this coder writes the fewest bytes
that tell the interval from its neighbours. For a frame of one token that is most of the string; for a
whole feature rANS is faster. There is no checksum: who frames the string brings one.

The interval [low, low + width) is kept in 64 bits, width at least 2^48, so that its rounding costs 2^-32
of a bit per symbol. What lies behind a string counts as zeros.

Guarantees: ``decode(encode(s, i), i) == s``, and only integers decide. A decoder never reads outside a
damaged string. It raises :class:`dtufc.rans.RansError`, or gives other symbols. A string costs the
entropy of the tables, one bit, and what fills its last byte.
"""

import numpy as np

from dtufc.kernels import kernel
from dtufc.rans import _MAX_GAMMA, PRECISION, RansError, Tables, _checked

_WIDE = 1 << 48
_STATE = 8  # bytes of low
_LONGEST = 11  # bytes of a symbol: 16 bits of table and 65 of an escape's gamma code


def encode(symbols: np.ndarray, indexes: np.ndarray, tables: Tables) -> bytes:
    """Code symbols (n,) int32, each with the table of ``indexes`` (n,).

    Raises:
        ValueError: sizes differ or an index names no table.
    """
    symbols, indexes = _checked(symbols, indexes, tables)
    out = np.zeros(_LONGEST * len(symbols) + _STATE, np.uint8)
    size = _encode(symbols, indexes, tables.cdf, tables.length, tables.offset, out)
    return out[:size].tobytes()


def check_room(data: bytes, bits: float) -> None:
    """Refuse a string that is too short for what is announced, before memory is taken for it.

    Args:
        bits: the fewest that the announced symbols cost, by :attr:`dtufc.rans.Tables.least`.

    Raises:
        RansError: no string of this length holds so many symbols.
    """
    if bits > 8 * (len(data) + _STATE):  # the end drops what it can of the state
        raise RansError("the coded symbols are truncated: fewer bytes than so many symbols take")


class Decoder:
    """Reads a string of :func:`encode`, piece by piece in the order of coding."""

    def __init__(self, data: bytes, tables: Tables):
        self.tables = tables
        self._data = np.frombuffer(data, np.uint8)
        start = int.from_bytes(data[:_STATE].ljust(_STATE, b"\0"), "big")
        self._state = np.array([start, (1 << 64) - 1, _STATE], np.uint64)  # code - low, width, at

    def decode(self, indexes: np.ndarray) -> np.ndarray:
        """The next symbols (n,) int32, given the tables (n,) they were coded with.

        Raises:
            RansError: the string is damaged.
        """
        symbols = np.empty(indexes.size, np.int32)
        symbols, indexes = _checked(symbols, indexes, self.tables)
        tables = self.tables
        if not _decode(
            symbols, indexes, tables.cdf, tables.length, tables.offset, self._data, self._state
        ):
            raise RansError("the coded symbols are damaged")
        return symbols

    def finish(self) -> None:
        """Check that the string ends where its symbols do.

        Raises:
            RansError: it is longer, or shorter, than any encoder writes it.
        """
        if not 0 <= len(self._data) - (int(self._state[2]) - _STATE) <= _STATE:
            raise RansError("the coded symbols do not end where they should")


@kernel
def _carry(out, at):
    """Add one to the number that stands in ``out[:at]``."""
    at -= 1
    while out[at] == 255:
        out[at] = 0
        at -= 1
    out[at] += 1


@kernel
def _narrow(low, width, at, out, start, freq, bits):
    """Narrow the interval to [start, start + freq) of 2^bits; full bytes go to ``out``."""
    part = width >> np.uint64(bits)
    before = low
    low += part * start
    if low < before:
        _carry(out, at)
    width = part * freq
    while width < np.uint64(_WIDE):
        out[at] = np.uint8(low >> np.uint64(56))
        at += 1
        low <<= np.uint64(8)
        width <<= np.uint64(8)
    return low, width, at


@kernel
def _encode(symbols, indexes, cdf, length, offset, out):
    one = np.uint64(1)
    low, width, at = np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF), 0
    for i in range(len(symbols)):
        t = indexes[i]
        size = length[t] - 2
        v = np.int64(symbols[i]) - offset[t]
        d = np.uint64(0)
        if v < 0 or v >= size:
            # distance zigzagged to a positive number: below -> odd, above -> even
            d = np.uint64(-2 * v - 1) if v < 0 else np.uint64(2 * (v - size))
            d += one
            v = np.int64(size)
        start = np.uint64(cdf[t, v])
        freq = np.uint64(cdf[t, v + 1]) - start
        low, width, at = _narrow(low, width, at, out, start, freq, PRECISION)
        if d > np.uint64(0):  # Elias-gamma: as many zeros as bits follow the leading one
            bits = 0
            while (d >> np.uint64(bits)) > one:
                bits += 1
            for _ in range(bits):
                low, width, at = _narrow(low, width, at, out, np.uint64(0), one, 1)
            for b in range(bits, -1, -1):
                bit = (d >> np.uint64(b)) & one
                low, width, at = _narrow(low, width, at, out, bit, one, 1)
    for count in range(_STATE + 1):  # the fewest bytes whose number lies in the interval
        mask = np.uint64(0)
        if count < _STATE:
            mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(8 * count)
        number = (low + mask) & ~mask
        if number - low < width:
            if number < low:
                _carry(out, at)
            for _ in range(count):
                out[at] = np.uint8(number >> np.uint64(56))
                at += 1
                number <<= np.uint64(8)
            break
    return at


@kernel
def _widen(rest, width, at, data):
    """Take bytes until the interval is wide again; zeros where the string has ended."""
    while width < np.uint64(_WIDE):
        rest <<= np.uint64(8)
        if at < len(data):
            rest |= np.uint64(data[at])
        at += 1
        width <<= np.uint64(8)
    return rest, width, at


@kernel
def _bit(rest, width, at, data):
    """The next bit of a gamma code."""
    width >>= np.uint64(1)
    bit = np.uint64(1) if rest >= width else np.uint64(0)
    rest -= bit * width
    rest, width, at = _widen(rest, width, at, data)
    return bit, rest, width, at


@kernel
def _decode(symbols, indexes, cdf, length, offset, data, saved):
    rest, width, at = saved[0], saved[1], np.int64(saved[2])
    for i in range(len(symbols)):
        t = indexes[i]
        size = length[t] - 2
        part = width >> np.uint64(PRECISION)
        target = rest // part
        if target >= np.uint64(1 << PRECISION):  # the rounding's gap, where no encoder goes
            return False
        low, high = 0, size + 1  # the interval with cdf[low] <= target < cdf[low + 1]
        while high - low > 1:
            middle = (low + high) >> 1
            if np.uint64(cdf[t, middle]) <= target:
                low = middle
            else:
                high = middle
        start = np.uint64(cdf[t, low])
        rest -= part * start
        width = part * (np.uint64(cdf[t, low + 1]) - start)
        rest, width, at = _widen(rest, width, at, data)
        v = np.int64(low)
        if low == size:
            bits = 0
            bit, rest, width, at = _bit(rest, width, at, data)
            while bit == np.uint64(0):
                bits += 1
                if bits >= _MAX_GAMMA:
                    return False
                bit, rest, width, at = _bit(rest, width, at, data)
            d = np.uint64(1)
            for _ in range(bits):
                bit, rest, width, at = _bit(rest, width, at, data)
                d = (d << np.uint64(1)) | bit
            d -= np.uint64(1)
            half = np.int64(d >> np.uint64(1))
            v = -half - 1 if d & np.uint64(1) else size + half
        v += offset[t]
        if v < -2147483648 or v > 2147483647:
            return False
        symbols[i] = v
    saved[0] = rest
    saved[1] = width
    saved[2] = np.uint64(at)
    return True
