"""The driver: train codecs over a sweep of lambdas, evaluate each on every machine, print the table.

    python run_batch.py                                    the embedded data (suite ``tiny``)
    python run_batch.py --arch klt                         the codec without a network alone
    python run_batch.py --suite published --arch elic2022-official --train_task hybrid

For every run it builds one train command and one evaluation command a machine, prints them and runs
them as subprocesses with logs. Features, mappings and patches that are missing are made first. Codecs
that are fitted to one kind of feature are fitted once and evaluated there at each quality. What is
finished is skipped, so that a killed batch goes on where it ended. ``--dry_run`` prints the commands
only.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from coding import config, files, records
from coding.codec import CONFIG_JSON, FITS
from coding.CompressAI.jobs import Job, run_jobs
from coding.CompressAI.suite import (
    HYBRID,
    Fitting,
    Training,
    load_machines,
    load_suite,
    select,
    select_fitted,
)
from coding.CompressAI.train import LOG_CSV, TrainConfig
from coding.errors import UserError
from coding.evaluate import EvaluateConfig
from coding.feature import FeatureFacts, find_machine_config
from coding.paths import (
    ACCURACY_JSON,
    DECODED,
    FIT_RUN,
    NO_TRANSFORM,
    RATE_CSV,
    REPOSITORY,
    RUN_JSON,
    SUMMARY_JSON,
    DataRoot,
    default_data_root,
    transform_name,
)
from coding.prepare import ensure_features
from coding.records import TableRow
from coding.transform.generate_data import PATCHES_JSON, parse_patch_size

TRAIN = REPOSITORY / "coding" / "CompressAI" / "train.py"
EVALUATE = REPOSITORY / "coding" / "evaluate.py"
FIT = REPOSITORY / "coding" / "transform" / "nonlinear_transform.py"
GENERATE = REPOSITORY / "coding" / "transform" / "generate_data.py"


@dataclass(frozen=True)
class BatchConfig:
    """A batch. Flags that are not given leave the suite's rows as they are."""

    suite: str = "tiny"
    """Name of a suite in configs/codecs, or a YAML file: machines, codecs, lambdas."""
    pipeline_config: Literal["train_test", "train", "test"] = "train_test"
    """Train and evaluate, or one of the two."""
    arch: str | None = None
    """Only this codec: bmshj2018-hyperprior, elic2022-official, native, klt or another that is
    fitted."""
    train_model_type: str | None = None
    """Only codecs trained on this model's features: hybrid, llama3, dinov2, sd3, resnet50."""
    train_task: str | None = None
    """Only codecs trained on this task: hybrid, csr, seg, tti, cls."""
    transform_type: Literal["kmeans", "density", "uniform"] = "kmeans"
    """Kind of the transform's codebook."""
    samples: int = 10
    """Training features that the transform is fitted on; 0 takes all."""
    bit_depth: int = 8
    """log2 of the transform's levels."""
    assignment: Literal["nearest", "left", "continuous"] = "nearest"
    """How values become levels."""
    normalise: Literal["none", "mean", "scale"] = "none"
    """Of each channel, before the codebook: none is as published."""
    lambda_value: float | None = None
    """Only this lambda."""
    epochs: int | None = None
    """Replaces the rows' epochs."""
    save_period: int = 20
    """Epochs between writes of the codec folder."""
    learning_rate: float | None = None
    """Replaces the rows' learning rate."""
    batch_size: int | None = None
    """Replaces the rows' batch size."""
    patch_size: str | None = None
    """Replaces the rows' patch size, height-width."""
    pretrained_model: str = "None"
    """Codec folder or published .pth.tar to start from; None starts afresh."""
    seed: int = 0
    """Of patches and training."""
    device: str | None = None
    """torch device of training and coding; by default the best one trains and the CPU codes."""
    data_root: Path = field(default_factory=default_data_root)
    """Data root."""
    jobs: int = 1
    """Commands side by side; the cores are shared out."""
    accuracy: bool = True
    """Have each machine evaluate the decoded features, where its YAML names a script."""
    dry_run: bool = False
    """Print the commands and run none."""

    def __post_init__(self):
        if self.jobs < 1:
            raise UserError(f"jobs: must be at least 1, got {self.jobs}")


@dataclass(frozen=True)
class Coding:
    """A codec at one rate, coding the features of one machine."""

    codec: str
    trained_on: str
    transform: str
    lambda_value: float | None
    quality: float | None
    title: str
    machine: str
    cfg: EvaluateConfig


class Batch:
    """The commands of a batch, in their order."""

    def __init__(self, cfg: BatchConfig):
        self.cfg = cfg
        self.suite = suite = load_suite(cfg.suite)
        self.root = DataRoot(cfg.data_root)
        self.machines: dict[str, FeatureFacts] = load_machines(suite)
        self.transform = transform_name(
            cfg.transform_type, cfg.samples, cfg.bit_depth, cfg.assignment, cfg.normalise
        )
        asked = {"arch": cfg.arch, "train_task": self._train_task()}
        self.fits = select_fitted(suite, self.machines, **asked)
        self.runs = select(
            suite,
            **asked,
            overrides={
                key: getattr(cfg, key)
                for key in ("lambda_value", "epochs", "batch_size", "learning_rate", "patch_size")
            },
        )

    def _train_task(self) -> str | None:
        """The training set that ``--train_model_type`` and ``--train_task`` name together."""
        model, task = self.cfg.train_model_type, self.cfg.train_task
        if model is None:
            return task
        tasks = [facts.task for facts in self.machines.values() if facts.model == model]
        tasks = [HYBRID] if model == HYBRID else tasks
        if not tasks:
            raise UserError(f"train_model_type: the suite has no machine of the model {model!r}")
        if task not in (None, *tasks):
            raise UserError(f"train_task: {task!r} is no task of {model!r}, it has {tasks}")
        return task or tasks[0]

    def _trained_on(self, run: Training) -> list[str]:
        """The machines whose patches a run is trained on."""
        if run.train_task == HYBRID:
            return [name for name in self.machines if name not in self.suite.unseen]
        found = [name for name, facts in self.machines.items() if facts.task == run.train_task]
        if not found:
            raise UserError(f"train_task: no machine of the suite has the task {run.train_task!r}")
        return found

    def _mapping(self, machine: str) -> Path:
        facts, cfg = self.machines[machine], self.cfg
        root = self.root.feature(facts.model, facts.task)
        transform = (cfg.transform_type, cfg.samples, cfg.bit_depth, cfg.normalise)
        return root.mapping(facts.task, *transform)

    def _patches(self, machine: str, run: Training) -> Path:
        facts = self.machines[machine]
        height, width = run.folded_size
        root = self.root.feature(facts.model, facts.task)
        return root.patches(self.transform, height, width, run.layout)

    def folder(self, run: Training) -> Path:
        """The codec folder of a run."""
        return self.root.codec(run.codec, run.train_task, self.transform, run.name)

    @property
    def table_name(self) -> str:
        """Suite and transform, and what of the suite was chosen, so that a part replaces no whole."""
        cfg = self.cfg
        chosen = [cfg.arch, cfg.train_model_type, cfg.train_task]
        if cfg.lambda_value is not None:
            chosen.append(f"lambda{cfg.lambda_value:g}")
        return "_".join([Path(cfg.suite).stem, self.transform, *filter(None, chosen)])

    def fit_values(self, fit: Fitting) -> dict[str, Any]:
        """The configuration of a fit, as its script takes and records it."""
        facts = self.machines[fit.machine]
        return {
            "machine": fit.machine,
            "features": str(self.root.feature(facts.model, facts.task).feature_train / "train"),
            "output": str(self.root.codec(fit.codec, facts.task, NO_TRANSFORM, FIT_RUN)),
            **fit.flags,
        }

    def train_config(self, run: Training) -> TrainConfig:
        cfg = self.cfg
        pretrained = None if cfg.pretrained_model == "None" else cfg.pretrained_model
        return TrainConfig(
            patches=[self._patches(machine, run) for machine in self._trained_on(run)],
            output=self.folder(run),
            codec=run.codec,
            arch=run.arch,
            lambda_value=run.lambda_value,
            epochs=run.epochs,
            batch_size=run.batch_size,
            learning_rate=run.learning_rate,
            schedule=run.schedule,
            save_period=cfg.save_period,
            pretrained_model=pretrained,
            seed=cfg.seed,
            device=cfg.device,
            resume=True,
        )

    def codings(self) -> list[Coding]:
        """All that is coded: every run on every machine, every fit and native run on its own."""
        out = []
        for run in self.runs:
            for machine in self.machines:
                known = machine in self._trained_on(run)
                if run.layout == "native" and not known:
                    continue  # other channels
                cfg = EvaluateConfig(
                    codec=self.folder(run),
                    device=self.cfg.device or "cpu",
                    mapping=None if known else self._mapping(machine),
                    machine=None if known else machine,
                    assignment="nearest" if known else self.cfg.assignment,
                    **self._source(machine, run.codec, run.train_task, self.transform, run.name),
                )
                names = (run.codec, run.train_task, self.transform, run.lambda_value, None)
                out.append(Coding(*names, run.title, machine, cfg))
        for fit in self.fits:
            task = self.machines[fit.machine].task
            for quality in fit.quality:
                name = f"quality{quality:g}"
                cfg = EvaluateConfig(
                    codec=Path(self.fit_values(fit)["output"]),
                    quality=quality,
                    **self._source(fit.machine, fit.codec, task, NO_TRANSFORM, name),
                )
                title = f"{fit.codec} quality {quality:g}"
                names = (fit.codec, task, NO_TRANSFORM, None, quality)
                out.append(Coding(*names, title, fit.machine, cfg))
        return out

    def _source(self, machine: str, *run: str) -> dict[str, Any]:
        """What is coded, and where the results go: codec, training set, transform and name of a run."""
        facts = self.machines[machine]
        return {
            "features": self.root.feature(facts.model, facts.task).feature_test,
            "kind": facts.kind,
            "output": self.root.coded(*run, facts.model, facts.task),
        }

    def prepare(self) -> list[Job]:
        """Mappings and patches that are missing."""
        cfg, jobs = self.cfg, []
        common = ["--transform_type", cfg.transform_type, "--samples", str(cfg.samples)]
        common += ["--bit_depth", str(cfg.bit_depth), "--assignment", cfg.assignment]
        common += ["--normalise", cfg.normalise]
        common += ["--seed", str(cfg.seed), "--data_root", str(cfg.data_root)]
        for machine, facts in self.machines.items():
            logs = self.root.feature(facts.model, facts.task).transform
            if self.runs and not self._mapping(machine).is_file():
                command = [sys.executable, str(FIT), "--machine", machine, *common]
                jobs.append(Job(f"fit {facts.kind}", command, logs / "fit.log"))
        wanted: dict[Path, tuple[str, int]] = {}
        for run in self.runs if "train" in cfg.pipeline_config else []:
            for machine in self._trained_on(run):
                folder, facts = self._patches(machine, run), self.machines[machine]
                size, crops = run.crop(facts.task), run.crops(facts.task)
                if wanted.setdefault(folder, (size, crops)) != (size, crops):
                    raise UserError(
                        f"patch_size, patches_per_file: the runs want {wanted[folder]} and "
                        f"{(size, crops)} in one folder, {folder}"
                    )
                command = [sys.executable, str(GENERATE), "--machine", machine, *common]
                command += ["--patch_size", size, "--patches_per_file", str(crops)]
                command += ["--layout", run.layout]
                job = Job(f"patches {facts.kind}", command, folder / "generate.log")
                if job not in jobs and not self._has_patches(folder, size, crops):
                    jobs.append(job)
        return jobs

    def _has_patches(self, folder: Path, size: str, crops: int) -> bool:
        if not (folder / PATCHES_JSON).is_file():
            return False
        made = files.read_json(folder / PATCHES_JSON)
        plan = [list(parse_patch_size(size)), crops, self.cfg.seed]
        return [made.get(key) for key in ("patch_size", "patches_per_file", "seed")] == plan

    def train(self) -> list[Job]:
        """Trainings and fits that are not finished."""
        if "train" not in self.cfg.pipeline_config:
            return []
        jobs = []
        for run in self.runs:
            cfg = self.train_config(run)
            if records.is_finished(cfg.output, cfg):
                continue
            jobs.append(
                Job(
                    title=f"train {run.title}",
                    command=[sys.executable, str(TRAIN), *config.to_argv(cfg)],
                    log=cfg.output / "train.log",
                    rows=cfg.output / LOG_CSV,
                    steps=run.epochs,
                )
            )
        for fit in self.fits:
            values = self.fit_values(fit)
            if _is_fitted(values):
                continue
            script, *first = FITS[fit.codec]
            flags = [part for key, value in values.items() for part in (f"--{key}", str(value))]
            jobs.append(
                Job(
                    title=f"fit {fit.codec} to {self.machines[fit.machine].kind}",
                    command=[sys.executable, str(REPOSITORY / script), *first, *flags],
                    log=Path(values["output"]) / "fit.log",
                )
            )
        return jobs

    def evaluate(self) -> list[Job]:
        """Evaluations that are not finished, or older than the codec."""
        jobs = []
        for coding in self.codings() if "test" in self.cfg.pipeline_config else []:
            cfg = coding.cfg
            if self._is_evaluated(cfg):
                continue
            count = len(list(cfg.features.glob("*.npy")))
            jobs.append(
                Job(
                    title=f"code {self.machines[coding.machine].kind} with {coding.title}",
                    command=[sys.executable, str(EVALUATE), *config.to_argv(cfg)],
                    log=cfg.output / "evaluate.log",
                    rows=cfg.output / RATE_CSV,
                    steps=max(1, count),
                )
            )
        return jobs

    def _is_evaluated(self, cfg: EvaluateConfig) -> bool:
        """Whether the results are those of this config, of the codec and the features as they are."""
        config_json = cfg.codec / CONFIG_JSON
        if not records.is_finished(cfg.output, cfg) or not config_json.is_file():
            return False
        summary = cfg.output / SUMMARY_JSON
        features = list(cfg.features.glob("*.npy"))
        newest = max(path.stat().st_mtime for path in [config_json, *features])
        return summary.stat().st_mtime >= newest and files.read_json(summary)["files"] == len(
            features
        )

    def accuracy(self) -> list[Job]:
        """The machines' own evaluation of decoded features that were not evaluated yet."""
        jobs = []
        for machine, facts in self.machines.items():
            if facts.script is None:
                continue
            folders = [each.cfg.output for each in self.codings() if each.machine == machine]
            waiting = [folder for folder in folders if _is_stale(folder)]
            root = self.root.feature(facts.model, facts.task)
            features = [str(folder / DECODED) for folder in waiting]
            if not root.accuracy.is_file():
                features.insert(0, str(root.feature_test))
            if features:
                command = [sys.executable, str(REPOSITORY / facts.script), "--mode", "evaluate"]
                command += ["--machine", str(find_machine_config(machine))]
                command += ["--data_root", str(self.cfg.data_root), "--features", *features]
                jobs.append(Job(f"accuracy {facts.kind}", command, root.folder / "accuracy.log"))
        return jobs

    def table(self) -> list[TableRow]:
        """One row a run and machine that has been evaluated."""
        rows = []
        for coding in self.codings():
            folder = coding.cfg.output
            if not (folder / SUMMARY_JSON).is_file():
                continue
            summary = files.read_json(folder / SUMMARY_JSON)
            rows.append(
                TableRow(
                    codec=coding.codec,
                    trained_on=coding.trained_on,
                    transform=coding.transform,
                    lambda_value=coding.lambda_value,
                    quality=coding.quality,
                    evaluated_on=self.machines[coding.machine].kind,
                    bpfp=summary["bpfp_pooled"],
                    mse=summary["mse_pooled"],
                    nmse=summary["nmse_pooled"],
                    **records.read_accuracy(folder / ACCURACY_JSON),
                )
            )
        for facts in self.machines.values():
            accuracy = self.root.feature(facts.model, facts.task).accuracy
            if rows and accuracy.is_file():
                rows.append(
                    records.uncompressed_row(
                        facts.kind, np.dtype(facts.dtype).itemsize * 8, accuracy
                    )
                )
        return rows


def run_batch(cfg: BatchConfig) -> list[TableRow]:
    """Run the batch -> its table, also written as ``coded/<suite>_<transform>[_<what was chosen>].csv``.

    Raises:
        JobError: a command failed; the text ends with the tail of its log.
        UserError: the flags fit nothing in the suite.
    """
    batch = Batch(cfg)
    if not cfg.dry_run:
        for machine in batch.machines:
            ensure_features(machine, cfg.data_root)
    stages = [(batch.prepare, 1), (batch.train, cfg.jobs), (batch.evaluate, cfg.jobs)]
    if cfg.accuracy and "test" in cfg.pipeline_config:
        stages.append((batch.accuracy, 1))
    for stage, parallel in stages:
        jobs = stage()
        for job in jobs:
            print(f"{job.title}:\n  {job.line}", flush=True)
        if not cfg.dry_run:
            run_jobs(jobs, parallel)
    rows = [] if cfg.dry_run else batch.table()
    if rows:
        path = cfg.data_root / "coded" / f"{batch.table_name}.csv"
        records.write_rows(path, rows)
        print(records.format_table(rows), f"\n{path}", sep="\n")
    return rows


def _is_fitted(values: dict[str, Any]) -> bool:
    """Whether the codec folder holds the finished fit of these values, newer than the features."""
    folder = Path(values["output"])
    if not (folder / RUN_JSON).is_file() or not (folder / CONFIG_JSON).is_file():
        return False
    run = files.read_json(folder / RUN_JSON)
    same = all(run["config"].get(key) == value for key, value in values.items())
    newest = max((p.stat().st_mtime for p in Path(values["features"]).glob("*.npy")), default=0.0)
    return bool(run["finished"]) and same and (folder / CONFIG_JSON).stat().st_mtime >= newest


def _is_stale(folder: Path) -> bool:
    """Whether decoded features wait for their task accuracy."""
    summary, accuracy = folder / SUMMARY_JSON, folder / ACCURACY_JSON
    if not summary.is_file():
        return False
    return not accuracy.is_file() or accuracy.stat().st_mtime < summary.stat().st_mtime


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        run_batch(config.parse(BatchConfig, argv, __doc__))


if __name__ == "__main__":
    main()
