"""The values that a mapping is fitted on: feature files read one at a time, sampled and clipped."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dtufc import files
from dtufc.errors import UserError
from dtufc.feature import FeatureError, read_feature
from dtufc.transform.choices import Normalise

Truncation = float | list[float] | None
"""A bound for all channels, one per channel, or none."""


@dataclass(frozen=True)
class Samples:
    """Features as float32, in the given order; every pass over them gives the same values.

    Memory: one file at a time.
    """

    paths: Sequence[Path]
    """Feature files."""
    rows: int = 0
    """Tokens (axis H) taken at random from each file, the same in all channels; 0 takes all."""
    seed: int = 0
    """With a file's name, decides which tokens."""
    trun_low: Truncation = None
    """Values below are raised to it."""
    trun_high: Truncation = None
    """Values above are lowered to it."""
    offset: np.ndarray | None = None
    """(C, 1, W) or (C, 1, 1), taken off last; with the next."""
    scale: np.ndarray | None = None
    """What is left is divided by it."""

    def __post_init__(self):
        if not self.paths:
            raise UserError("samples: no feature file to fit on")
        if self.rows < 0:
            raise UserError(f"rows: expected 0 or more, got {self.rows}")
        low, high = np.asarray(self.trun_low, float), np.asarray(self.trun_high, float)
        if self.trun_low is not None and self.trun_high is not None and not (low < high).all():
            raise UserError(f"trun_low: {self.trun_low} is not below trun_high {self.trun_high}")

    def __iter__(self) -> Iterator[np.ndarray]:
        """One (N, C, H', W) float32 array a file.

        Raises:
            FeatureError: a file is no sound feature, or has another number of channels than a
                truncation; the message names it.
        """
        for path in tqdm(self.paths, desc="fit", unit="feature", leave=False, mininterval=1):
            x = read_feature(path)
            if 0 < self.rows < x.shape[2]:
                rng = seeded_rng(self.seed, path.name)
                x = x[:, :, np.sort(rng.choice(x.shape[2], self.rows, replace=False))]
            x = x.astype(np.float32)
            if self.trun_low is not None:
                x = np.maximum(x, _bounds(self.trun_low, x, path))
            if self.trun_high is not None:
                x = np.minimum(x, _bounds(self.trun_high, x, path))
            if self.offset is not None:
                if np.broadcast_shapes(x.shape, self.offset.shape) != x.shape:
                    raise FeatureError(f"{path}: {x.shape}, but other files {self.offset.shape}")
                x = (x - self.offset) / self.scale
            yield x


def normalisation(samples: Samples, normalise: Normalise, channel_axes: Sequence[int]) -> Samples:
    """The same samples with the offset and scale that their own statistics give.

    Args:
        normalise: mean or scale.
        channel_axes: the axes that tell channels apart, (1, 3) of tokens, (1,) of maps; offset and
            scale are (C, 1, W) or (C, 1, 1).
    """
    axes = tuple(axis for axis in range(4) if axis not in channel_axes)
    count, total, square = 0, 0.0, 0.0
    for path, x in zip(samples.paths, samples, strict=True):
        own = x.sum(axes, dtype=np.float64, keepdims=True)[0]
        if count and np.shape(total) != own.shape:
            raise FeatureError(f"{path}: {own.shape} channels, but other files {np.shape(total)}")
        count, total = count + x.size // own.size, total + own
        square = square + np.square(x, dtype=np.float64).sum(axes, keepdims=True)[0]
    offset = total / count
    scale = np.ones_like(offset)
    if normalise == "scale":
        deviation = np.sqrt(np.maximum(square / count - offset**2, 0))
        usual = np.median(deviation)
        scale = np.maximum(deviation, 1e-3 * usual if usual > 0 else 1.0)  # no channel blows up
    return replace(samples, offset=offset.astype(np.float32), scale=scale.astype(np.float32))


def seeded_rng(seed: int, *names: str | int) -> np.random.Generator:
    """Random numbers that depend on the seed and the names only, not on the order of calls."""
    name = files.digest(*(str(part) for part in (seed, *names)))
    return np.random.default_rng(int(name[:32], 16))


def _bounds(bound: float | list[float], x: np.ndarray, path: Path) -> np.ndarray:
    """A bound as (1,) or (C, 1, 1) float32."""
    values = np.asarray(bound, np.float32).reshape(-1, 1, 1)
    if len(values) not in (1, x.shape[1]):
        raise FeatureError(
            f"{path}: {x.shape[1]} channels, but trun_low or trun_high holds {len(values)} values"
        )
    return values
