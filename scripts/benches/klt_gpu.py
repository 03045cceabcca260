"""The work of ``bench_klt_gpu.py``."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from bench_klt_gpu import GpuBenchConfig

from dtufc.bitstream import pack, unpack
from dtufc.feature import FeatureFacts
from dtufc.klt import coder, lanes, side, trellis
from dtufc.klt.codec import KltCodec
from dtufc.klt.fit_step import Sample, fit_tables
from dtufc.klt.gpu import Found, GpuCoder, LaneReader, find_escaped, in_units
from dtufc.klt.model import PER_OCTAVE, RUNGS, KltModel, Layout, Transform
from dtufc.klt.tables import Tables

WEIGHT = 0.12  # of a bit in squared steps, as the fit's
SAMPLE = 2_000_000  # values that tables are made of


@dataclass(frozen=True)
class GpuSpeedRow:
    """Rate, error, and speeds in billions of points per second."""

    codec: str
    size: str
    bpfp: float
    nmse: float
    encode: float
    decode: float
    break_even: float
    """Gb/s of a link below which coding pays against raw bfloat16: coding, sending and decoding one
    after the other."""
    pipelined: float
    """The same where the three overlap."""


@dataclass(frozen=True)
class StageRow:
    """Milliseconds of a stage."""

    size: str
    stage: str
    ms: float


class World:
    """Tokens whose channels go together, with a power law for their spectrum, and their transform."""

    def __init__(self, channels: int, device: torch.device):
        self.draws = torch.Generator(device).manual_seed(0)
        self.device, self.channels = device, channels
        self.basis = torch.linalg.qr(self.normal(channels, channels))[0].half().float()
        self.power = (1 + torch.arange(channels, device=device)) ** -0.5

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.draws, device=self.device)

    def tokens(self, count: int) -> torch.Tensor:
        """(1, 1, count, channels) float32."""
        return ((self.normal(count, self.channels) * self.power) @ self.basis.T)[None, None]

    def codec(self, bpfp: float) -> KltCodec:
        """A codec at about that rate."""
        mean = np.zeros((1, self.channels, 1), np.float32)
        basis = self.basis.cpu().numpy()[None]
        unit = float(self.power.square().mean().sqrt())
        transform = Transform(Layout(True, 1, 1, True), mean, basis, unit)
        sample = self.normal(max(256, SAMPLE // self.channels), self.channels) * self.power
        vectors = Sample.of([sample.cpu().numpy()], np.zeros(len(sample), np.int64))
        grade, tables = 0, None
        for _ in range(6):  # a bit per octave, where all components are coded
            fine = trellis.FINE * transform.step(grade)
            rounds = 12 if tables is None else 4
            tables = fit_tables(vectors, fine, WEIGHT / trellis.FINE**2, tables, rounds)
            missing = bpfp - float(tables.average[0]) / self.channels
            if abs(missing) < 0.01:
                break
            grade += round(1.4 * missing * PER_OCTAVE)
        facts = FeatureFacts(
            "made_up",
            "tokens",
            [1, 1, None, self.channels],
            ["sample", "layer", "token", "channel"],
        )
        return KltCodec(KltModel(facts, transform, (tables,) * RUNGS, WEIGHT), grade / PER_OCTAVE)


def bench(cfg: GpuBenchConfig) -> tuple[list[GpuSpeedRow], list[StageRow]]:
    """Code made-up features of each width; check the bytes, then time."""
    device = torch.device(cfg.device)
    rows, stages = [], []
    for channels in cfg.channels:
        world = World(channels, device)
        codec = world.codec(cfg.bpfp)
        gpu = GpuCoder(codec, device)
        x = world.tokens(cfg.tokens)
        size = f"{cfg.tokens} x {channels}"
        check(gpu, x)
        data = gpu.encode(x)
        rows.append(row("klt", size, x, data, gpu.encode, gpu.decode, cfg))
        stages += [StageRow(size, name, 1e3 * seconds(call, cfg)) for name, call in parts(gpu, x)]
        if cfg.sweep and channels == cfg.channels[0]:
            stages += sweep(gpu, x, size, cfg)
        for name, there, back in PEERS if x.numel() % 64 == 0 else ():
            rows.append(row(name, size, x, there(x), there, partial(back, like=x), cfg))
    return rows, stages


def check(gpu: GpuCoder, x: torch.Tensor) -> None:
    """The CPU makes the same bytes of the same symbols, and decodes them to the same ones.

    Raises:
        RuntimeError: it does not.
    """
    grade, vectors = gpu.codec.grade, x[0, 0]
    found = gpu.search(vectors, grade)
    strings = gpu.push(found, grade, 0)
    tables: Tables = gpu.tables(grade).tables
    symbols = found.symbols.cpu().numpy()
    code = found.code.cpu().numpy().view(np.uint16)
    escapes = int(((code & 255) == trellis.ESCAPE).sum())
    ours = coder.encode(
        tables, coder.Quantised(found.modes.cpu().numpy(), code, symbols, escapes), 0
    )
    if ours != strings:
        raise RuntimeError("the device's bytes are not the CPU's")
    _, y, back = coder.decode(tables, *strings, len(vectors), 0, symbols=True)
    there = gpu.pull(*strings, len(vectors), grade, 0)[1]
    if not np.array_equal(back, symbols) or not np.array_equal(there.cpu().numpy(), y):
        raise RuntimeError("the device decodes to other symbols than the CPU")
    fine = trellis.FINE * gpu.codec.model.transform.step(grade)
    units = gpu.forward(vectors[:512], 0, grade)
    own, theirs = coder.in_units(units.cpu().numpy(), 1 / fine), in_units(units, fine).cpu().numpy()
    if not np.array_equal(own[:, : theirs.shape[1]], theirs):
        raise RuntimeError("the device rounds components otherwise than the CPU")


def parts(gpu: GpuCoder, x: torch.Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """The stages of both directions: wholes, and what they consist of behind two blanks."""
    grade, vectors = gpu.codec.grade, x[0, 0]
    made = Made.of(gpu, vectors)
    data = gpu.encode(x)
    stream = unpack(data)
    yield "encode", lambda: gpu.encode(x)
    yield "search", lambda: gpu.search(vectors, grade)
    yield "  transform", lambda: gpu.forward(vectors, 0, grade)
    yield "  to units", lambda: in_units(made.y, made.fine)
    yield "  forward", lambda: gpu.forwards(made.units, 0, grade)
    yield "  walk", lambda: gpu.walk(*made.decided)
    yield "  name symbols", made.name
    yield "lanes there", lambda: gpu.push(made.found, grade, 0)
    yield "  escapes, hashes", lambda: gpu.beside(made.found, grade)
    yield "  push", made.push
    yield "pack", lambda: pack(stream)
    yield "decode", lambda: gpu.decode(data)
    yield "unpack", lambda: unpack(memoryview(data))
    yield "lanes back", lambda: gpu.pull(*made.strings, len(vectors), grade, 0)
    yield "  read, copy", made.read
    yield "  pull", made.pull
    yield "  stand for", made.stand_for
    yield "  find escapes", lambda: find_escaped(made.pulled)
    modes, back, _ = gpu.pull(*made.strings, len(vectors), grade, 0)
    yield "inverse transform", lambda: gpu.finish(modes, back, grade, len(vectors))


@dataclass(frozen=True, eq=False)
class Made:
    """What the stages of a coder take and give, of one mode."""

    gpu: GpuCoder
    fine: float
    y: torch.Tensor
    units: torch.Tensor
    decided: tuple[torch.Tensor, torch.Tensor]
    path: torch.Tensor
    found: Found
    strings: tuple[bytes, bytes]
    words: torch.Tensor
    places: torch.Tensor
    states: torch.Tensor
    low: torch.Tensor | None
    pulled: torch.Tensor

    @classmethod
    def of(cls, gpu: GpuCoder, vectors: torch.Tensor) -> "Made":
        grade = gpu.codec.grade
        fine = trellis.FINE * gpu.codec.model.transform.step(grade)
        y = gpu.forward(vectors, 0, grade)
        units = in_units(y, fine)
        decided = gpu.forwards(units, 0, grade)
        found = gpu.search(vectors, grade)
        strings = gpu.push(found, grade, 0)
        reader = lanes.Reader(strings[0], len(vectors))
        words, places, states = (
            torch.from_numpy(each).to(gpu.device)
            for each in (
                reader.words.view(np.int16),
                reader.at.astype(np.int32),
                reader.states.astype(np.uint32).view(np.int32),
            )
        )
        shift = gpu.tables(grade).tables.wide_shift
        low = None
        if len(shift):
            low = torch.from_numpy(side.unpack_low(strings[1], shift, len(vectors))).to(gpu.device)
        pulled = gpu.pulled(words, places.clone(), states.clone(), found.modes, grade, low)
        path = gpu.walk(*decided)
        return cls(
            gpu, fine, y, units, decided, path, found, strings, words, places, states, low, pulled
        )

    def by(self, gpu: GpuCoder) -> "Made":
        """The same for another coder of the same codec."""
        return replace(self, gpu=gpu)

    def forward(self) -> list[torch.Tensor]:
        return list(self.gpu.forwards(self.units, 0, self.gpu.codec.grade))

    def walk(self) -> list[torch.Tensor]:
        return [self.gpu.walk(*self.decided)]

    def name(self) -> list[torch.Tensor]:
        self.gpu.name(self.units, self.path, 0, self.gpu.codec.grade, None, self.found)
        return [self.found.code, self.found.symbols, self.found.hashes]

    def push(self) -> list[torch.Tensor]:
        states, _, lengths = self.gpu.pushed(
            self.found, self.gpu.codec.grade, torch.full_like(self.states, lanes.LOW)
        )
        return [states, lengths]

    def read(self) -> None:
        reader = LaneReader(self.strings[0], self.found.code.shape[1], self.gpu)
        torch.from_numpy(reader.words.view(np.int16)).to(self.gpu.device, non_blocking=True)

    def pull(self) -> list[torch.Tensor]:
        grade, modes = self.gpu.codec.grade, self.found.modes
        places, states = self.places.clone(), self.states.clone()
        code = self.gpu.pulled(self.words, places, states, modes, grade, self.low)
        return [code, places, states]

    def stand_for(self) -> list[torch.Tensor]:
        hashes = torch.empty_like(self.found.hashes)
        grade, modes = self.gpu.codec.grade, self.found.modes
        return [self.gpu.stand_for(self.pulled, modes, grade, self.low, hashes), hashes]


TRIED = {
    "forward": [{"forward": n} for n in (4, 2, 8)],
    "walk": [{"walk": n} for n in (32, 16, 8)],
    "push": [{"push": n} for n in (16, 8, 4)],
    "pull": [{"pull": n} for n in (8, 4, 16)],
    "name": [{"block": 256, "rows": 32}, {"block": 512, "rows": 32}, {"block": 512, "rows": 16}],
    "stand_for": [
        {"block": 256, "rows": 32},
        {"block": 512, "rows": 32},
        {"block": 512, "rows": 16},
    ],
}
"""What a sweep tries of each kernel, the default first."""


def sweep(gpu: GpuCoder, x: torch.Tensor, size: str, cfg: GpuBenchConfig) -> Iterator[StageRow]:
    """Time other tunings of each kernel.

    Raises:
        RuntimeError: one gives other results.
    """
    made = Made.of(gpu, x[0, 0])
    for kernel, settings in TRIED.items():
        expected = [each.clone() for each in getattr(made, kernel)()]
        for values in settings:
            other = made.by(GpuCoder(gpu.codec, gpu.device, replace(gpu.tuning, **values)))
            call = getattr(other, kernel)
            if not all(map(torch.equal, call(), expected)):
                raise RuntimeError(f"{kernel} with {values}: other results")
            name = ", ".join(f"{key} {value}" for key, value in values.items())
            yield StageRow(size, f"{kernel}: {name}", 1e3 * seconds(call, cfg))


def row(name, size, x, data, there, back, cfg: GpuBenchConfig) -> GpuSpeedRow:
    """Rate, error and speeds of a way there and back."""
    bits = 8 * len(data) / x.numel()
    nmse = float((back(data).float() - x).square().mean() / x.var())
    encode, decode = (
        x.numel() / 1e9 / seconds(call, cfg) for call in (lambda: there(x), lambda: back(data))
    )
    serial = (16 - bits) / (1 / encode + 1 / decode)
    return GpuSpeedRow(name, size, bits, nmse, encode, decode, serial, 16 * min(encode, decode))


def seconds(call: Callable[[], object], cfg: GpuBenchConfig) -> float:
    """The median, the device waited for."""
    times = []
    for _ in range(2 + cfg.repeats):
        start = time.perf_counter()
        call()
        if cfg.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


def _fp8(x: torch.Tensor) -> bytes:
    scale = 448 / x.abs().amax()
    values = (x * scale).to(torch.float8_e4m3fn).view(torch.uint8)
    return scale.cpu().numpy().tobytes() + values.cpu().numpy().tobytes()


def _from_fp8(data: bytes, like: torch.Tensor) -> torch.Tensor:
    scale = float(np.frombuffer(data, np.float32, 1)[0])
    values = torch.from_numpy(np.frombuffer(data, np.uint8, offset=4).copy()).to(like.device)
    return (values.view(torch.float8_e4m3fn).float() / scale).reshape(like.shape)


def _int4(x: torch.Tensor) -> bytes:
    groups = x.reshape(-1, 64)
    scale = (groups.abs().amax(1, keepdim=True) / 7).half()
    level = (groups / scale.float()).round().clamp(-8, 7).to(torch.int8) + 8
    packed = (level[:, ::2] | level[:, 1::2] << 4).view(torch.uint8)
    return scale.cpu().numpy().tobytes() + packed.cpu().numpy().tobytes()


def _from_int4(data: bytes, like: torch.Tensor) -> torch.Tensor:
    count = like.numel() // 64
    scale = torch.from_numpy(np.frombuffer(data, np.float16, count).copy()).to(like.device)
    packed = torch.from_numpy(np.frombuffer(data, np.uint8, offset=2 * count).copy())
    packed = packed.to(like.device).reshape(count, 32)
    level = torch.stack([packed & 15, packed >> 4], 2).reshape(count, 64).float() - 8
    return (level * scale.float()[:, None]).reshape(like.shape)


PEERS = (("fp8 e4m3", _fp8, _from_fp8), ("int4, groups of 64", _int4, _from_int4))
