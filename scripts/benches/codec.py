"""The work of ``bench_codec.py``."""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_codec import BenchConfig
from compressai.ops import compute_padding
from torch import nn
from torch.nn import functional as F

from dtufc.codec import load_codec
from dtufc.CompressAI.checkpoint import Kind, load_kinds, load_model, save_checkpoint
from dtufc.CompressAI.models import MODELS, PUBLISHED_NAMES, ElicArch, HyperpriorArch, build_model
from dtufc.feature import FeatureFacts
from dtufc.memory import keep_memory
from dtufc.records import format_table
from dtufc.transform.mapping import Mapping
from dtufc.views import TOKEN_AXES

PLANES = {
    "llama3": (200, 4096),
    "dinov2": (4234, 1536),
    "sd3": (512, 512),
    "resnet50": (448, 224),
    "ten dinov2": (42340, 1536),
}
LARGE = ("ten dinov2",)
"""Only where they are asked for."""
SMALL_PLANES = {"small": (128, 192)}
SMALL_ARCHS = {
    "hyperprior": HyperpriorArch(16, 24),
    "elic": ElicArch(16, 24, [4, 4, 8, 8], [[12, 8]] * 3),
}


@dataclass(frozen=True)
class SpeedRow:
    """One codec on one plane; ratios above 1 mean ours is faster."""

    codec: str
    plane: str
    size: str
    encode: float
    """Ours, millions of points per second."""
    decode: float
    encode_ratio: float | None
    """Seconds of stock over seconds of ours."""
    decode_ratio: float | None
    both_ratio: float | None
    bytes_ratio: float | None
    """Bytes of ours, header and all, over the bytes of the stock strings."""
    peak_gib: float
    """Of our process, in the machine's memory."""
    stock_gib: float | None


@dataclass(frozen=True)
class Measured:
    """One side."""

    encode_s: float
    decode_s: float
    size: int
    peak_gib: float


def bench(cfg: BenchConfig) -> list[SpeedRow]:
    """Time every codec on every plane."""
    planes = SMALL_PLANES if cfg.small else PLANES
    rows = []
    for name in cfg.codecs or PUBLISHED_NAMES.values():
        arch = SMALL_ARCHS[name] if cfg.small else MODELS[name].arch_class()
        with tempfile.TemporaryDirectory() as folder:
            make_codec(Path(folder), name, arch)
            for plane in cfg.planes or [plane for plane in planes if plane not in LARGE]:
                size = planes[plane]
                ours = _in_process(_ours, cfg, Path(folder), size)
                stock = _in_process(_stock, cfg, Path(folder), size) if cfg.stock else None
                rows.append(_row(name, plane, size, ours, stock))
                print(format_table(rows[-1:]), flush=True)
    return rows


def _row(
    codec: str, plane: str, size: tuple[int, int], ours: Measured, stock: Measured | None
) -> SpeedRow:
    millions = size[0] * size[1] / 1e6
    both = ours.encode_s + ours.decode_s
    return SpeedRow(
        codec=codec,
        plane=plane,
        size=f"{size[0]}x{size[1]}",
        encode=millions / ours.encode_s,
        decode=millions / ours.decode_s,
        encode_ratio=stock and stock.encode_s / ours.encode_s,
        decode_ratio=stock and stock.decode_s / ours.decode_s,
        both_ratio=stock and (stock.encode_s + stock.decode_s) / both,
        bytes_ratio=stock and ours.size / stock.size,
        peak_gib=ours.peak_gib,
        stock_gib=stock and stock.peak_gib,
    )


def make_codec(folder: Path, name: str, arch: HyperpriorArch | ElicArch) -> None:
    torch.manual_seed(0)
    model = build_model(name, arch).eval()
    with torch.no_grad():
        last = [layer for layer in model.g_a if isinstance(layer, nn.Conv2d)][-1]
        y, _ = model.analysis(torch.rand(1, 1, 128, 128))
        last.weight.mul_(3 / y.std())
    facts = FeatureFacts("bench", "none", [1, 1, None, None], list(TOKEN_AXES))
    save_checkpoint(folder, model, name, [Kind(facts, Mapping(np.linspace(-3, 3, 256)))], {})


def _in_process(
    side: Callable[[BenchConfig, Path, tuple[int, int]], Measured],
    cfg: BenchConfig,
    folder: Path,
    size: tuple[int, int],
) -> Measured:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(side, (cfg, folder, size))


def _ours(cfg: BenchConfig, folder: Path, size: tuple[int, int]) -> Measured:
    """From array to bitstream and back, as ``encode.py`` and ``decode.py`` do it."""
    keep_memory()
    x = _feature(cfg, size)
    codec = load_codec(folder, device=cfg.device)
    data = codec.encode(x)
    encode_s = best(cfg.repeats, lambda: codec.encode(x))
    decode_s = best(cfg.repeats, lambda: codec.decode(data))
    return Measured(encode_s, decode_s, len(data), _peak_gib())


def _stock(cfg: BenchConfig, folder: Path, size: tuple[int, int]) -> Measured:
    """What the published evaluation runs."""
    x = _feature(cfg, size)
    model, values = load_model(folder)
    mapping = load_kinds(folder, values)[0].mapping
    model.to(cfg.device)
    pad, _ = compute_padding(*size, min_div=model.stride[0])

    @torch.inference_mode()
    def compress():
        plane = torch.from_numpy(mapping.forward(x))  # (1, 1, P, Q)
        return model.compress(F.pad(plane.to(cfg.device), pad))

    @torch.inference_mode()
    def decompress():
        return mapping.inverse(model.decompress(out["strings"], out["shape"])["x_hat"].cpu())

    out = compress()
    encode_s, decode_s = best(cfg.repeats, compress), best(cfg.repeats, decompress)
    return Measured(
        encode_s, decode_s, sum(len(string) for (string,) in out["strings"]), _peak_gib()
    )


def _feature(cfg: BenchConfig, size: tuple[int, int]) -> np.ndarray:
    """Sets the threads, too: each side begins with it."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    return np.random.default_rng(0).standard_normal((1, 1, *size), dtype=np.float32)


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def best(repeats: int, call: Callable[[], object]) -> float:
    """Seconds of the fastest call, the first one not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
