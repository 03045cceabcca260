"""Records of what was measured: one row a feature, one JSON a run. Reports read these, never logs."""

import csv
import importlib.metadata
import io
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from coding import files
from coding.errors import UserError
from coding.paths import REPOSITORY, RUN_JSON

LIBRARIES = (
    "torch", "compressai", "numpy", "numba", "transformers", "torchvision", "diffusers",
)  # fmt: skip


@dataclass(frozen=True)
class RateRow:
    """The coding of one feature: a row of ``rate.csv``."""

    name: str
    """File name without ending."""
    points: int
    """N*C*H*W."""
    bytes: int
    """Bytes counted as rate: the whole file; the coded strings alone in the published mode."""
    bpfp: float
    """Bits per feature point: 8 * bytes / points."""
    mse: float
    """Mean squared error in the feature's own values."""
    encode_s: float
    """Seconds from array to bytes."""
    decode_s: float
    """Seconds from bytes to array."""


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write dataclass rows as CSV, whole or not at all."""
    rows = list(rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(rows[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    files.write_text(path, out.getvalue())


def read_rate(path: Path) -> list[RateRow]:
    """Read ``rate.csv``.

    Raises:
        UserError: a column is missing or no number; the message names the file.
    """
    with path.open(newline="") as file:
        try:
            return [
                RateRow(**{field.name: field.type(row[field.name]) for field in fields(RateRow)})
                for row in csv.DictReader(file)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a rate table ({error})") from error


def summarise(rows: Sequence[RateRow], variance: float) -> dict[str, float | int]:
    """Pooled figures (total bits over total points) and means over files, named for what they are.

    Args:
        variance: of all values of the set, for the normalised MSE.
    """
    points = sum(row.points for row in rows)
    mse = sum(row.mse * row.points for row in rows) / points
    return {
        "files": len(rows),
        "points": points,
        "bytes": sum(row.bytes for row in rows),
        "bpfp_pooled": 8 * sum(row.bytes for row in rows) / points,
        "bpfp_mean": sum(row.bpfp for row in rows) / len(rows),
        "mse_pooled": mse,
        "mse_mean": sum(row.mse for row in rows) / len(rows),
        "nmse_pooled": mse / variance if variance > 0 else 0.0,
        "encode_s": sum(row.encode_s for row in rows),
        "decode_s": sum(row.decode_s for row in rows),
    }


class Run:
    """Provenance of one run: config, revision, versions, machine, wall time -> ``run.json``.

    Written with ``finished: false`` at the start and ``true`` by :meth:`finish`.
    """

    def __init__(self, folder: Path, config: Any, **facts: Any):
        self.path = folder / RUN_JSON
        self.start = time.time()
        self.values = {
            "config": config_values(config),
            "revision": git_revision(),
            "versions": versions(),
            "machine": machine(),
            "finished": False,
            **facts,
        }
        files.write_json(self.path, self.values)

    def finish(self, **results: Any) -> None:
        """Add results and the wall time of this process, in seconds."""
        self.values |= {"finished": True, "wall_s": round(time.time() - self.start, 3), **results}
        files.write_json(self.path, self.values)


def is_finished(folder: Path, config: Any) -> bool:
    """Whether ``folder`` holds the finished run of exactly this config."""
    path = folder / RUN_JSON
    if not path.is_file():
        return False
    values = files.read_json(path)
    return bool(values.get("finished")) and values.get("config") == config_values(config)


def config_values(config: Any) -> dict[str, Any]:
    """A config dataclass as it stands in ``run.json``."""
    return jsonable(asdict(config))


def jsonable(value: Any) -> Any:
    """Paths to strings and tuples to lists, all the way down."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def git_revision() -> str | None:
    """Commit of the working tree, with ``-dirty`` if changed; ``None`` outside a checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that matter for numbers."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


@dataclass(frozen=True)
class TableRow:
    """A line of a rate–accuracy table: one codec at one rate on one machine."""

    codec: str
    trained_on: str
    transform: str
    lambda_value: float | None
    """Of a trained codec."""
    quality: float | None
    """Of a fitted codec."""
    evaluated_on: str
    bpfp: float
    """Pooled: total bits over total points."""
    mse: float
    """Pooled."""
    nmse: float
    """Pooled MSE over the variance of the features."""
    metric: str | None = None
    """Name of the task metric, where known."""
    value: float | None = None
    """The task metric."""


def read_accuracy(path: Path) -> dict[str, Any]:
    """``metric`` and ``value`` of a machine's ``accuracy.json``; nothing where there is none."""
    if not path.is_file():
        return {}
    values = files.read_json(path)
    return {"metric": values["metric"], "value": values["value"]}


def uncompressed_row(kind: str, bits: int, accuracy: Path) -> TableRow:
    """The line of the features as they are: all bits of their dtype, no error."""
    return TableRow(
        "uncompressed", "", "", None, None, kind, bits, 0.0, 0.0, **read_accuracy(accuracy)
    )


def format_table(rows: Sequence[Any]) -> str:
    """Dataclass rows as aligned text; columns that are empty throughout are left out."""
    names = [
        field.name
        for field in fields(rows[0])
        if any(getattr(row, field.name) not in (None, "") for row in rows)
    ]
    cells = [names] + [[_cell(getattr(row, name)) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
