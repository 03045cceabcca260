"""The work of ``bench_klt_shortlist.py``."""

from dataclasses import dataclass

import numpy as np
import torch
from bench_klt_shortlist import ShortlistConfig
from benches.codec import best

from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import list_features
from dtufc.klt.codec import KltCodec
from dtufc.klt.model import KltModel

COUNTS = (1, 64, 256)
"""Tokens that are coded at once where time is taken."""


@dataclass(frozen=True)
class ShortlistRow:
    """One quality, and how many clusters are tried."""

    quality: float
    tried: str
    mean: float
    """Clusters that are tried on a token."""
    bpfp: float
    nmse: float
    bits_percent: float
    """More bits than with all clusters, at equal NMSE."""
    ms_1: float | None
    """Milliseconds from one token to cluster and symbols."""
    ms_64: float | None
    ms_256: float | None


def bench(cfg: ShortlistConfig) -> list[ShortlistRow]:
    """Rate, error and times, a row for each quality and way.

    Raises:
        UserError: no klt codec with a shortlist.
    """
    torch.set_num_threads(1)
    codec = load_codec(cfg.codec)
    every = codec.model.transform.layout.clusters if isinstance(codec, KltCodec) else 0
    tokens = gather(codec, cfg) if every > 1 else np.empty(0)
    if every < 2 or codec.model.shortlist(tokens[:1], 0, 1) is None:
        raise UserError(f"{cfg.codec}: no klt mixture that has a shortlist")
    ways = [*[most for most in cfg.tried if most < every], every]
    grades = [codec.at_quality(quality).grade for quality in cfg.qualities]
    curves = {most: [measure(codec.model, tokens, at, most) for at in grades] for most in ways}
    known = np.log(np.array(curves[every])).T  # of bits and NMSE
    rows = []
    for number, (quality, grade) in enumerate(zip(cfg.qualities, grades, strict=True)):
        for most in ways:
            bits, nmse = curves[most][number]
            alike = np.exp(np.interp(np.log(nmse), known[1][::-1], known[0][::-1]))
            mean = every if most == every else mean_tried(codec.model, tokens, grade, most)
            took = [milliseconds(codec.model, tokens[:n], grade, most, cfg) for n in COUNTS]
            rows.append(
                ShortlistRow(
                    quality, "all" if most == every else str(most), mean, bits, nmse,
                    100 * (bits / alike - 1), *took,
                )
            )  # fmt: skip
    return rows


def gather(codec: KltCodec, cfg: ShortlistConfig) -> np.ndarray:
    """Tokens of the features, (R, C, 1)."""
    found = [codec.model.to_vectors(codec.facts.read(path)) for path in list_features(cfg.features)]
    x = np.concatenate(found)
    places = np.linspace(0, len(x) - 1, min(cfg.tokens, len(x))).astype(int)
    return x[places]


def measure(model: KltModel, tokens: np.ndarray, grade: int, most: int) -> tuple[float, float]:
    """Bits per point and NMSE where ``most`` clusters are tried."""
    modes, symbols, bits, raw, _ = model.quantise(tokens, grade, most=most)
    away = (model.restore(modes, symbols, grade) - tokens)[~raw]
    error = np.square(away, dtype=np.float64).sum() / tokens.size
    return bits.sum() / tokens.size, error / tokens.var(dtype=np.float64)


def mean_tried(model: KltModel, tokens: np.ndarray, grade: int, most: int) -> float:
    """Clusters that are tried on a token."""
    return float(model.shortlist(tokens, grade, most).sum(1).mean())


def milliseconds(
    model: KltModel, tokens: np.ndarray, grade: int, most: int, cfg: ShortlistConfig
) -> float | None:
    """From tokens to clusters and symbols, where times are taken."""
    if not cfg.repeats:
        return None
    return 1e3 * best(cfg.repeats, lambda: model.quantise(tokens, grade, most=most))
