"""What a data root's records say of its finished runs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtufc import files
from dtufc.errors import UserError
from dtufc.paths import (
    ACCURACY_CSV,
    ACCURACY_JSON,
    CONFIG_JSON,
    RUN_JSON,
    SUMMARY_JSON,
    TENSOR_MARK,
    FeatureRoot,
)
from dtufc.report.judged import Judged, read_judged
from dtufc.shipped import HYBRID

COSTS = {"nmse": "NMSE", "token_error": "token error", "kl": "KL"}
"""Figures of a run of which less is better, over decades, and what readers call them. KL is in nats."""


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
    token_error: float | None = None
    """Relative error per token, pooled; none for maps. See :mod:`dtufc.token_error`."""
    kl: float | None = None
    """KL divergence from the uncut model's next-token distribution, in nats; of language models."""
    agreement: float | None = None
    """Share of the places where the most likely next token is the uncut model's."""
    less_is_better: bool = False
    """Of the metric: perplexity."""
    variant: str = ""
    """What tells it from runs of the same codec, training set and transform, beside the rate."""
    members: tuple["Run", ...] = ()
    """The runs of single seeds, where this is their mean."""

    @property
    def gain(self) -> float | None:
        """The task metric, turned so that more is better."""
        return -self.value if self.less_is_better and self.value is not None else self.value

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
        own = self.kind == self.trained_on or self.kind.endswith(f"_{self.trained_on}")
        return self.trained_on != HYBRID and not own

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
    accuracy = read_accuracy(folder / ACCURACY_JSON)
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
        less_is_better=bool(accuracy.get("less_is_better")),
        token_error=summary.get("token_error"),
        **told_beside(accuracy),
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
    return read_judged(folder / ACCURACY_CSV, read_accuracy(folder / ACCURACY_JSON))


def read_accuracy(path: Path) -> dict[str, Any]:
    return read_record(path, metric=str, value=float) if path.is_file() else {}


def told_beside(accuracy: Mapping[str, Any]) -> dict[str, float | None]:
    """What an accuracy record says beside its metric, of what the report knows."""
    others = accuracy.get("others") or {}
    return {name: others.get(name) for name in ("kl", "agreement")}


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
        told = {str(run.options): _tell(run.options, differ, short=True) for run in members}
        if len(set(told.values())) < len(told):
            told = {str(run.options): _tell(run.options, differ, short=False) for run in members}
        for run in members:
            words = [told[str(run.options)]] if not once and told[str(run.options)] else []
            words += ["published counting"] * is_published
            named.append(replace(run, variant=", ".join(words)))
    return named


def _tell(options: Mapping[str, Any], names: Sequence[str], short: bool) -> str:
    """Options in words, as far as they are given; short: of a table of values the plain ones alone."""
    words = []
    for name in names:
        value = options.get(name)
        if value is None or value == {}:
            continue
        if isinstance(value, dict) and short:
            plain = {k: v for k, v in value.items() if not isinstance(v, (list, dict))}
            value = " ".join(f"{key} {each}" for key, each in sorted(plain.items(), reverse=True))
        words.append(f"{name} {value}")
    return ", ".join(words)


def find_place(root: Path, kind: str) -> FeatureRoot:
    """The folder of a kind of feature, ``<model>_<task>``, whether it is there or not."""
    machine, _, tensor = kind.partition(TENSOR_MARK)
    found = (path for path in root.glob("*/*") if "_".join(path.parts[-2:]) == machine)
    return FeatureRoot(next(found, root / machine), tensor)
