"""The plan of a batch: every product that a suite asks for, and which of them must be made now.

    features -> mapping -> patches -> trained codec ─┐
    features -> fitted codec ────────────────────────┴> coded features -> accuracy

Each stage is planned when the one before has run, since the stamps of its products need what that makes.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dtufc import accuracy, config
from dtufc.errors import UserError
from dtufc.evaluate import EvaluateConfig
from dtufc.experiments.forked import machine_module
from dtufc.experiments.jobs import Job
from dtufc.experiments.products import Product, why_not_made
from dtufc.experiments.suite import (
    HYBRID,
    SHARES,
    Fitting,
    Ready,
    Suite,
    Training,
    load_machines,
    names_of,
    select,
    select_fitted,
    select_ready,
)
from dtufc.feature import find_machine_config
from dtufc.many.fit_many import FitConfig as StateFitConfig
from dtufc.paths import (
    ACCURACY_JSON,
    DECODED,
    FIT_RUN,
    NO_TRANSFORM,
    SUMMARY_JSON,
    TENSOR_MARK,
    DataRoot,
    FeatureRoot,
)
from dtufc.prepare import extraction, missing_features, script_path
from dtufc.states import Facts, StateFacts
from dtufc.transform.generate_data import GenerateConfig
from dtufc.transform.nonlinear_transform import FitConfig
from dtufc.transform.options import TransformOptions

FIT = "dtufc.transform.nonlinear_transform"
GENERATE = "dtufc.transform.generate_data"
EVALUATE = "dtufc.evaluate"
TRAIN = "dtufc.CompressAI.train"
FORKED = (FIT, GENERATE, EVALUATE, TRAIN)
"""What may take little longer than its imports; see :mod:`dtufc.experiments.forked`."""
FIT_MANY = "dtufc.many.fit_many"


@dataclass(frozen=True)
class Choice:
    """What of a suite is asked for. ``None`` leaves the suite as it is."""

    transform: TransformOptions
    arch: str | None = None
    train_model_type: str | None = None
    train_task: str | None = None
    seed: int | None = None
    lambda_value: float | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    patch_size: str | None = None


@dataclass(frozen=True)
class Making:
    """How codecs are made and run, beside what decides them."""

    save_period: int
    pretrained_model: str | None
    device: str | None


@dataclass(frozen=True)
class Coding:
    """A codec at one rate, coding the features of one machine."""

    machine: str
    title: str
    cfg: EvaluateConfig


class Batch:
    """The products of a suite, as far as they are asked for, in one data root.

    Raises:
        UserError: the choice fits nothing in the suite, or two runs would share a folder.
    """

    def __init__(self, suite: Suite, choice: Choice, making: Making, data_root: Path):
        self.suite, self.choice, self.making = suite, choice, making
        self.root = DataRoot(data_root)
        self.machines: dict[str, Facts] = load_machines(suite)
        self.transform = choice.transform
        seeds = None if choice.seed is None else [choice.seed]
        asked = {"arch": choice.arch, "train_task": self._train_task(), "seeds": seeds}
        self.fits = select_fitted(suite, self.machines, **asked)
        self.ready: list[Ready] = select_ready(suite, choice.arch, self._train_task())
        names = ("lambda_value", "epochs", "batch_size", "learning_rate", "patch_size")
        overrides = {name: getattr(choice, name) for name in names}
        self.runs = select(suite, **asked, overrides=overrides)
        self._check_tensors()
        self._check_folders()

    def _train_task(self) -> str | None:
        """The training set that ``train_model_type`` and ``train_task`` name together."""
        model, task = self.choice.train_model_type, self.choice.train_task
        if model is None:
            return task
        tasks = [facts.task for facts in self.machines.values() if facts.model == model]
        tasks = [HYBRID] if model == HYBRID else tasks
        if not tasks:
            raise UserError(f"train_model_type: the suite has no machine of the model {model!r}")
        if task not in (None, *tasks):
            raise UserError(f"train_task: {task!r} is no task of {model!r}, it has {tasks}")
        return task or tasks[0]

    def _check_tensors(self) -> None:
        """Refuse to train on states: a trained codec has one rate, which tensors could not share."""
        for name, facts in self.machines.items() if self.runs else ():
            if isinstance(facts, StateFacts):
                tensors = ", ".join(f"{name}{TENSOR_MARK}{tensor}" for tensor in facts.tensors)
                raise UserError(
                    f"rows: {self.runs[0].codec} is trained on one tensor at a time; name machines of "
                    f"one in place of {name}: {tensors}"
                )

    def _check_folders(self) -> None:
        folders: dict[Path, Training] = {}
        for run in self.runs:
            other = folders.setdefault(self.folder(run), run)
            if other != run:
                raise UserError(f"rows: two runs would share {self.folder(run)}: {other} and {run}")
        crops: dict[Path, tuple[str, int]] = {}
        for run in self.runs:
            for machine in self.trained_on(run):
                task, folder = (
                    self.machines[machine].task,
                    self.generate_config(machine, run).folder,
                )
                size = run.crop(task), run.crops(task)
                if crops.setdefault(folder, size) != size:
                    raise UserError(
                        f"patch_size, patches_per_file: the runs want {crops[folder]} and {size} "
                        f"in one folder, {folder}"
                    )

    def feature_root(self, machine: str) -> FeatureRoot:
        """The folder of a machine."""
        facts = self.machines[machine]
        return self.root.feature(facts.model, facts.task)

    def trained_on(self, run: Training) -> list[str]:
        """The machines whose patches a run is trained on."""
        if run.train_task == HYBRID:
            return [name for name in self.machines if name not in self.suite.unseen]
        machines = self.machines.items()
        found = [name for name, facts in machines if run.train_task in names_of(facts)]
        if not found:
            raise UserError(f"train_task: no machine of the suite has the task {run.train_task!r}")
        return found

    def folder(self, run: Training) -> Path:
        """The codec folder of a run."""
        return self.root.codec(run.codec, run.train_task, self.transform.transform_name, run.name)

    def mapping_config(self, machine: str) -> FitConfig:
        """The fit of a machine's mapping."""
        values = asdict(self.transform)
        return FitConfig(machine=machine, data_root=self.root.folder, **values)

    def generate_config(self, machine: str, run: Training) -> GenerateConfig:
        """The patches of a machine for a run."""
        task = self.machines[machine].task
        return GenerateConfig(
            machine=machine, layout=run.entry.layout, patch_size=run.crop(task),
            patches_per_file=run.crops(task), data_root=self.root.folder, **asdict(self.transform),
        )  # fmt: skip

    def train_config(self, run: Training) -> Product:
        """The training of a run."""
        return run.entry.load_config()(
            patches=[self.generate_config(m, run).folder for m in self.trained_on(run)],
            output=self.folder(run),
            arch=run.arch,
            lambda_value=run.lambda_value,
            epochs=run.epochs,
            batch_size=run.batch_size,
            learning_rate=run.learning_rate,
            schedule=run.schedule,
            save_period=self.making.save_period,
            pretrained_model=self.making.pretrained_model,
            seed=run.seed,
            device=self.making.device,
            resume=True,
            restart=True,
            **dict(run.entry.flags),
        )

    def fit_config(self, fit: Fitting) -> Product:
        """The fit of a codec.

        Raises:
            UserError: a flag of the suite has a wrong value.
        """
        run = f"{FIT_RUN}{fit.suffix}"
        values = {
            "machine": fit.machine,
            "features": str(self.feature_root(fit.machine).train_part("train")),
            "output": str(self.root.codec(fit.codec, fit.trained_on, NO_TRANSFORM, run)),
        }
        flags = fit.flags | ({"seed": fit.seed} if fit.seed else {})
        if self._has_tensors(fit.machine):
            values |= {SHARES: flags.pop(SHARES)} if SHARES in flags else {}
            values |= {"codec": fit.codec, "flags": flags}
            return config.build(StateFitConfig, values, f"flags of {fit.codec}")
        values |= {**dict(fit.entry.flags), **flags}
        return config.build(fit.entry.load_config(), values, f"flags of {fit.codec}")

    def _has_tensors(self, machine: str) -> bool:
        return isinstance(self.machines[machine], StateFacts)

    def codings(self) -> list[Coding]:
        """All that is coded: a universal codec's runs on every machine, other codecs on their own."""
        return [*self._ready_codings(), *self._trained_codings(), *self._fitted_codings()]

    def _ready_codings(self) -> Iterator[Coding]:
        for ready in self.ready:
            for machine, facts in self.machines.items():
                if facts.kind not in ready.told.kinds:
                    continue
                names = (
                    ready.told.codec,
                    ready.told.trained_on,
                    ready.told.labels.get("transform", NO_TRANSFORM),
                )
                cfg = EvaluateConfig(
                    codec=ready.folder,
                    quality=ready.quality,
                    device=self.making.device or "cpu",
                    **self._source(machine, names, ready.name, ready.labels),
                )
                yield Coding(machine, ready.title, cfg)

    def _trained_codings(self) -> Iterator[Coding]:
        for run in self.runs:
            for machine in self.machines:
                known = machine in self.trained_on(run)
                if not (known or run.entry.universal):
                    continue  # other channels
                names = (run.codec, run.train_task, self.transform.transform_name)
                labels = {"lambda_value": run.lambda_value, "seed": run.seed}
                cfg = EvaluateConfig(
                    codec=self.folder(run),
                    device=self.making.device or "cpu",
                    mapping=None if known else self.mapping_config(machine).mapping_path,
                    machine=None if known else machine,
                    assignment="nearest" if known else self.transform.assignment,
                    **self._source(machine, names, run.name, {**labels, "options": run.options}),
                )
                yield Coding(machine, run.title, cfg)

    def _fitted_codings(self) -> Iterator[Coding]:
        for fit in self.fits:
            names = (fit.codec, fit.trained_on, NO_TRANSFORM)
            for quality in fit.quality:
                labels = {"quality": quality, "seed": fit.seed, "options": fit.flags}
                name = f"quality{quality:g}{fit.suffix}"
                cfg = EvaluateConfig(
                    codec=Path(self.fit_config(fit).output),
                    quality=quality,
                    **self._source(fit.machine, names, name, labels),
                )
                yield Coding(fit.machine, f"{fit.codec} quality {quality:g}", cfg)

    def _source(
        self, machine: str, names: tuple[str, str, str], run: str, labels: dict[str, Any]
    ) -> dict[str, Any]:
        """What is coded, where the results go, and what tables say of them.

        Args:
            names: codec, training set and transform. run: name of the run's folder.
        """
        facts = self.machines[machine]
        told = dict(zip(("codec", "trained_on", "transform"), names, strict=True))
        return {
            "features": self.feature_root(machine).feature_test,
            "kind": facts.kind,
            "output": self.root.coded(*names, run, facts.model, facts.task),
            "labels": {"kind": facts.kind, **told, **labels},
        }

    # The stages, in their order.

    def features(self) -> list[Job]:
        """Extractions of features that are not there, of machines whose YAML names a script."""
        jobs = [job for machine in self.machines for job in self._extraction(machine)]
        return [*{job.line: job for job in jobs}.values()]  # tensors of a machine come together

    def _extraction(self, machine: str) -> list[Job]:
        facts, missing = self.machines[machine], missing_features(machine, self.root.folder)
        if facts.script is None or not missing:
            return []
        command = extraction(machine, self.root.folder)
        log = self.feature_root(machine).folder / "extract.log"
        why = f"features are missing in {', '.join(map(str, missing))}"
        again = partial(self._extraction, machine)
        return [Job(f"extract {facts.kind}", command, log, why, gpu=True, again=again)]

    def mappings(self) -> list[Job]:
        """Mappings that must be fitted."""
        jobs = []
        for machine, facts in self.machines.items() if self.runs else ():
            log = self.feature_root(machine).transform / "fit.log"
            jobs += _job(f"fit {facts.kind}", FIT, self.mapping_config(machine), log)
        return jobs

    def patches(self) -> list[Job]:
        """Patches that must be made."""
        jobs: dict[Path, Job] = {}
        for run in self.runs:
            for machine in self.trained_on(run):
                cfg = self.generate_config(machine, run)
                if cfg.folder not in jobs:
                    title = f"patches {self.machines[machine].kind}"
                    for job in _job(title, GENERATE, cfg, cfg.folder / "generate.log"):
                        jobs[cfg.folder] = job
        return list(jobs.values())

    def codecs(self) -> list[Job]:
        """Codecs that must be trained or fitted."""
        jobs = []
        for run in self.runs:
            folder = self.folder(run)
            jobs += _job(
                f"train {run.title}", run.entry.script, self.train_config(run),
                folder / "train.log",
            )  # fmt: skip
        for fit in self.fits:
            cfg = self.fit_config(fit)
            title = f"fit {fit.codec} to {self.machines[fit.machine].kind}"
            script = FIT_MANY if self._has_tensors(fit.machine) else fit.entry.script
            jobs += _job(title, script, cfg, Path(cfg.output) / "fit.log")
        return jobs

    def coded_by_ready(self) -> list[Job]:
        """Features that ready codecs must code; needs none of the batch's own codecs."""
        return self._coded(self._ready_codings())

    def coded_by_made(self) -> list[Job]:
        """Features that the batch's own codecs must code."""
        return self._coded([*self._trained_codings(), *self._fitted_codings()])

    def _coded(self, codings: Iterable[Coding]) -> list[Job]:
        jobs = []
        for coding in codings:
            cfg = coding.cfg
            title = f"code {self.machines[coding.machine].kind} with {coding.title}"
            jobs += _job(title, EVALUATE, cfg, cfg.output / "evaluate.log")
        return jobs

    def judged(self) -> list[Job]:
        """The machines' own evaluation of features whose accuracy is not known or not current."""
        return [job for machine in self.machines for job in self._judging(machine)]

    def _judging(self, machine: str) -> list[Job]:
        facts = self.machines[machine]
        if facts.script is None:
            return []
        root, preset = self.feature_root(machine), find_machine_config(machine)
        waiting = [(root.accuracy, root.feature_test)]
        for each in self.codings():
            folder = each.cfg.output
            if each.machine == machine and (folder / SUMMARY_JSON).is_file():
                waiting.append((folder / ACCURACY_JSON, folder / DECODED))
        folders = []
        for record, folder in waiting:
            if why := accuracy.why_not_judged(record, preset, folder):
                folders.append((str(folder), why))
        if not folders:
            return []
        script = script_path(machine)
        command = [sys.executable, str(script), "--mode", "evaluate"]
        command += ["--machine", str(preset), "--data_root", str(self.root.folder)]
        command += ["--features", *(folder for folder, _ in folders)]
        log, again = root.folder / "accuracy.log", partial(self._judging, machine)
        title, why = f"accuracy {facts.kind}", folders[0][1]
        return [Job(title, command, log, why, machine_module(script), gpu=True, again=again)]


def _job(title: str, module: str, cfg: Product, log: Path) -> list[Job]:
    """The command that makes a product, where it must be made."""
    why = why_not_made(cfg)
    if why is None:
        return []
    command = [sys.executable, "-m", module, *config.to_argv(cfg)]
    device = getattr(cfg, "device", "cpu")
    forked = module in FORKED and device in (None, "cpu")
    again = partial(_job, title, module, cfg, log)
    return [Job(title, command, log, why, module if forked else None, device != "cpu", again)]
