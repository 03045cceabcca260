"""The curves that runs make, and the machines they are of."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtufc.feature import read_feature
from dtufc.paths import NO_TRANSFORM, FeatureRoot
from dtufc.report.records import COSTS, HYBRID, Run, find_place, judge, read_accuracy


def merge_seeds(runs: Iterable[Run]) -> list[Run]:
    """Runs that differ in nothing but the seed become one, with their mean figures."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.kind, run.codec, run.trained_on, run.transform, run.variant, run.rate)
        groups.setdefault(key, []).append(run)
    merged = []
    for members in groups.values():
        if len(members) == 1:
            merged += members
            continue
        figures: dict[str, Any] = {}
        # the seeds share their samples, so that the mean's error bar is no shorter than theirs
        for figure in ("bpfp", *COSTS, "agreement", "value", "low", "high"):
            found = [getattr(run, figure) for run in members]
            figures[figure] = None if None in found else statistics.fmean(found)
        noise = [run.within_noise for run in members]
        figures["within_noise"] = None if None in noise else all(noise)
        merged.append(replace(members[0], **figures, members=tuple(members)))
    return merged


@dataclass(frozen=True)
class Curve:
    """The runs of one codec configuration on one kind of feature, by rising rate."""

    runs: list[Run]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def name(self) -> str:
        """As ``--anchor`` takes it."""
        return "/".join((self.first.codec, self.first.trained_on, self.first.transform))

    @property
    def style(self) -> tuple[str, bool, str, str]:
        """What is drawn alike on all machines: a codec trained on all, or one trained on its own."""
        run = self.first
        return run.codec, run.trained_on != HYBRID, run.transform, run.variant

    @property
    def label(self) -> str:
        run = self.first
        transform = "" if run.transform == NO_TRANSFORM else run.transform
        # a codec needs the mapping of a kind from outside only if it was not trained on it
        unseen = "unseen" if run.record["config"].get("mapping") else ""
        return " · ".join(filter(None, [run.codec, run.trained_on, transform, run.variant, unseen]))

    def points(self, figure: str) -> list[tuple[float, float]]:
        """(bpfp, figure) where there is one: ``value``, ``low`` and ``high`` of its error bar, ``gain``.
        COSTS are turned so that more is better, -10 log10 of them in dB; none where they are 0."""
        found = [(run.bpfp, getattr(run, figure)) for run in self.runs]
        if figure in COSTS:
            return [(rate, -10 * math.log10(cost)) for rate, cost in found if cost]
        return [point for point in found if point[1] is not None]


def group_curves(runs: Iterable[Run]) -> list[Curve]:
    """The curves of runs on one kind of feature: hybrid codecs first, then by codec."""
    groups: dict[tuple, list[Run]] = {}
    for run in merge_seeds(runs):
        key = (run.trained_on != HYBRID, run.codec, run.trained_on, run.transform, run.variant)
        groups.setdefault(key, []).append(run)
    return [Curve(sorted(groups[key], key=lambda run: run.bpfp)) for key in sorted(groups)]


@dataclass(frozen=True)
class Machine:
    """One kind of feature: its uncompressed accuracy and the curves of the codecs trained for it."""

    kind: str
    root: FeatureRoot
    """Its folder, whether it is there or not."""
    accuracy: dict[str, Any]
    """``accuracy.json`` of the uncompressed features, with its error bar as ``low`` and ``high``; empty
    where there is none."""
    curves: list[Curve]
    bits: int | None = None
    """Bits of a feature point as it is, where the features are there."""

    @property
    def metric(self) -> str | None:
        """Name of the task metric."""
        found = [run.metric for curve in self.curves for run in curve.runs]
        return next(filter(None, [self.accuracy.get("metric"), *found]), None)

    @property
    def features(self) -> list[Path]:
        """Its test features, where they are there."""
        return sorted(self.root.feature_test.glob("[!.]*.npy"))


def read_machine(root: Path, kind: str, runs: Iterable[Run]) -> Machine:
    """A kind of feature with the runs on it."""
    place = find_place(root, kind)
    accuracy = read_accuracy(place.accuracy)
    judged = judge(place.folder)
    if judged is not None and judged.interval is not None:
        accuracy |= dict(zip(("low", "high"), judged.interval, strict=True))
    machine = Machine(kind, place, accuracy, own_curves(kind, runs))
    # of several tensors, the first one tells
    features = machine.features or sorted(place.feature_test.glob("*/[!.]*.npy"))[:1]
    return replace(machine, bits=read_feature(features[0]).itemsize * 8 if features else None)


def own_curves(kind: str, runs: Iterable[Run]) -> list[Curve]:
    """The curves of the codecs that know this kind of feature."""
    return group_curves(run for run in runs if run.kind == kind and not run.is_foreign)
