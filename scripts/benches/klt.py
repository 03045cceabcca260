"""The work of ``bench_klt.py``."""

import math
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

from dtufc.codec import load_codec
from dtufc.feature import write_feature
from dtufc.klt import coder, trellis
from dtufc.klt.codec import KltCodec
from dtufc.klt.model import WEIGHTS, rung
from dtufc.klt.tables import choose, in_units
from dtufc.memory import keep_memory
from dtufc.paths import REPOSITORY

FIT = REPOSITORY / "coding" / "klt" / "fit_klt.py"
KINDS = 8  # of tokens
IN_A_ROW = 5  # times that a call is measured before it is another one's turn


@dataclass(frozen=True)
class SpeedRow:
    """Rate, and speeds at one quality in millions of points per second."""

    quality: float
    bpfp: float
    nmse: float
    product: float
    """x @ basis in float32, all that a transform is."""
    search: float
    """Scaled components to symbols."""
    lanes_encode: float
    lanes_decode: float
    encode: float
    decode: float
    encode_ratio: float
    """Time of encode over the product's."""
    decode_ratio: float
    token_encode: float
    """Microseconds of one token alone."""
    token_decode: float
    break_even: float
    """Gb/s of a link below which coding pays against raw bfloat16, one after the other."""


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
        command = [
            sys.executable,
            FIT,
            "--features",
            folder / "train",
            "--output",
            codec,
            "--format",
            "2",
        ]
        command += ["--clusters", str(cfg.clusters)] if cfg.clusters else []
        command += ["--contexts", "true"] if cfg.contexts else []
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
        keep_memory()  # as the commands that code features do
        x = world.tokens(cfg.tokens_per_file)
        loaded = load_codec(codec)
        return [
            speeds(loaded.at_quality(quality), x, cfg.repeats)
            for quality in cfg.qualities or (-0.5, 0.5, 1.5)
        ]


def speeds(codec: KltCodec, x: np.ndarray, repeats: int) -> SpeedRow:
    """Rate, error and speeds on one feature, x (1, 1, tokens, channels)."""
    model, facts, grade = codec.model, codec.model.facts, codec.grade
    vectors = facts.views.to_vectors(x, model.transform.layout.block)
    tables = model.rungs[rung(grade)]
    found, _ = model.search(vectors, grade)
    strings = coder.encode(tables, found, 0)
    modes, _, symbols = coder.decode(tables, *strings, len(vectors), 0, symbols=True)
    if not np.array_equal(symbols, found.symbols) or not np.array_equal(modes, found.modes):
        raise RuntimeError("lanes: the strings do not decode to their symbols")
    fine, weight = (
        trellis.FINE * model.transform.step(grade),
        model.weight_at(grade) / trellis.FINE**2,
    )
    mode = int(np.bincount(found.modes).argmax())
    units = in_units(coder.forward(model.transform, vectors, mode), 1 / fine)
    parameters = tables.parameters(weight)
    matrix = torch.from_numpy(x[0, 0])
    basis = np.eye(x.shape[3]) if model.transform.basis is None else model.transform.basis[mode]
    basis = torch.from_numpy(basis.astype(np.float32))
    data, token = codec.encode(x), x[:, :, :1]
    alone = codec.encode(token)
    decoded = codec.decode(data)
    bits = 8 * len(data) / x.size
    calls = {
        "product": lambda: matrix @ basis,
        "search": lambda: choose(tables, parameters, mode, units, len(vectors)),
        "lanes_encode": lambda: coder.encode(tables, found, 0),
        "lanes_decode": lambda: coder.decode(tables, *strings, len(vectors), 0),
        "encode": lambda: codec.encode(x),
        "decode": lambda: codec.decode(data),
        "token_encode": lambda: codec.encode(token),
        "token_decode": lambda: codec.decode(alone),
    }
    took = fastest(repeats, calls)
    rates = {name: x.size / 1e6 / each for name, each in took.items()}
    rates |= {name: 1e6 * took[name] for name in ("token_encode", "token_decode")}
    return SpeedRow(
        quality=codec.quality,
        bpfp=bits,
        nmse=float(np.mean((decoded - x) ** 2) / x.var()),
        **rates,
        encode_ratio=took["encode"] / took["product"],
        decode_ratio=took["decode"] / took["product"],
        break_even=(16 - bits) / 1e3 * x.size / 1e6 / (took["encode"] + took["decode"]),
    )


def fastest(repeats: int, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each call, as :func:`benches.codec.best`. The calls take turns, so that a ratio does
    not depend on what else the machine does at the time."""
    row, took = min(repeats, IN_A_ROW), dict.fromkeys(calls, math.inf)
    for _ in range(-(-repeats // row)):
        for name, call in calls.items():
            took[name] = min(took[name], best(row, call))
    return took
