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

STATES = 8
NEXT = np.array([[0, 1], [3, 2], [5, 4], [6, 7], [1, 0], [2, 3], [4, 5], [7, 6]], np.int32)
"""(8, 2): the state after a symbol of even or odd parity. State t follows t // 2 and t // 2 + 4."""
FINE = 9 / 16
"""The fine step over the step of plain quantisation that gives the same error."""
UNIT = 64
"""What a fine step is in the values that are searched."""
ESCAPE = 255
"""The table symbol of those that no table holds."""
BLOCK = 16
"""Vectors searched at a time."""
PARAMETERS = 10
"""Integers that tell a table's costs: of magnitudes 0, 1, 2, then a polynomial of degree 2; what is
added to magnitudes 1 and 2 at decoding; and the largest odd magnitude above and below 0. An escaped
symbol is even, so that a decoder knows the next state before it has read the escape."""
FAR = 128
"""Magnitude above which a symbol's cost is taken for that of this one."""
ZERO_LIMIT = 4096  # 64ths beyond which a value is never taken for nought
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
    """Values (D, R) float32 -> rounded multiples of 1 / scale, (D, >= R) int32; the rest becomes 0."""
    for i in range(y.shape[0]):
        for r in range(y.shape[1]):
            v = y[i, r] * scale
            out[i, r] = np.int32(v + np.float32(0.5) if v > 0 else v - np.float32(0.5))
        for r in range(y.shape[1], out.shape[1]):
            out[i, r] = 0


@kernel
def _cost(magnitude, p0, p1, p2, pa, pb, pc):
    """What a symbol's bits cost, in 4096ths of a squared fine step."""
    m = min(magnitude, i32(FAR))
    cost = i32(pa + i32(m * i32(pb + i32(pc * m))))
    cost = min(max(cost, i32(0)), i32(MOST))
    cost = p2 if m == 2 else cost
    cost = p1 if m == 1 else cost
    return p0 if m == 0 else cost


@kernel
def _step(rows, parameters, first, second):
    """One component of BLOCK vectors: path costs of the eight states forward.

    Args:
        rows: (10 * BLOCK,) int32: row 0 holds the values, row 1 receives the decisions (bit t: the
            second path into state t; bits 8 and 9: nought in quantiser 0 and 1), rows 2 .. 9 the paths.
            It is flat so that the compiler knows how far apart rows lie, which vector instructions need.
        first, second: the rows of ``parameters`` of the tables of quantiser 0 and 1.
    """
    p, q = parameters[first], parameters[second]
    p0, p1, p2, pa, pb, pc, pm1, pm2 = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]
    q0, q1, q2, qa, qb, qc, qm1, qm2 = q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]
    p_above, p_below, q_above, q_below = p[8], p[9], q[8], q[9]
    zero, one, never = i32(0), i32(1), i32(OUT)
    for j in range(BLOCK):
        v = rows[j]
        a = max(v, i32(-v))
        near = min(a, i32(ZERO_LIMIT))
        nought = i32(near * near)
        # quantiser 0: even symbols at multiples of 256, odd ones halfway
        m = i32(i32(a + 128) >> 8)
        e = i32(i32(a - i32(m << 8)) - (pm2 if m == 1 else zero))
        even0 = i32(i32(e * e) + _cost(i32(m << 1), p0, p1, p2, pa, pb, pc))
        z = i32(nought + p0)
        zero0 = z <= even0
        even0 = min(z, even0)
        m = i32(a >> 8)
        e = i32(i32(i32(a - i32(m << 8)) - 128) - (pm1 if m == 0 else zero))
        m = i32(m << 1)
        odd0 = i32(i32(e * e) + _cost(i32(m + 1), p0, p1, p2, pa, pb, pc))
        odd0 = i32(odd0 + (never if m >= (p_below if v < zero else p_above) else zero))
        # quantiser 1: odd symbols at 64, 320, ..., even ones at 192, 448, ...
        m = i32(max(i32(a - 64), zero) >> 8)
        e = i32(i32(i32(a - i32(m << 8)) - 192) - (qm2 if m == 0 else zero))
        even1 = i32(i32(e * e) + _cost(i32(i32(m << 1) + 2), q0, q1, q2, qa, qb, qc))
        z = i32(nought + q0)
        zero1 = z <= even1
        even1 = min(z, even1)
        m = i32(i32(a + 64) >> 8)
        e = i32(i32(i32(a - i32(m << 8)) - 64) - (qm1 if m == 0 else zero))
        m = i32(m << 1)
        odd1 = i32(i32(e * e) + _cost(i32(m + 1), q0, q1, q2, qa, qb, qc))
        odd1 = i32(odd1 + (never if m >= (q_below if v < zero else q_above) else zero))
        s0, s1 = rows[2 * BLOCK + j], rows[3 * BLOCK + j]
        s2, s3 = rows[4 * BLOCK + j], rows[5 * BLOCK + j]
        s4, s5 = rows[6 * BLOCK + j], rows[7 * BLOCK + j]
        s6, s7 = rows[8 * BLOCK + j], rows[9 * BLOCK + j]
        bits = i32((i32(256) if zero0 else zero) | (i32(512) if zero1 else zero))
        first, second = i32(s0 + even0), i32(s4 + odd0)
        rows[2 * BLOCK + j] = min(first, second)
        bits = i32(bits | (one if second < first else zero))
        first, second = i32(s0 + odd0), i32(s4 + even0)
        rows[3 * BLOCK + j] = min(first, second)
        bits = i32(bits | (i32(2) if second < first else zero))
        first, second = i32(s1 + odd1), i32(s5 + even1)
        rows[4 * BLOCK + j] = min(first, second)
        bits = i32(bits | (i32(4) if second < first else zero))
        first, second = i32(s1 + even1), i32(s5 + odd1)
        rows[5 * BLOCK + j] = min(first, second)
        bits = i32(bits | (i32(8) if second < first else zero))
        first, second = i32(s2 + odd0), i32(s6 + even0)
        rows[6 * BLOCK + j] = min(first, second)
        bits = i32(bits | (i32(16) if second < first else zero))
        first, second = i32(s2 + even0), i32(s6 + odd0)
        rows[7 * BLOCK + j] = min(first, second)
        bits = i32(bits | (i32(32) if second < first else zero))
        first, second = i32(s3 + even1), i32(s7 + odd1)
        rows[8 * BLOCK + j] = min(first, second)
        bits = i32(bits | (i32(64) if second < first else zero))
        first, second = i32(s3 + odd1), i32(s7 + even1)
        rows[9 * BLOCK + j] = min(first, second)
        rows[BLOCK + j] = i32(bits | (i32(128) if second < first else zero))


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
            cost = i32(i32(e * e) + _cost(m, p0, p1, p2, pa, pb, pc))
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
def _back(rows, low0, size0, table0, low1, size1, table1):
    """One component of BLOCK vectors backwards, where symbols have no low bits.

    Args:
        rows: (5 * BLOCK,) int32: row 0 holds the values, row 1 the decisions, row 2 the states, which
            are replaced; rows 3 and 4 receive table and table symbol, and the symbols.
    """
    zero, one = i32(0), i32(1)
    for j in range(BLOCK):
        v, d, t = rows[j], rows[BLOCK + j], rows[2 * BLOCK + j]
        second = i32(i32(d >> t) & 1)
        odd = i32(i32(i32(ODD_BITS) >> i32(i32(t << 1) + second)) & 1)
        s = i32(i32(t >> 1) + i32(second << 2))
        upper = i32(s & 1) == one
        a = max(v, i32(-v))
        # magnitudes: 2 * (a + bias) // 256 + more, by quantiser and parity
        bias = (
            (i32(64) if odd == one else i32(-64)) if upper else (zero if odd == one else i32(128))
        )
        m = i32(max(i32(a + bias), zero) >> 8)
        k = i32(i32(m << 1) + (i32(i32(2) - odd) if upper else odd))
        dead = i32(d & i32(512)) if upper else i32(d & i32(256))
        k = zero if (odd == zero) & (dead != zero) else k
        k = i32(-k) if v < zero else k
        place = i32(k - (low1 if upper else low0))
        place = place if (place >= zero) & (place < (size1 if upper else size0)) else i32(ESCAPE)
        rows[2 * BLOCK + j] = s
        rows[3 * BLOCK + j] = i32(place + (table1 if upper else table0))
        rows[4 * BLOCK + j] = k


@kernel
def _back_wide(rows, shift, low0, size0, table0, low1, size1, table1):
    """:func:`_back` where ``shift`` low bits of the symbols stand beside the tables."""
    _back(rows, i32(-(1 << 30)), i32(1 << 30), i32(0), i32(-(1 << 30)), i32(1 << 30), i32(0))
    for j in range(BLOCK):
        upper = rows[2 * BLOCK + j] & 1
        place = (rows[4 * BLOCK + j] >> shift) - (low1 if upper else low0)
        if place < 0 or place >= (size1 if upper else size0):
            place = ESCAPE
        rows[3 * BLOCK + j] = place + (table1 if upper else table0)


@kernel
def search(values, tables, shift, parameters, low, size, columns, code, symbols, costs):
    """The symbols of least cost, by Viterbi's algorithm.

    Args:
        values: (D, R') int32, 64ths of a fine step, R' a multiple of BLOCK and R of them real.
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
    rows = np.empty(10 * BLOCK, np.int32)
    decisions = np.empty((count, BLOCK), np.int16)
    total = np.zeros(BLOCK, np.int64)
    for first in range(0, len(columns), BLOCK):
        rows[2 * BLOCK :] = NEVER
        rows[2 * BLOCK : 3 * BLOCK] = 0
        total[:] = 0
        for i in range(count):
            for j in range(BLOCK):
                rows[j] = values[i, first + j]
            if shift[i] == 0:
                _step(rows, parameters, tables[0, i], tables[1, i])
            else:
                _step(rows, parameters, len(parameters) - 1, len(parameters) - 1)
            for j in range(BLOCK):
                decisions[i, j] = rows[BLOCK + j]
            if i % SETTLE == SETTLE - 1 or i == count - 1:
                for j in range(BLOCK):
                    least = rows[2 * BLOCK + j]
                    for s in range(1, STATES):
                        least = min(least, rows[(2 + s) * BLOCK + j])
                    total[j] += least
                    for s in range(STATES):
                        rows[(2 + s) * BLOCK + j] -= least
        for j in range(BLOCK):
            state = 0
            for s in range(STATES):
                if rows[(2 + s) * BLOCK + j] == 0:
                    state = s
            rows[2 * BLOCK + j] = state
        last = min(BLOCK, len(columns) - first)
        own = columns[first : first + last]
        together = own[last - 1] - own[0] == last - 1
        for j in range(last):
            costs[first + j] = total[j] / (UNIT * UNIT)
        for i in range(count - 1, -1, -1):
            for j in range(BLOCK):
                rows[j] = values[i, first + j]
                rows[BLOCK + j] = decisions[i, j]
            t0, t1 = tables[0, i], tables[1, i]
            base0, base1 = i32(t0 << 8), i32(t1 << 8)
            if shift[i] == 0:
                _back(rows, low[t0], size[t0], base0, low[t1], size[t1], base1)
            else:
                _back_wide(rows, shift[i], low[t0], size[t0], base0, low[t1], size[t1], base1)
            if together:
                column = own[0]
                for j in range(last):
                    code[i, column + j] = rows[3 * BLOCK + j]
                    symbols[i, column + j] = rows[4 * BLOCK + j]
            else:
                for j in range(last):
                    code[i, own[j]] = rows[3 * BLOCK + j]
                    symbols[i, own[j]] = rows[4 * BLOCK + j]
            for j in range(last):
                escapes += (rows[3 * BLOCK + j] & 255) == ESCAPE
    return escapes
