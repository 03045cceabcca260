"""A linear head on features of your own: ``python linear.py --machine MY.yaml --features DIR``.

    feature ─ pooling ─ weight, bias ─> class ─ against labels ─> top-1

The features are simply there, under the data root, and are not made here. The YAML's ``machine:`` block
names the head (``.safetensors`` or ``.npz``), the labels (a CSV name,label) and the pooling; both paths
are relative to the YAML's folder. ``--fit true`` fits the head to the training features first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dtufc import config
from dtufc.errors import UserError
from dtufc.feature import find_machine_config, list_features
from dtufc.machines.command import parse_options, run
from dtufc.machines.linear.fitting import fit_head, training_paths
from dtufc.machines.linear.head import (
    Head,
    Pooling,
    check_classes,
    find_labels,
    pool,
    read_head,
    read_labels,
    save_head,
)
from dtufc.machines.machine import Machine, Sample, Score, Split, score_top1
from dtufc.machines.options import MachineOptions

PRESET = "linear"


@dataclass(frozen=True, kw_only=True)
class LinearOptions(MachineOptions):
    """A linear head on pooled features."""

    mode: Literal["extract", "evaluate", "both"] = "evaluate"
    """evaluate: features to top-1 accuracy. The others are refused, the features come from elsewhere."""
    head: str = "head.safetensors"
    """The weights, relative to the YAML's folder: .safetensors or .npz with one matrix (classes, width)
    and at most one vector (classes)."""
    labels: str = "labels.csv"
    """The class of each feature, relative to the YAML's folder: a CSV with the columns name and label.
    Labels are numbers from 0 on, or names where the head's file has classes."""
    pooling: Pooling = "mean"
    """What the head sees: mean or max over all tokens or positions, cls: the first token, none: all
    values of the feature."""
    fit: bool = False
    """Fit the head to the training features and write it first."""

    def beside(self, name: str) -> Path:
        """A path of the YAML."""
        return find_machine_config(self.machine).resolve().parent / name


class LinearMachine(Machine):
    """A back half alone: pooling and a linear layer."""

    def __init__(self, options: LinearOptions):
        self.options, self.views = options, options.facts.views

    @cached_property
    def head(self) -> Head:
        return read_head(self.options.beside(self.options.head))

    def samples(self, split: Split) -> list[Sample]:
        """The features of the data root's split, which must all have labels; for the test split without
        a data root, all that have labels."""
        root, path = self.options.root, self.options.beside(self.options.labels)
        folders = {"train": root.feature_train / "train", "validation": root.feature_train / "test"}
        folder = folders.get(split, root.feature_test)
        labels = read_labels(path)
        if split != "test" or folder.is_dir():
            labels = find_labels(labels, list_features(folder), path)
        check_classes(self.head, [*labels.values()], path)
        return [Sample(name, None, label) for name, label in labels.items()]

    def origin(self) -> dict[str, Any]:
        return {}  # of features, which are not made here

    def inputs(self) -> list[Path]:
        return [self.options.beside(name) for name in (self.options.head, self.options.labels)]

    def extract(self, sample: Sample) -> np.ndarray:
        raise UserError("mode: a linear head makes no features, it judges those that are there")

    def predict(self, sample: Sample, feature: np.ndarray) -> str:
        pooled = pool(feature, self.views, self.options.pooling)
        width = self.head.weight.shape[1]
        if len(pooled) != width:
            raise UserError(
                f"{sample.name}: {len(pooled)} values after pooling {self.options.pooling}, the head of "
                f"{self.options.machine} takes {width}"
            )
        return self.head.predict(pooled)

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Top-1 accuracy, 0..1."""
        return score_top1(samples, predictions)


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(LinearOptions, PRESET, argv, __doc__)
        if options.mode != "evaluate":
            raise UserError(
                "mode: a linear head makes no features; put the .npy files under "
                f"{options.root.folder}, or run scripts/compare.py"
            )
        if options.fit:
            path = options.beside(options.labels)
            paths = training_paths(options.root)
            labels = find_labels(read_labels(path), paths, path)
            head = fit_head(paths, labels, options.facts.views, options.pooling)
            save_head(options.beside(options.head), head)
            options = replace(options, fit=False)  # scores know the head by its content
        run(LinearMachine(options), options)


if __name__ == "__main__":
    main()
