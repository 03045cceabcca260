"""Second-generation ``klt`` on a CUDA device: the same bytes as on a CPU, lanes side by side.

    coder = GpuCoder(codec, "cuda")
    data = coder.encode(x)          # (N, C, H, W) tensor on the device -> the whole bitstream
    x = coder.decode(data)          # -> tensor on the device

Transforms are torch's. What decides symbols and bytes is integers, in Triton kernels of 32 lanes or 32
vectors each, so that the same components give the same bytes as :mod:`dtufc.klt.coder`, and the same
bytes the same symbols. Escapes and low bits, which are few, are packed on the CPU. Tokens only.

Up to quality 4 products run in TF32 where the device has it: their error is below a hundredth of the
quantiser's.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from dtufc.bitstream import ID_BYTES, MAX_POINTS, Bitstream, BitstreamError, pack, unpack
from dtufc.errors import UserError
from dtufc.feature import FeatureError
from dtufc.klt import coder, lanes, side, trellis
from dtufc.klt.codec import KltCodec, check_of, grade_in, put_raw, raw_part
from dtufc.klt.model import MAX_NORM, MAX_VALUE, PER_OCTAVE, rung
from dtufc.klt.tables import Tables

VECTORS = 32  # that a program searches
TF32_BELOW = 4 * PER_OCTAVE  # grade
_NEXT = tl.constexpr(int(lanes.NEXT_BITS))
_HASH = tl.constexpr(lanes.HASH - (1 << 32))
_FAR = tl.constexpr(trellis.FAR)
_MOST = tl.constexpr(trellis.MOST)
_OUT = tl.constexpr(trellis.OUT)
_NEVER = tl.constexpr(trellis.NEVER)
_ZERO_LIMIT = tl.constexpr(trellis.ZERO_LIMIT)
_PARAMETERS = tl.constexpr(trellis.PARAMETERS)


@dataclass(frozen=True, eq=False)
class Resident:
    """The tables of one step on the device, all int32 but where said."""

    tables: Tables
    chosen: torch.Tensor
    symbol: torch.Tensor
    """uint8."""
    interval: torch.Tensor
    values: torch.Tensor
    """float32."""
    wide: torch.Tensor
    low: torch.Tensor
    size: torch.Tensor

    @classmethod
    def of(cls, tables: Tables, device: torch.device) -> "Resident":
        def put(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        slots = tables.slots
        return cls(
            tables, put(tables.chosen), put(slots.symbol), put(slots.interval.view(np.int32)),
            put(tables.values), put(tables.wide), put(tables.low), put(tables.size),
        )  # fmt: skip


class GpuCoder:
    """A codec of format 2 on a device.

    Args:
        codec: of tokens. device: CUDA; or the CPU under Triton's interpreter.

    Raises:
        UserError: a codec of maps, of format 1, or with a memory or a weighting.
    """

    def __init__(self, codec: KltCodec, device: str | torch.device = "cuda"):
        model = codec.model
        if model.format != 2 or model.transform.layout.block > 1 or model.facts.views.is_map:
            raise UserError("gpu: expected a klt codec of tokens, of format 2")
        if model.memory is not None or model.weighting is not None:
            raise UserError("gpu: a klt codec with a memory or a weighting takes the CPU")
        self.codec, self.device = codec, torch.device(device)
        transform = model.transform
        self.mean = torch.from_numpy(transform.mean[:, :, 0]).to(self.device)
        self.basis = None
        if transform.basis is not None:
            self.basis = torch.from_numpy(transform.basis).to(self.device)
        self._resident: dict[int, Resident] = {}

    def tables(self, grade: int) -> Resident:
        """The tables of a quality in 128ths."""
        place = rung(grade)
        if place not in self._resident:
            self._resident[place] = Resident.of(self.codec.model.rungs[place], self.device)
        return self._resident[place]

    def forward(self, x: torch.Tensor, mode: int, grade: int) -> torch.Tensor:
        """(R, C) -> components (D, R)."""
        centred = x - self.mean[mode]
        if self.basis is None:
            return centred.T.contiguous()
        with _products(grade):
            return self.basis[mode].T @ centred.T

    def inverse(self, y: torch.Tensor, mode: int, grade: int) -> torch.Tensor:
        """Components (D, R) -> (R, C)."""
        if self.basis is None:
            return y.T + self.mean[mode]
        with _products(grade):
            return torch.addmm(self.mean[mode], y.T, self.basis[mode].T)

    def encode(self, x: torch.Tensor) -> bytes:
        """A tensor (N, C, H, W) of the codec's kind and dtype -> the whole bitstream.

        Raises:
            FeatureError: not a sound feature of this kind.
        """
        codec, grade = self.codec, self.codec.grade
        if x.dtype == torch.bfloat16:
            x = x.float()  # as Codec.encode takes it
        outline = np.broadcast_to(np.zeros((), str(x.dtype).removeprefix("torch.")), tuple(x.shape))
        if why := codec.facts.mismatch(outline):
            raise FeatureError(why)
        n, c, h, w = x.shape
        vectors = x.to(self.device, torch.float32).permute(0, 2, 1, 3).reshape(n * h, c * w)
        largest = vectors.abs().amax(1)
        if not bool(torch.isfinite(largest).all()):
            raise FeatureError("feature: the feature holds NaN or infinity")
        step = codec.model.transform.step(grade)
        length = torch.linalg.vector_norm(vectors, dim=1)
        raw = (largest > MAX_VALUE * step) | (length > MAX_NORM * step)
        exact = []
        if bool(raw.any()):
            exact = raw_part(vectors.cpu().numpy()[:, :, None], raw.cpu().numpy())
            vectors = torch.where(raw[:, None], self.mean[0], vectors)
        head = grade.to_bytes(2, "little", signed=True)
        found = self.search(vectors, grade)
        parts = self.push(found, grade, check_of(head, exact, tuple(x.shape)))
        return pack(
            Bitstream(
                codec.id[:ID_BYTES], bytes(ID_BYTES), codec.facts.dtype, tuple(x.shape), None,
                (head, *parts, *exact), codec.modes[-1],
            )
        )  # fmt: skip

    def decode(self, data: bytes, *, max_points: int = MAX_POINTS) -> torch.Tensor:
        """The whole bitstream -> (N, C, H, W) on the device, in the kind's dtype.

        Raises:
            BitstreamError: as :meth:`dtufc.codec.Codec.decode`.
        """
        stream = unpack(data, max_points)
        stream.check_codec(self.codec.id)
        stream.check_facts(self.codec.facts)
        if stream.mode not in self.codec.modes or len(stream.parts) not in (3, 4):
            raise BitstreamError("inconsistent: not the parts of a klt bitstream")
        head, string, beside, *exact = stream.parts
        grade = grade_in(head, self.codec.model.transform)
        n, c, h, w = stream.shape
        check = check_of(head, exact, stream.shape)
        try:
            modes, y, _ = self.pull(string, beside, n * h, grade, check)
        except ValueError as error:
            raise BitstreamError(f"corrupted: {error}") from error
        out = self.finish(modes, y, grade, h)
        if exact:
            values = out.cpu().numpy()[:, :, None].copy()
            put_raw(exact[0], values)
            out = torch.from_numpy(values[:, :, 0]).to(self.device)
        dtype = getattr(torch, stream.dtype)
        largest = torch.finfo(dtype).max
        out = out.clamp_(-largest, largest).to(dtype)
        return out.reshape(n, h, c, w).permute(0, 2, 1, 3)

    def search(self, vectors: torch.Tensor, grade: int) -> "Found":
        """Modes and symbols of vectors (R, C)."""
        model, tables = self.codec.model, self.tables(grade)
        fine = trellis.FINE * model.transform.step(grade)
        weight = model.weight_at(grade) / trellis.FINE**2
        parameters = torch.from_numpy(tables.tables.parameters(weight)).to(self.device)
        count, width = vectors.shape
        found = Found(
            torch.zeros(count, dtype=torch.int32, device=self.device),
            torch.empty(width, count, dtype=torch.int16, device=self.device),
            torch.empty(width, count, dtype=torch.int32, device=self.device),
            torch.empty(count, dtype=torch.int32, device=self.device),
        )
        clusters = model.transform.layout.clusters
        if clusters == 1:
            units = in_units(self.forward(vectors, 0, grade), fine)
            self._search(
                units, 0, tables, parameters, torch.arange(count, device=self.device), found
            )
            return found
        cheapest = torch.full((count,), 1 << 62, device=self.device)
        for mode in range(clusters):
            units = in_units(self.forward(vectors, mode, grade), fine)
            costs = torch.empty(count, dtype=torch.int64, device=self.device)
            _estimate[_programs(count)](
                units, tables.chosen[0, mode], tables.wide, parameters, len(parameters) - 1, costs,
                count, width, VECTORS,
            )  # fmt: skip
            costs += tables.tables.mode_cost(mode, weight)
            found.modes.masked_fill_(costs < cheapest, mode)
            cheapest = torch.minimum(costs, cheapest)
        for mode in range(clusters):
            columns = torch.nonzero(found.modes == mode)[:, 0]
            if len(columns):
                units = in_units(self.forward(vectors[columns], mode, grade), fine)
                self._search(units, mode, tables, parameters, columns, found)
        return found

    def _search(self, units, mode, tables, parameters, columns, found) -> None:
        width, count = units.shape
        chosen = tables.chosen[:, mode].contiguous()
        decisions = torch.empty(width, count, dtype=torch.int16, device=self.device)
        last = torch.empty(count, dtype=torch.int32, device=self.device)
        _forward[_programs(count)](
            units, chosen, tables.wide, parameters, len(parameters) - 1, decisions, last, count, width,
            trellis.SETTLE, VECTORS, num_warps=1,
        )  # fmt: skip
        _trace[_programs(count)](
            units, chosen, tables.wide, tables.low, tables.size, decisions, last, columns, found.code,
            found.symbols, found.hashes, mode, count, width, found.code.shape[1], VECTORS, num_warps=1,
        )  # fmt: skip

    def push(self, found: "Found", grade: int, check: int) -> tuple[bytes, bytes]:
        """The strings of :func:`dtufc.klt.coder.encode`."""
        resident = self.tables(grade)
        tables = resident.tables
        width, count = found.code.shape
        beside = b""
        if tables.shift.any():
            rows = torch.from_numpy(np.flatnonzero(tables.shift)).to(self.device)
            beside = side.pack_low(
                found.symbols[rows].cpu().numpy(), tables.shift[tables.shift > 0]
            )
        escaped = torch.nonzero((found.code & 255) == trellis.ESCAPE)
        if len(escaped):
            at, column = escaped.T
            some = (at, found.code[at, column], found.symbols[at, column])
            beside += coder.write_escapes(tables, *(each.cpu().numpy() for each in some))
        size = tables.average_of(
            np.bincount(found.modes.cpu().numpy(), minlength=len(tables.average))
        )
        number = lanes.lanes_for(size, count)
        total = lanes.sum_hashes(found.hashes.cpu().numpy().view(np.uint32))
        check = (total ^ zlib.crc32(beside, check)) & 0xFFFFFFFF
        states = torch.from_numpy(
            lanes.first_states(number, check).astype(np.uint32).view(np.int32)
        )
        states = states.to(self.device)
        groups = -(-number // lanes.GROUP)
        room = lanes.GROUP * -(-count // number) * (width + 1)
        words = torch.empty(groups, room, dtype=torch.int16, device=self.device)
        lengths = torch.empty(groups, dtype=torch.int32, device=self.device)
        _push[(groups,)](
            found.code, found.modes, tables.mode_table, resident.interval, states, words, lengths, room,
            count, number, width, lanes.GROUP, num_warps=1,
        )  # fmt: skip
        used = lengths.cpu().numpy().astype(np.int64)
        kept = [row[room - length :] for row, length in zip(words, used.tolist(), strict=True)]
        parts = (
            lanes.head(number, used, check),
            states.cpu().numpy(),
            torch.cat(kept).cpu().numpy(),
        )
        return b"".join(parts), beside

    def pull(
        self, string: bytes, beside: bytes, count: int, grade: int, check: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Modes (R,), components (D, R) float32 in fine steps, and where the escaped ones are (n, 2).

        Raises:
            ValueError: damaged, or too short for so many vectors.
        """
        resident = self.tables(grade)
        tables = resident.tables
        coder.check_room(tables, string, beside, count)
        reader = lanes.Reader(string, count)
        number, width = len(reader.states), len(tables.shift)

        def put(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device)

        words = put(reader.words.view(np.int16))
        places = put(reader.at.astype(np.int32))
        states = put(reader.states.astype(np.uint32).view(np.int32))
        modes = torch.zeros(count, dtype=torch.int32, device=self.device)
        shared = (count, number, len(words) - 1)
        groups = (len(places),)
        if tables.mode_table >= 0:
            _pull_modes[groups](
                words, places, states, tables.mode_table, resident.symbol, resident.interval, modes,
                *shared, lanes.GROUP, num_warps=1,
            )  # fmt: skip
            if int(modes.max()) >= tables.chosen.shape[1]:
                raise lanes.LaneError("a vector's mode is none")
        wide = tables.shift[tables.shift > 0]
        low_bits = side.unpack_low(beside, wide, count)
        y = torch.empty(width, count, dtype=torch.float32, device=self.device)
        hashes = torch.empty(count, dtype=torch.int32, device=self.device)
        _pull[groups](
            words, places, states, modes, resident.chosen, resident.symbol, resident.interval,
            resident.values, resident.wide, put(low_bits) if len(low_bits) else modes, resident.low, y,
            hashes, *shared, width, tables.chosen.shape[1], lanes.GROUP, num_warps=1,
        )  # fmt: skip
        reader.at = places.cpu().numpy().astype(np.int64)
        reader.states = states.cpu().numpy().view(np.uint32).astype(np.uint64)
        total = lanes.sum_hashes(hashes.cpu().numpy().view(np.uint32))
        reader.finish((total ^ zlib.crc32(beside, check)) & 0xFFFFFFFF)
        rest = beside[side.low_bytes(wide, count) :]
        escaped = torch.nonzero(torch.isinf(y))
        if len(escaped):
            at, column = escaped.T
            quantiser = (y[at, column] < 0).long()
            row, col = at.cpu().numpy(), column.cpu().numpy()
            q = quantiser.cpu().numpy()
            k = coder.read_escapes(tables, rest, modes.cpu().numpy()[col], low_bits[:, col], q, row)
            y[at, column] = put((2 * k - q * np.sign(k)).astype(np.float32))
        elif rest:
            raise lanes.LaneError("bytes behind the escaped symbols")
        return modes, y, escaped

    def finish(self, modes: torch.Tensor, y: torch.Tensor, grade: int, length: int) -> torch.Tensor:
        """Components (D, R) in fine steps -> vectors (R, C)."""
        model = self.codec.model
        y *= trellis.FINE * model.transform.step(grade)
        post = model.post
        taps = None if post is None else post.taps[rung(grade)]
        if taps is not None and not taps.any():
            taps = None
        if taps is not None and post.basis is None:
            y += self._change(y, taps, length)
        if len(self.mean) == 1:
            out = self.inverse(y, 0, grade)
        else:
            out = torch.empty(y.shape[1], self.mean.shape[1], device=self.device)
            for mode in torch.unique(modes).tolist():
                mine = modes == mode
                out[mine] = self.inverse(y[:, mine], mode, grade)
        if taps is not None and post.basis is not None:
            basis = torch.from_numpy(post.basis).to(self.device)
            centred = out - torch.from_numpy(post.mean).to(self.device)
            out += self._change(basis.T @ centred.T, taps, length).T @ basis.T
        return out

    def _change(self, y: torch.Tensor, taps: np.ndarray, length: int) -> torch.Tensor:
        """The post-filter's, of components (C, R)."""
        limit = torch.from_numpy(self.codec.model.post.limit).to(self.device)[:, None]
        own, beside = torch.from_numpy(taps).to(self.device).T
        seen = torch.minimum(torch.maximum(y, -limit), limit).reshape(len(y), -1, length)
        near = torch.zeros_like(seen)
        near[:, :, 1:] = seen[:, :, :-1]
        near[:, :, :-1] += seen[:, :, 1:]
        return (own[:, None, None] * seen + beside[:, None, None] * near).reshape(y.shape)


@dataclass(frozen=True, eq=False)
class Found:
    """Symbols of R vectors, on the device; see :class:`dtufc.klt.coder.Quantised`."""

    modes: torch.Tensor
    code: torch.Tensor
    symbols: torch.Tensor
    hashes: torch.Tensor
    """(R,) int32."""


class _products:
    """TF32 where it does no harm."""

    def __init__(self, grade: int):
        self.allowed = grade <= TF32_BELOW

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.allowed

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32 = self.before


def in_units(y: torch.Tensor, fine: float) -> torch.Tensor:
    """As :func:`dtufc.klt.trellis.to_units`, (D, R) int32."""
    y = y * np.float32(trellis.UNIT / fine).item()
    return (y + torch.where(y > 0, 0.5, -0.5)).to(torch.int32)


def _programs(count: int) -> tuple[int]:
    return (-(-count // VECTORS),)


@triton.jit
def _rate(m, p0, p1, p2, pa, pb, pc):
    m = tl.minimum(m, _FAR)
    cost = tl.minimum(tl.maximum(pa + m * (pb + pc * m), 0), _MOST)
    cost = tl.where(m == 2, p2, cost)
    cost = tl.where(m == 1, p1, cost)
    return tl.where(m == 0, p0, cost)


@triton.jit
def _estimate(
    units, tables, wide, parameters, free, costs, count, width, VECTORS: tl.constexpr
):  # fmt: skip
    r = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS)
    inside = r < count
    total = tl.zeros([VECTORS], tl.int64)
    for i in range(0, width):
        p = tl.where(tl.load(wide + i) > 0, free, tl.load(tables + i)) * _PARAMETERS + parameters
        p0 = tl.load(p)
        v = tl.load(units + i * count + r, mask=inside, other=0)
        a = tl.maximum(v, -v)
        near = tl.minimum(a, _ZERO_LIMIT)
        m = (a + 64) >> 7
        e = a - (m << 7)
        p1, p2, pa = tl.load(p + 1), tl.load(p + 2), tl.load(p + 3)
        cost = e * e + _rate(m, p0, p1, p2, pa, tl.load(p + 4), tl.load(p + 5))
        total += tl.minimum(cost, near * near + p0).to(tl.int64)
    tl.store(costs + r, total, mask=inside)


@triton.jit
def _forward(
    units, tables, wide, parameters, free, decisions, last, count, width, SETTLE: tl.constexpr,
    VECTORS: tl.constexpr,
):  # fmt: skip
    """Path costs of the eight states; the steps of :func:`dtufc.klt.trellis.search`."""
    r = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS)
    inside = r < count
    s0 = tl.zeros([VECTORS], tl.int32)
    s1 = s0 + _NEVER
    s2, s3, s4, s5, s6, s7 = s1, s1, s1, s1, s1, s1
    v = tl.load(units + r, mask=inside, other=0)
    for i in range(0, width):
        coming = tl.load(units + (i + 1) * count + r, mask=inside & (i + 1 < width), other=0)
        alone = tl.load(wide + i) > 0
        p = parameters + tl.where(alone, free, tl.load(tables + i)) * _PARAMETERS
        q = parameters + tl.where(alone, free, tl.load(tables + width + i)) * _PARAMETERS
        p0, p1, p2, pa = tl.load(p), tl.load(p + 1), tl.load(p + 2), tl.load(p + 3)
        pb, pc, pm1, pm2 = tl.load(p + 4), tl.load(p + 5), tl.load(p + 6), tl.load(p + 7)
        q0, q1, q2, qa = tl.load(q), tl.load(q + 1), tl.load(q + 2), tl.load(q + 3)
        qb, qc, qm1, qm2 = tl.load(q + 4), tl.load(q + 5), tl.load(q + 6), tl.load(q + 7)
        a = tl.maximum(v, -v)
        near = tl.minimum(a, _ZERO_LIMIT)
        nought = near * near
        m = (a + 128) >> 8
        e = a - (m << 8) - tl.where(m == 1, pm2, 0)
        even0 = e * e + _rate(m << 1, p0, p1, p2, pa, pb, pc)
        z = nought + p0
        bits = tl.where(z <= even0, 256, 0)
        even0 = tl.minimum(z, even0)
        m = a >> 8
        e = a - (m << 8) - 128 - tl.where(m == 0, pm1, 0)
        m = m << 1
        odd0 = e * e + _rate(m + 1, p0, p1, p2, pa, pb, pc)
        odd0 += tl.where(m >= tl.where(v < 0, tl.load(p + 9), tl.load(p + 8)), _OUT, 0)
        m = tl.maximum(a - 64, 0) >> 8
        e = a - (m << 8) - 192 - tl.where(m == 0, qm2, 0)
        even1 = e * e + _rate((m << 1) + 2, q0, q1, q2, qa, qb, qc)
        z = nought + q0
        bits = bits | tl.where(z <= even1, 512, 0)
        even1 = tl.minimum(z, even1)
        m = (a + 64) >> 8
        e = a - (m << 8) - 64 - tl.where(m == 0, qm1, 0)
        m = m << 1
        odd1 = e * e + _rate(m + 1, q0, q1, q2, qa, qb, qc)
        odd1 += tl.where(m >= tl.where(v < 0, tl.load(q + 9), tl.load(q + 8)), _OUT, 0)
        bits = bits | tl.where(s4 + odd0 < s0 + even0, 1, 0)
        bits = bits | tl.where(s4 + even0 < s0 + odd0, 2, 0)
        bits = bits | tl.where(s5 + even1 < s1 + odd1, 4, 0)
        bits = bits | tl.where(s5 + odd1 < s1 + even1, 8, 0)
        bits = bits | tl.where(s6 + even0 < s2 + odd0, 16, 0)
        bits = bits | tl.where(s6 + odd0 < s2 + even0, 32, 0)
        bits = bits | tl.where(s7 + odd1 < s3 + even1, 64, 0)
        bits = bits | tl.where(s7 + even1 < s3 + odd1, 128, 0)
        t0 = tl.minimum(s0 + even0, s4 + odd0)
        t1 = tl.minimum(s0 + odd0, s4 + even0)
        t2 = tl.minimum(s1 + odd1, s5 + even1)
        t3 = tl.minimum(s1 + even1, s5 + odd1)
        t4 = tl.minimum(s2 + odd0, s6 + even0)
        t5 = tl.minimum(s2 + even0, s6 + odd0)
        t6 = tl.minimum(s3 + even1, s7 + odd1)
        t7 = tl.minimum(s3 + odd1, s7 + even1)
        s0, s1, s2, s3, s4, s5, s6, s7 = t0, t1, t2, t3, t4, t5, t6, t7
        tl.store(decisions + i * count + r, bits.to(tl.int16), mask=inside)
        if i % SETTLE == SETTLE - 1:
            least = tl.minimum(tl.minimum(tl.minimum(s0, s1), tl.minimum(s2, s3)),
                               tl.minimum(tl.minimum(s4, s5), tl.minimum(s6, s7)))  # fmt: skip
            s0, s1, s2, s3 = s0 - least, s1 - least, s2 - least, s3 - least
            s4, s5, s6, s7 = s4 - least, s5 - least, s6 - least, s7 - least
        v = coming
    best, state = s0, tl.zeros([VECTORS], tl.int32)  # of equal ones the last, as on the CPU
    state = tl.where(s1 <= best, 1, state)
    best = tl.minimum(s1, best)
    state = tl.where(s2 <= best, 2, state)
    best = tl.minimum(s2, best)
    state = tl.where(s3 <= best, 3, state)
    best = tl.minimum(s3, best)
    state = tl.where(s4 <= best, 4, state)
    best = tl.minimum(s4, best)
    state = tl.where(s5 <= best, 5, state)
    best = tl.minimum(s5, best)
    state = tl.where(s6 <= best, 6, state)
    best = tl.minimum(s6, best)
    state = tl.where(s7 <= best, 7, state)
    tl.store(last + r, state, mask=inside)


@triton.jit
def _trace(
    units, tables, wide, low, size, decisions, last, columns, code, symbols, hashes, mode, count,
    width, total, VECTORS: tl.constexpr,
):  # fmt: skip
    """The best path backwards: symbols, and the hash of each vector's."""
    r = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS)
    inside = r < count
    column = tl.load(columns + r, mask=inside, other=0).to(tl.int32)
    t = tl.load(last + r, mask=inside, other=0)
    power = tl.full([1], 1, tl.int32)
    hashed = tl.zeros([VECTORS], tl.int32)
    following = tl.zeros([VECTORS], tl.int64) + _NEXT
    for n in range(0, width):
        i = width - 1 - n
        v = tl.load(units + i * count + r, mask=inside, other=0)
        d = tl.load(decisions + i * count + r, mask=inside, other=0).to(tl.int32)
        second = (d >> t) & 1
        s = (t >> 1) + 4 * second
        # the parity of the symbol that leads from s to t
        one = ((following >> ((2 * s + 1) << 2).to(tl.int64)) & 7).to(tl.int32) == t
        parity = one.to(tl.int32)
        quantiser = s & 1
        a = tl.maximum(v, -v)
        first = tl.where(one, ((a >> 8) << 1) + 1, ((a + 128) >> 8) << 1)
        other = tl.where(one, (((a + 64) >> 8) << 1) + 1, ((tl.maximum(a - 64, 0) >> 8) << 1) + 2)
        k = tl.where(quantiser == 1, other, first)
        nought = (parity == 0) & (((d >> (8 + quantiser)) & 1) == 1)
        k = tl.where(nought, 0, k)
        k = tl.where(v < 0, -k, k)
        table = tl.where(quantiser == 1, tl.load(tables + width + i), tl.load(tables + i))
        place = (k >> tl.load(wide + i)) - tl.load(low + table)
        place = tl.where((place < 0) | (place >= tl.load(size + table)), 255, place)
        tl.store(code + i * total + column, (place + 256 * table).to(tl.int16), mask=inside)
        tl.store(symbols + i * total + column, k, mask=inside)
        hashed += place * power
        power *= _HASH
        t = s
    tl.store(hashes + column, hashed + (mode + 1) * power, mask=inside)


@triton.jit
def _emit(x, described, words, at, active):
    """A symbol into each active state; the words that they send go before ``at``, in order."""
    freq = (described & 0x1FFF).to(tl.uint32)
    start = (described.to(tl.uint32, bitcast=True) >> 16).to(tl.uint32)
    freq = tl.where(active, freq, 4096)
    sends = active & ((x >> 20) >= freq)
    counted = sends.to(tl.int32)
    total = tl.sum(counted)
    place = at - total + tl.cumsum(counted, 0) - counted
    tl.store(words + place, (x & 0xFFFF).to(tl.int16), mask=sends)
    y = tl.where(sends, x >> 16, x)
    y = y + (y // freq) * (4096 - freq) + start
    return tl.where(active, y, x), at - total


@triton.jit
def _push(
    code, modes, mode_table, interval, states, words, lengths, room, count, number, width,
    GROUP: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(0)
    lane = g * GROUP + tl.arange(0, GROUP)
    x = tl.load(states + lane, mask=lane < number, other=65536).to(tl.uint32, bitcast=True)
    own = words + g * room
    at = room
    rounds = (count + number - 1) // number
    for back in range(0, rounds):
        r = (rounds - 1 - back) * number + lane
        active = (lane < number) & (r < count)
        place = tl.load(code + (width - 1) * count + r, mask=active, other=0).to(tl.int32)
        for n in range(0, width):
            i = width - 1 - n
            before = tl.load(code + (i - 1) * count + r, mask=active & (i > 0), other=0)
            x, at = _emit(x, tl.load(interval + place), own, at, active)
            place = before.to(tl.int32)
    if mode_table >= 0:
        for back in range(0, rounds):
            r = (rounds - 1 - back) * number + lane
            active = (lane < number) & (r < count)
            mode = tl.load(modes + r, mask=active, other=0)
            described = tl.load(interval + mode_table * 256 + mode)
            x, at = _emit(x, described, own, at, active)
    tl.store(states + lane, x.to(tl.int32, bitcast=True), mask=lane < number)
    tl.store(lengths + g, room - at)


@triton.jit
def _absorb(x, slot, described, words, at, end, active):
    """Each active state without its symbol, refilled with the group's next words where it needs one."""
    freq = (described & 0x1FFF).to(tl.uint32)
    start = (described.to(tl.uint32, bitcast=True) >> 16).to(tl.uint32)
    y = freq * (x >> 12) + slot.to(tl.uint32) - start
    needs = active & (y < 65536)
    counted = needs.to(tl.int32)
    place = at + tl.cumsum(counted, 0) - counted
    word = tl.load(words + tl.minimum(place, end), mask=needs, other=0).to(tl.int32) & 0xFFFF
    y = tl.where(needs, (y << 16) | word.to(tl.uint32), y)
    return tl.where(active, y, x), at + tl.sum(counted)


@triton.jit
def _pull_modes(
    words, places, states, table, symbol, interval, modes, count, number, end, GROUP: tl.constexpr
):  # fmt: skip
    g = tl.program_id(0)
    lane = g * GROUP + tl.arange(0, GROUP)
    x = tl.load(states + lane, mask=lane < number, other=65536).to(tl.uint32, bitcast=True)
    at = tl.load(places + g)
    for k in range(0, (count + number - 1) // number):
        r = k * number + lane
        active = (lane < number) & (r < count)
        slot = (x & 4095).to(tl.int32)
        found = tl.load(symbol + table * 4096 + slot).to(tl.int32)
        x, at = _absorb(x, slot, tl.load(interval + table * 256 + found), words, at, end, active)
        tl.store(modes + r, found, mask=active)
    tl.store(states + lane, x.to(tl.int32, bitcast=True), mask=lane < number)
    tl.store(places + g, at)


@triton.jit
def _pull(
    words, places, states, modes, tables, symbol, interval, values, wide, low_bits, low, y, hashes,
    count, number, end, width, clusters, GROUP: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(0)
    lane = g * GROUP + tl.arange(0, GROUP)
    x = tl.load(states + lane, mask=lane < number, other=65536).to(tl.uint32, bitcast=True)
    at = tl.load(places + g)
    following = tl.zeros([GROUP], tl.int64) + _NEXT
    for k in range(0, (count + number - 1) // number):
        r = k * number + lane
        active = (lane < number) & (r < count)
        mode = tl.load(modes + r, mask=active, other=0)
        machine = tl.zeros([GROUP], tl.int32)
        hashed = mode + 1
        for i in range(0, width):
            shift = tl.load(wide + i)
            bits = tl.load(
                low_bits + tl.load(wide + width + i) * count + r, mask=active & (shift > 0), other=0
            )
            quantiser = machine & 1
            table = tl.load(tables + (quantiser * clusters + mode) * width + i)
            slot = (x & 4095).to(tl.int32)
            found = tl.load(symbol + table * 4096 + slot).to(tl.int32)
            described = tl.load(interval + table * 256 + found)
            value = tl.load(values + table * 256 + found)
            x, at = _absorb(x, slot, described, words, at, end, active)
            hashed = hashed * _HASH + found
            parity = tl.where(shift > 0, bits & 1, (described >> 15) & 1)
            lowest = tl.load(low + table, mask=active & (shift > 0), other=0)
            symbols = ((found + lowest) << shift) | bits
            sign = tl.where(symbols > 0, 1, tl.where(symbols < 0, -1, 0))
            joined = (2 * symbols - quantiser * sign).to(tl.float32)
            finite = tl.abs(value) < 1e30
            value = tl.where((shift > 0) & finite, joined, value)
            tl.store(y + i * count + r, value, mask=active)
            machine = ((following >> ((2 * machine + parity) << 2).to(tl.int64)) & 7).to(tl.int32)
        tl.store(hashes + r, hashed, mask=active)
    tl.store(states + lane, x.to(tl.int32, bitcast=True), mask=lane < number)
    tl.store(places + g, at)
