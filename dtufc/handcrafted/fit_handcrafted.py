"""Fit a handcrafted codec: ``python fit_handcrafted.py --codec int --features DIR --output DIR``.

Finds the bounds between which values are quantised, on training features of one kind: for ``int`` the
bounds of the least squared error for each channel and bit depth, on a sample; for the pictures of
``jpegxl`` and ``hevc`` the least and the greatest value. ``cast`` needs none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dtufc import config, locks, provenance
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts, list_features
from dtufc.fitting import FitOptions
from dtufc.handcrafted.codec import BITS, HandcraftedCodec
from dtufc.registry import find_codec

SHARES = np.linspace(0.1, 1, 19)  # of the way from the mean to the least and the greatest value
SAMPLE = 4_000_000  # values at most that bounds are tried on


@dataclass(frozen=True, kw_only=True)
class FitConfig(FitOptions):
    """Fitting of a handcrafted codec."""

    codec: str
    """Which one: int, cast, jpegxl or hevc."""
    quality: float | None = None
    """What the codec takes where nothing is asked for; null takes 8 bits, bfloat16, distance 1.6 or
    QP 27."""

    def __post_init__(self):
        if self.codec not in DEFAULT_QUALITY:
            raise UserError(f"codec: expected one of {[*DEFAULT_QUALITY]}, got {self.codec!r}")


DEFAULT_QUALITY = {"int": 8.0, "cast": 8.0, "jpegxl": 4.0, "hevc": 4.0}


def fit(cfg: FitConfig) -> HandcraftedCodec:
    """Fit and write the codec folder.

    Raises:
        FeatureError, FileNotFoundError, UserError: no features, or unsound ones, or of another kind
            than the facts say; the message names the file.
    """
    paths = list_features(cfg.features)
    facts = cfg.facts()
    quality = DEFAULT_QUALITY[cfg.codec] if cfg.quality is None else cfg.quality
    codec_class = find_codec(cfg.codec).load_class()
    with locks.hold(cfg.output):
        return _fit(cfg, paths, facts, quality, codec_class)


def _fit(
    cfg: FitConfig,
    paths: Sequence[Path],
    facts: FeatureFacts,
    quality: float,
    codec_class: type[HandcraftedCodec],
) -> HandcraftedCodec:
    run = provenance.Run(cfg.output, cfg, cfg.stamp())
    if cfg.codec == "int":
        arrays = fit_integer(paths, facts)
    else:
        low, high = fit_bounds(paths, facts)
        arrays = {"low": low, "high": high} if codec_class.arrays_of else {}
    codec = codec_class(facts, arrays, quality)
    codec.save(cfg.output, quality, {"files": len(paths)})
    run.finish()
    return codec


def fit_bounds(paths: Sequence[Path], facts: FeatureFacts) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value, (1,) float32 each, apart."""
    low, high = np.inf, -np.inf
    for path in tqdm(paths, desc="bounds", unit="feature", mininterval=1):
        x = facts.read(path)
        low, high = min(low, float(x.min())), max(high, float(x.max()))
    return np.array([low], np.float32), np.array([max(high, low + 1e-6)], np.float32)


def fit_integer(paths: Sequence[Path], facts: FeatureFacts) -> dict[str, np.ndarray]:
    """Lower bound and step of each bit depth and channel, (7, channels) float32."""
    total = sum(facts.read(path).size for path in paths)
    rng = np.random.default_rng(0)
    kept, least, greatest = [], [], []
    for path in tqdm(paths, desc="bounds", unit="feature", mininterval=1):
        matrix = facts.views.to_matrix(facts.read(path))
        least.append(matrix.min(0))
        greatest.append(matrix.max(0))
        kept.append(matrix[rng.random(len(matrix)) < max(SAMPLE / total, 1 / len(matrix))])
    sample = np.concatenate(kept)
    low, high, mean = np.min(least, 0), np.max(greatest, 0), sample.mean(0)
    out = {"low": [], "step": []}
    for bits in BITS:
        best = np.full(len(mean), np.inf)
        chosen_low, chosen_step = low.copy(), np.ones_like(low)
        for share in SHARES:
            bound = mean + share * (low - mean)
            step = np.maximum(share * (high - low) / ((1 << bits) - 1), 1e-30).astype(np.float32)
            q = np.clip(np.rint((sample - bound) / step), 0, (1 << bits) - 1)
            error = np.mean(np.square(q * step + bound - sample), 0)
            better = error < best
            best = np.where(better, error, best)
            chosen_low = np.where(better, bound, chosen_low)
            chosen_step = np.where(better, step, chosen_step)
        out["low"].append(chosen_low.astype(np.float32))
        out["step"].append(chosen_step.astype(np.float32))
    return {name: np.stack(rows) for name, rows in out.items()}


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(FitConfig, argv, __doc__)
        codec = fit(cfg)
        print(f"{cfg.codec}, {codec.facts.kind} -> {cfg.output}")


if __name__ == "__main__":
    main()
