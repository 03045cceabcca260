"""Suites: which codecs are trained on what, at which lambdas, and evaluated where. Data, in YAML.

A suite is a file in ``configs/codecs``: the machines it is about, the transform in front of trained
codecs, and rows of runs. Each row is one codec and one training set with its lambdas and seeds;
``epochs`` and ``batch_size`` are one value for all lambdas or one each. Rows of ``fitted`` are codecs
that are fitted to one kind of feature, by their own script, and have any rate. Rows of ``ready`` are
codecs that are there, such as those that ship with the package. ``published`` holds the paper's rows,
``tiny`` those of the tiny machines, ``quickstart`` the shipped codecs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from dtufc import config
from dtufc.errors import UserError
from dtufc.feature import split_tensor
from dtufc.paths import CONFIGS
from dtufc.registry import CodecEntry, find_codec
from dtufc.shipped import HYBRID, Description, codec_folder, describe_codec
from dtufc.states import Facts, load_machine_facts
from dtufc.transform.options import TransformOptions
from dtufc.transform.patches import folded_size, parse_patch_size

PUBLISHED_CROPS = {"csr": 2}
"""Crops of each feature by task, where they are not one."""
MACHINE_KEYS = ("machines", "unseen")
"""Keys of a suite that name machines."""
T = TypeVar("T")

SHARES = "shares"
"""Flag of a fit to several tensors: how they share bits."""


@dataclass(frozen=True)
class Row:
    """One codec trained on one set, over its lambdas."""

    codec: str
    """Which codec, one that the registry calls trained."""
    train_task: str
    """Task of one of the suite's machines, or its kind, <model>_<task>; or hybrid for all of them (but
    the unseen) together."""
    lambda_value: list[float]
    """Weights of the distortion, one run each."""
    epochs: int | list[int]
    """Epochs, one value or one per lambda."""
    batch_size: int | list[int]
    """Batch size, one value or one per lambda."""
    patch_size: str | dict[str, str] = "256-256"
    """height-width of the crops; wide ones are folded. For a hybrid codec also one a task; they must
    fold to the same size. For native of maps, or tokens-1."""
    patches_per_file: int | dict[str, int] = 1
    """Crops of each training feature; for a hybrid codec also one a task."""
    learning_rate: float = 1e-4
    """Adam's learning rate."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """See train.py."""
    arch: dict[str, Any] = field(default_factory=dict)
    """Widths that differ from the published ones."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Of training (initial weights, order of patches, noise), one run each; tables give the mean and
    spread over them. Crops and transform do not depend on it."""

    def __post_init__(self):
        entry = find_codec(self.codec)
        if not entry.trained:
            raise UserError(f"codec: {self.codec!r} is not trained, but fitted")
        _check_seeds(self.seeds)
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != len(self.lambda_value):
                raise UserError(f"{name}: {len(value)} values for {len(self.lambda_value)} lambdas")
        if not entry.universal and self.train_task == HYBRID:
            raise UserError(f"train_task: {self.codec} takes one machine's features, not hybrid")
        sizes = self.patch_size.values() if isinstance(self.patch_size, dict) else []
        if len({folded_size(parse_patch_size(size)) for size in sizes}) > 1:
            raise UserError(f"patch_size: {self.patch_size} fold to different sizes")


@dataclass(frozen=True)
class FittedRow:
    """One codec fitted to one kind of feature at a time, and its qualities."""

    codec: str
    """Which codec, one that the registry calls fitted."""
    quality: list[float]
    """Rates, on the codec's own scale."""
    train_task: str | None = None
    """Task of one of the suite's machines, or its kind, <model>_<task>; null for each of them."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Of the script that fits, beyond --machine, --features and --output. Of machines of several tensors
    also ``shares``, as fit_many.py takes it."""
    name: str = ""
    """Stands behind the names of its folders, where several rows are about one codec and machine."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Of the fit, one each, for codecs whose fit has a seed."""

    def __post_init__(self):
        entry = find_codec(self.codec)
        if entry.trained:
            raise UserError(f"codec: {self.codec!r} is not fitted, but trained")
        _check_seeds(self.seeds)
        known = {*entry.load_config().__dataclass_fields__, SHARES}
        if unknown := self.flags.keys() - known:
            raise UserError(f"flags: {self.codec} takes no {sorted(unknown)}, but {sorted(known)}")
        if "seed" in self.flags:
            raise UserError("flags: seed is given by seeds")
        if not re.fullmatch(r"[A-Za-z0-9.-]*", self.name):
            raise UserError(f"name: expected letters, digits, '.' and '-', got {self.name!r}")
        if self.seeds != [0] and "seed" not in known:
            raise UserError(f"seeds: fitting {self.codec} has no seed")


@dataclass(frozen=True)
class ReadyRow:
    """Codecs that are there: nothing is trained or fitted."""

    codecs: list[str]
    """Codec folders, or names of shipped codecs."""
    quality: list[float | None] = field(default_factory=lambda: [None])
    """Rates of those that have any, on the codec's own scale; null takes the only one."""


@dataclass(frozen=True)
class Suite:
    """Machines and rows."""

    machines: list[str]
    """Machine presets or YAML files, from the suite's folder or the working folder; codecs are evaluated
    on all of them."""
    rows: list[Row] = field(default_factory=list)
    """What is trained."""
    fitted: list[FittedRow] = field(default_factory=list)
    """What is fitted, and evaluated on the machine whose features it knows."""
    ready: list[ReadyRow] = field(default_factory=list)
    """What is there, and evaluated on the machines whose features it knows."""
    unseen: list[str] = field(default_factory=list)
    """Those of the machines that hybrid codecs are evaluated on, but not trained on."""
    transform: TransformOptions = field(default_factory=TransformOptions)
    """In front of trained codecs."""

    def __post_init__(self):
        if unknown := set(self.unseen) - set(self.machines):
            raise UserError(f"unseen: {sorted(unknown)} are none of the suite's machines")


@dataclass(frozen=True)
class Training:
    """One run of a row: a codec, a training set and a lambda."""

    codec: str
    train_task: str
    lambda_value: float
    epochs: int
    batch_size: int
    learning_rate: float
    patch_size: str | dict[str, str]
    patches_per_file: int | dict[str, int]
    schedule: str
    arch: dict[str, Any]
    seed: int

    @property
    def entry(self) -> CodecEntry:
        """The codec."""
        return find_codec(self.codec)

    @property
    def title(self) -> str:
        """What a person is told."""
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.codec} on {self.train_task} lambda {self.lambda_value:g}{seed}"

    @property
    def options(self) -> dict[str, Any]:
        """What beside codec, training set, lambda and seed tells runs apart."""
        names = (
            "epochs",
            "learning_rate",
            "batch_size",
            "patch_size",
            "patches_per_file",
            "schedule",
        )
        return {**{name: getattr(self, name) for name in names}, "arch": self.arch}

    @property
    def name(self) -> str:
        """Folder of the run, in the published form. What differs from published runs stands behind:
        widths, schedule, crops, seed."""
        height, width = self.folded_size
        size = f"{height}-{width}" if isinstance(self.patch_size, dict) else self.patch_size
        more = [f"{key}{_compact(value)}" for key, value in sorted(self.arch.items())]
        more += [self.schedule] * (self.schedule != "plateau")
        crops = self.patches_per_file
        each = crops if isinstance(crops, dict) else {self.train_task: crops}
        if any(count != PUBLISHED_CROPS.get(task, 1) for task, count in each.items()):
            more.append(f"crops{_compact(crops)}")
        more += [f"seed{self.seed}"] * (self.seed != 0)
        return "_".join(
            [
                f"lambda{self.lambda_value:g}_epochs{self.epochs}_lr{self.learning_rate:g}"
                f"_bs{self.batch_size}_patch{size}",
                *more,
            ]
        )

    def crop(self, task: str) -> str:
        """Patch size, height-width, of the features of a task."""
        return _of_task(self.patch_size, task, "patch_size")

    def crops(self, task: str) -> int:
        """Crops of each feature of a task."""
        return _of_task(self.patches_per_file, task, "patches_per_file")

    @property
    def folded_size(self) -> tuple[int, int]:
        """Size of the training patches; the same for all tasks."""
        sizes = [self.patch_size] if isinstance(self.patch_size, str) else self.patch_size.values()
        size = parse_patch_size(next(iter(sizes)))
        return size if self.entry.layout == "native" else folded_size(size)


@dataclass(frozen=True)
class Ready:
    """A codec that is there, at one rate."""

    folder: Path
    quality: float | None
    told: Description

    @property
    def title(self) -> str:
        """What a person is told."""
        rate = "" if self.quality is None else f" quality {self.quality:g}"
        return f"{self.folder.name}{rate}"

    @property
    def name(self) -> str:
        """Folder of its results."""
        rate = "" if self.quality is None else f"_quality{self.quality:g}"
        return f"ready_{self.folder.name}{rate}"

    @property
    def labels(self) -> dict[str, Any]:
        """What tables say of it. Results of a codec of the same making, trained here, are others."""
        told = {"lambda_value": None, "seed": 0, "options": {}, **self.told.labels}
        return told | {
            "quality": self.quality,
            "options": {**told["options"], "ready": self.folder.name},
        }


@dataclass(frozen=True)
class Fitting:
    """A codec fitted to the features of one machine, with its qualities."""

    codec: str
    machine: str
    trained_on: str
    """What folders and tables call the machine's features: its task, or its kind where the row says so
    or machines of the suite share the task."""
    quality: list[float]
    flags: dict[str, Any]
    seed: int
    name: str = ""
    """Of the row."""

    @property
    def entry(self) -> CodecEntry:
        """The codec."""
        return find_codec(self.codec)

    @property
    def suffix(self) -> str:
        """What tells its folders from those of other rows, and of seed 0."""
        return f"_{self.name}" * bool(self.name) + f"_seed{self.seed}" * bool(self.seed)


def load_suite(name: str | Path) -> Suite:
    """Read a suite by file, or by name in ``configs/codecs``.

    Raises:
        FileNotFoundError, UserError: no such file, or a key is unknown, missing or wrong.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / "codecs" / f"{name}.yaml"
    suite = config.build(Suite, config.read_yaml(path), str(path))
    found = {name: [_beside(path, each) for each in getattr(suite, name)] for name in MACHINE_KEYS}
    return replace(suite, **found)


def _beside(suite: Path, machine: str) -> str:
    """The YAML file in the suite's folder where there is such a one, else the name as it is."""
    path = suite.parent / machine
    file = Path(split_tensor(path)[0])
    return str(path) if file.suffix in (".yaml", ".yml") and file.is_file() else machine


def load_machines(suite: Suite) -> dict[str, Facts]:
    """The facts of a suite's machines, by preset or file."""
    return {machine: load_machine_facts(machine) for machine in suite.machines}


def trainings(row: Row, seeds: Sequence[int] | None = None) -> list[Training]:
    """The runs of a row, one per lambda and seed.

    Args:
        seeds: replace the row's.
    """
    each = len(row.lambda_value)
    epochs = row.epochs if isinstance(row.epochs, list) else [row.epochs] * each
    batches = row.batch_size if isinstance(row.batch_size, list) else [row.batch_size] * each
    return [
        Training(
            row.codec, row.train_task, lambda_value, n, size, row.learning_rate, row.patch_size,
            row.patches_per_file, row.schedule, row.arch, seed,
        )
        for lambda_value, n, size in zip(row.lambda_value, epochs, batches, strict=True)
        for seed in seeds or row.seeds
    ]  # fmt: skip


def select(
    suite: Suite,
    *,
    arch: str | None,
    train_task: str | None,
    overrides: dict[str, Any],
    seeds: Sequence[int] | None = None,
) -> list[Training]:
    """The runs that the driver's flags ask for.

    Args:
        arch, train_task: keep only rows of this codec and training set.
        overrides: ``lambda_value``, ``epochs``, ``batch_size``, ``learning_rate``, ``patch_size``;
            those that are not ``None`` replace the rows' own. A lambda picks the run that has it, or
            else stands in for the first lambda of each row.
        seeds: replace the rows' own.

    Raises:
        UserError: no row is left, trained or fitted.
    """
    codec = find_codec(arch, "arch").name if arch else None
    rows = [
        row
        for row in suite.rows
        if codec in (None, row.codec) and train_task in (None, row.train_task)
    ]
    ready = select_ready(suite, arch, train_task)
    if not rows and not ready and not _fitted(suite, arch, train_task):
        every = [(row.codec, row.train_task or "each task") for row in [*suite.rows, *suite.fitted]]
        every += [
            (each.told.codec, each.told.trained_on) for each in select_ready(suite, None, None)
        ]
        have = sorted({f"{codec} on {task}" for codec, task in every})
        raise UserError(f"arch, train_task: the suite has no such row; it has {', '.join(have)}")
    given = {key: value for key, value in overrides.items() if value is not None}
    chosen: list[Training] = []
    for row in rows:
        runs = trainings(row, seeds)
        if "lambda_value" in given:
            wanted = given["lambda_value"]
            if wanted not in row.lambda_value:  # the first one stands in
                wanted = row.lambda_value[0]
            runs = [run for run in runs if run.lambda_value == wanted]
        chosen += [Training(**{**vars(run), **given}) for run in runs]
    return _unique(chosen)


def select_ready(suite: Suite, arch: str | None, train_task: str | None) -> list[Ready]:
    """The codecs that are there, as far as the driver's flags ask for them, each at its rates.

    Raises:
        FileNotFoundError, UserError: one of them is no codec folder.
    """
    codec = find_codec(arch, "arch").name if arch else None
    found = [
        Ready(folder, quality, describe_codec(folder))
        for row in suite.ready
        for folder in map(codec_folder, row.codecs)
        for quality in row.quality
    ]
    return [
        ready
        for ready in found
        if codec in (None, ready.told.codec) and train_task in (None, ready.told.trained_on)
    ]


def _fitted(suite: Suite, arch: str | None, train_task: str | None) -> list[FittedRow]:
    """The fitted rows that the driver's flags ask for."""
    codec = find_codec(arch, "arch").name if arch else None
    return [
        row
        for row in suite.fitted
        if codec in (None, row.codec)
        and train_task != HYBRID
        and (None in (row.train_task, train_task) or row.train_task == train_task)
    ]


def select_fitted(
    suite: Suite,
    machines: dict[str, Facts],
    *,
    arch: str | None,
    train_task: str | None,
    seeds: Sequence[int] | None = None,
) -> list[Fitting]:
    """The fits that the driver's flags ask for, one per codec, machine and seed.

    Raises:
        UserError: two rows of one name are about one codec and machine, or a row about no machine.
    """
    chosen: dict[tuple[str, str, str], list[Fitting]] = {}
    for row in _fitted(suite, arch, train_task):
        wanted = {row.train_task, train_task} - {None}
        about = [name for name, facts in machines.items() if wanted <= names_of(facts)]
        known = set().union(*map(names_of, machines.values()))
        if row.train_task is not None and row.train_task not in known:
            raise UserError(f"train_task: no machine of the suite has {row.train_task!r}")
        for machine in about:
            if (row.codec, machine, row.name) in chosen:
                raise UserError(f"fitted: two rows for {row.codec} on {machine}; name one of them")
            has_seed = "seed" in find_codec(row.codec).load_config().__dataclass_fields__
            facts = machines[machine]
            shared = [each.task for each in machines.values()].count(facts.task) > 1
            name = facts.kind if shared or row.train_task == facts.kind else facts.task
            chosen[row.codec, machine, row.name] = [
                Fitting(row.codec, machine, name, row.quality, row.flags, seed, row.name)
                for seed in (seeds if seeds and has_seed else row.seeds)
            ]
    return [fit for fits in chosen.values() for fit in fits]


def names_of(facts: Facts) -> set[str]:
    """What a row may call a machine by."""
    return {facts.task, facts.kind}


def _of_task(value: T | dict[str, T], task: str, key: str) -> T:
    if not isinstance(value, dict):
        return value
    if task not in value:
        raise UserError(f"{key}: none for the task {task!r} in {value}")
    return value[task]


def _unique(runs: Sequence[Training]) -> list[Training]:
    kept: list[Training] = []
    for run in runs:
        if run not in kept:
            kept.append(run)
    return kept


def _check_seeds(seeds: Sequence[int]) -> None:
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds: expected different numbers from 0 on, got {seeds}")


def _compact(value: Any) -> str:
    """A value of a suite as a part of a name: [3, 1] -> 3-1, {csr: 2, seg: 4} -> csr2-seg4."""
    if isinstance(value, dict):
        return "-".join(f"{key}{_compact(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "-".join(map(_compact, value))
    return str(value)
