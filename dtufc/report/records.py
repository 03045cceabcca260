"""What a data root's records say: finished runs, the curves they make, the machines they are of."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtufc import files
from dtufc.errors import UserError
from dtufc.feature import read_feature
from dtufc.paths import (
    ACCURACY_CSV,
    ACCURACY_JSON,
    CONFIG_JSON,
    NO_TRANSFORM,
    RUN_JSON,
    SUMMARY_JSON,
    FeatureRoot,
)
from dtufc.report.judged import Judged, read_judged

HYBRID = "hybrid"


@dataclass(frozen=True)
class Run:
    """A codec at one rate on one kind of feature, as ``run.json`` records it; or several seeds of it."""

    folder: Path
    codec: str
    trained_on: str
    transform: str
    kind: str
    """What was coded: ``<model>_<task>``."""
    lambda_value: float | None
    quality: float | None
    seed: int
    options: dict[str, Any]
    """What else tells the codec from others."""
    record: dict[str, Any]
    """``run.json``."""
    bpfp: float
    """Pooled, as ``nmse``."""
    nmse: float
    metric: str | None
    """Name of the task metric; none where the machine has no task or has not judged yet."""
    value: float | None
    """The task metric."""
    low: float | None = None
    """Lower end of the metric's error bar, see :mod:`dtufc.report.judged`."""
    high: float | None = None
    """Its upper end."""
    within_noise: bool | None = None
    """Whether the metric's difference to that of the uncompressed features may be chance."""
    samples: int | None = None
    """So many were judged."""
    variant: str = ""
    """What tells it from runs of the same codec, training set and transform, beside the rate."""
    members: tuple["Run", ...] = ()
    """The runs of single seeds, where this is their mean."""

    @property
    def rate(self) -> str:
        """The rate parameter: ``lambda0.004``, ``quality1.5``."""
        if self.lambda_value is not None:
            return f"lambda{self.lambda_value:g}"
        return "one rate" if self.quality is None else f"quality{self.quality:g}"

    @property
    def name(self) -> str:
        """The rate parameter and the seed, or the number of seeds with the spread over them."""
        if self.members:
            return f"{self.rate}, {len(self.members)} seeds, bpfp ± {self.spread('bpfp'):.2g}"
        return f"{self.rate}, seed {self.seed}" if self.seed else self.rate

    @property
    def singles(self) -> tuple["Run", ...]:
        """The runs of single seeds."""
        return self.members or (self,)

    def spread(self, figure: str) -> float:
        """Standard deviation of a figure over the seeds."""
        return statistics.stdev(getattr(run, figure) for run in self.members)

    @property
    def is_foreign(self) -> bool:
        """Whether the codec was trained on another machine than this one."""
        return self.trained_on != HYBRID and not self.kind.endswith(f"_{self.trained_on}")

    def codec_folder(self, root: Path) -> Path | None:
        """The folder of its codec: where the run had it, or the same place in this data root."""
        used = Path(self.record["config"].get("codec") or "")
        below = used.parts[used.parts.index("codecs") :] if "codecs" in used.parts else ()
        folders = [root.joinpath(*below), used] if below else [used]
        return next((path for path in folders if (path / CONFIG_JSON).is_file()), None)


def read_runs(root: Path) -> tuple[list[Run], list[str]]:
    """The finished runs under a data root, and the folders of those that are not.

    Raises:
        FileNotFoundError: there is no finished run.
        UserError: a record is damaged; the message names it.
    """
    runs, unfinished = [], []
    uncoded: dict[str, Judged | None] = {}
    for path in sorted((root / "coded").rglob(RUN_JSON)):
        if run := _read_run(path.parent):
            if run.kind not in uncoded:
                uncoded[run.kind] = judge(find_place(root, run.kind).folder)
            runs.append(_with_noise(run, uncoded[run.kind]))
        else:
            unfinished.append(str(path.parent.relative_to(root)))
    if not runs:
        raise FileNotFoundError(
            f"{root}: no finished run under coded/, {len(unfinished)} that are not finished; "
            "coding/CompressAI/run_batch.py or coding/evaluate.py makes them; is --data_root right?"
        )
    return name_variants(runs), unfinished


def _read_run(folder: Path) -> Run | None:
    """A finished run; ``None`` where it is not finished, or was recorded without labels long ago."""
    run_json, summary_json = folder / RUN_JSON, folder / SUMMARY_JSON
    record = read_record(run_json, config=dict, finished=bool)
    labels = record.get("labels")
    if not record["finished"] or not summary_json.is_file() or not labels:
        return None
    read_record(run_json, labels=dict, processes=list)
    summary = read_record(summary_json, bpfp_pooled=float, nmse_pooled=float)
    if summary["bpfp_pooled"] <= 0:
        raise UserError(f"{summary_json}: bpfp_pooled is {summary['bpfp_pooled']}")
    accuracy = _read_accuracy(folder / ACCURACY_JSON)
    told = {field: labels.get(field) for field in ("codec", "trained_on", "transform", "kind")}
    if not all(isinstance(value, str) for value in told.values()):
        raise UserError(f"{run_json}: not a sound record, 'labels' is {labels!r}")
    return Run(
        folder,
        **told,
        lambda_value=labels.get("lambda_value"),
        quality=labels.get("quality"),
        seed=labels.get("seed") or 0,
        options=labels.get("options") or {},
        record=record,
        bpfp=summary["bpfp_pooled"],
        nmse=summary["nmse_pooled"],
        metric=accuracy.get("metric"),
        value=accuracy.get("value"),
        samples=accuracy.get("samples"),
    )


def _with_noise(run: Run, uncoded: Judged | None) -> Run:
    """The run with its error bar."""
    judged = judge(run.folder)
    if judged is None or judged.interval is None:
        return run
    low, high = judged.interval
    noise = None if uncoded is None else judged.within_noise(uncoded)
    return replace(run, low=low, high=high, within_noise=noise)


def judge(folder: Path) -> Judged | None:
    """What a machine said of each sample; ``None`` where it kept no rows of them."""
    return read_judged(folder / ACCURACY_CSV, _read_accuracy(folder / ACCURACY_JSON))


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


def name_variants(runs: Sequence[Run]) -> list[Run]:
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
        once = len({(run.rate, run.seed) for run in members}) == len(members)
        names = dict.fromkeys(name for run in members for name in run.options)
        differ = [n for n in names if len({str(run.options.get(n)) for run in members}) > 1]
        for run in members:
            words = [] if once else [f"{name} {run.options.get(name)}" for name in differ]
            words += ["published counting"] * is_published
            named.append(replace(run, variant=", ".join(words)))
    return named


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
        for figure in ("bpfp", "nmse", "value", "low", "high"):
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
        """(bpfp, figure) where there is one: ``value``, ``low`` and ``high`` of its error bar, or
        ``snr``, -10 log10 NMSE in dB."""
        if figure == "snr":
            return [(run.bpfp, -10 * math.log10(run.nmse)) for run in self.runs if run.nmse > 0]
        found = [(run.bpfp, getattr(run, figure)) for run in self.runs]
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


def find_place(root: Path, kind: str) -> FeatureRoot:
    """The folder of a kind of feature, ``<model>_<task>``, whether it is there or not."""
    found = (path for path in root.glob("*/*") if "_".join(path.parts[-2:]) == kind)
    return FeatureRoot(next(found, root / kind))


def read_machine(root: Path, kind: str, runs: Iterable[Run]) -> Machine:
    """A kind of feature with the runs on it."""
    place = find_place(root, kind)
    accuracy = _read_accuracy(place.accuracy)
    judged = judge(place.folder)
    if judged is not None and judged.interval is not None:
        accuracy |= dict(zip(("low", "high"), judged.interval, strict=True))
    machine = Machine(kind, place, accuracy, own_curves(kind, runs))
    features = machine.features
    return replace(machine, bits=read_feature(features[0]).itemsize * 8 if features else None)


def own_curves(kind: str, runs: Iterable[Run]) -> list[Curve]:
    """The curves of the codecs that know this kind of feature."""
    return group_curves(run for run in runs if run.kind == kind and not run.is_foreign)
