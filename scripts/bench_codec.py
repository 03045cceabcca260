"""Speed of the learned codecs beside CompressAI's own compress and decompress, same weights, one run.

    python scripts/bench_codec.py            published widths, the planes of the four paper machines
    python scripts/bench_codec.py --small    small widths and planes, seconds

Stock is what the published evaluation runs: float32, default memory format, Python lists into the
entropy coder. Ours is ``coding.codec``: the whole way from array to bitstream and back. Weights are
random, scaled so that latents spread over about ten symbols; times are the best of ``--repeats``.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from compressai.ops import compute_padding
from torch import nn
from torch.nn import functional as F

from coding import config
from coding.codec import load_codec
from coding.CompressAI.checkpoint import Kind, load_model, save_checkpoint
from coding.CompressAI.models import MODELS, STRIDE, ElicArch, HyperpriorArch, build_model
from coding.feature import FeatureFacts
from coding.packing import Packing
from coding.records import format_table
from coding.transform.mapping import Mapping

PLANES = {
    "llama3": (200, 4096),
    "dinov2": (2740, 1536),
    "sd3": (512, 512),
    "resnet50": (448, 224),
}
SMALL_PLANES = {"small": (128, 192)}
SMALL_ARCHS = {
    "hyperprior": HyperpriorArch(16, 24),
    "elic": ElicArch(16, 24, [4, 4, 8, 8], [[12, 8]] * 3),
}


@dataclass(frozen=True)
class BenchConfig:
    """What is timed."""

    small: bool = False
    """Small widths and one small plane."""
    repeats: int = 2
    """Each time is the best of so many, after one that is not counted."""
    threads: int = 0
    """torch threads; 0 leaves torch's own choice."""
    device: str = "cpu"
    """torch device of the networks."""
    planes: list[str] | None = None
    """Only these planes."""


@dataclass(frozen=True)
class SpeedRow:
    """Seconds of one codec on one plane; ratios above 1 mean ours is faster."""

    codec: str
    plane: str
    size: str
    stock_encode_s: float
    ours_encode_s: float
    encode_ratio: float
    stock_decode_s: float
    ours_decode_s: float
    decode_ratio: float
    both_ratio: float
    ours_bytes_ratio: float
    """Bytes of ours, header and all, over the bytes of the stock strings."""


def bench(cfg: BenchConfig) -> list[SpeedRow]:
    """Time every codec on every plane."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    planes = SMALL_PLANES if cfg.small else PLANES
    rows = []
    for name, model_class in MODELS.items():
        arch = SMALL_ARCHS[name] if cfg.small else model_class.arch_class()
        with tempfile.TemporaryDirectory() as folder:
            _make_codec(Path(folder), name, arch)
            for plane in cfg.planes or planes:
                rows.append(_bench_plane(cfg, Path(folder), name, plane, planes[plane]))
                print(f"{name} on {plane}: {rows[-1].both_ratio:.1f} times the stock speed")
    return rows


def _make_codec(folder: Path, name: str, arch: HyperpriorArch | ElicArch) -> None:
    torch.manual_seed(0)
    model = build_model(name, arch).eval()
    with torch.no_grad():
        last = [layer for layer in model.g_a if isinstance(layer, nn.Conv2d)][-1]
        y, _ = model.analysis(torch.rand(1, 1, 128, 128))
        last.weight.mul_(3 / y.std())
    facts = FeatureFacts("bench", "none", [1, 1, None, None], Packing())
    save_checkpoint(folder, model, name, [Kind(facts, Mapping(np.linspace(-3, 3, 256)))], {})


def _bench_plane(
    cfg: BenchConfig, folder: Path, name: str, plane: str, size: tuple[int, int]
) -> SpeedRow:
    x = np.random.default_rng(0).standard_normal((1, 1, *size)).astype(np.float32)
    codec = load_codec(folder, device=cfg.device)
    mapping = next(iter(codec.kinds.values())).mapping
    data = codec.encode(x)
    encode_s = best(cfg.repeats, lambda: codec.encode(x))
    decode_s = best(cfg.repeats, lambda: codec.decode(data))
    model = load_model(folder)[0].to(cfg.device)
    pad, _ = compute_padding(*size, min_div=STRIDE)

    @torch.inference_mode()
    def compress():
        plane = torch.from_numpy(mapping.forward(x))  # (1, 1, P, Q)
        return model.compress(F.pad(plane.to(cfg.device), pad))

    @torch.inference_mode()
    def decompress():
        return mapping.inverse(model.decompress(out["strings"], out["shape"])["x_hat"].cpu())

    out = compress()
    stock_encode_s = best(cfg.repeats, compress)
    stock_decode_s = best(cfg.repeats, decompress)
    return SpeedRow(
        name,
        plane,
        f"{size[0]}x{size[1]}",
        stock_encode_s,
        encode_s,
        stock_encode_s / encode_s,
        stock_decode_s,
        decode_s,
        stock_decode_s / decode_s,
        (stock_encode_s + stock_decode_s) / (encode_s + decode_s),
        len(data) / sum(len(string) for (string,) in out["strings"]),
    )


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


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        print(format_table(bench(config.parse(BenchConfig, argv, __doc__))))


if __name__ == "__main__":
    main()
