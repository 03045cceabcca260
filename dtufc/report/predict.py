"""The machines' own command, for the pictures that the report shows and nobody saved."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dtufc import files
from dtufc.errors import UserError
from dtufc.experiments.jobs import Job, run_jobs
from dtufc.paths import ACCURACY_JSON, DECODED
from dtufc.prepare import script_path
from dtufc.report.records import Machine, judge
from dtufc.report.samples import ANSWERS, chosen_runs, has_pictures


def save_samples(root: Path, machines: Sequence[Machine]) -> None:
    """Let each machine whose answers are pictures judge again, and keep them, where it did not.

    Only the folders that the report shows are judged; their accuracies are written again.

    Raises:
        UserError: a machine's command failed; the text ends with the tail of its log.
    """
    for machine in machines:
        uncoded = judge(machine.root.folder)
        if uncoded is None or ANSWERS[0] in uncoded.rows[0]:
            continue  # the answers are words, which the rows hold
        folders = {machine.root.folder: machine.root.feature_test}
        folders |= {run.folder: run.folder / DECODED for run in chosen_runs(machine)}
        missing = [features for at, features in folders.items() if not has_pictures(at)]
        if missing:
            _judge(root, machine, missing)


def _judge(root: Path, machine: Machine, folders: Sequence[Path]) -> None:
    record = files.read_json(machine.root.folder / ACCURACY_JSON)
    preset = (record.get("options") or {}).get("machine")
    if not preset:
        raise UserError(f"{machine.root.folder / ACCURACY_JSON}: does not say which machine judged")
    command = [sys.executable, str(script_path(preset)), "--machine", preset, "--mode", "evaluate"]
    command += ["--save_predictions", "true", "--data_root", str(root)]
    for name, value in ((record.get("stamp") or {}).get("config") or {}).get("flags", {}).items():
        command += [f"--{name}", value if isinstance(value, str) else files.dump_json(value)]
    command += ["--features", *map(str, folders)]
    log = machine.root.folder / "samples.log"
    run_jobs([Job(f"samples of {machine.kind}", command, log, why="pictures not saved")])
