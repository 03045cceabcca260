"""The choices that a transform leaves, as types: what options, suites and mappings share."""

from typing import Literal, get_args

TransformType = Literal["kmeans", "density", "uniform"]
Assignment = Literal["nearest", "left", "continuous"]
Normalise = Literal["none", "mean", "scale"]
"""What is done to each channel before the codebook: nothing, its mean taken off, or that and its
standard deviation made 1."""
TRANSFORM_TYPES: tuple[str, ...] = get_args(TransformType)
ASSIGNMENTS: tuple[str, ...] = get_args(Assignment)
