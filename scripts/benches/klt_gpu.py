"""The work of ``bench_klt_gpu.py``."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from bench_klt_gpu import GpuBenchConfig

from dtufc.feature import FeatureFacts
from dtufc.klt import coder, trellis
from dtufc.klt.codec import KltCodec
from dtufc.klt.gpu import GpuCoder, in_units
from dtufc.klt.model import PER_OCTAVE, RUNGS, KltModel, Layout, Transform
from dtufc.klt.tables import Tables, fit_tables

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
        y = np.ascontiguousarray(sample.T.cpu().numpy())
        grade, tables = 0, None
        for _ in range(6):  # a bit per octave, where all components are coded
            fine = np.float32(trellis.FINE * transform.step(grade))
            rounds = 12 if tables is None else 4
            tables = fit_tables([y / fine], WEIGHT / trellis.FINE**2, tables, rounds)
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
    """The stages of both directions."""
    grade, vectors = gpu.codec.grade, x[0, 0]
    found = gpu.search(vectors, grade)
    strings = gpu.push(found, grade, 0)
    modes, y, _ = gpu.pull(*strings, len(vectors), grade, 0)
    yield "transform", lambda: gpu.forward(vectors, 0, grade)
    yield "transform and search", lambda: gpu.search(vectors, grade)
    yield "lanes there", lambda: gpu.push(found, grade, 0)
    yield "lanes back", lambda: gpu.pull(*strings, len(vectors), grade, 0)
    yield "inverse transform", lambda: gpu.finish(modes, y, grade, len(vectors))


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
