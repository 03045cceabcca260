"""Rate control: the quality at which a target is met, for one feature or for many pooled.

    data = codec.encode(x, max_bytes=4096)             this feature, at the best quality in 4096 bytes
    data = codec.encode(x, target_bpfp=0.5)            this feature, at the best quality within 0.5
    codec = rate.reach(codec, features, target_bpfp=0.5)    all of them together, at one quality

Pooled, some features take more than the target and others less: total bits over total points, or total
squared error over the variance of all values, is what meets it. Both search the codec's qualities by
bisection, which takes for granted that more quality means more bytes and less error. What is returned
was measured: it never misses the target.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from dtufc.errors import UserError
from dtufc.feature import Moments, points, read_feature
from dtufc.tensors import Values, samples

if TYPE_CHECKING:
    from dtufc.codec import Codec

C = TypeVar("C")
"""A codec: it has ``qualities`` and ``at_quality``."""


@dataclass(frozen=True)
class Target:
    """What the coding of one feature must hold; one of them at most.

    Raises:
        UserError: several are given, or one that is not above 0.
    """

    max_bytes: int | None = None
    """Most bytes of the whole bitstream, header and checksum included."""
    target_bpfp: float | None = None
    """Most bits per feature point, 8 * bytes / (N*C*H*W)."""
    target_nmse: float | None = None
    """Largest mean squared error over the variance of the feature's own values."""

    def __post_init__(self):
        given = self._given
        if len(given) > 1:
            raise UserError("max_bytes, target_bpfp, target_nmse: give one of them at most")
        if any(not 0 < value < math.inf for value in given):
            raise UserError("max_bytes, target_bpfp, target_nmse: expected a number above 0")

    @property
    def is_none(self) -> bool:
        """Whether nothing is asked for."""
        return self.max_bytes is self.target_bpfp is self.target_nmse is None

    def __str__(self) -> str:
        return ", ".join(f"{k}: {v:g}" for k, v in asdict(self).items() if v is not None)

    def value(self, data: bytes, x: np.ndarray, codec: "Codec") -> float:
        """What the target is about, of a coded feature."""
        if self.max_bytes is not None:
            return len(data)
        if self.target_bpfp is not None:
            return 8 * len(data) / points(x.shape)
        moments = Moments()
        moments.add(x)
        return _ratio(_squared_error(codec, data, x), moments.variance * x.size)

    @property
    def limit(self) -> float:
        """What the value must not exceed."""
        return self._given[0]

    @property
    def _given(self) -> list[float]:
        every = self.max_bytes, self.target_bpfp, self.target_nmse
        return [value for value in every if value is not None]


class Coded(NamedTuple):
    """A coded feature."""

    data: bytes
    """The whole bitstream."""
    quality: float | None
    """The quality that was taken; ``None`` of a codec that has one rate only."""


def encode(codec: "Codec", x: np.ndarray, kind: str | None, target: Target) -> Coded:
    """One feature at the best quality within the target's bytes, or the lowest within its error.

    Args:
        x: (N, C, H, W) as :meth:`dtufc.codec.Codec.encode_array` takes it.

    Raises:
        UserError: no quality meets the target; the message says how near the codec comes to it.
        FeatureError: as :meth:`dtufc.codec.Codec.encode`.
    """
    if target.is_none:
        return Coded(codec.encode_array(x, kind), codec.quality)
    met: list[Coded] = []

    def measure(trial: "Codec", quality: float | None) -> float:
        data = trial.encode_array(x, kind)
        value = target.value(data, x, trial)
        if value <= target.limit:
            met[:] = [Coded(data, quality)]
        return value

    search(codec, measure, target)
    return met[0]


def reach(
    codec: "Codec",
    features: "Values | Iterable[Values | Path]",
    kind: str | None = None,
    *,
    target_bpfp: float | None = None,
    target_nmse: float | None = None,
) -> "Codec":
    """The codec at the highest quality at which all features together take ``target_bpfp`` at most, or
    at the lowest at which they have ``target_nmse`` at most. Every trial codes all features.

    Args:
        features: arrays or tensors as :meth:`dtufc.codec.Codec.encode` takes them, paths of feature
            files, or one batch (B, C, H, W).
        target_bpfp: total bits over total points.
        target_nmse: total squared error over the total variance, that of all values around one mean.

    Raises:
        UserError: no target or two, no features, or no quality meets the target.
        FeatureError: as :meth:`dtufc.codec.Codec.encode`.
    """
    target = Target(target_bpfp=target_bpfp, target_nmse=target_nmse)
    if target.is_none:
        raise UserError("target_bpfp, target_nmse: give one of them")
    items = list(samples(features))
    if not items:
        raise UserError("features: there are none")

    def read(item: "Values | Path") -> np.ndarray:
        x = read_feature(item) if isinstance(item, str | Path) else item
        return codec.as_feature(x, kind)

    moments = Moments()
    for item in items if target_nmse is not None else ():
        moments.add(read(item))

    def measure(trial: "Codec", quality: float | None) -> float:
        total_bytes = total_points = 0
        squares = 0.0
        for item in items:
            x = read(item)
            data = trial.encode_array(x, kind)
            total_bytes, total_points = total_bytes + len(data), total_points + x.size
            if target_nmse is not None:
                squares += _squared_error(trial, data, x)
        if target_nmse is not None:
            return _ratio(squares, moments.variance * total_points)
        return 8 * total_bytes / total_points

    return search(codec, measure, target)


def search(codec: C, measure: Callable[[C, float | None], float], target: Target) -> C:
    """The codec at the last quality that meets a target of rate, or the first that meets one of error;
    the last trial that met the target is of that quality. It may be a codec of features or of states.

    Args:
        measure: the value of a trial, which the target limits.

    Raises:
        UserError: no quality meets it.
    """
    scale: Sequence[float | None] = codec.qualities or (None,)
    values: list[float] = []
    by_error = target.target_nmse is not None

    def at(place: int) -> C:
        quality = scale[place]
        return codec if quality is None else codec.at_quality(quality)

    def is_fine(place: int) -> bool:
        values.append(measure(at(place), scale[place]))
        met = values[-1] <= target.limit
        return met if by_error else not met

    # all of the coarser side have been found coarse, all of the finer side fine: both ends were tried
    first_fine = bisect_left(range(len(scale)), True, key=is_fine)
    place = first_fine if by_error else first_fine - 1
    if 0 <= place < len(scale):
        return at(place)
    least = min(values)
    near = "its one rate" if scale[0] is None else f"qualities of {scale[0]:g} .. {scale[-1]:g}"
    raise UserError(f"{target} is out of reach at {near}; the nearest was {least:g}")


def _squared_error(codec: "Codec", data: bytes, x: np.ndarray) -> float:
    return float(np.sum(np.square(codec.decode_array(data).astype(np.float64) - x)))


def _ratio(error: float, power: float) -> float:
    """Error over power; of constant values, which have none, 0 where they are exact."""
    if power > 0:
        return error / power
    return 0.0 if error == 0 else math.inf
