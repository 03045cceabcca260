"""What a transform is: the values that fit, patches, driver and suites share."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dtufc.errors import UserError
from dtufc.feature import FeatureFacts, load_facts
from dtufc.paths import DataRoot, FeatureRoot, default_data_root
from dtufc.transform.choices import Assignment, Normalise, TransformType

MAX_BIT_DEPTH = 12
"""Largest bit depth that is fitted."""


@dataclass(frozen=True, kw_only=True)
class TransformOptions:
    """The peaky-to-balanced transform of a kind of feature."""

    transform_type: TransformType = "kmeans"
    """kmeans: least squared error. density: equal counts. uniform: even steps."""
    samples: int = 10
    """Features that the codebook is fitted on, the first in the order of their names; 0 takes all."""
    bit_depth: int = 8
    """log2 of the number of levels, 1 to 12."""
    assignment: Assignment = "nearest"
    """How values become levels."""
    normalise: Normalise = "none"
    """Done to each channel (of tokens: column) first. none: as published. mean: its mean taken off.
    scale: that, and its standard deviation made 1."""
    per_channel: bool = False
    """A codebook for each channel (axis C): for tokens of several layers one per layer, else one is
    shared."""

    def __post_init__(self):
        if not 1 <= self.bit_depth <= MAX_BIT_DEPTH:
            raise UserError(f"bit_depth: expected 1 .. {MAX_BIT_DEPTH}, got {self.bit_depth}")
        if self.samples < 0:
            raise UserError(f"samples: expected 0 or more, got {self.samples}")

    @property
    def mapping_name(self) -> str:
        """The published name of the mapping, ``kmeans10_bitdepth8``; a normalisation stands behind it.
        A mapping's file does not depend on the assignment."""
        suffix = "" if self.normalise == "none" else f"_{self.normalise}"
        return f"{self.transform_type}{self.samples}_bitdepth{self.bit_depth}{suffix}"

    @property
    def transform_name(self) -> str:
        """The published folder name of the transform, ``kmeans10_bitdepth8``; another assignment than
        nearest, a normalisation and a codebook per channel stand behind it:
        ``kmeans10_bitdepth8_left_mean``."""
        name = f"{self.transform_type}{self.samples}_bitdepth{self.bit_depth}"
        suffix = "" if self.assignment == "nearest" else f"_{self.assignment}"
        suffix += "" if self.normalise == "none" else f"_{self.normalise}"
        return name + suffix + ("_perchannel" if self.per_channel else "")


@dataclass(frozen=True, kw_only=True)
class MachineTransform(TransformOptions):
    """The transform of one machine's features, and where they lie."""

    machine: str = "resnet50_tiny"
    """Machine preset or YAML file: the facts of the features."""
    data_root: Path = field(default_factory=default_data_root)
    """Where features, mappings and patches lie."""

    @cached_property
    def facts(self) -> FeatureFacts:
        """The facts of the machine's features."""
        return load_facts(self.machine)

    @property
    def root(self) -> FeatureRoot:
        """The machine's folder."""
        return DataRoot(self.data_root).feature(self.facts.model, self.facts.task)
