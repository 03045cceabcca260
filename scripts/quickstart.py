"""The main job on the tiny machines, through the published commands.

Features of four small models of the paper's classes are extracted, for six tasks. The codecs that ship
with the package code them, beside one that is trained before your eyes. The tables give rate and task
accuracy, the report shows them. With ``--train`` all shipped codecs, and one Hyperprior per machine, are
trained anew and held against the shipped ones.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtufc import config, files, records
from dtufc.paths import ACCURACY_JSON, PACKAGE, SUMMARY_JSON, default_data_root

MACHINES = (
    ("sd3", "sd3.py"), ("dinov2", "dpt.py"), ("llama3", "llama3.py"), ("dinov2", "seg.py"),
    ("dinov2", "cls.py"), ("resnet50", "cls.py"),
)  # fmt: skip
"""Rooms below machines/ and their scripts, the longest first."""
DRIVER = "coding/CompressAI"
JOBS = min(2, os.cpu_count() or 1)
BATCH = ["run_batch.py", "--jobs", str(JOBS)]
TABLES = [
    Path("coded") / f"{suite}_kmeans10_bitdepth8.csv"
    for suite in ("quickstart", "quickstart_dinov2")
]
TRAINED_TABLE = Path("coded") / "tiny_kmeans10_bitdepth8.csv"
COMPARED = Path("coded") / "retrained.csv"
"""Below the data root: a row per :class:`Comparison`."""


@dataclass(frozen=True)
class QuickstartConfig:
    """The main job on the tiny machines."""

    train: bool = False
    """Train and fit all shipped codecs anew, and compare."""


@dataclass(frozen=True)
class Comparison:
    """A shipped codec and the one that was made anew, on one machine."""

    codec: str
    machine: str
    bpfp_shipped: float
    bpfp_anew: float
    bpfp_ratio: float
    """Anew over shipped."""
    nmse_shipped: float
    nmse_anew: float
    value_shipped: float | None
    value_anew: float | None


def steps(train: bool) -> list[tuple[str, str, list[str]]]:
    """Title, folder and command of each step behind the features."""
    found = []
    if train:
        native = [*BATCH, "--suite", "native"]
        found += [
            ("all codecs, trained anew", DRIVER, [*BATCH, "--suite", "tiny"]),
            ("native for llama3", DRIVER,
             [*native, "--train_task", "csr", "--lambda_value", "0.005"]),
            ("native for sd3", DRIVER, [*native, "--train_task", "tti", "--lambda_value", "0.012"]),
            ("klt for classes and depth by dinov2", DRIVER, [*BATCH, "--suite", "dinov2_tiny"]),
        ]  # fmt: skip
    return [
        *found,
        ("shipped codecs, and a training", DRIVER, [*BATCH, "--suite", "quickstart"]),
        ("classes and depth by dinov2", DRIVER, [*BATCH, "--suite", "quickstart_dinov2"]),
    ]


def extract(root: Path) -> None:
    """Features of the machines and the accuracy of each, as many at a time as there are JOBS.

    Raises:
        JobError: a machine failed.
    """
    from dtufc.experiments import forked
    from dtufc.experiments.jobs import Job, run_jobs

    print("== features of the machines, and their accuracy")
    scripts = {(room, name): PACKAGE / "machines" / room / name for room, name in MACHINES}
    forked.preload_machines(scripts.values())
    jobs = []
    for (room, name), script in scripts.items():
        print(f"  cd machines/{room}; python {name}")
        log = root / "logs" / f"{room}_{script.stem}.log"
        command = [sys.executable, str(script)]
        module = forked.machine_module(script)
        jobs.append(Job(f"features of {room}/{name}", command, log, module=module))
    run_jobs(jobs, JOBS)
    for job in jobs:
        print(job.log.read_text().splitlines()[-1])


def compare(root: Path) -> list[Comparison]:
    """Shipped codecs against those made anew, where both have coded a machine's features."""
    from ship_codecs import shipments

    found = []
    for each in shipments(root):
        told = each.labels
        group = root / "coded" / told["codec"] / f"trained_{told['trained_on']}" / told["transform"]
        for shipped in sorted(group.glob(f"ready_{each.name}*/*/{SUMMARY_JSON}")):
            _, _, quality = shipped.parents[1].name.partition("_quality")
            run = f"quality{quality}" if quality else each.folder.name
            anew = group / run / shipped.parent.name / SUMMARY_JSON
            if anew.is_file():
                found.append(_comparison(shipped, anew))
    return found


def _comparison(shipped: Path, anew: Path) -> Comparison:
    one, other = files.read_json(shipped), files.read_json(anew)
    return Comparison(
        codec=shipped.parents[1].name.removeprefix("ready_"),
        machine=shipped.parent.name,
        bpfp_shipped=one["bpfp_pooled"],
        bpfp_anew=other["bpfp_pooled"],
        bpfp_ratio=other["bpfp_pooled"] / one["bpfp_pooled"],
        nmse_shipped=one["nmse_pooled"],
        nmse_anew=other["nmse_pooled"],
        value_shipped=_value(shipped),
        value_anew=_value(anew),
    )


def _value(summary: Path) -> Any:
    path = summary.with_name(ACCURACY_JSON)
    return files.read_json(path)["value"] if path.is_file() else None


def quickstart(cfg: QuickstartConfig) -> None:
    """Run every step, then print where plots and report are.

    Raises:
        SystemExit: a step failed.
    """
    from dtufc.experiments import driver

    start, root = time.time(), default_data_root()
    extract(root)
    for title, folder, command in steps(cfg.train):
        print(f"\n== {title}: cd {folder}; python {' '.join(command)}", flush=True)
        driver.main(command[1:])  # here, so that all steps fork from one process
    from cross_table import CrossConfig, print_cross
    from plot_rate_accuracy import PlotConfig, plot

    from dtufc.report.page import write_report

    if cfg.train:
        print("\n== universal against task-specific")
        print(print_cross(CrossConfig(table=root / TRAINED_TABLE)))
        print("\n== shipped codecs and those trained anew")
        found = compare(root)
        records.write_rows(root / COMPARED, found)
        print(records.format_table(found))
        print(root / COMPARED)
    plots = [path for table in TABLES for path in plot(PlotConfig(table=root / table))]
    print("\nplots:", *plots, sep="\n  ")
    print("\nreport:", write_report(root, root / "report", None), sep="\n  ")
    print(f"done in {(time.time() - start) / 60:.1f} minutes")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        quickstart(config.parse(QuickstartConfig, argv, __doc__))


if __name__ == "__main__":
    main()
