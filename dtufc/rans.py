"""Range asymmetric numeral system (rANS) coder: symbols with static integer tables -> bytes, and back.

J. Duda, *Asymmetric numeral systems* (arXiv 1311.2540). One 64-bit state, renormalised by 32-bit
words, probabilities in units of 2^-16. Only integers decide, so the bytes are the same on every
machine, and the tables of :class:`Tables` are all that encoder and decoder must share.

A table describes symbols ``offset .. offset + size - 1`` and ends with an escape; a symbol outside
is the escape followed by its distance in Elias-gamma code, so any int32 can be coded.

The state that encoding begins with, which decoding ends with, carries a 31-bit checksum of the
symbols, and of what else the caller names. It costs nothing, and tells a decoder whose tables or indexes
differ from the encoder's.

Guarantees: ``decode(encode(s, i), i) == s``. A damaged string never reads outside its bytes: the
decoder raises :class:`RansError` instead. Cost: the entropy of the tables plus at most 8 bytes.
"""

import zlib
from functools import cached_property

import numpy as np

from dtufc.kernels import kernel

PRECISION = 16
_LOW = 1 << 31  # the state is kept in [2^31, 2^63), and begins as 2^31 + checksum
_MAX_GAMMA = 33  # bits of the longest escape: a distance below 2^32, plus one


class RansError(ValueError):
    """The string is not one that this coder wrote with these tables."""


class Tables:
    """Integer probability tables.

    Args:
        cdf: (tables, max_size + 2) int32; row t holds ``size + 2`` increasing values from 0 to 2^16,
            the last interval being the escape; what lies beyond is ignored. As CompressAI's
            ``_quantized_cdf``.
        length: (tables,) int32, used values of each row (``size + 2``). ``_cdf_length``.
        offset: (tables,) int32, the symbol of the first interval. ``_offset``.

    Raises:
        ValueError: sizes that do not agree, or a row that is not increasing from 0 to 2^16.
    """

    def __init__(self, cdf: np.ndarray, length: np.ndarray, offset: np.ndarray):
        self.cdf = np.ascontiguousarray(cdf, dtype=np.int32)
        self.length = np.ascontiguousarray(length, dtype=np.int32).reshape(-1)
        self.offset = np.ascontiguousarray(offset, dtype=np.int32).reshape(-1)
        count = len(self.cdf)
        if self.cdf.ndim != 2 or self.length.shape != (count,) or self.offset.shape != (count,):
            raise ValueError("tables: cdf, length and offset do not have one row per table")
        if count == 0 or (self.length < 3).any() or (self.length > self.cdf.shape[1]).any():
            raise ValueError("tables: a row needs at least one symbol and the escape")
        for row, size in zip(self.cdf, self.length, strict=True):
            used = row[:size]
            if used[0] != 0 or used[-1] != 1 << PRECISION or (np.diff(used) <= 0).any():
                raise ValueError("tables: a row must increase from 0 to 2^16")

    @cached_property
    def first(self) -> np.ndarray:
        """(tables, 256) int32: the interval in which every 256th of the range begins."""
        begin = np.arange(256, dtype=np.int64) << (PRECISION - 8)
        rows = zip(self.cdf, self.length, strict=True)
        found = [np.searchsorted(row[:size], begin, "right") - 1 for row, size in rows]
        return np.array(found, dtype=np.int32)

    @cached_property
    def least(self) -> np.ndarray:
        """(tables,) float64: bits of each table's cheapest symbol, above 0."""
        widest = [
            np.diff(row[:size]).max() for row, size in zip(self.cdf, self.length, strict=True)
        ]
        return PRECISION - np.log2(np.array(widest, dtype=np.float64))


def encode(symbols: np.ndarray, indexes: np.ndarray, tables: Tables, check: int = 0) -> bytes:
    """Code symbols (n,) int32, each with the table of ``indexes`` (n,).

    Args:
        check: 31 bits or more (the lowest count) that the decoder must come to as well.

    Raises:
        ValueError: sizes differ or an index names no table.
    """
    symbols, indexes = _checked(symbols, indexes, tables)
    # An escape costs at most 16 bits of table and 65 of gamma code: 3 words; 2 words of state.
    words = np.empty(3 * len(symbols) + 2, dtype=np.uint32)
    first = np.uint64(_first_state(_checksum(symbols, 0) ^ check))
    start = _encode(symbols, indexes, tables.cdf, tables.length, tables.offset, first, words)
    return words[start:].astype("<u4").tobytes()


def check_room(data: bytes, bits: float) -> None:
    """Refuse a string that is too short for what is announced, before memory is taken for it.

    Args:
        bits: the fewest that the announced symbols cost, by :attr:`Tables.least`.

    Raises:
        RansError: no string of this length holds so many symbols.
    """
    if bits > 8 * len(
        data
    ):  # the state's lowest 31 bits hold no symbols, which covers its rounding
        raise RansError("the coded symbols are truncated: fewer bytes than so many symbols take")


class Decoder:
    """Reads a string of :func:`encode`, piece by piece in the order of coding.

    Raises:
        RansError: the string is too short to be one.
    """

    def __init__(self, data: bytes, tables: Tables):
        if len(data) < 8 or len(data) % 4:
            raise RansError("the coded symbols are truncated")
        self.tables = tables
        self._words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
        state = (int(self._words[0]) << 32) | int(self._words[1])
        self._state = np.array([state, 2], dtype=np.uint64)  # rANS state, next word
        self._check = 0

    def decode(self, indexes: np.ndarray) -> np.ndarray:
        """The next symbols (n,) int32, given the tables (n,) they were coded with.

        Raises:
            RansError: the string ends before the symbols do.
        """
        symbols = np.empty(indexes.size, dtype=np.int32)
        symbols, indexes = _checked(symbols, indexes, self.tables)
        tables = self.tables
        sound = _decode(
            symbols, indexes, tables.cdf, tables.first, tables.length, tables.offset, self._words,
            self._state, False,
        )  # fmt: skip
        if not sound:
            raise RansError("the coded symbols are truncated or damaged")
        self._check = _checksum(symbols, self._check)
        return symbols

    def finish(self, check: int = 0) -> None:
        """Check that the string ends here and that symbols and ``check`` are the encoder's.

        Raises:
            RansError: they are not.
        """
        if int(self._state[1]) != len(self._words):
            raise RansError("the coded symbols do not end where they should")
        if int(self._state[0]) != _first_state(self._check ^ check):
            raise RansError("what was decoded is not what was encoded")


def _checksum(symbols: np.ndarray, before: int) -> int:
    return zlib.crc32(symbols.astype("<i4").tobytes(), before)


def _first_state(check: int) -> int:
    return _LOW | check & (_LOW - 1)


def decode_compressai(data: bytes, indexes: np.ndarray, tables: Tables) -> np.ndarray:
    """Read a string of CompressAI's rANS coder -> symbols (n,) int32.

    The same coder with the state's words the other way round and escapes in groups of four bits.
    CompressAI's own decoder trusts the string and reads on where it ends; this one does not.

    Raises:
        RansError: the string is truncated, damaged, or holds more than these symbols.
    """
    if len(data) < 8 or len(data) % 4:
        raise RansError("the coded symbols are truncated")
    words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
    symbols, indexes = _checked(np.empty(indexes.size, np.int32), indexes, tables)
    state = np.array([(int(words[1]) << 32) | int(words[0]), 2], dtype=np.uint64)
    sound = _decode(
        symbols, indexes, tables.cdf, tables.first, tables.length, tables.offset, words, state, True
    )
    if not sound or int(state[1]) != len(words) or int(state[0]) != _LOW:
        raise RansError("the coded symbols are truncated or damaged")
    return symbols


def _checked(symbols: np.ndarray, indexes: np.ndarray, tables: Tables):
    symbols = np.ascontiguousarray(symbols, dtype=np.int32).reshape(-1)
    indexes = np.ascontiguousarray(indexes, dtype=np.int32).reshape(-1)
    if symbols.shape != indexes.shape:
        raise ValueError(f"{len(symbols)} symbols, but {len(indexes)} indexes")
    if len(indexes) and (indexes.min() < 0 or indexes.max() >= len(tables.cdf)):
        raise ValueError(f"an index names none of the {len(tables.cdf)} tables")
    return symbols, indexes


@kernel
def _push(state, words, at, start, freq, bits):
    """Put an interval [start, start + freq) of 2^bits into the state; words fill from the end."""
    if state >= (np.uint64(_LOW) >> np.uint64(bits) << np.uint64(32)) * freq:
        at -= 1
        words[at] = np.uint32(state & np.uint64(0xFFFFFFFF))
        state >>= np.uint64(32)
    return (state // freq << np.uint64(bits)) + state % freq + start, at


@kernel
def _encode(symbols, indexes, cdf, length, offset, state, words):
    at = len(words)
    one = np.uint64(1)
    for i in range(len(symbols) - 1, -1, -1):  # last in, first out
        t = indexes[i]
        size = length[t] - 2
        v = np.int64(symbols[i]) - offset[t]
        if v < 0 or v >= size:
            # distance zigzagged to a positive number: below -> odd, above -> even
            d = np.uint64(-2 * v - 1) if v < 0 else np.uint64(2 * (v - size))
            d += one
            bits = 0
            while (d >> np.uint64(bits)) > one:
                bits += 1
            for b in range(bits):
                state, at = _push(state, words, at, (d >> np.uint64(b)) & one, one, 1)
            state, at = _push(state, words, at, one, one, 1)
            for _ in range(bits):
                state, at = _push(state, words, at, np.uint64(0), one, 1)
            v = np.int64(size)
        start = np.uint64(cdf[t, v])
        freq = np.uint64(cdf[t, v + 1]) - start
        state, at = _push(state, words, at, start, freq, PRECISION)
    at -= 2
    words[at] = np.uint32(state >> np.uint64(32))
    words[at + 1] = np.uint32(state & np.uint64(0xFFFFFFFF))
    return at


@kernel
def _bits(state, words, at, count):
    """Take ``count`` bits; ``at`` becomes negative where the words ran out."""
    value = state & ((np.uint64(1) << np.uint64(count)) - np.uint64(1))
    state >>= np.uint64(count)
    if state < np.uint64(_LOW):
        if at >= len(words):
            return value, state, -1
        state = (state << np.uint64(32)) | np.uint64(words[at])
        at += 1
    return value, state, at


@kernel
def _gamma(state, words, at):
    """Elias-gamma code of a number of at most 33 bits -> the number less one."""
    bits = 0
    bit = np.uint64(0)
    while bit == np.uint64(0):
        bit, state, at = _bits(state, words, at, 1)
        bits += 1
        if at < 0 or bits > _MAX_GAMMA:
            return np.uint64(0), state, -1
    d = np.uint64(1)
    for _ in range(bits - 1):
        bit, state, at = _bits(state, words, at, 1)
        if at < 0:
            return np.uint64(0), state, -1
        d = (d << np.uint64(1)) | bit
    return d - np.uint64(1), state, at


@kernel
def _nibbles(state, words, at):
    """CompressAI's escape: how many groups of four bits, in unary of fifteens, then the groups."""
    count = 0
    group = np.uint64(15)
    while group == np.uint64(15):
        group, state, at = _bits(state, words, at, 4)
        count += np.int64(group)
        if at < 0 or count > 8:  # a symbol is an int32
            return np.uint64(0), state, -1
    d = np.uint64(0)
    for j in range(count):
        group, state, at = _bits(state, words, at, 4)
        if at < 0:
            return np.uint64(0), state, -1
        d |= group << np.uint64(4 * j)
    return d, state, at


@kernel
def _decode(symbols, indexes, cdf, first, length, offset, words, saved, nibbles):
    state = saved[0]
    at = np.int64(saved[1])
    mask = np.uint64((1 << PRECISION) - 1)
    for i in range(len(symbols)):
        t = indexes[i]
        size = length[t] - 2
        target = np.int32(state & mask)
        low = np.int64(first[t, target >> (PRECISION - 8)])
        while cdf[t, low + 1] <= target:  # the interval with cdf[low] <= target < cdf[low + 1]
            low += 1
        start = np.uint64(cdf[t, low])
        freq = np.uint64(cdf[t, low + 1]) - start
        state = freq * (state >> np.uint64(PRECISION)) + (state & mask) - start
        if state < np.uint64(_LOW):
            if at >= len(words):
                return False
            state = (state << np.uint64(32)) | np.uint64(words[at])
            at += 1
        v = np.int64(low)
        if low == size:
            if nibbles:
                d, state, at = _nibbles(state, words, at)
            else:
                d, state, at = _gamma(state, words, at)
            if at < 0:
                return False
            half = np.int64(d >> np.uint64(1))
            v = -half - 1 if d & np.uint64(1) else size + half
        v += offset[t]
        if v < -2147483648 or v > 2147483647:
            return False
        symbols[i] = v
    saved[0] = state
    saved[1] = np.uint64(at)
    return True
