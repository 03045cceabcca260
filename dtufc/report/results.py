"""Results as one CSV: all finished runs of a data root, with error bars, computer, seed and revision.

What the report's tables say can be told from the CSV alone, so that pages quote it long after the data
root is gone.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from dtufc import files, provenance
from dtufc.errors import UserError
from dtufc.paths import SUMMARY_JSON, FeatureRoot
from dtufc.report.curves import Machine, own_curves, read_machine
from dtufc.report.records import Run, name_variants, read_runs, told_beside

UNCOMPRESSED = "uncompressed"
BESIDE = ("token_error", "kl", "agreement")
"""Figures beside NMSE and the metric."""


@dataclass(frozen=True)
class ResultRow:
    """A codec at one rate on one kind of feature, one seed; or that kind uncompressed."""

    evaluated_on: str
    """``<model>_<task>``."""
    codec: str
    trained_on: str
    transform: str
    options: str
    """What else tells the codec from others, JSON."""
    published: bool
    """Whether coded and counted as the published evaluation does."""
    unseen: bool
    """Whether the codec got the mapping of this kind of feature from outside."""
    lambda_value: float | None
    quality: float | None
    seed: int
    files: int | None
    """Test features."""
    points: int | None
    """Their values."""
    bpfp: float
    """Pooled, as nmse."""
    nmse: float
    metric: str | None
    value: float | None
    low: float | None
    """95 % interval of the metric, over test samples."""
    high: float | None
    within_noise: bool | None
    """Whether the difference to the uncompressed metric may be chance."""
    samples: int | None
    """That were judged."""
    encode_s: float | None
    decode_s: float | None
    device: str
    threads: str
    cores: int | None
    processor: str
    revision: str
    less_is_better: bool = False
    """Of the metric; a CSV of earlier versions lacks this column and the next ones."""
    token_error: float | None = None
    """Relative error per token, pooled; none for maps."""
    kl: float | None = None
    """KL divergence to the uncut language model, in nats per token."""
    agreement: float | None = None
    """Share of places where the most likely next token is the uncut model's."""

    @property
    def order(self) -> tuple:
        """What rows are sorted by: the rate last."""
        rate = self.lambda_value if self.quality is None else self.quality
        names = (self.trained_on, self.transform, self.options, self.published, self.seed)
        return self.evaluated_on, self.codec != UNCOMPRESSED, self.codec, *names, rate or 0.0


def collect(root: Path) -> list[ResultRow]:
    """The rows of a data root.

    Raises:
        FileNotFoundError, UserError: as :func:`dtufc.report.records.read_runs`.
    """
    runs, _ = read_runs(root)
    rows = [_row(run) for run in runs]
    for kind in {run.kind for run in runs}:
        machine = read_machine(root, kind, runs)
        if machine.accuracy and machine.bits:
            rows.append(_uncompressed(machine))
    return sorted(rows, key=lambda row: row.order)


def _row(run: Run) -> ResultRow:
    summary = files.read_json(run.folder / SUMMARY_JSON)
    config = run.record["config"]
    return ResultRow(
        evaluated_on=run.kind,
        codec=run.codec,
        trained_on=run.trained_on,
        transform=run.transform,
        options=files.dump_json(run.options),
        published=bool(config.get("published")),
        unseen=bool(config.get("mapping")),
        lambda_value=run.lambda_value,
        quality=run.quality,
        seed=run.seed,
        files=summary.get("files"),
        points=summary.get("points"),
        bpfp=run.bpfp,
        nmse=run.nmse,
        metric=run.metric,
        value=run.value,
        low=run.low,
        high=run.high,
        within_noise=run.within_noise,
        samples=run.samples,
        encode_s=summary.get("encode_s"),
        decode_s=summary.get("decode_s"),
        device=config.get("device") or "",
        **provenance.computer(run.record["processes"][-1]),
        less_is_better=run.less_is_better,
        **{name: getattr(run, name) for name in BESIDE},
    )


def _uncompressed(machine: Machine) -> ResultRow:
    told = machine.accuracy
    return ResultRow(
        evaluated_on=machine.kind, codec=UNCOMPRESSED, trained_on="", transform="", options="{}",
        published=False, unseen=False, lambda_value=None, quality=None, seed=0, files=None,
        points=None, bpfp=float(machine.bits), nmse=0.0, metric=told["metric"],
        value=float(told["value"]), low=told.get("low"), high=told.get("high"), within_noise=None,
        samples=told.get("samples"), encode_s=None, decode_s=None, device="",
        less_is_better=bool(told.get("less_is_better")), **provenance.computer(told),
        **told_beside(told),
    )  # fmt: skip


def to_csv(rows: Iterable[ResultRow]) -> str:
    """The rows, their numbers whole; an empty cell is ``None``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in fields(ResultRow)]
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return out.getvalue()


def read_results(path: Path) -> list[ResultRow]:
    """Read a CSV of results.

    Raises:
        FileNotFoundError: there is none.
        UserError: a column is missing, or a cell is no value of it; the message names the file.
    """
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    rows = []
    for number, cells in enumerate(found, start=2):
        try:
            rows.append(
                ResultRow(
                    **{
                        f.name: _parse(f.type, cells[f.name])
                        for f in fields(ResultRow)
                        if f.name in cells or f.default is MISSING
                    }
                )
            )
            json.loads(rows[-1].options)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}:{number}: not a row of results ({error})") from error
    return rows


def _parse(kind: Any, cell: str) -> Any:
    """A cell as a value of a field's type."""
    if NoneType in get_args(kind):
        if cell == "":
            return None
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    parsers: dict[type, Callable[[str], Any]] = {bool: {"True": True, "False": False}.__getitem__}
    return parsers.get(kind, kind)(cell)


def as_machines(rows: Iterable[ResultRow]) -> list[Machine]:
    """The machines and curves that the report makes its tables of, from rows."""
    rows = list(rows)
    runs = name_variants([_run(row) for row in rows if row.codec != UNCOMPRESSED])
    uncoded = {row.evaluated_on: row for row in rows if row.codec == UNCOMPRESSED}
    machines = []
    for kind in sorted({run.kind for run in runs}):
        row, accuracy = uncoded.get(kind), {}
        if row is not None:
            accuracy = {"metric": row.metric, "value": row.value, "samples": row.samples}
            accuracy["less_is_better"] = row.less_is_better
            accuracy |= {} if row.low is None else {"low": row.low, "high": row.high}
        bits = None if row is None else int(row.bpfp)
        machines.append(
            Machine(kind, FeatureRoot(Path(kind)), accuracy, own_curves(kind, runs), bits)
        )
    return machines


def _run(row: ResultRow) -> Run:
    config = {"published": row.published, "mapping": "unseen" if row.unseen else None}
    return Run(
        folder=Path(), codec=row.codec, trained_on=row.trained_on, transform=row.transform,
        kind=row.evaluated_on, lambda_value=row.lambda_value, quality=row.quality, seed=row.seed,
        options=json.loads(row.options), record={"config": config}, bpfp=row.bpfp, nmse=row.nmse,
        metric=row.metric, value=row.value, low=row.low, high=row.high,
        within_noise=row.within_noise, samples=row.samples, less_is_better=row.less_is_better,
        **{name: getattr(row, name) for name in BESIDE},
    )  # fmt: skip
