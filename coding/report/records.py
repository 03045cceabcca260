"""What a data root's records say: finished runs, the curves they make, the machines they are of.

Read are ``run.json``, ``summary.json``, ``accuracy.json`` and ``rate.csv``, never logs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from coding import files, records
from coding.codec import CONFIG_JSON
from coding.feature import list_features, read_feature
from coding.paths import ACCURACY_JSON, RATE_CSV, RUN_JSON, SUMMARY_JSON, DataRoot, FeatureRoot

HYBRID = "hybrid"


@dataclass(frozen=True)
class Run:
    """A codec at one rate on one kind of feature, as its folder records it."""

    folder: Path
    codec: str
    trained_on: str
    transform: str
    name: str
    """Folder of the run: the rate parameter, then other options, ``lambda0.004_epochs40_...``."""
    kind: str
    """What was coded: ``<model>_<task>``."""
    record: dict[str, Any]
    """``run.json``."""
    bpfp: float
    """Pooled."""
    nmse: float
    """Pooled."""
    accuracy: dict[str, Any]
    """``accuracy.json``; empty where the machine has no task or has not judged yet."""
    variant: str = ""
    """What tells it from runs of the same codec, training set and transform, beside the rate."""

    @property
    def metric(self) -> str | None:
        """Name of the task metric."""
        return self.accuracy.get("metric")

    @property
    def value(self) -> float | None:
        """The task metric."""
        return self.accuracy.get("value")

    @property
    def rate(self) -> str:
        """The rate parameter: ``lambda0.004``, ``quality1.5``."""
        return self.name.split("_")[0]

    @property
    def is_published(self) -> bool:
        """Whether it counts as the published evaluation does."""
        return bool(self.record["config"].get("published"))

    @property
    def is_foreign(self) -> bool:
        """Whether the codec was trained on another machine than this one."""
        return self.trained_on != HYBRID and not self.kind.endswith(f"_{self.trained_on}")

    @cached_property
    def rows(self) -> list[records.RateRow]:
        """``rate.csv``."""
        return records.read_rate(self.folder / RATE_CSV)

    def codec_folder(self, root: Path) -> Path | None:
        """The folder of its codec: in this data root's own layout, else where the run had it."""
        used = Path(self.record["config"].get("codec") or "")
        names = (self.codec, self.trained_on, self.transform)
        folders = [DataRoot(root).codec(*names, name) for name in (self.name, used.name)]
        return next((path for path in [*folders, used] if (path / CONFIG_JSON).is_file()), None)


def read_runs(root: Path) -> tuple[list[Run], list[str]]:
    """The finished runs under a data root, and the folders of those that are not.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: a record is damaged; the message names it.
    """
    runs, unfinished = [], []
    for folder in sorted(root.glob(str(DataRoot(Path()).coded(*["*"] * 6)))):
        if not folder.is_dir():
            continue
        run = _read_run(folder)
        if run is None:
            unfinished.append(str(folder.relative_to(root)))
        else:
            runs.append(run)
    if not runs:
        started = f" ({len(unfinished)} are not finished)" if unfinished else ""
        raise FileNotFoundError(
            f"{root}: no finished run under coded/{started}; coding/CompressAI/run_batch.py or "
            "coding/evaluate.py makes them; is --data_root right?"
        )
    return _name_variants(runs), unfinished


def _read_run(folder: Path) -> Run | None:
    if not (folder / RUN_JSON).is_file() or not (folder / SUMMARY_JSON).is_file():
        return None
    record = read_record(folder / RUN_JSON, config=dict, versions=dict, machine=dict, finished=bool)
    if not record["finished"]:
        return None
    summary = read_record(folder / SUMMARY_JSON, bpfp_pooled=float, nmse_pooled=float)
    if summary["bpfp_pooled"] <= 0:
        raise ValueError(f"{folder / SUMMARY_JSON}: bpfp_pooled is {summary['bpfp_pooled']}")
    codec, trained, transform, name, kind = folder.parts[-5:]
    return Run(
        folder, codec, trained.removeprefix("trained_"), transform, name, kind, record,
        summary["bpfp_pooled"], summary["nmse_pooled"], _read_accuracy(folder / ACCURACY_JSON),
    )  # fmt: skip


def _read_accuracy(path: Path) -> dict[str, Any]:
    return read_record(path, metric=str, value=float) if path.is_file() else {}


def read_record(path: Path, **keys: type) -> dict[str, Any]:
    """Read a JSON record.

    Raises:
        ValueError: one of these keys has no value of its type; the message names file and key.
    """
    values = files.read_json(path)
    for key, kind in keys.items():
        value = values.get(key) if isinstance(values, dict) else None
        fits = isinstance(value, kind) or (kind is float and type(value) is int)
        if not fits or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{path}: not a sound record, {key!r} is {value!r}")
    return values


def _name_variants(runs: Sequence[Run]) -> list[Run]:
    """The runs with their variants.

    Runs of one codec, training set and transform are one curve as long as each rate occurs once, since
    the published epochs and batch sizes go with lambda; else the options that differ tell them apart.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.kind, run.codec, run.trained_on, run.transform, run.is_published)
        groups.setdefault(key, []).append(run)
    named = []
    for members in groups.values():
        options = [run.name.split("_")[1:] for run in members]
        common = set.intersection(*map(set, options))
        once = len({run.rate for run in members}) == len(members)
        for run, words in zip(members, options, strict=True):
            parts = [] if once else ["_".join(word for word in words if word not in common)]
            parts += ["published counting"] if run.is_published else []
            named.append(replace(run, variant=", ".join(parts)))
    return named


@dataclass(frozen=True)
class Curve:
    """The runs of one codec configuration on one kind of feature, by rising rate."""

    runs: list[Run]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def style(self) -> tuple[str, bool, str, str]:
        """What is drawn alike on all machines: a codec trained on all, or one trained on its own."""
        run = self.first
        return run.codec, run.trained_on == HYBRID, run.transform, run.variant

    @property
    def label(self) -> str:
        run = self.first
        transform = "" if run.transform == "none" else run.transform
        # a codec needs the mapping of a kind from outside only if it was not trained on it
        unseen = "unseen" if run.record["config"].get("mapping") else ""
        parts = [run.codec, run.trained_on, transform, run.variant, unseen]
        return " · ".join(part for part in parts if part)

    def points(self, figure: str) -> list[tuple[float, float]]:
        """(bpfp, figure) where there is one: ``value``, ``nmse``, or ``snr``, -10 log10 NMSE in dB."""
        if figure == "snr":
            return [(run.bpfp, -10 * math.log10(run.nmse)) for run in self.runs if run.nmse > 0]
        found = [(run.bpfp, getattr(run, figure)) for run in self.runs]
        return [(bpfp, value) for bpfp, value in found if value is not None]


def group_curves(runs: Iterable[Run]) -> list[Curve]:
    """The curves of runs on one kind of feature: hybrid codecs first, then by codec."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.trained_on != HYBRID, run.codec, run.trained_on, run.transform, run.variant)
        groups.setdefault(key, []).append(run)
    return [Curve(sorted(groups[key], key=lambda run: run.bpfp)) for key in sorted(groups)]


@dataclass(frozen=True)
class Machine:
    """One kind of feature: its uncompressed accuracy and the curves of the codecs trained for it."""

    kind: str
    root: FeatureRoot | None
    """Its folder, where the data root has it."""
    accuracy: dict[str, Any]
    """``accuracy.json`` of the uncompressed features; empty where there is none."""
    curves: list[Curve]

    @property
    def metric(self) -> str | None:
        """Name of the task metric."""
        found = [run.metric for curve in self.curves for run in curve.runs]
        return next(filter(None, [self.accuracy.get("metric"), *found]), None)

    @cached_property
    def features(self) -> list[Path]:
        """Its test features, where they are there."""
        if self.root is None or not any(self.root.feature_test.glob("*.npy")):
            return []
        return list_features(self.root.feature_test)

    @cached_property
    def bits(self) -> int | None:
        """Bits of a feature point as it is."""
        return read_feature(self.features[0]).itemsize * 8 if self.features else None


def read_machine(root: Path, kind: str, runs: Iterable[Run]) -> Machine:
    """A kind of feature with the runs on it."""
    words = kind.split("_")
    names = [("_".join(words[:i]), "_".join(words[i:])) for i in range(1, len(words))]
    roots = [DataRoot(root).feature(model, task) for model, task in names]
    found = next((place for place in roots if place.folder.is_dir()), None)
    accuracy = _read_accuracy(found.accuracy) if found else {}
    curves = group_curves(run for run in runs if run.kind == kind and not run.is_foreign)
    return Machine(kind, found, accuracy, curves)
