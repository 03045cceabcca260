"""The work of ``bench_klt.py``."""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_klt import BenchConfig
from benches.codec import best

from dtufc import rans
from dtufc.codec import load_codec
from dtufc.feature import write_feature
from dtufc.klt.codec import KltCodec
from dtufc.klt.model import WEIGHTS, rung
from dtufc.paths import REPOSITORY

FIT = REPOSITORY / "coding" / "klt" / "fit_klt.py"
KINDS = 8  # of tokens


@dataclass(frozen=True)
class SpeedRow:
    """Rate and speeds at one quality, in millions of points per second."""

    quality: float
    bpfp: float
    nmse: float
    rans_encode: float
    rans_decode: float
    encode: float
    decode: float


class World:
    """Where made-up tokens come from."""

    def __init__(self, channels: int):
        self.rng = np.random.default_rng(0)
        basis = np.linalg.qr(self.rng.standard_normal((channels, channels)).astype(np.float32))[0]
        power = (1 + np.arange(channels, dtype=np.float32)) ** -0.5
        self.mix = power[:, None] * basis
        self.kinds = 0.7 * self.rng.standard_normal((KINDS, channels)).astype(np.float32) @ self.mix
        self.constant = np.zeros(channels, np.float32)
        self.constant[self.rng.integers(channels, size=2)] = (-40, 15)

    def tokens(self, count: int) -> np.ndarray:
        """(1, 1, count, channels) float32."""
        x = self.rng.standard_normal((count, len(self.mix))).astype(np.float32) @ self.mix
        return (x + self.kinds[self.rng.integers(KINDS, size=count)] + self.constant)[None, None]


def bench(cfg: BenchConfig) -> list[SpeedRow]:
    """Fit on made-up features, then time the codec on one of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = World(cfg.channels)
        for number in range(-(-cfg.tokens // cfg.tokens_per_file)):
            write_feature(folder / "train" / f"{number:05d}.npy", world.tokens(cfg.tokens_per_file))
        codec = folder / "codec"
        command = [sys.executable, FIT, "--features", folder / "train", "--output", codec]
        command += ["--clusters", str(cfg.clusters)] if cfg.clusters else []
        start = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        size = (codec / WEIGHTS).stat().st_size
        print(
            f"fit of {cfg.channels} channels on {cfg.tokens} tokens: {seconds:.0f} s, "
            f"peak {peak / 2**30:.2f} GiB, model {size / 1e6:.1f} MB"
        )
        torch.set_num_threads(1)
        x = world.tokens(cfg.tokens_per_file)
        loaded = load_codec(codec)
        return [
            speeds(loaded.at_quality(quality), x, cfg.repeats)
            for quality in cfg.qualities or (-0.5, 0.5, 1.5)
        ]


def speeds(codec: KltCodec, x: np.ndarray, repeats: int) -> SpeedRow:
    """Rate, error and speeds on one feature."""
    model, facts = codec.model, codec.model.facts
    vectors = facts.views.to_vectors(x, model.transform.layout.block)
    clusters, symbols, _, _, _ = model.quantise(vectors, codec.grade)
    entropy = model.rungs[rung(codec.grade)]
    stream, indexes = symbols.ravel(), entropy.chosen[clusters].ravel()
    string = rans.encode(stream, indexes, entropy.tables)

    def read() -> np.ndarray:
        return rans.Decoder(string, entropy.tables).decode(indexes)

    if not np.array_equal(read(), stream):
        raise RuntimeError("rans: the string does not decode to its symbols")
    data = codec.encode(x)
    decoded = codec.decode(data)

    def rate(call: Callable[[], object]) -> float:
        return x.size / 1e6 / best(repeats, call)

    return SpeedRow(
        quality=codec.quality,
        bpfp=8 * len(data) / x.size,
        nmse=float(np.mean((decoded - x) ** 2) / x.var()),
        rans_encode=rate(lambda: rans.encode(stream, indexes, entropy.tables)),
        rans_decode=rate(read),
        encode=rate(lambda: codec.encode(x)),
        decode=rate(lambda: codec.decode(data)),
    )
