"""Second-generation ``klt`` on a CUDA device: the same bytes as on a CPU, lanes side by side.

    coder = GpuCoder(codec, "cuda")
    data = coder.encode(x)          # (N, C, H, W) tensor on the device -> the whole bitstream
    x = coder.decode(data)          # -> tensor on the device

Transforms are torch's. What decides symbols and bytes is integers, in the kernels of
:mod:`dtufc.klt.gpu_kernels`, so that the same components give the same bytes as :mod:`dtufc.klt.coder`,
and the same bytes the same symbols. Escapes and low bits, which are few, are packed on the CPU. Tokens
only.

Up to quality 4 products run in TF32 where the device has it: their error is below a hundredth of the
quantiser's.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from dtufc.bitstream import ID_BYTES, MAX_POINTS, Bitstream, BitstreamError, pack, unpack
from dtufc.errors import UserError
from dtufc.feature import FeatureError
from dtufc.klt import coder, gpu_kernels, lanes, side, trellis
from dtufc.klt.codec import KltCodec, check_of, grade_in, put_raw, raw_part
from dtufc.klt.model import MAX_NORM, MAX_VALUE, PER_OCTAVE, rung
from dtufc.klt.tables import Tables

TF32_BELOW = 4 * PER_OCTAVE  # grade
JOINED = 4096  # words that a program moves
FURTHEST = 16
"""The most that a step of :class:`Tuning` may look ahead."""


@dataclass(frozen=True)
class Tuning:
    """What decides the kernels' speed, but none of their results."""

    forward: int = 4
    """Components whose values and costs are loaded before they are searched, a power of 2."""
    walk: int = 32
    """The same on the way back."""
    push: int = 16
    """Symbols of a lane that are loaded before they are coded."""
    pull: int = 8
    """Symbols of a lane whose tables are loaded before they are decoded."""
    block: int = 256
    """Vectors that a program takes at a time where all points are independent."""
    rows: int = 32
    """Components of these."""
    warps: int = 4
    """Of these."""


@dataclass(frozen=True, eq=False)
class Resident:
    """The tables of one step on the device, all int32 but where said."""

    tables: Tables
    symbol: torch.Tensor
    """uint8."""
    interval: torch.Tensor
    inverse: torch.Tensor
    """int64."""
    values: torch.Tensor
    """float32."""
    wide: torch.Tensor
    low: torch.Tensor
    pairs: torch.Tensor
    """(D, K) int64: 4096 * table of each component and mode, quantiser 1 in the high half."""
    ends: torch.Tensor
    """(K, D, 8): 256 * table, low and size in either quantiser, and low bits."""

    @classmethod
    def of(cls, tables: Tables, device: torch.device) -> "Resident":
        def put(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        slots, chosen = tables.slots, tables.chosen
        ends = np.zeros((*chosen.shape[1:], 8), np.int32)
        for q in (0, 1):
            own = chosen[q]
            ends[..., 3 * q : 3 * q + 3] = np.stack(
                [lanes.ROW * own, tables.low[own], tables.size[own]], -1
            )
        ends[..., 6] = tables.shift
        first, second = chosen.astype(np.int64) * lanes.SLOTS
        return cls(
            tables, put(slots.symbol), put(slots.interval.view(np.int32)),
            put(slots.inverse.view(np.int64)), put(tables.values), put(tables.wide), put(tables.low),
            put((first | second << 32).T), put(ends),
        )  # fmt: skip


class GpuCoder:
    """A codec of format 2 on a device, for one thread at a time.

    Args:
        codec: of tokens. device: CUDA; or the CPU under Triton's interpreter.

    Raises:
        UserError: a codec of maps, of format 1, with a memory, a weighting, a prediction
            or contexts.
    """

    def __init__(
        self, codec: KltCodec, device: str | torch.device = "cuda", tuning: Tuning | None = None
    ):
        model = codec.model
        if model.format != 2 or model.transform.layout.block > 1 or model.facts.views.is_map:
            raise UserError("gpu: expected a klt codec of tokens, of format 2")
        if any(each.for_cpu for each in codec.whole.each):
            raise UserError(
                "gpu: a klt codec with a memory, a weighting, a prediction or contexts takes the CPU"
            )
        self.codec, self.device = codec, torch.device(device)
        self.tuning = tuning or Tuning()
        transform = model.transform
        self.mean = torch.from_numpy(transform.mean[:, :, 0]).to(self.device)
        self.basis = None
        if transform.basis is not None:
            self.basis = torch.from_numpy(transform.basis).to(self.device)
        self._resident: dict[int, Resident] = {}
        self._costs: dict[int, torch.Tensor] = {}
        self._host: dict[str, torch.Tensor] = {}
        self._other: GpuCoder | None = None
        width, rows = transform.components, self.tuning.rows
        ends = [min(first + rows, width) for first in range(0, width, rows)]
        powers = np.array([_power(width - end) for end in ends], np.int32)
        self._powers, self._whole = torch.from_numpy(powers).to(self.device), _power(width)

    def tables(self, grade: int) -> Resident:
        """The tables of a quality in 128ths."""
        place = rung(grade)
        if place not in self._resident:
            self._resident[place] = Resident.of(self.codec.model.rungs[place], self.device)
        return self._resident[place]

    def costs(self, grade: int) -> torch.Tensor:
        """(K, D + FURTHEST, PARAMETERS, 2) int32: :meth:`Tables.parameters` of each component and
        quantiser, and zeros; of the grade that was asked for last."""
        if grade not in self._costs:
            tables = self.tables(grade).tables
            of_table = tables.parameters(self.codec.model.weight_at(grade) / trellis.FINE**2)
            own = np.where(tables.shift > 0, len(of_table) - 1, tables.chosen)
            found = np.pad(
                of_table[own].transpose(1, 2, 3, 0), ((0, 0), (0, FURTHEST), (0, 0), (0, 0))
            )
            found = torch.from_numpy(np.ascontiguousarray(found))
            self._costs = {grade: found.to(self.device)}
        return self._costs[grade]

    def host(self, name: str, count: int) -> torch.Tensor:
        """(count,) uint8 on the host that the device copies to and from at its full speed; what it holds
        is lost when it is asked for again."""
        if len(self._host.get(name, ())) < count:
            pin = self.device.type == "cuda"
            self._host[name] = torch.empty(count + count // 8, dtype=torch.uint8, pin_memory=pin)
        return self._host[name][:count]

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
        least, most = torch.aminmax(vectors, dim=1)
        largest = torch.maximum(-least, most)
        step = codec.model.transform.step(grade)
        length = torch.linalg.vector_norm(vectors, dim=1)
        raw = (largest > MAX_VALUE * step) | (length > MAX_NORM * step)
        sound, any_raw = torch.stack([torch.isfinite(largest).all(), raw.any()]).tolist()
        if not sound:
            raise FeatureError("feature: the feature holds NaN or infinity")
        exact = []
        if any_raw:
            exact = raw_part(vectors.cpu().numpy()[:, :, None], raw.cpu().numpy())
            vectors = torch.where(raw[:, None], self.mean[0], vectors)
        head = grade.to_bytes(2, "little", signed=True)
        found = self.search(vectors, grade)
        parts = self._push(found, grade, check_of(head, exact, tuple(x.shape)))
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
        stream = unpack(memoryview(data), max_points)  # parts are not copied
        stream.check_codec(self.codec.id)
        stream.check_facts(self.codec.facts)
        if stream.mode not in self.codec.modes or len(stream.parts) not in (3, 4):
            raise BitstreamError("inconsistent: not the parts of a klt bitstream")
        head, string, beside, *exact = stream.parts
        grade = grade_in(head, self.codec.model.transform)
        if (reader := self.codec.reader(grade)) is not self.codec:  # of another layout
            self._other = self._other or GpuCoder(reader, self.device, self.tuning)
            return self._other.decode(data, max_points=max_points)
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
        count, width = len(vectors), model.transform.components
        clusters = model.transform.layout.clusters
        found = Found(
            torch.zeros(count, dtype=torch.int32, device=self.device),
            torch.empty(width, count, dtype=torch.int16, device=self.device),
            torch.empty(width, count, dtype=torch.int32, device=self.device),
            torch.empty(count, dtype=torch.int32, device=self.device),
        )
        if clusters == 1:
            self.find(in_units(self.forward(vectors, 0, grade), fine), 0, grade, None, found)
            return found
        cheapest = torch.full((count,), 1 << 62, device=self.device)
        weight = model.weight_at(grade) / trellis.FINE**2
        for mode in range(clusters):
            units = in_units(self.forward(vectors, mode, grade), fine)
            costs = torch.full((count,), tables.tables.mode_cost(mode, weight), device=self.device)
            gpu_kernels.estimate[self._programs(units)](
                units, self.costs(grade)[mode], costs, count, width, self.tuning.block,
                self.tuning.rows, num_warps=self.tuning.warps,
            )  # fmt: skip
            found.modes.masked_fill_(costs < cheapest, mode)
            cheapest = torch.minimum(costs, cheapest)
        for mode in range(clusters):
            columns = torch.nonzero(found.modes == mode)[:, 0]
            if len(columns):
                units = in_units(self.forward(vectors[columns], mode, grade), fine)
                self.find(units, mode, grade, columns, found)
        return found

    def find(self, units, mode: int, grade: int, columns, found: "Found") -> None:
        """Symbols of vectors of one mode.

        Args:
            units: (D, n) int32, see :func:`in_units`. columns: (n,) int64, where these vectors lie in
                ``found``, which is written; None: all are of this mode.
        """
        decisions, last = self.forwards(units, mode, grade)
        self.name(units, self.walk(decisions, last), mode, grade, columns, found)

    def forwards(self, units, mode: int, grade: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Decisions (D, n) int16 and last states (n,) int32 of the search."""
        width, count = units.shape
        decisions = torch.empty(width, count, dtype=torch.int16, device=self.device)
        last = torch.empty(count, dtype=torch.int32, device=self.device)
        gpu_kernels.forward[(-(-count // 16),)](
            units, self.costs(grade)[mode], decisions.view(torch.int8), last, count, width,
            self.tuning.forward, num_warps=1,
        )  # fmt: skip
        return decisions, last

    def walk(self, decisions: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """The best path, (D, n) int8."""
        width, count = decisions.shape
        path = torch.empty(width, count, dtype=torch.int8, device=self.device)
        gpu_kernels.walk[(-(-count // 32),)](
            decisions, last, path, count, width, self.tuning.walk, num_warps=1
        )
        return path

    def name(self, units, path, mode: int, grade: int, columns, found: "Found") -> None:
        """The symbols of a path; see :meth:`find`."""
        width, count = units.shape
        whole = _signed((mode + 1) * self._whole)
        if columns is None:
            found.hashes.fill_(whole)
        else:
            found.hashes[columns] = whole
        gpu_kernels.name_symbols[self._programs(units)](
            units, path, self.tables(grade).ends[mode], self._powers,
            found.hashes if columns is None else columns, found.code, found.symbols, found.hashes, count,
            width, found.code.shape[1], columns is None, self.tuning.block, self.tuning.rows,
            num_warps=self.tuning.warps,
        )  # fmt: skip

    def _programs(self, points: torch.Tensor) -> tuple[int, int]:
        """Programs that take all points (D, R)."""
        width, count = points.shape
        return -(-count // self.tuning.block), -(-width // self.tuning.rows)

    def push(self, found: "Found", grade: int, check: int) -> tuple[bytes, bytes]:
        """The strings of :func:`dtufc.klt.coder.encode`."""
        string, beside = self._push(found, grade, check)
        return bytes(string), beside

    def _push(self, found: "Found", grade: int, check: int) -> tuple[memoryview, bytes]:
        """As :meth:`push`; the first string is gone with the next one."""
        resident = self.tables(grade)
        tables = resident.tables
        count = found.code.shape[1]
        beside, hashes = self.beside(found, grade)
        modes = np.array([count])
        if tables.mode_table >= 0:
            modes = np.bincount(found.modes.cpu().numpy(), minlength=len(tables.average))
        number = lanes.lanes_for(tables.average_of(modes), count)
        check = (lanes.sum_hashes(hashes) ^ zlib.crc32(beside, check)) & 0xFFFFFFFF
        states = lanes.first_states(number, check).astype(np.uint32).view(np.int32)
        states, words, lengths = self.pushed(found, grade, torch.from_numpy(states).to(self.device))
        ends = torch.cumsum(lengths, 0, dtype=torch.int32)
        joined = torch.empty(words.numel(), dtype=torch.int16, device=self.device)
        groups, room = words.shape
        gpu_kernels.join[(groups, -(-room // JOINED))](words, lengths, ends, joined, room, JOINED)
        small = torch.cat([lengths, states]).cpu().numpy()
        used, states = small[:groups].astype(np.int64), small[groups:]
        head = lanes.head(number, used.tolist(), check) + states.tobytes()
        coded = joined[: used.sum()].view(torch.uint8)
        string = self.host("string", len(head) + len(coded))
        string[len(head) :].copy_(coded)
        string = string.numpy()
        string[: len(head)] = np.frombuffer(head, np.uint8)
        return memoryview(string), beside

    def beside(self, found: "Found", grade: int) -> tuple[bytes, np.ndarray]:
        """What stands beside the lanes, and the hashes (R,) uint32."""
        tables = self.tables(grade).tables
        beside, count = b"", found.code.shape[1]
        if len(tables.wide_shift):
            rows = torch.from_numpy(np.flatnonzero(tables.shift)).to(self.device)
            beside = side.pack_low(found.symbols[rows].cpu().numpy(), tables.wide_shift)
        at, column = find_escaped(found.code)
        some = (found.hashes, at, column, found.code[at, column], found.symbols[at, column])
        small = torch.cat([each.int() for each in some]).cpu().numpy()
        if len(at):
            at, _, code, symbols = small[count:].reshape(4, -1, 1)
            beside += coder.write_escapes(tables, at[:, 0], code, symbols, len(at))
        return beside, small[:count].view(np.uint32)

    def pushed(self, found: "Found", grade: int, states: torch.Tensor):
        """The lanes' last states (L,) int32, in place of the first ones; words (groups, room) int16,
        rows filled from their ends; and how far (groups,) int32."""
        resident = self.tables(grade)
        width, count = found.code.shape
        number = len(states)
        groups = -(-number // lanes.GROUP)
        room = lanes.GROUP * -(-count // number) * (width + 1)
        words = torch.empty(groups, room, dtype=torch.int16, device=self.device)
        lengths = torch.empty(groups, dtype=torch.int32, device=self.device)
        gpu_kernels.push[(groups,)](
            found.code, found.modes, resident.tables.mode_table, resident.interval, resident.inverse,
            states, words, lengths, room, count, number, width, self.tuning.push, num_warps=1,
        )  # fmt: skip
        return states, words, lengths

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
        reader = LaneReader(string, count, self)
        number, groups = len(reader.states), len(reader.at)
        words = torch.from_numpy(reader.words.view(np.int16)).to(self.device, non_blocking=True)
        small = torch.empty(number + groups + count, dtype=torch.int32, device=self.device)
        given = np.concatenate([reader.states.astype(np.uint32).view(np.int32), reader.at])
        small[: number + groups] = torch.from_numpy(given.astype(np.int32)).to(self.device)
        states, places, hashes = small.split([number, groups, count])
        modes = torch.zeros(count, dtype=torch.int32, device=self.device)
        if tables.mode_table >= 0:
            gpu_kernels.pull_modes[(groups,)](
                words, places, states, tables.mode_table, resident.symbol, resident.interval, modes,
                count, number, len(words) - 1, num_warps=1,
            )  # fmt: skip
            if int(modes.max()) >= tables.chosen.shape[1]:
                raise lanes.LaneError("a vector's mode is none")
        low_bits = side.unpack_low(beside, tables.wide_shift, count)
        low = torch.from_numpy(low_bits).to(self.device) if len(low_bits) else None
        code = self.pulled(words, places, states, modes, grade, low)
        y = self.stand_for(code, modes, grade, low, hashes)
        at, column = find_escaped(code)
        some = (small, at, column, code[at, column], modes[column])
        back = torch.cat([each.int() for each in some]).cpu().numpy()
        back, escapes = back[: len(small)], back[len(small) :].reshape(4, -1)
        reader.states = back[:number].view(np.uint32).astype(np.uint64)
        reader.at = back[number : number + groups].astype(np.int64)
        total = lanes.sum_hashes(back[number + groups :].view(np.uint32))
        reader.finish((total ^ zlib.crc32(beside, check)) & 0xFFFFFFFF)
        rest = beside[side.low_bytes(tables.wide_shift, count) :]
        if escapes.size:
            row, col, codes, mode = escapes
            q = (codes >> 8 >= tables.first_size).astype(np.int64)
            k = coder.read_escapes(tables, rest, mode, low_bits[:, col], q, row)
            found = torch.from_numpy((2 * k - q * np.sign(k)).astype(np.float32))
            y[at, column] = found.to(self.device)
        elif rest:
            raise lanes.LaneError("bytes behind the escaped symbols")
        return modes, y, torch.stack([at, column], 1)

    def pulled(self, words, places, states, modes, grade: int, low) -> torch.Tensor:
        """Tables and symbols (D, R) int16 of words; ``places`` and ``states`` become the last ones.

        Args:
            low: (S, R) int32 low bits; None: there are none.
        """
        resident = self.tables(grade)
        width, clusters = resident.pairs.shape
        count = len(modes)
        code = torch.empty(width, count, dtype=torch.int16, device=self.device)
        gpu_kernels.pull[(len(places),)](
            words, places, states, modes, resident.pairs, resident.symbol, resident.interval,
            resident.wide, modes if low is None else low, code, count, len(states), len(words) - 1,
            width, clusters, low is not None, self.tuning.pull, num_warps=1,
        )  # fmt: skip
        return code

    def stand_for(self, code, modes, grade: int, low, hashes: torch.Tensor) -> torch.Tensor:
        """Components (D, R) float32 in fine steps, infinite where escaped; ``hashes`` are written."""
        resident = self.tables(grade)
        width, count = code.shape
        y = torch.empty(width, count, dtype=torch.float32, device=self.device)
        torch.mul(modes + 1, _signed(self._whole), out=hashes)
        gpu_kernels.stand_for[self._programs(code)](
            code, resident.values, resident.wide, modes if low is None else low, resident.low,
            self._powers, y, hashes, count, width, resident.tables.first_size, low is not None,
            self.tuning.block, self.tuning.rows, num_warps=self.tuning.warps,
        )  # fmt: skip
        return y

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


class LaneReader(lanes.Reader):
    """One whose words lie where a device copies them from at its full speed."""

    def __init__(self, string: bytes, count: int, coder: GpuCoder):
        self._coder = coder
        super().__init__(string, count)

    def _room(self, count: int) -> np.ndarray:
        return self._coder.host("words", 2 * count).numpy().view(np.uint16)


def in_units(y: torch.Tensor, fine: float) -> torch.Tensor:
    """As :func:`dtufc.klt.trellis.to_units`, (D, R) int32."""
    y = y.contiguous()
    units = torch.empty_like(y, dtype=torch.int32)
    scale = np.float32(trellis.UNIT / fine).item()
    gpu_kernels.to_units[(-(-y.numel() // 1024),)](
        y, units, scale, y.numel(), 1024, num_warps=4, enable_fp_fusion=False
    )
    return units


def find_escaped(code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Component and vector of the escaped ones of code (D, R) int16, component by component."""
    symbols = code.view(torch.uint8).reshape(len(code), -1)[:, ::2]
    return torch.nonzero(symbols == trellis.ESCAPE, as_tuple=True)


def _signed(value: int) -> int:
    """A number's low 32 bits as an int32."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def _power(exponent: int) -> int:
    """A power of what hashes are multiplied by, as an int32."""
    return _signed(pow(lanes.HASH, exponent, 1 << 32))
