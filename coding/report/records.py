"""What a data root's records say: finished runs, the curves they make, the machines they are of."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from coding import files, paths
from coding.codec import CONFIG_JSON
from coding.errors import UserError
from coding.feature import read_feature
from coding.paths import DataRoot, FeatureRoot

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
    """Pooled, as ``nmse``."""
    nmse: float
    metric: str | None
    """Name of the task metric; none where the machine has no task or has not judged yet."""
    value: float | None
    """The task metric."""
    variant: str = ""
    """What tells it from runs of the same codec, training set and transform, beside the rate."""

    @property
    def rate(self) -> str:
        """The rate parameter: ``lambda0.004``, ``quality1.5``."""
        return self.name.split("_")[0]

    @property
    def is_foreign(self) -> bool:
        """Whether the codec was trained on another machine than this one."""
        return self.trained_on != HYBRID and not self.kind.endswith(f"_{self.trained_on}")

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
        UserError: a record is damaged; the message names it.
    """
    runs, unfinished = [], []
    for folder in sorted(root.glob(str(DataRoot(Path()).coded(*["*"] * 6)))):
        if run := _read_run(folder):
            runs.append(run)
        elif folder.is_dir():
            unfinished.append(str(folder.relative_to(root)))
    if not runs:
        raise FileNotFoundError(
            f"{root}: no finished run under coded/, {len(unfinished)} that are not finished; "
            "coding/CompressAI/run_batch.py or coding/evaluate.py makes them; is --data_root right?"
        )
    return _name_variants(runs), unfinished


def _read_run(folder: Path) -> Run | None:
    run_json, summary_json = folder / paths.RUN_JSON, folder / paths.SUMMARY_JSON
    if not run_json.is_file() or not summary_json.is_file():
        return None
    record = read_record(run_json, config=dict, versions=dict, machine=dict, finished=bool)
    if not record["finished"]:
        return None
    summary = read_record(summary_json, bpfp_pooled=float, nmse_pooled=float)
    if summary["bpfp_pooled"] <= 0:
        raise UserError(f"{summary_json}: bpfp_pooled is {summary['bpfp_pooled']}")
    accuracy = _read_accuracy(folder / paths.ACCURACY_JSON)
    codec, trained, *names = folder.parts[-5:]
    return Run(
        folder, codec, trained.removeprefix("trained_"), *names, record, summary["bpfp_pooled"],
        summary["nmse_pooled"], accuracy.get("metric"), accuracy.get("value"),
    )  # fmt: skip


def _read_accuracy(path: Path) -> dict[str, Any]:
    return read_record(path, metric=str, value=float) if path.is_file() else {}


def read_record(path: Path, **keys: type) -> dict[str, Any]:
    """Read a JSON record.

    Raises:
        UserError: one of these keys has no value of its type; the message names file and key.
    """
    values = files.read_json(path)
    for key, kind in keys.items():
        value = values.get(key) if isinstance(values, dict) else None
        fits = isinstance(value, kind) or (kind is float and type(value) is int)
        if not fits or (kind is float and not math.isfinite(value)):
            raise UserError(f"{path}: not a sound record, {key!r} is {value!r}")
    return values


def _name_variants(runs: Sequence[Run]) -> list[Run]:
    """The runs with their variants.

    Runs of one codec, training set and transform are one curve as long as each rate occurs once, since
    the published epochs and batch sizes go with lambda; else the options that differ tell them apart.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        is_published = bool(run.record["config"].get("published"))
        key = (is_published, run.kind, run.codec, run.trained_on, run.transform)
        groups.setdefault(key, []).append(run)
    named = []
    for (is_published, *_), members in groups.items():
        options = [run.name.split("_")[1:] for run in members]
        common = set.intersection(*map(set, options))
        once = len({run.rate for run in members}) == len(members)
        for run, words in zip(members, options, strict=True):
            parts = [] if once else ["_".join(word for word in words if word not in common)]
            parts += ["published counting"] * is_published
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
        transform = "" if run.transform == paths.NO_TRANSFORM else run.transform
        # a codec needs the mapping of a kind from outside only if it was not trained on it
        unseen = "unseen" if run.record["config"].get("mapping") else ""
        return " · ".join(filter(None, [run.codec, run.trained_on, transform, run.variant, unseen]))

    def points(self, figure: str) -> list[tuple[float, float]]:
        """(bpfp, figure) where there is one: ``value``, or ``snr``, -10 log10 NMSE in dB."""
        if figure == "snr":
            return [(run.bpfp, -10 * math.log10(run.nmse)) for run in self.runs if run.nmse > 0]
        return [(run.bpfp, run.value) for run in self.runs if run.value is not None]


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
    root: FeatureRoot
    """Its folder, whether it is there or not."""
    accuracy: dict[str, Any]
    """``accuracy.json`` of the uncompressed features; empty where there is none."""
    curves: list[Curve]

    @property
    def metric(self) -> str | None:
        """Name of the task metric."""
        found = [run.metric for curve in self.curves for run in curve.runs]
        return next(filter(None, [self.accuracy.get("metric"), *found]), None)

    @property
    def features(self) -> list[Path]:
        """Its test features, where they are there."""
        return sorted(self.root.feature_test.glob("[!.]*.npy"))

    @cached_property
    def bits(self) -> int | None:
        """Bits of a feature point as it is."""
        return read_feature(self.features[0]).itemsize * 8 if self.features else None


def read_machine(root: Path, kind: str, runs: Iterable[Run]) -> Machine:
    """A kind of feature with the runs on it."""
    found = (path for path in root.glob("*/*") if "_".join(path.parts[-2:]) == kind)
    place = FeatureRoot(next(found, root / kind))
    curves = group_curves(run for run in runs if run.kind == kind and not run.is_foreign)
    return Machine(kind, place, _read_accuracy(place.accuracy), curves)
