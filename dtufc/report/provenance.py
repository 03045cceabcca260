"""Where each number comes from: commands and environments, as the records have them."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dtufc.evaluate import EvaluateConfig
from dtufc.paths import ACCURACY_JSON, RUN_JSON
from dtufc.registry import find_codec
from dtufc.report.curves import Machine
from dtufc.report.records import Run, read_record
from dtufc.report.table import Table

EVALUATE = ("python", "-m", "dtufc.evaluate")
DEFAULTS = {field.name: field.default for field in fields(EvaluateConfig)}


def provenance_table(root: Path, machines: Sequence[Machine], runs: Sequence[Run]) -> Table:
    """The commands of all records that the report shows, by revision, versions and computer."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for step, path, record, words, values in _steps(root, machines, runs):
        line = [*words]
        for key, value in values.items():
            if value is not None and f"--{key}" not in words:
                line += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
        names = found.setdefault((_environment(record), step, shlex.join(line)), [])
        names.append(str(path.relative_to(root)))
    rows = [[where, step, ", ".join(names), line] for (where, step, line), names in found.items()]
    columns = ["environment", "step", "records", "command"]
    rows.sort(key=lambda row: row[0])
    return Table("provenance", columns, rows, group=1, title="All commands")


def _steps(
    root: Path, machines: Sequence[Machine], runs: Sequence[Run]
) -> Iterator[tuple[str, Path, dict[str, Any], Sequence[str], dict[str, Any]]]:
    """(step, file, its record, first words of the command, values of its flags)."""
    codecs = {}
    for run in runs:
        values = {k: v for k, v in run.record["config"].items() if v != DEFAULTS.get(k)}
        values.pop("labels", None)  # tables need them, results do not
        yield "evaluate", run.folder / RUN_JSON, run.record, EVALUATE, values
        folder = run.codec_folder(root)
        if folder and folder.is_relative_to(root) and (folder / RUN_JSON).is_file():
            codecs[folder / RUN_JSON] = run.codec
    for path, codec in codecs.items():
        record = read_record(path, config=dict)
        words = ("python", "-m", find_codec(codec).script)
        yield "train or fit", path, record, words, record["config"]
    places = [run.folder / ACCURACY_JSON for run in runs] + [m.root.accuracy for m in machines]
    for path in filter(Path.is_file, places):
        record = read_record(path)
        yield "task accuracy", path, record, (), record.get("options") or {}


def _environment(record: dict[str, Any]) -> str:
    """Revision, versions and computer of a record's processes, in words."""
    found = []
    for process in record.get("processes", [record]):
        known = process.get("versions", {}).items()
        versions = ", ".join(f"{name} {number}" for name, number in known)
        host = (process.get("machine") or {}).items()
        computer = ", ".join(f"{key} {value}" for key, value in host if value is not None)
        revision = f"revision {process.get('revision') or 'not recorded'}"
        parts = [revision, versions, computer or "computer not recorded"]
        found.append(" · ".join(filter(None, parts)))
    return "; then ".join(dict.fromkeys(found))
