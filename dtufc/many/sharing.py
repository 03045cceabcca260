"""How tensors share bits: the shift of each tensor's quality, from sensitivities and units."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dtufc.codec import Codec
from dtufc.feature import FeatureFacts, list_features
from dtufc.many.codec import nearest

MOST = 6.0
"""Octaves that a tensor's step may be finer or coarser than at the state's quality."""
PROBES = 2
"""Files of each tensor that are coded to find its codec's unit."""


def share(
    units: Mapping[str, float], sensitivity: Mapping[str, float], points: Mapping[str, float]
) -> dict[str, float]:
    """The shift of each tensor, see :mod:`dtufc.many`.

    Args:
        units: step of the tensor's codec at quality 0.
        sensitivity: damage per squared error; that of a tensor with none is taken to be very small.
        points: of the tensor, the weight in the mean that is taken off.
    """
    found = {name: value for name, value in sensitivity.items() if value > 0}
    if not found:
        return dict.fromkeys(units, 0.0)
    wanted = {
        name: math.log2(units[name]) + math.log2(found[name]) / 2 if name in found else -math.inf
        for name in units
    }
    known = [name for name in units if name in found]
    mean = np.average([wanted[name] for name in known], weights=[points[name] for name in known])
    return {
        name: round(float(np.clip(value - mean, -MOST, MOST)), 4) for name, value in wanted.items()
    }


def unit_of(codec: Codec, facts: FeatureFacts, folder: Path) -> float:
    """The step at quality 0 of a codec whose quality is a logarithm of its step: measured, as every
    codec scales its own way. A fine uniform step Delta has the error Delta^2 / 12."""
    scale = codec.qualities
    quality = nearest(scale, scale[0] + (scale[-1] - scale[0]) * 2 / 3)
    trial = codec.at_quality(quality)
    squares = count = 0
    for path in list_features(folder)[:PROBES]:
        x = facts.read(path)
        decoded = trial.decode_array(trial.encode_array(x))
        squares += float(np.sum((decoded.astype(np.float64) - x) ** 2))
        count += x.size
    return math.sqrt(12 * squares / count) * 2.0**quality if squares > 0 else 1.0
