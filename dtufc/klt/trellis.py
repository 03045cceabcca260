"""Dependent quantisation: two quantisers, which an eight-state machine switches between, and the search
for the symbols of least distortion and rate (Viterbi).

M. Marcellin and T. Fischer, *Trellis coded quantization* (1990); H. Schwarz et al., *Quantization and
entropy coding in the versatile video coding standard* (2021), section on dependent quantisation.

    values in fine steps:   -4  -3  -2  -1   0   1   2   3   4
    quantiser 0, 2 k:       -2      -1       0       1       2
    quantiser 1, 2k-sgn k:      -2      -1   0   1       2

Even states take quantiser 0, odd ones quantiser 1. The parity of a symbol decides the next state, so
that a decoder follows without any side information. Every vector starts in state 0.

Values come as integers, in 64ths of a fine step, and costs are integers: the same values give the same
symbols on every machine. Arrays are component by component, (D, R): the vectors of a block lie beside
each other, so that one instruction works on eight of them.
"""

import numpy as np

from dtufc.kernels import kernel
from dtufc.simd import WIDTH, larger, load, select, smaller, splat, store, to_bits

STATES = 8
NEXT = np.array([[0, 1], [3, 2], [5, 4], [6, 7], [1, 0], [2, 3], [4, 5], [7, 6]], np.int32)
"""(8, 2): the state after a symbol of even or odd parity. State t follows t // 2 and t // 2 + 4."""
FINE = 9 / 16
"""The fine step over the step of plain quantisation that gives the same error."""
UNIT = 64
"""What a fine step is in the values that are searched."""
ESCAPE = 255
"""The table symbol of those that no table holds."""
BLOCK = WIDTH
"""Vectors searched at a time."""
PARAMETERS = 10
"""Integers that tell a table's costs: of magnitudes 0, 1, 2, then a polynomial of degree 2; what is
added to magnitudes 1 and 2 at decoding; and the largest odd magnitude above and below 0. An escaped
symbol is even, so that a decoder knows the next state before it has read the escape."""
FAR = 128
"""Magnitude above which a symbol's cost is taken for that of this one."""
ZERO_LIMIT = 4096  # 64ths beyond which a value is never taken for nought
NEAR = 192
"""Magnitudes below this become symbols 0, 1 or 2, of which :func:`_step` knows the costs."""
NEVER = 1 << 29
MOST = 1 << 16  # of a symbol's rate, in 4096ths of a squared fine step
OUT = 1 << 20  # cost of what no table tells: more than any symbol of one component may cost
SETTLE = 512  # components after which path costs are brought back to 0: they stay below 2^30

i32 = np.int32  # kernels say it at every step: plain sums of int32 are 64 bits wide to the compiler

# whether the first and the second path into each state are of odd parity, a bit each
ODD_BITS = sum(
    int(NEXT[t // 2 + 4 * b, 1] == t) << (2 * t + b) for t in range(STATES) for b in (0, 1)
)


@kernel
def to_units(y, scale, out):
    """Values (D, R) float32 -> rounded multiples of 1 / scale, (D, R) int32."""
    flat, to = y.ravel(), out.ravel()
    for i in range(len(flat)):
        v = flat[i] * scale
        to[i] = np.int32(v + np.float32(0.5) if v > 0 else v - np.float32(0.5))


@kernel
def _block(values, first):
    """Eight columns of values (D, R) from ``first`` on, (8 D,), 0 beyond the last."""
    out = np.zeros(BLOCK * values.shape[0], np.int32)
    for i in range(values.shape[0]):
        for r in range(first, values.shape[1]):
            out[i * BLOCK + r - first] = values[i, r]
    return out


@kernel
def _near(v, a, near, p, q):
    """Costs of the symbols 0, 1 and 2 of either sign, where no magnitude ``a`` reaches NEAR.

    Args:
        v, a: values of eight vectors and their magnitudes. near: as :func:`_near_of` gives it, flat.
        p, q: where the tables of quantiser 0 and 1 begin in it.

    Returns:
        even and odd ones of quantiser 0, of quantiser 1, and bits 8 and 9: nought in either.
    """
    below, square = v < splat(0), a * a
    e = a - splat(near[p + 4])
    even0 = select(a < splat(128), splat(OUT), e * e + splat(near[p + 1]))
    z = square + splat(near[p])
    bits = select(z <= even0, splat(256), splat(0))
    even0 = smaller(z, even0)
    e = a - splat(near[p + 5])
    odd0 = e * e + select(below, splat(near[p + 3]), splat(near[p + 2]))
    e = a - splat(near[q + 6])
    even1 = e * e + splat(near[q + 1])
    z = square + splat(near[q])
    bits = bits | select(z <= even1, splat(512), splat(0))
    even1 = smaller(z, even1)
    e = a - splat(near[q + 7])
    odd1 = e * e + select(below, splat(near[q + 3]), splat(near[q + 2]))
    return even0, odd0, even1, odd1, bits


@kernel
def _near_of(parameters):
    """(T * 8,) int32, of each table: costs of 0, of 2, of 1 above and below 0; and what 2 and 1 stand
    for in quantiser 0, and in quantiser 1. The steps of :func:`_near` take them as they are."""
    out = np.empty((len(parameters), 8), np.int32)
    for t in range(len(parameters)):
        own, to = parameters[t], out[t]
        to[0], to[1] = own[0], own[2]
        to[2] = own[1] + (OUT if own[8] <= 0 else 0)  # where 1 is beyond what is coded
        to[3] = own[1] + (OUT if own[9] <= 0 else 0)
        to[4], to[5], to[6], to[7] = own[7] + 256, own[6] + 128, own[7] + 192, own[6] + 64
    return out.ravel()


@kernel
def _any(v, a, flat, p, q):
    """As :func:`_near`, of any magnitudes."""
    below, one, zero = v < splat(0), splat(1), splat(0)
    near = smaller(a, splat(ZERO_LIMIT))
    square = near * near
    # quantiser 0: even symbols at multiples of 256, odd ones halfway
    m = (a + splat(128)) >> splat(8)
    e = a - (m << splat(8)) - select(m == one, splat(flat[p + 7]), zero)
    even0 = e * e + _cost(m << one, flat, p)
    z = square + splat(flat[p])
    bits = select(z <= even0, splat(256), zero)
    even0 = smaller(z, even0)
    m = a >> splat(8)
    e = a - (m << splat(8)) - splat(128) - select(m == zero, splat(flat[p + 6]), zero)
    m = m << one
    most = select(below, splat(flat[p + 9]), splat(flat[p + 8]))
    odd0 = e * e + _cost(m + one, flat, p) + select(m < most, zero, splat(OUT))
    # quantiser 1: odd symbols at 64, 320, ..., even ones at 192, 448, ...
    m = larger(a - splat(64), zero) >> splat(8)
    e = a - (m << splat(8)) - splat(192) - select(m == zero, splat(flat[q + 7]), zero)
    even1 = e * e + _cost((m << one) + splat(2), flat, q)
    z = square + splat(flat[q])
    bits = bits | select(z <= even1, splat(512), zero)
    even1 = smaller(z, even1)
    m = (a + splat(64)) >> splat(8)
    e = a - (m << splat(8)) - splat(64) - select(m == zero, splat(flat[q + 6]), zero)
    m = m << one
    most = select(below, splat(flat[q + 9]), splat(flat[q + 8]))
    odd1 = e * e + _cost(m + one, flat, q) + select(m < most, zero, splat(OUT))
    return even0, odd0, even1, odd1, bits


@kernel
def _cost(magnitude, flat, p):
    """What a symbol's bits cost, in 4096ths of a squared fine step."""
    m = smaller(magnitude, splat(FAR))
    cost = splat(flat[p + 3]) + m * (splat(flat[p + 4]) + splat(flat[p + 5]) * m)
    cost = smaller(larger(cost, splat(0)), splat(MOST))
    cost = select(m == splat(2), splat(flat[p + 2]), cost)
    cost = select(m == splat(1), splat(flat[p + 1]), cost)
    return select(m == splat(0), splat(flat[p]), cost)


@kernel
def _forward(s, even0, odd0, even1, odd1, bits):
    """The costs of the eight paths after a symbol, and the bits of those that come from the second path
    into their state."""
    ends = (
        (s[0] + even0, s[4] + odd0), (s[0] + odd0, s[4] + even0),
        (s[1] + odd1, s[5] + even1), (s[1] + even1, s[5] + odd1),
        (s[2] + odd0, s[6] + even0), (s[2] + even0, s[6] + odd0),
        (s[3] + even1, s[7] + odd1), (s[3] + odd1, s[7] + even1),
    )  # fmt: skip
    for t in range(STATES):
        bits = bits | select(ends[t][1] < ends[t][0], splat(1 << t), splat(0))
    s = (
        smaller(ends[0][0], ends[0][1]), smaller(ends[1][0], ends[1][1]),
        smaller(ends[2][0], ends[2][1]), smaller(ends[3][0], ends[3][1]),
        smaller(ends[4][0], ends[4][1]), smaller(ends[5][0], ends[5][1]),
        smaller(ends[6][0], ends[6][1]), smaller(ends[7][0], ends[7][1]),
    )  # fmt: skip
    return s, bits


@kernel
def _cost_of(magnitude, p0, p1, p2, pa, pb, pc):
    """:func:`_cost` of one symbol."""
    m = min(magnitude, i32(FAR))
    cost = i32(pa + i32(m * i32(pb + i32(pc * m))))
    cost = min(max(cost, i32(0)), i32(MOST))
    cost = p2 if m == 2 else cost
    cost = p1 if m == 1 else cost
    return p0 if m == 0 else cost


@kernel
def estimate(values, tables, shift, parameters, costs):
    """About what :func:`search` would find, in an eighth of its time: quantiser 0 alone.

    Args:
        values, shift, parameters: as of :func:`search`. tables: (D,) int32, of quantiser 0.
        costs: (R',) int64, written: in 4096ths of a squared fine step.
    """
    for r in range(values.shape[1]):
        costs[r] = 0
    for i in range(values.shape[0]):
        p = parameters[-1] if shift[i] > 0 else parameters[tables[i]]
        p0, p1, p2, pa, pb, pc = p[0], p[1], p[2], p[3], p[4], p[5]
        for r in range(values.shape[1]):
            v = values[i, r]
            a = max(v, i32(-v))
            near = min(a, i32(ZERO_LIMIT))
            m = i32(i32(a + 64) >> 7)
            e = i32(a - i32(m << 7))
            cost = i32(i32(e * e) + _cost_of(m, p0, p1, p2, pa, pb, pc))
            costs[r] += min(cost, i32(i32(near * near) + p0))


@kernel
def values_of(symbols, tables, modes, shift, low, size, values, y):
    """What symbols (D, R) int32 stand for, (D, R) float32 in fine steps.

    Args:
        tables: (2, K, D) int32. modes: (R,) int32. values: (T * 256,) float32 of table symbols.
    """
    state = np.zeros(symbols.shape[1], np.uint8)
    for i in range(symbols.shape[0]):
        for r in range(symbols.shape[1]):
            k, quantiser = np.int64(symbols[i, r]), state[r] & 1
            table = tables[quantiser, modes[r], i]
            place = k - low[table]
            if shift[i] == 0 and 0 <= place < size[table]:
                y[i, r] = values[256 * table + place]
            else:
                sign = 1 if k > 0 else -1 if k < 0 else 0
                y[i, r] = 2 * k - quantiser * sign
            state[r] = NEXT[state[r], k & 1]


@kernel
def _back(v, d, t, shift, first, second):
    """One component backwards.

    Args:
        v, d, t: values, decisions and states behind the symbols, of eight vectors.
        first, second: low, size and base of the tables of quantiser 0 and 1.

    Returns:
        states before the symbols, table and table symbol, symbols, and 1 where a symbol is escaped.
    """
    zero, one = splat(0), splat(1)
    came = (d >> t) & one
    odd = (splat(ODD_BITS) >> ((t << one) + came)) & one
    s = (t >> one) + (came << splat(2))
    upper, is_odd = (s & one) == one, odd == one
    a = larger(v, zero - v)
    # magnitudes: 2 * (a + bias) // 256 + more, by quantiser and parity
    bias = select(upper, select(is_odd, splat(64), splat(-64)), select(is_odd, zero, splat(128)))
    m = larger(a + bias, zero) >> splat(8)
    k = (m << one) + select(upper, splat(2) - odd, odd)
    dead = d & select(upper, splat(512), splat(256))
    k = select(is_odd | (dead == zero), k, zero)
    k = select(v < zero, zero - k, k)
    place = (k >> splat(shift)) - select(upper, splat(second[0]), splat(first[0]))
    held = (place > splat(-1)) & (place < select(upper, splat(second[1]), splat(first[1])))
    place = select(held, place, splat(ESCAPE))
    code = place + select(upper, splat(second[2]), splat(first[2]))
    return s, code, k, select(held, zero, one)


@kernel
def search(values, tables, shift, parameters, low, size, columns, code, symbols, costs):
    """The symbols of least cost, by Viterbi's algorithm.

    Args:
        values: (D, >= R) int32, 64ths of a fine step.
        tables: (2, D) int32, the table of each component in each quantiser.
        shift: (D,) int32: bits of a symbol that go beside its table.
        parameters: (T + 1, PARAMETERS) int32, the last those of components with low bits.
        low, size: (T,) int32: a table's lowest symbol and how many it has beside the escape.
        columns: (R,) int64: where each vector lies in what is written.
        code: (D, all) uint16, written: 256 * table + table symbol, or + ESCAPE.
        symbols: (D, all) int32, written.
        costs: (R,) float64, written: distortion + rate, in squared fine steps.

    Returns:
        how many symbols are escaped.
    """
    count, escapes = values.shape[0], 0
    whole, flat_parameters, near = values.ravel(), parameters.ravel(), _near_of(parameters)
    flat_code, flat_symbols = code.ravel(), symbols.ravel()
    decisions = np.empty(count * BLOCK, np.int32)
    few = np.empty(BLOCK, np.int32)
    total = np.empty(BLOCK, np.int64)
    zero, origin = splat(0), np.uint64(0)
    for first in range(0, len(columns), BLOCK):
        never = splat(NEVER)
        s = (zero, never, never, never, never, never, never, never)
        total[:] = 0
        flat, wide, start = whole, values.shape[1], first
        if first + BLOCK > wide:
            flat, wide, start = _block(values, first), BLOCK, 0
        for i in range(count):
            v = load(flat, np.uint64(i * wide + start))
            a = larger(v, zero - v)
            p = q = len(parameters) - 1
            if shift[i] == 0:
                p, q = np.int64(tables[0, i]), np.int64(tables[1, i])
            if to_bits(a < splat(NEAR)) == 255:
                even0, odd0, even1, odd1, bits = _near(v, a, near, 8 * p, 8 * q)
            else:
                even0, odd0, even1, odd1, bits = _any(
                    v, a, flat_parameters, PARAMETERS * p, PARAMETERS * q
                )
            s, bits = _forward(s, even0, odd0, even1, odd1, bits)
            store(decisions, np.uint64(i * BLOCK), bits)
            if i % SETTLE == SETTLE - 1 or i == count - 1:
                least = smaller(smaller(s[0], s[1]), smaller(s[2], s[3]))
                least = smaller(least, smaller(smaller(s[4], s[5]), smaller(s[6], s[7])))
                store(few, origin, least)
                for j in range(BLOCK):
                    total[j] += few[j]
                s = (
                    s[0] - least, s[1] - least, s[2] - least, s[3] - least,
                    s[4] - least, s[5] - least, s[6] - least, s[7] - least,
                )  # fmt: skip
        t = zero
        for state in range(1, STATES):
            t = select(s[state] == zero, splat(state), t)
        last = min(BLOCK, len(columns) - first)
        own = columns[first : first + last]
        together = last == BLOCK and own[last - 1] - own[0] == last - 1
        for j in range(last):
            costs[first + j] = total[j] / (UNIT * UNIT)
        escaped = zero
        for i in range(count - 1, -1, -1):
            v = load(flat, np.uint64(i * wide + start))
            d = load(decisions, np.uint64(i * BLOCK))
            t0, t1 = tables[0, i], tables[1, i]
            t, found, k, more = _back(
                v, d, t, shift[i], (low[t0], size[t0], t0 << 8), (low[t1], size[t1], t1 << 8)
            )
            escaped = escaped + more
            if together:
                at = np.uint64(i * code.shape[1] + own[0])
                store(flat_code, at, found)
                store(flat_symbols, at, k)
            else:
                store(few, origin, found)
                for j in range(last):
                    code[i, own[j]] = few[j]
                store(few, origin, k)
                for j in range(last):
                    symbols[i, own[j]] = few[j]
        store(few, origin, escaped)
        for j in range(last):
            escapes += few[j]
    return escapes
