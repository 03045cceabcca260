"""The driver: train codecs over a sweep of lambdas, evaluate each on every machine, print the table.

    python run_batch.py                                    the tiny machines (suite ``tiny``)
    python run_batch.py --arch klt                         the codec without a network alone
    python run_batch.py --suite published --arch elic2022-official --train_task hybrid
    python run_batch.py --engine ray --address auto        on the cluster that this machine belongs to

For every run it builds one train command and one evaluation command per machine, prints them and runs
them as subprocesses with logs. Features, mappings and patches are made first. Codecs that are fitted to
one kind of feature are fitted once and evaluated there at each quality. What is current is skipped, so
that a killed batch goes on where it ended, and after a change only what depends on it is made again.
``--dry_run`` prints the commands only.

With ``--engine ray`` the same commands run on the nodes of a cluster, over a data root that all of them
share, see :mod:`dtufc.experiments.ray_engine`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from dtufc import config, locks, records
from dtufc.errors import UserError
from dtufc.experiments import forked, tables
from dtufc.experiments.jobs import Job, run_jobs
from dtufc.experiments.plan import Batch, Choice, Making
from dtufc.experiments.suite import load_suite
from dtufc.experiments.tables import TableRow
from dtufc.paths import default_data_root
from dtufc.prepare import ensure_features
from dtufc.transform.choices import Assignment, Normalise, TransformType

Run = Callable[[Sequence[Job]], None]
"""What an engine is: it runs commands and returns when all have ended well, else raises JobError."""


@dataclass(frozen=True)
class BatchConfig:
    """A batch. Flags that are not given leave the suite as it is."""

    suite: str = "tiny"
    """Name of a suite in configs/codecs, or a YAML file: machines, transform, codecs, lambdas."""
    pipeline_config: Literal["train_test", "train", "test"] = "train_test"
    """Train and evaluate, or one of the two."""
    arch: str | None = None
    """Only this codec: bmshj2018-hyperprior, elic2022-official, native, klt or another that is
    fitted."""
    train_model_type: str | None = None
    """Only codecs trained on this model's features: hybrid, llama3, dinov2, sd3, resnet50."""
    train_task: str | None = None
    """Only codecs trained on this task: hybrid, csr, seg, tti, cls."""
    transform_type: TransformType | None = None
    """Replaces the suite's kind of codebook."""
    samples: int | None = None
    """Replaces the suite's number of training features that the transform is fitted on; 0: all."""
    bit_depth: int | None = None
    """Replaces the suite's log2 of the transform's levels."""
    assignment: Assignment | None = None
    """Replaces how the suite's values become levels."""
    normalise: Normalise | None = None
    """Replaces the suite's normalisation of each channel before the codebook."""
    per_channel: bool | None = None
    """Replaces whether each channel (axis C: of tokens, each layer) has a codebook."""
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
    seed: int | None = None
    """Replaces the rows' seeds of training and fitting."""
    device: str | None = None
    """torch device of training and coding; by default the best one trains and the CPU codes."""
    data_root: Path = field(default_factory=default_data_root)
    """Data root."""
    engine: Literal["local", "ray"] = "local"
    """Where commands run: local, on this machine; ray, on a cluster that shares the data root."""
    jobs: int = 1
    """Of the local engine: commands side by side, evaluations by machines too; the cores are shared
    out."""
    address: str = ""
    """Of Ray: auto, host:port or ray://host:port; empty starts a Ray on this machine alone."""
    cpus_per_job: int = 1
    """Of Ray: cores that each command takes on its node; its threads are as many."""
    gpus_per_job: float | None = None
    """Of Ray: GPUs of each command that can use one; null: one where the cluster has any."""
    retries: int = 3
    """Of Ray: how often a command is begun again after its worker or node died."""
    accuracy: bool = True
    """Have each machine evaluate the decoded features, where its YAML names a script."""
    dry_run: bool = False
    """Print the commands and run none."""

    def __post_init__(self):
        if self.jobs < 1:
            raise UserError(f"jobs: must be at least 1, got {self.jobs}")
        if self.cpus_per_job < 1:
            raise UserError(f"cpus_per_job: must be at least 1, got {self.cpus_per_job}")
        if min(self.retries, self.gpus_per_job or 0) < 0:
            raise UserError("retries, gpus_per_job: must be at least 0")
        if self.address and self.engine != "ray":
            raise UserError("address: goes with --engine ray")
        if self.engine == "ray" and ":" in (self.device or ""):
            raise UserError(
                f"device: {self.device}: a task of Ray sees its own GPUs alone; expected the kind, "
                "such as cuda"
            )

    def batch(self) -> Batch:
        """The plan.

        Raises:
            UserError: the flags fit nothing in the suite.
        """
        suite = load_suite(self.suite)
        given = {name: getattr(self, name) for name in asdict(suite.transform)}
        given = {name: value for name, value in given.items() if value is not None}
        names = [field.name for field in fields(Choice) if field.name != "transform"]
        choice = Choice(
            replace(suite.transform, **given), **{name: getattr(self, name) for name in names}
        )
        pretrained = None if self.pretrained_model == "None" else self.pretrained_model
        making = Making(self.save_period, pretrained, self.device)
        return Batch(suite, choice, making, self.data_root)

    def table_name(self, batch: Batch) -> str:
        """Suite and transform, and what of the suite was chosen, so that a part replaces no whole."""
        chosen = [self.arch, self.train_model_type, self.train_task]
        if self.lambda_value is not None:
            chosen.append(f"lambda{self.lambda_value:g}")
        if self.seed is not None:
            chosen.append(f"seed{self.seed}")
        suite = Path(self.suite).stem
        return "_".join([suite, batch.transform.transform_name, *filter(None, chosen)])


def run_batch(cfg: BatchConfig) -> list[TableRow]:
    """Run the batch -> its table, also written as ``coded/<suite>_<transform>[_<what was chosen>].csv``.

    Raises:
        JobError: a command failed; the text ends with the tail of its log.
        UserError: the flags fit nothing in the suite.
    """
    batch = cfg.batch()
    train, test = (part in cfg.pipeline_config for part in ("train", "test"))
    if train and batch.runs and cfg.device in (None, "cpu"):
        forked.preload("dtufc.CompressAI.training")
    making = [batch.codecs] if train else []
    coding = [batch.coded_by_ready] if test else []
    stages = [
        [batch.mappings],
        [batch.patches] if train else [],
        making + coding,  # ready codecs code while others are trained
        [batch.coded_by_made] if test else [],
        [batch.judged] if test and cfg.accuracy else [],
    ]
    with _engine(cfg) as run:
        if cfg.engine == "ray":
            _run_stage(batch.features(), run)  # by nodes that have what a model takes
        if not cfg.dry_run:
            for machine in batch.machines:
                ensure_features(machine, cfg.data_root)
        for stage in stages:
            _run_stage([job for part in stage for job in part()], run)
    rows = [] if cfg.dry_run else tables.table(batch)
    if rows:
        path = cfg.data_root / "coded" / f"{cfg.table_name(batch)}.csv"
        with locks.hold(path.parent):
            records.write_rows(path, rows)
        print(records.format_table(rows), f"\n{path}", sep="\n")
    return rows


def _run_stage(jobs: Sequence[Job], run: Run) -> None:
    for job in jobs:
        print(f"{job.title}: {job.why}\n  {job.line}", flush=True)
    run(jobs)


@contextlib.contextmanager
def _engine(cfg: BatchConfig) -> Iterator[Run]:
    """What runs the commands of each stage while the block runs."""
    if cfg.dry_run:
        yield lambda jobs: None
        return
    if cfg.engine == "local":
        yield lambda jobs: run_jobs(jobs, cfg.jobs)
        return
    from dtufc.experiments.ray_engine import Needs, RayEngine

    needs = Needs(cfg.cpus_per_job, cfg.gpus_per_job, cfg.retries)
    with RayEngine.open(cfg.address, cfg.data_root, needs) as engine:
        yield engine.run


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        run_batch(config.parse(BatchConfig, argv, __doc__))


if __name__ == "__main__":
    main()
