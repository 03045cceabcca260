"""Values of features before and after their transform."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import entropy, kurtosis

from dtufc.errors import UserError
from dtufc.feature import read_feature
from dtufc.report.curves import Machine
from dtufc.report.table import Table
from dtufc.transform.mapping import Mapping

SAMPLE_FILES, SAMPLE_VALUES = 16, 1 << 16  # of each kind of feature; values are a file's
BINS = 256


@dataclass(frozen=True)
class Distribution:
    """A sample of the values of a kind of feature, before (x) and after (u) a mapping; one axis each."""

    kind: str
    mapping: str
    x: np.ndarray
    u: np.ndarray

    @property
    def span(self) -> tuple[float, float]:
        """Least and greatest x."""
        return float(self.x.min()), float(self.x.max())


def read_distributions(machine: Machine) -> list[Distribution]:
    """The same bounded sample of test features through each mapping of the machine.

    Raises:
        UserError: a feature or a mapping is damaged, or they do not fit; the message names the file.
    """
    features = machine.features[:: math.ceil(len(machine.features) / SAMPLE_FILES) or 1]
    found = machine.root.transform.glob("transform_mapping_*.json") if features else []
    paths = sorted(path for path in found if not path.stem.endswith("_fit"))
    return [Distribution(machine.kind, path.stem, *_sample(features, path)) for path in paths]


def _sample(features: Sequence[Path], path: Path) -> tuple[np.ndarray, np.ndarray]:
    mapping, rng = Mapping.load(path), np.random.default_rng(0)
    before, after = [], []
    for feature in features:
        x = read_feature(feature).astype(np.float32)
        chosen = slice(None) if x.size <= SAMPLE_VALUES else rng.integers(0, x.size, SAMPLE_VALUES)
        try:
            after.append(mapping.forward(x).ravel()[chosen])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        before.append(x.ravel()[chosen])
    return np.concatenate(before).astype(np.float64), np.concatenate(after).astype(np.float64)


def distribution_table(distributions: Sequence[Distribution]) -> Table:
    """How peaky a feature is, and how balanced its mapping makes it."""
    columns = ["evaluated_on", "mapping", "least", "greatest", "excess kurtosis before"]
    columns += ["excess kurtosis after", "entropy before, bits", "entropy after, bits"]
    rows = []
    for each in distributions:
        peaks = [float(kurtosis(values)) for values in (each.x, each.u)]
        counts = [np.histogram(each.x, BINS, each.span)[0], np.histogram(each.u, BINS, (0, 1))[0]]
        bits = [float(entropy(count, base=2)) for count in counts]
        rows.append([each.kind, each.mapping, *each.span, *peaks, *bits])
    return Table("distribution", columns, rows)
