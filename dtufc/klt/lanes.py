"""Entropy coder of many independent lanes: rANS with 32-bit states and words of 16 bits.

Vector r goes to lane r mod L. Lanes stand in groups of 32; the lanes of a group take a step together,
one symbol each, and those that need a word take the next ones of their group's words, in order. So a
core keeps several states in flight, and a warp of a GPU decodes a group in lockstep. First come the
modes of all vectors, then their components.

    string:  lanes (varint) ─ words of each group but the last (varints) ─ check (2 bytes, of one lane)
             ─ states (4 bytes a lane) ─ words (2 bytes each)

The states that encoding begins with, which decoding ends with, carry a 32-bit check: its low half in
even lanes, its high half in odd ones; of a single lane the high half stands in the string.

J. Duda, *Asymmetric numeral systems* (arXiv 1311.2540); F. Giesen, *Interleaved entropy coders* (arXiv
1402.3392). Probabilities are in units of 2^-12: a table is 4096 bytes, from its slots to its symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from dtufc.kernels import kernel
from dtufc.klt.trellis import ESCAPE, NEXT
from dtufc.simd import (
    WIDTH,
    gather,
    load,
    permute,
    select,
    shift_right,
    splat,
    store,
    to_bits,
)

PRECISION = 12
SLOTS = 1 << PRECISION
WORD = np.dtype("<u2")
ROW = 256
"""Symbols of a table at most, with its escape, which is the last, :data:`dtufc.klt.trellis.ESCAPE`."""
GROUP = 32
"""Lanes that share their words."""
MAX_LANES = 1 << 16
LANE_BYTES = 1024
"""Bytes that a lane is to hold: its state, of which three bytes are lost, costs 0.3 % of them."""
LOW = 1 << 16  # states are kept in [2^16, 2^32)
HASH = 0x9E3779B1  # odd: a symbol that differs changes the sum

# four bits for each state and parity, so that the next state is a shift away
NEXT_BITS = np.uint64(sum(int(t) << (4 * n) for n, t in enumerate(NEXT.ravel())))
NEXT_EVEN, NEXT_ODD = (np.ascontiguousarray(column) for column in NEXT.T)
CLASSES = 4
"""Versions of a table, of which the vector's symbols so far choose one; :mod:`dtufc.klt.contexts`."""
DECAY, UNIT = 6, 4
"""Shifts: of a vector's activity, what is lost of it at each symbol; and of magnitudes in its units."""
FEW = 4
"""Lanes below which one at a time is faster."""
COUNT = np.array([bits.bit_count() for bits in range(1 << WIDTH)], np.uint8)
"""How many of eight lanes take a word, by a bit for each that does."""
TAKEN = np.array(
    [(bits & (1 << lane) - 1).bit_count() for bits in range(1 << WIDTH) for lane in range(WIDTH)],
    np.uint8,
)
"""Which of the next words each of them takes, eight for each of COUNT."""


class LaneError(ValueError):
    """The string is not one that this coder wrote with these tables."""


@dataclass(frozen=True)
class Slots:
    """Tables as coders use them, of T tables."""

    symbol: np.ndarray
    """(T * SLOTS,) uint8: the symbol of each slot."""
    interval: np.ndarray
    """(T * ROW,) uint32: of each symbol, frequency (13 bits), parity (bit 15), start (from bit 16)."""
    inverse: np.ndarray
    """(T * ROW,) uint64: 2^44 over the frequency, rounded up."""
    least: np.ndarray
    """(T,) float64: bits of the cheapest symbol."""

    @classmethod
    def of(cls, freqs, low) -> "Slots":
        """Of frequencies, T times (size + 1,) with the sum SLOTS, and each table's lowest symbol."""
        count = len(freqs)
        symbol = np.empty((count, SLOTS), np.uint8)
        interval = np.zeros((count, ROW), np.uint32)
        inverse = np.zeros((count, ROW), np.uint64)
        least = np.empty(count)
        for t, (freq, first) in enumerate(zip(freqs, low, strict=True)):
            own = np.append(np.arange(len(freq) - 1), ESCAPE)
            symbol[t] = np.repeat(own, freq)
            parity = np.append((own[:-1] + int(first)) & 1, 0)
            start = np.cumsum(freq) - freq
            interval[t, own] = freq | parity << 15 | start << 16
            inverse[t, own] = -(-(1 << 44) // freq.astype(np.int64))
            least[t] = PRECISION - np.log2(freq.max())
        return cls(symbol.ravel(), interval.ravel(), inverse.ravel(), least)


def lanes_for(size: float, count: int) -> int:
    """How many lanes ``count`` vectors of ``size`` bytes in all take, filled evenly."""
    lanes = int(min(max(1, size / LANE_BYTES), count, MAX_LANES))
    rounds = -(-count // lanes)
    return -(-count // rounds)


def encode(code, modes, mode_table, slots, lanes, check) -> bytes:
    """Table symbols -> string.

    Args:
        code: (D, R) uint16, as :func:`dtufc.klt.trellis.search` writes it.
        modes: (R,) int32.
        mode_table: the table of the modes; below 0 where there is but one mode.
        check: 32 bits that the decoder must come to beside the symbols' own.
    """
    components, count = code.shape
    words = np.empty(2 * lanes + count * (components + 1) + 1, np.uint16)
    ends = np.empty(-(-lanes // GROUP) + 1, np.int64)
    check = _encode(
        code, modes, mode_table, slots.interval, slots.inverse, check, lanes, words, ends
    )
    lengths = np.diff(ends).tolist() if len(ends) > 2 else [0]
    body = words[ends[0] - 2 * lanes :].astype(WORD, copy=False)
    return b"".join((head(lanes, lengths, check), body))


def head(lanes: int, lengths: Sequence[int], check: int) -> bytes:
    """What a string says before its states.

    Args:
        lengths: words of each group.
    """
    if lanes == 1:
        return b"\1" + (check >> 16).to_bytes(2, "little")
    return varint(lanes) + b"".join(map(varint, lengths[:-1]))


class Reader:
    """A string of :func:`encode`, read in two steps: the modes, then the components.

    Raises:
        LaneError: the string is too short to be one, or holds none of so many vectors.
    """

    def __init__(self, data: bytes, count: int):
        self.count = count
        lanes, at = read_varint(data, 0)
        if not 1 <= lanes <= min(count, MAX_LANES):
            raise LaneError(f"{lanes} lanes of {count} vectors")
        lengths, self._high = [], None
        for _ in range((lanes - 1) // GROUP):
            length, at = read_varint(data, at)
            lengths.append(length)
        if lanes == 1:
            self._high, at = int.from_bytes(data[at : at + 2], "little"), at + 2
        body = len(data) - at - 4 * lanes
        if body < 0 or body % 2 or sum(lengths) > body // 2:
            raise LaneError("the coded symbols are truncated")
        self.states = np.empty(lanes, np.uint64)
        self.words = self._room(body // 2 + GROUP)
        _lay_out(np.frombuffer(data, np.uint8), at, self.states, self.words)
        self._ends = [*accumulate(lengths), body // 2]
        self.at = np.zeros(len(self._ends), np.int64)
        if lengths:
            self.at[1:] = self._ends[:-1]

    def _room(self, count: int) -> np.ndarray:
        """Where the words are kept, (count,) uint16."""
        return np.empty(count, np.uint16)

    def modes(self, slots: Slots, table: int) -> np.ndarray:
        """(R,) int32 of the table's symbols."""
        out = np.empty(self.count, np.int32)
        _pull_modes(self.words, self.at, self.states, table, slots.symbol, slots.interval, out)
        return out

    def components(
        self, modes, pairs, slots, values, wide, low_bits, low, magnitude, limits, y, symbols
    ):
        """Fill y (D, R) float32 with the tables' values, and symbols (D, R) int32 where it has a size.

        An escaped symbol becomes infinite: above 0 in quantiser 0, below in quantiser 1.

        Args:
            pairs: (D * K * 2,) uint16: the tables of each component and mode in quantisers 0 and 1.
            values: (T * ROW,) float32: what a table's symbols stand for.
            wide: (2, D) int32: a component's low bits, and their row in ``low_bits`` (S, R) int32.
            low: (T,) int32: each table's lowest symbol.
            magnitude: (T * ROW,) uint8 of table symbols. limits: as
                :func:`dtufc.klt.contexts.thresholds` returns them; empty without contexts. ``slots`` are
                of the tables' versions where there are such, all else is of the tables.

        Returns:
            the sum of the symbols' hashes, and how many are escaped.
        """
        return _pull(
            self.words, self.at, self.states, modes, pairs, slots.symbol, slots.interval, values,
            wide, low_bits, low, magnitude, limits, y, symbols,
        )  # fmt: skip

    def finish(self, check: int) -> None:
        """Check that all lanes end here, with the encoder's symbols and ``check``.

        Raises:
            LaneError: they do not.
        """
        if self.at.tolist() != self._ends:
            raise LaneError("the coded symbols do not end where they should")
        high = self._high in (None, check >> 16)
        if not high or not _are_first(self.states, check):
            raise LaneError("what was decoded is not what was encoded")


def varint(value: int) -> bytes:
    """A number in groups of 7 bits, low first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of at most 35 bits, and the place behind it.

    Raises:
        LaneError: it does not end.
    """
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise LaneError("the coded symbols are truncated")


@kernel
def _lay_out(data, at, states, words):
    """States and words of a string's bytes from ``at`` on, all written; behind the words come zeros, as
    a damaged string reads beyond its end."""
    for lane in range(len(states)):
        word = np.uint64(0)
        for byte in range(4):
            word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
        states[lane] = word
        at += 4
    count = (len(data) - at) >> 1
    for n in range(count):
        words[n] = np.uint16(data[at + 2 * n]) | np.uint16(np.uint16(data[at + 2 * n + 1]) << 8)
    words[count:] = 0


@kernel
def first_states(lanes, check):
    """(lanes,) uint64: the states that encoding begins with."""
    out = np.empty(lanes, np.uint64)
    for lane in range(lanes):
        out[lane] = _first_state(lane, check)
    return out


@kernel
def _are_first(states, check):
    """Whether states are those of :func:`first_states`."""
    same = True
    for lane in range(len(states)):
        same &= states[lane] == _first_state(lane, check)
    return same


@kernel
def _first_state(lane, check):
    check = np.int64(check)
    return np.uint64(LOW | (check >> 16 if lane & 1 else check & 0xFFFF))


def sum_hashes(hashes: np.ndarray) -> int:
    """32 bits of all vectors' hashes, each times an odd number of its own."""
    weights = 2 * np.arange(len(hashes), dtype=np.uint32) + np.uint32(1)
    return int((hashes * weights).sum(dtype=np.uint32))


@kernel
def _hash(code, modes):
    """As :func:`sum_hashes`, of a polynomial of each column's symbols, mod 2^32."""
    hashes = np.empty(code.shape[1], np.uint32)
    for r in range(code.shape[1]):
        hashes[r] = np.uint32(modes[r] + 1)
    for i in range(code.shape[0]):
        for r in range(code.shape[1]):
            hashes[r] = hashes[r] * np.uint32(HASH) + np.uint32(code[i, r] & 255)
    total = np.uint64(0)
    for r in range(code.shape[1]):
        total += np.uint64(hashes[r]) * np.uint64(2 * r + 1)
    return total & np.uint64(0xFFFFFFFF)


@kernel
def _encode(code, modes, mode_table, interval, inverse, check, lanes, words, ends):
    """Encode all, and lay the lanes' last states, low half first, before the first word.

    Args:
        words: 2 * lanes more than :func:`_push` asks for. ends: as of :func:`_push`.

    Returns:
        the check, with the symbols' own.
    """
    check = np.int64(_hash(code, modes)) ^ check
    states = first_states(lanes, check)
    _push(code, modes, mode_table, interval, inverse, states, words, ends)
    first = ends[0] - 2 * lanes
    for lane in range(lanes):
        words[first + 2 * lane] = np.uint16(states[lane] & np.uint64(0xFFFF))
        words[first + 2 * lane + 1] = np.uint16(states[lane] >> np.uint64(16))
    return check


@kernel
def _push(code, modes, mode_table, interval, inverse, states, words, ends):
    """Encode all groups, the last first; words fill from the end.

    Args:
        states: (L,) uint64, of the beginning; then those of the end.
        words: one more than there can be: a word is written before it is known to be needed.
        ends: (groups + 1,) int64, written: where each group's words begin, and the end.
    """
    components, count = code.shape
    flat = code.ravel()
    lanes = len(states)
    at = np.uint64(len(words))
    groups = len(ends) - 1
    ends[groups] = at
    rounds = (count + lanes - 1) // lanes
    for g in range(groups - 1, -1, -1):
        first = g * GROUP
        own = states[first : min(first + GROUP, lanes)]
        for k in range(rounds - 1, -1, -1):
            start = k * lanes + first
            width = max(0, min(len(own), count - start))
            for i in range(components - 1, -1, -1):
                row = np.uint64(i * count + start)
                for j in range(width - 1, -1, -1):
                    place = np.uint64(flat[row + np.uint64(j)])
                    own[j], at = _put(own[j], interval[place], inverse[place], words, at)
        if mode_table >= 0:
            for k in range(rounds - 1, -1, -1):
                start = k * lanes + first
                for j in range(min(len(own), count - start) - 1, -1, -1):
                    place = np.uint64((mode_table << 8) | modes[start + j])
                    own[j], at = _put(own[j], interval[place], inverse[place], words, at)
        ends[g] = at


@kernel
def _put(x, interval, inverse, words, at):
    """A symbol into the state x; the word that it sends goes before ``at``."""
    freq = np.uint64(interval) & np.uint64(0x1FFF)
    full = np.uint64(1) if x >> np.uint64(20) >= freq else np.uint64(0)
    words[at - np.uint64(1)] = np.uint16(x)  # no branch, which would be told wrong too often
    at -= full
    x >>= full << np.uint64(4)
    whole = (x * inverse) >> np.uint64(44)  # x // freq, exactly: x < 2^20 freq, freq <= 2^12
    start = np.uint64(interval) >> np.uint64(16)
    return x + whole * (np.uint64(SLOTS) - freq) + start, at


@kernel
def _take(x, interval, slot, word):
    """The state without its symbol, refilled with ``word`` where it needs one; and whether it did."""
    freq = np.uint64(interval) & np.uint64(0x1FFF)
    x = freq * (x >> np.uint64(PRECISION)) + slot - (np.uint64(interval) >> np.uint64(16))
    need = np.uint64(1) if x < np.uint64(LOW) else np.uint64(0)
    refilled = (x << np.uint64(16)) | word
    return refilled if need else x, need


@kernel
def _pull_modes(words, places, states, table, symbol, interval, out):
    lanes, count = len(states), len(out)
    last = np.uint64(len(words) - GROUP)
    base = np.uint64(table)
    for g in range(len(places)):
        first = g * GROUP
        own = states[first : min(first + GROUP, lanes)]
        at = np.uint64(places[g])
        for start in range(first, count, lanes):
            for j in range(min(len(own), count - start)):
                x = own[j]
                slot = x & np.uint64(SLOTS - 1)
                found = symbol[(base << np.uint64(PRECISION)) | slot]
                place = (base << np.uint64(8)) | np.uint64(found)
                own[j], need = _take(x, interval[place], slot, np.uint64(words[min(at, last)]))
                at += need
                out[start + j] = found
        places[g] = np.int64(at)


@kernel
def _pull(
    words, places, states, modes, pairs, symbol, interval, values, wide, low_bits, low, magnitude,
    limits, y, symbols,
):  # fmt: skip
    """Decode the components of all vectors; see :meth:`Reader.components`."""
    components, count = y.shape
    lanes = len(states)
    escapes, total = 0, np.uint64(0)
    keep = symbols.size > 0
    # of each lane: coder, quantisers, mode times two, hash, escapes, whether there is one, activity
    lane = np.zeros(7 * GROUP, np.uint32)
    for g in range(len(places)):
        first = g * GROUP
        own = states[first : min(first + GROUP, lanes)]
        at = np.uint64(places[g])
        for start in range(first, count, lanes):
            width = min(len(own), count - start)
            lane[GROUP:] = 0
            for j in range(width):
                lane[j] = own[j]
                lane[2 * GROUP + j] = modes[start + j] << 1
                lane[3 * GROUP + j] = modes[start + j] + 1
                lane[5 * GROUP + j] = 1
            i = 0
            while i < components:
                special = width < FEW or keep or wide[0, i] > 0
                end = i + 1
                while end < components and special == (width < FEW or keep or wide[0, end] > 0):
                    end += 1
                if width == 1 and limits.size == 0:
                    at = _read_one(
                        lane, words, at, pairs, symbol, interval, values, wide, low_bits, start,
                        low, y, symbols,
                    )  # fmt: skip
                elif special:
                    at = _read_one_by_one(
                        lane, width, words, at, pairs, symbol, interval, values, wide, low_bits, start,
                        low, magnitude, limits, y, symbols, i, end,
                    )  # fmt: skip
                elif limits.size > 0:
                    at = _read_in_context(
                        lane, width, words, at, pairs, symbol, interval, values, magnitude, limits, y,
                        start, i, end,
                    )  # fmt: skip
                else:
                    at = _read(
                        lane, width, words, at, pairs, symbol, interval, values, y, start, i, end
                    )
                i = end
            for j in range(width):
                own[j] = lane[j]
                total += np.uint64(lane[3 * GROUP + j]) * np.uint64(2 * (start + j) + 1)
                escapes += np.int64(lane[4 * GROUP + j])
        places[g] = np.int64(at)
    return total & np.uint64(0xFFFFFFFF), escapes


@kernel
def _look(x, table, symbol, interval):
    """States (8) before they are refilled, their symbols, places in tables of values, and intervals."""
    slot = x & splat(SLOTS - 1)
    found = gather(symbol, (table << splat(PRECISION)) | slot)
    place = (table << splat(8)) | found
    described = gather(interval, place)
    x = (described & splat(0x1FFF)) * shift_right(x, splat(PRECISION)) + slot
    return x - shift_right(described, splat(16)), found, place, described


@kernel
def _settle(lane, to, x, machine, found, described, words, word):
    """Refill states from the words, and write what the lanes of ``to`` on have come to.

    Returns:
        where the next words are.
    """
    zero, one = splat(0), splat(1)
    there = load(lane, to + np.uint64(5 * GROUP))
    need = (shift_right(x, splat(16)) == zero) & (there == one)
    taking = to_bits(need)
    taken = permute(load(words, word), load(TAKEN, taking << np.uint64(3)))
    store(lane, to, select(need, (x << splat(16)) | taken, x))
    is_odd = (shift_right(described, splat(15)) & one) == one
    even, odd = load(NEXT_EVEN, np.uint64(0)), load(NEXT_ODD, np.uint64(0))
    machine = select(is_odd, permute(odd, machine), permute(even, machine))
    store(lane, to + np.uint64(GROUP), machine)
    hashed = load(lane, to + np.uint64(3 * GROUP)) * splat(HASH) + found
    store(lane, to + np.uint64(3 * GROUP), hashed)
    escaped = select(found == splat(ESCAPE), one, zero)
    store(lane, to + np.uint64(4 * GROUP), load(lane, to + np.uint64(4 * GROUP)) + escaped)
    return word + np.uint64(COUNT[taking])


@kernel
def _read(lane, width, words, at, pairs, symbol, interval, values, y, start, begin, end):
    """The symbols of some components, eight lanes at a time.

    Args:
        at: where the words are. start: the first lane's vector. begin, end: the components.

    Returns:
        where the next words are.
    """
    components, count = y.shape
    flat, apart = y.ravel(), len(pairs) // components
    last = np.uint64(len(words) - GROUP)
    few = np.empty(WIDTH, np.float32)
    one, eight = splat(1), np.uint64(WIDTH)
    for i in range(begin, end):
        word = min(
            at, last
        )  # a component takes GROUP words at most, and so many lie behind the last
        before, base, row = word, i * apart, i * count + start
        first, second = splat(pairs[base]), splat(pairs[base + 1])
        for j in range(0, width, 2 * WIDTH):  # two at a time: each look-up waits for the one before
            to = np.uint64(j)
            x, machine = load(lane, to), load(lane, to + np.uint64(GROUP))
            x2 = load(lane, to + eight)
            machine2 = load(lane, to + eight + np.uint64(GROUP))
            if apart == 2:
                table = select((machine & one) == one, second, first)
                table2 = select((machine2 & one) == one, second, first)
            else:
                kind = load(lane, to + np.uint64(2 * GROUP))
                table = gather(pairs, splat(base) + kind + (machine & one))
                kind = load(lane, to + eight + np.uint64(2 * GROUP))
                table2 = gather(pairs, splat(base) + kind + (machine2 & one))
            x, found, place, described = _look(x, table, symbol, interval)
            if j + WIDTH < width:
                x2, found2, place2, described2 = _look(x2, table2, symbol, interval)
                word = _settle(lane, to, x, machine, found, described, words, word)
                store(flat, np.uint64(row + j), gather(values, place))
                word = _settle(lane, to + eight, x2, machine2, found2, described2, words, word)
                rest, value = width - j - WIDTH, gather(values, place2)
                from_ = row + j + WIDTH
            else:
                word = _settle(lane, to, x, machine, found, described, words, word)
                rest, value = width - j, gather(values, place)
                from_ = row + j
            if rest >= WIDTH:
                store(flat, np.uint64(from_), value)
            else:
                store(few, np.uint64(0), value)
                for k in range(rest):
                    flat[from_ + k] = few[k]
        at += word - before
    return at


@kernel
def _read_in_context(
    lane, width, words, at, pairs, symbol, interval, values, magnitude, limits, y, start, begin, end
):
    """As :func:`_read`, with contexts."""
    components, count = y.shape
    flat, apart = y.ravel(), len(pairs) // components
    last = np.uint64(len(words) - GROUP)
    few = np.empty(WIDTH, np.float32)
    zero, one = splat(0), splat(1)
    for i in range(begin, end):
        word = min(at, last)
        before, base, row = word, i * apart, i * count + start
        for j in range(0, width, WIDTH):
            to = np.uint64(j)
            x, machine = load(lane, to), load(lane, to + np.uint64(GROUP))
            kind = load(lane, to + np.uint64(2 * GROUP))
            activity = load(lane, to + np.uint64(6 * GROUP))
            own = splat(base) + kind + (machine & one)
            table = gather(pairs, own)
            own = own + own + own  # CLASSES - 1 limits of each
            version = table << splat(2)
            for _ in range(CLASSES - 1):
                version = version + select(activity < gather(limits, own), zero, one)
                own = own + one
            x, found, _, described = _look(x, version, symbol, interval)
            word = _settle(lane, to, x, machine, found, described, words, word)
            place = (table << splat(8)) | found
            more = gather(magnitude, place) << splat(UNIT)
            activity = activity - shift_right(activity, splat(DECAY)) + more
            store(lane, to + np.uint64(6 * GROUP), activity)
            value, rest = gather(values, place), width - j
            if rest >= WIDTH:
                store(flat, np.uint64(row + j), value)
            else:
                store(few, np.uint64(0), value)
                for k in range(rest):
                    flat[row + j + k] = few[k]
        at += word - before
    return at


@kernel
def _read_one_by_one(
    lane, width, words, at, pairs, symbol, interval, values, wide, low_bits, start, low, magnitude,
    limits, y, symbols, begin, end,
):  # fmt: skip
    """As :func:`_read`, where lanes are few, where low bits stand beside the components' symbols, or
    where symbols are asked for; with contexts or without."""
    components, count = y.shape
    flat, apart = y.ravel(), len(pairs) // components
    contextual = limits.size > 0
    last = np.uint64(len(words) - GROUP)
    keep = symbols.size > 0
    for i in range(begin, end):
        word = min(at, last)
        before, base, row = word, np.uint64(i * apart), i * count + start
        shift, beside_row = wide[0, i], wide[1, i]
        for j in range(width):
            x, machine = np.uint64(lane[j]), np.uint64(lane[GROUP + j])
            second = machine & np.uint64(1)
            pair = base + np.uint64(lane[2 * GROUP + j]) + second
            table = np.uint64(pairs[pair])
            version, activity = table, lane[6 * GROUP + j]
            if contextual:
                version, limit = table * np.uint64(CLASSES), np.uint64(CLASSES - 1) * pair
                for c in range(CLASSES - 1):
                    reached = activity >= limits[limit + np.uint64(c)]
                    version += np.uint64(1) if reached else np.uint64(0)
            slot = x & np.uint64(SLOTS - 1)
            found = symbol[(version << np.uint64(PRECISION)) | slot]
            place = (table << np.uint64(8)) | np.uint64(found)
            described = interval[(version << np.uint64(8)) | np.uint64(found)]
            x, need = _take(x, described, slot, np.uint64(words[word]))
            word += need
            lane[j] = x
            if contextual:
                more = np.uint32(magnitude[place]) << np.uint32(UNIT)
                lane[6 * GROUP + j] = activity - (activity >> np.uint32(DECAY)) + more
            lane[3 * GROUP + j] = lane[3 * GROUP + j] * np.uint32(HASH) + np.uint32(found)
            held = found != ESCAPE
            lane[4 * GROUP + j] += 0 if held else 1
            parity = np.uint64(described >> np.uint32(15)) & np.uint64(1)
            flat[row + j] = values[place]
            if keep or shift > 0:
                k = np.int64(found) + low[table]
                if shift > 0:
                    beside = low_bits[beside_row, start + j]
                    k, parity = (k << shift) | beside, np.uint64(beside & 1)
                    if held:
                        sign = 1 if k > 0 else -1 if k < 0 else 0
                        flat[row + j] = 2 * k - np.int64(second) * sign
                if keep:
                    symbols[i, start + j] = k
            lane[GROUP + j] = NEXT[machine, parity]
        at += word - before
    return at


@kernel
def _read_one(
    lane, words, at, pairs, symbol, interval, values, wide, low_bits, start, low, y, symbols
):
    """As :func:`_read_one_by_one`, all components of one lane alone."""
    components, count = y.shape
    flat, apart = y.ravel(), np.uint64(len(pairs) // components)
    last = np.uint64(len(words) - GROUP)
    keep = symbols.size > 0
    x, machine, hashed = np.uint64(lane[0]), np.uint64(lane[GROUP]), lane[3 * GROUP]
    base, escapes = np.uint64(lane[2 * GROUP]), 0
    for i in range(components):
        second = machine & np.uint64(1)
        table = np.uint64(pairs[base + second])
        slot = x & np.uint64(SLOTS - 1)
        found = symbol[(table << np.uint64(PRECISION)) | slot]
        place = (table << np.uint64(8)) | np.uint64(found)
        described = interval[place]
        x, need = _take(x, described, slot, np.uint64(words[min(at, last)]))
        at += need
        base += apart
        hashed = hashed * np.uint32(HASH) + np.uint32(found)
        held = found != ESCAPE
        escapes += 0 if held else 1
        parity = np.uint64(described >> np.uint32(15)) & np.uint64(1)
        flat[np.uint64(i * count + start)] = values[place]
        shift = wide[0, i]
        if keep or shift > 0:
            k = np.int64(found) + low[table]
            if shift > 0:
                beside = low_bits[wide[1, i], start]
                k, parity = (k << shift) | beside, np.uint64(beside & 1)
                if held:
                    sign = 1 if k > 0 else -1 if k < 0 else 0
                    flat[np.uint64(i * count + start)] = 2 * k - np.int64(second) * sign
            if keep:
                symbols[i, start] = k
        machine = (NEXT_BITS >> (np.uint64(4) * (np.uint64(2) * machine + parity))) & np.uint64(15)
    lane[0], lane[3 * GROUP], lane[4 * GROUP] = np.uint32(x), hashed, escapes
    return at
