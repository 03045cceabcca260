"""The kernels of :mod:`dtufc.klt.gpu`, in Triton.

What one step waits for of the step before decides their speed, as there are few lanes and vectors: a
lane holds a kilobyte. So kernels that go step by step do only what the next step needs, load what a few
steps need before they take them, and leave the rest to kernels that take all points at once. One warp
each: its 32 threads are the lanes of a group, 32 vectors, or the two quantisers of 16 vectors.

Numbers that differ from bitstream to bitstream are not specialised, so that nothing is compiled anew.
All are integers but for :func:`to_units`. Sums of hashes are added in any order: they wrap.
"""

# ruff: noqa: RUF005  Triton knows no starred tuples

import triton
import triton.language as tl

from dtufc.klt import lanes, trellis

_EVEN = tl.constexpr(sum(int(t) << (4 * s) for s, t in enumerate(trellis.NEXT[:, 0])))
"""The state after an even symbol, four bits each. After an odd one it is that of state XOR 4."""
_HASH = tl.constexpr(lanes.HASH - (1 << 32))
_ODD = tl.constexpr(trellis.ODD_BITS)
_FAR = tl.constexpr(trellis.FAR)
_MOST = tl.constexpr(trellis.MOST)
_OUT = tl.constexpr(trellis.OUT)
_NEVER = tl.constexpr(trellis.NEVER)
_ZERO_LIMIT = tl.constexpr(trellis.ZERO_LIMIT)
_SETTLE = tl.constexpr(trellis.SETTLE)
_PARAMETERS = tl.constexpr(trellis.PARAMETERS)
_NOUGHT = tl.constexpr((3, 12))  # bits of a decision that say nought, by quantiser


@triton.jit
def to_units(y, units, scale, count, BLOCK: tl.constexpr):
    """As :func:`dtufc.klt.trellis.to_units`; product and sum are rounded apart."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(y + at, mask=at < count, other=0) * scale
    tl.store(units + at, (v + tl.where(v > 0, 0.5, -0.5)).to(tl.int32), mask=at < count)


@triton.jit
def _rate(m, p):
    m = tl.minimum(m, _FAR)
    return tl.minimum(tl.maximum(p[3] + m * (p[4] + p[5] * m), 0), _MOST)


@triton.jit
def estimate(
    units, parameters, costs, count, width, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """As :func:`dtufc.klt.trellis.estimate`, ROWS components of BLOCK vectors; added to ``costs``."""
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = r < count
    total = tl.zeros([BLOCK], tl.int64)
    first = tl.program_id(1) * ROWS
    for i in range(first, tl.minimum(first + ROWS, width)):
        p = ()
        for j in tl.static_range(6):
            p = p + (tl.load(parameters + (i * _PARAMETERS + j) * 2),)
        v = tl.load(units + i * count + r, mask=inside, other=0)
        a = tl.abs(v)
        near = tl.minimum(a, _ZERO_LIMIT)
        m = (a + 64) >> 7
        e = a - (m << 7)
        cost = tl.where(m == 1, p[1], tl.where(m == 2, p[2], _rate(m, p)))
        cost = e * e + tl.where(m == 0, p[0], cost)
        total += tl.minimum(cost, near * near + p[0]).to(tl.int64)
    tl.atomic_add(costs + r, total, mask=inside)


@triton.jit
def _parameters(own, step: tl.constexpr):
    """What a step costs, so many behind the one that ``own`` points to."""
    p = ()
    for j in tl.static_range(_PARAMETERS):
        p = p + (tl.load(own + (step * _PARAMETERS + j) * 2),)
    return p


@triton.jit
def _step(v, p, q, bit, s, other):
    """A component: costs of the paths, and which of two came to each state.

    Thread q has quantiser q and the four states that take it, s: (0, 4, 2, 6) or these XOR 7. It makes
    the costs of two that it has next (0 and 4, XOR 7 q) and two that the other thread has next.

    Args:
        v: values. p: the parameters. bit: where the bit of each path goes.
        other: the thread of the same vector's other quantiser.

    Returns:
        the next s, and the decisions: of state t, in bit t, whether the path from t // 2 + 4 came there
        (XOR 7 swaps the two, so that its bits are turned); and whether the even symbol is nought.
    """
    a = tl.abs(v)
    raised = a + (q << 6)
    near = tl.minimum(a, _ZERO_LIMIT)
    m = ((tl.maximum(a + (128 - 192 * q), 0) >> 8) << 1) + (q << 1)
    e = raised - (m << 7) - tl.where(m == 2, p[7], 0)
    even = e * e + tl.where(m == 0, p[0], tl.where(m == 2, p[2], _rate(m, p)))
    z = near * near + p[0]
    bits = tl.where(q > 0, 0xCC, 0) | tl.where(z <= even, bit[4], 0)
    even = tl.minimum(z, even)
    m = ((raised >> 8) << 1) + 1
    e = raised - (m << 7) - tl.where(m == 1, p[6], 0)
    odd = e * e + tl.where(m == 1, p[1], _rate(m, p))
    odd += tl.where(m > tl.where(v < 0, p[9], p[8]), _OUT, 0)
    x0, y0 = s[0] + even, s[1] + odd
    x1, y1 = s[0] + odd, s[1] + even
    x2, y2 = s[2] + odd, s[3] + even
    x3, y3 = s[2] + even, s[3] + odd
    # of equal ones the path from t // 2 stays: y for q = 1
    bits ^= ((y0 - x0 - q) >> 31) & bit[0]
    bits ^= ((y1 - x1 - q) >> 31) & bit[1]
    bits ^= ((y2 - x2 - q) >> 31) & bit[2]
    bits ^= ((y3 - x3 - q) >> 31) & bit[3]
    far = tl.gather(tl.minimum(x3, y3), other, 0)
    farther = tl.gather(tl.minimum(x1, y1), other, 0)
    return (tl.minimum(x0, y0), tl.minimum(x2, y2), far, farther), bits


@triton.jit
def _better(cost, state, cost2, state2):
    """The lower cost; of equal ones the higher state, as on the CPU."""
    second = (cost2 < cost) | ((cost2 == cost) & (state2 > state))
    return tl.where(second, cost2, cost), tl.where(second, state2, state)


@triton.jit(do_not_specialize=["count"])
def forward(units, parameters, decisions, last, count, width, AHEAD: tl.constexpr):
    """Path costs of the eight states, of 16 vectors.

    Args:
        units: (D, R). parameters: (D + AHEAD or more, PARAMETERS, 2), of each quantiser.
        decisions: (D, R, 2) int8, written: as :func:`_step` says. last: (R,), written: the best state.
    """
    lane = tl.arange(0, 32)
    q, other = lane & 1, lane ^ 1
    r = tl.program_id(0) * 16 + (lane >> 1)
    inside = r < count
    bit = (
        tl.where(q > 0, 128, 1), tl.where(q > 0, 64, 2), tl.where(q > 0, 8, 16),
        tl.where(q > 0, 4, 32), tl.where(q > 0, 16, 8),
    )  # fmt: skip
    never = tl.zeros([32], tl.int32) + _NEVER
    s = (tl.where(q > 0, _NEVER, 0), never, never, never)
    units += r
    decisions += 2 * r + q
    own = parameters + q
    v, later, costs = (), (), ()  # values come from farther away than costs: two blocks ahead
    for u in tl.static_range(AHEAD):
        n = AHEAD + u
        v = v + (tl.load(units + u * count, mask=inside & (u < width), other=0),)
        later = later + (tl.load(units + n * count, mask=inside & (n < width), other=0),)
        costs = costs + (_parameters(own, u),)
    whole = width // AHEAD
    for block in range(0, whole):
        i = block * AHEAD
        own += AHEAD * _PARAMETERS * 2
        coming, dear = (), ()
        for u in tl.static_range(AHEAD):
            n = i + 2 * AHEAD + u
            coming = coming + (tl.load(units + n * count, mask=inside & (n < width), other=0),)
            dear = dear + (_parameters(own, u),)
        for u in tl.static_range(AHEAD):
            s, bits = _step(v[u], costs[u], q, bit, s, other)
            tl.store(decisions + (i + u) * 2 * count, bits.to(tl.int8), mask=inside)
        if (i + AHEAD) % _SETTLE == 0:
            least = tl.minimum(tl.minimum(s[0], s[1]), tl.minimum(s[2], s[3]))
            least = tl.minimum(least, tl.gather(least, other, 0))
            s = (s[0] - least, s[1] - least, s[2] - least, s[3] - least)
        v, later, costs = later, coming, dear
    for i in range(whole * AHEAD, width):
        value = tl.load(units + i * count, mask=inside, other=0)
        s, bits = _step(value, _parameters(own, 0), q, bit, s, other)
        own += _PARAMETERS * 2
        tl.store(decisions + i * 2 * count, bits.to(tl.int8), mask=inside)
    flip = 7 * q
    best, state = _better(s[0], flip, s[1], 4 ^ flip)
    best, state = _better(best, state, s[2], 2 ^ flip)
    best, state = _better(best, state, s[3], 6 ^ flip)
    best, state = _better(best, state, tl.gather(best, other, 0), tl.gather(state, other, 0))
    tl.store(last + r, state, mask=inside & (q == 0))


@triton.jit(do_not_specialize=["count"])
def walk(decisions, last, path, count, width, AHEAD: tl.constexpr):
    """The best path backwards, of 32 vectors.

    Args:
        decisions: (D, R) int16, both quantisers' of :func:`forward`.
        path: (D, R) int8, written: quantiser, 2 * parity, 4 where a symbol is nought.
    """
    r = tl.program_id(0) * 32 + tl.arange(0, 32)
    inside = r < count
    t = tl.load(last + r, mask=inside, other=0)
    decisions += r
    path += r
    d = ()
    for u in tl.static_range(AHEAD):
        n = width - 1 - u
        d = d + (tl.load(decisions + n * count, mask=inside & (n >= 0), other=0),)
    for block in range(0, (width + AHEAD - 1) // AHEAD):
        i = width - 1 - block * AHEAD
        coming = ()
        for u in tl.static_range(AHEAD):
            n = i - AHEAD - u
            coming = coming + (tl.load(decisions + n * count, mask=inside & (n >= 0), other=0),)
        for u in tl.static_range(AHEAD):
            both = d[u].to(tl.int32)
            came = (((both & 0x33) | ((both >> 8) & 0xCC)) >> t) & 1
            odd = (_ODD >> (2 * t + came)) & 1
            t = (t >> 1) | (came << 2)
            q = t & 1
            nought = (both >> tl.where(q > 0, _NOUGHT[1], _NOUGHT[0])) & (odd ^ 1)
            found = q | (odd << 1) | (nought << 2)
            tl.store(path + (i - u) * count, found.to(tl.int8), mask=inside & (i - u >= 0))
        d = coming


@triton.jit
def name_symbols(
    units, path, ends, powers, columns, code, symbols, hashes, count, width, total,
    ALL: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Symbols of ROWS components of BLOCK vectors, from values and the path.

    Args:
        ends: (D, 8): 256 * table, low and size of either quantiser's table, and low bits.
        powers: what the hash of each ROWS components is multiplied by.
        columns: (R,) where vectors lie in ``code`` and ``symbols`` (D, total), written; of ALL, as here.
    """
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = r < count
    column = r
    if not ALL:
        column = tl.load(columns + r, mask=inside, other=0).to(tl.int32)
    hashed = tl.zeros([BLOCK], tl.int32)
    part = tl.program_id(1)
    for i in range(part * ROWS, tl.minimum(part * ROWS + ROWS, width)):
        v = tl.load(units + i * count + r, mask=inside, other=0)
        way = tl.load(path + i * count + r, mask=inside, other=0).to(tl.int32)
        q, own = way & 1, ends + 8 * i
        a = tl.abs(v)
        odd = (((a + (q << 6)) >> 8) << 1) + 1
        even = ((tl.maximum(a + (128 - 192 * q), 0) >> 8) << 1) + (q << 1)
        k = tl.where((way & 2) > 0, odd, even)
        k = tl.where((way & 4) > 0, 0, k)
        k = tl.where(v < 0, -k, k)
        base = tl.where(q > 0, tl.load(own + 3), tl.load(own))
        low = tl.where(q > 0, tl.load(own + 4), tl.load(own + 1))
        size = tl.where(q > 0, tl.load(own + 5), tl.load(own + 2))
        place = (k >> tl.load(own + 6)) - low
        place = tl.where((place < 0) | (place >= size), 255, place)
        tl.store(code + i * total + column, (place + base).to(tl.int16), mask=inside)
        tl.store(symbols + i * total + column, k, mask=inside)
        hashed = hashed * _HASH + place
    tl.atomic_add(hashes + column, hashed * tl.load(powers + part), mask=inside)


@triton.jit
def _ones(bits):
    """How many bits of uint32 are set; compilers know the form and make one instruction of it."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return ((bits * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _those(flags, lane):
    """A bit for each of 32 lanes that are flagged, as one uint32."""
    return tl.sum(flags.to(tl.int32) << lane, 0).to(tl.uint32, bitcast=True)


@triton.jit
def _below(lane):
    """The bits of the lanes before each."""
    return ((1 << lane) - 1).to(tl.uint32, bitcast=True)


@triton.jit
def _emit(x, described, inverse, words, at, active, lane):
    """A symbol into each active state; the words that they send go before ``at``, in order."""
    freq = (described & 0x1FFF).to(tl.uint32)
    start = (described.to(tl.uint32, bitcast=True) >> 16).to(tl.uint32)
    sends = active & ((x >> 20) >= freq)
    those = _those(sends, lane)
    at -= _ones(those)
    tl.store(words + (at + _ones(those & _below(lane))), (x & 0xFFFF).to(tl.int16), mask=sends)
    y = tl.where(sends, x >> 16, x)
    # y // freq, exactly: 2^44 over freq is rounded up, and the product stays below 2^64
    high = (inverse >> 32).to(tl.uint32)
    whole = (tl.umulhi(y, inverse.to(tl.uint32)) + y * high) >> 12
    y = y + whole * (4096 - freq) + start
    return tl.where(active, y, x), at


@triton.jit(do_not_specialize=["room", "count", "number"])
def push(
    code, modes, mode_table, interval, inverse, states, words, lengths, room, count, number, width,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """Encode a group of 32 lanes; its words fill from the end of its ``room``."""
    g = tl.program_id(0)
    lane = tl.arange(0, 32)
    own = g * 32 + lane
    x = tl.load(states + own, mask=own < number, other=65536).to(tl.uint32, bitcast=True)
    words += g.to(tl.int64) * room
    at = room
    rounds = (count + number - 1) // number
    for back in range(0, rounds):
        r = (rounds - 1 - back) * number + own
        active = (own < number) & (r < count)
        column = code + r
        place = ()
        for u in tl.static_range(AHEAD):
            n = width - 1 - u
            place = place + (tl.load(column + n * count, mask=active & (n >= 0), other=0),)
        for block in range(0, (width + AHEAD - 1) // AHEAD):
            i = width - 1 - block * AHEAD
            coming, described, inverses = (), (), ()
            for u in tl.static_range(AHEAD):
                n = i - AHEAD - u
                coming = coming + (tl.load(column + n * count, mask=active & (n >= 0), other=0),)
            for u in tl.static_range(AHEAD):
                described = described + (tl.load(interval + place[u].to(tl.int32)),)
                inverses = inverses + (tl.load(inverse + place[u].to(tl.int32)),)
            for u in tl.static_range(AHEAD):
                x, at = _emit(
                    x, described[u], inverses[u], words, at, active & (i - u >= 0), lane
                )  # fmt: skip
            place = coming
    if mode_table >= 0:
        for back in range(0, rounds):
            r = (rounds - 1 - back) * number + own
            active = (own < number) & (r < count)
            at_mode = mode_table * 256 + tl.load(modes + r, mask=active, other=0)
            x, at = _emit(
                x, tl.load(interval + at_mode), tl.load(inverse + at_mode), words, at, active, lane
            )  # fmt: skip
    tl.store(states + own, x.to(tl.int32, bitcast=True), mask=own < number)
    tl.store(lengths + g, room - at)


@triton.jit(do_not_specialize=["room"])
def join(words, lengths, ends, out, room, BLOCK: tl.constexpr):
    """The words of all groups, one after the other."""
    g, part = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + g)
    if part * BLOCK < length:
        n = part * BLOCK + tl.arange(0, BLOCK)
        each = tl.load(words + g.to(tl.int64) * room + room - length + n, mask=n < length)
        tl.store(out + tl.load(ends + g) - length + n, each, mask=n < length)


@triton.jit
def _absorb(x, slot, described, words, at, end, active, lane):
    """Each active state without its symbol, refilled with the group's next words where it needs one."""
    window = tl.load(words + tl.minimum(at + lane, end)).to(tl.int32) & 0xFFFF
    freq = (described & 0x1FFF).to(tl.uint32)
    start = (described.to(tl.uint32, bitcast=True) >> 16).to(tl.uint32)
    y = freq * (x >> 12) + slot.to(tl.uint32) - start
    needs = active & (y < 65536)
    those = _those(needs, lane)
    word = tl.gather(window, _ones(those & _below(lane)), 0)
    y = tl.where(needs, (y << 16) | word.to(tl.uint32), y)
    return tl.where(active, y, x), at + _ones(those)


@triton.jit(do_not_specialize=["count", "number", "end"])
def pull_modes(words, places, states, table, symbol, interval, modes, count, number, end):
    """The modes of all vectors of a group of 32 lanes."""
    g = tl.program_id(0)
    lane = tl.arange(0, 32)
    own = g * 32 + lane
    x = tl.load(states + own, mask=own < number, other=65536).to(tl.uint32, bitcast=True)
    at = tl.load(places + g)
    for k in range(0, (count + number - 1) // number):
        r = k * number + own
        active = (own < number) & (r < count)
        slot = (x & 4095).to(tl.int32)
        found = tl.load(symbol + table * 4096 + slot).to(tl.int32)
        described = tl.load(interval + table * 256 + found)
        x, at = _absorb(x, slot, described, words, at, end, active, lane)
        tl.store(modes + r, found, mask=active)
    tl.store(states + own, x.to(tl.int32, bitcast=True), mask=own < number)
    tl.store(places + g, at)


@triton.jit(do_not_specialize=["count", "number", "end"])
def pull(
    words, places, states, modes, pairs, symbol, interval, wide, low_bits, code, count, number, end,
    width, clusters, WIDE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Decode a group of 32 lanes to tables and symbols.

    Args:
        pairs: (D, K) int64: 4096 * table of quantiser 0, and of quantiser 1 in the high half.
        wide, low_bits: as of :meth:`dtufc.klt.lanes.Reader.components`; WIDE: whether there are any.
        code: (D, R) int16, written: 256 * table + symbol.
    """
    g = tl.program_id(0)
    lane = tl.arange(0, 32)
    own = g * 32 + lane
    x = tl.load(states + own, mask=own < number, other=65536).to(tl.uint32, bitcast=True)
    at = tl.load(places + g)
    for k in range(0, (count + number - 1) // number):
        r = k * number + own
        active = (own < number) & (r < count)
        table = pairs + tl.load(modes + r, mask=active, other=0)
        column = code + r
        machine = tl.zeros([32], tl.int32)  # four times the state
        pair = ()
        for u in tl.static_range(AHEAD):
            pair = pair + (tl.load(table + tl.minimum(u, width - 1) * clusters),)
        for block in range(0, (width + AHEAD - 1) // AHEAD):
            i = block * AHEAD
            coming, shift, bits = (), (), ()
            for u in tl.static_range(AHEAD):
                n = tl.minimum(i + AHEAD + u, width - 1)
                coming = coming + (tl.load(table + n * clusters),)
            if WIDE:
                for u in tl.static_range(AHEAD):
                    n = tl.minimum(i + u, width - 1)
                    shift = shift + (tl.load(wide + n),)
                    at_bits = low_bits + tl.load(wide + width + n) * count + r
                    bits = bits + (tl.load(at_bits, mask=active & (shift[u] > 0), other=0),)
            for u in tl.static_range(AHEAD):
                inside = active & (i + u < width)
                second = (machine & 4) > 0
                base = tl.where(second, (pair[u] >> 32).to(tl.int32), pair[u].to(tl.int32))
                slot = (x & 4095).to(tl.int32)
                place = (base >> 4) + tl.load(symbol + (base + slot)).to(tl.int32)
                described = tl.load(interval + place)
                x, at = _absorb(x, slot, described, words, at, end, inside, lane)
                tl.store(column + (i + u) * count, place.to(tl.int16), mask=inside)
                odd = (described >> 11) & 16
                if WIDE:
                    odd = tl.where(shift[u] > 0, (bits[u] & 1) << 4, odd)
                machine = ((_EVEN >> (machine ^ odd)) & 7) << 2
            pair = coming
    tl.store(states + own, x.to(tl.int32, bitcast=True), mask=own < number)
    tl.store(places + g, at)


@triton.jit
def stand_for(
    code, values, wide, low_bits, low, powers, y, hashes, count, width, first,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What the symbols of ROWS components of BLOCK vectors stand for; infinite where they are escaped.

    Args:
        first: the first table of quantiser 1. powers: as of :func:`name_symbols`.
        y: (D, R) float32, written.
    """
    r = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = r < count
    hashed = tl.zeros([BLOCK], tl.int32)
    part = tl.program_id(1)
    for i in range(part * ROWS, tl.minimum(part * ROWS + ROWS, width)):
        place = tl.load(code + i * count + r, mask=inside, other=0).to(tl.int32)
        value = tl.load(values + place)
        found = place & 255
        hashed = hashed * _HASH + found
        if WIDE:
            shift = tl.load(wide + i)
            table, beside = place >> 8, low_bits + tl.load(wide + width + i) * count + r
            bits = tl.load(beside, mask=inside & (shift > 0), other=0)
            k = ((found + tl.load(low + table)) << shift) | bits
            sign = tl.where(k > 0, 1, tl.where(k < 0, -1, 0))
            joined = (2 * k - tl.where(table >= first, sign, 0)).to(tl.float32)
            value = tl.where((shift > 0) & (tl.abs(value) < 1e30), joined, value)
        tl.store(y + i * count + r, value, mask=inside)
    tl.atomic_add(hashes + r, hashed * tl.load(powers + part), mask=inside)
