"""Tables of a batch: a row per codec, rate and machine; mean and spread where seeds are several."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtufc import accuracy, files
from dtufc.experiments.products import why_not_made
from dtufc.feature import find_machine_config
from dtufc.paths import ACCURACY_JSON, DECODED, SUMMARY_JSON

if TYPE_CHECKING:
    from dtufc.experiments.plan import Batch

MEASURED = ("bpfp", "mse", "nmse", "token_error", "value")
SPREAD = ("bpfp", "nmse", "value")
"""Columns that are averaged over seeds."""


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
    """Pooled: total bits over total points; the mean over seeds, as all figures."""
    mse: float
    """Pooled."""
    nmse: float
    """Pooled MSE over the variance of the features."""
    token_error: float | None = None
    """Relative error per token; none for maps. See :mod:`dtufc.token_error`."""
    metric: str | None = None
    """Name of the task metric, where known."""
    value: float | None = None
    """The task metric."""
    seeds: int | None = None
    """How many, where there are several."""
    bpfp_spread: float | None = None
    """Standard deviation over the seeds, as the next two."""
    nmse_spread: float | None = None
    value_spread: float | None = None


def table(batch: "Batch") -> list[TableRow]:
    """One row per codec, rate and machine, of results that are current."""
    found: dict[tuple, list[TableRow]] = {}
    for coding in batch.codings():
        if why_not_made(coding.cfg) is None:
            folder, labels = coding.cfg.output, coding.cfg.labels
            summary = files.read_json(folder / SUMMARY_JSON)
            judged = _judged(batch, coding.machine, folder / ACCURACY_JSON, folder / DECODED)
            row = TableRow(
                codec=labels["codec"],
                trained_on=labels["trained_on"],
                transform=labels["transform"],
                lambda_value=labels.get("lambda_value"),
                quality=labels.get("quality"),
                evaluated_on=labels["kind"],
                bpfp=summary["bpfp_pooled"],
                mse=summary["mse_pooled"],
                nmse=summary["nmse_pooled"],
                token_error=summary.get("token_error"),
                **judged,
            )
            options = files.dump_json(labels["options"])
            key = (
                row.codec,
                row.trained_on,
                row.lambda_value,
                row.quality,
                row.evaluated_on,
                options,
            )
            found.setdefault(key, []).append(row)
    rows = [average(group) for group in found.values()]
    for machine, facts in batch.machines.items() if rows else ():
        root = batch.feature_root(machine)
        judged = _judged(batch, machine, root.accuracy, root.feature_test)
        if judged:
            bits = np.dtype(facts.dtype).itemsize * 8
            rows.append(
                TableRow(
                    "uncompressed", "", "", None, None, facts.kind, bits, 0.0, 0.0, None, **judged
                )
            )
    return rows


def _judged(batch: "Batch", machine: str, record: Path, features: Path) -> dict[str, Any]:
    """``metric`` and ``value`` of an ``accuracy.json``; nothing where it is missing or not current."""
    if accuracy.why_not_judged(record, find_machine_config(machine), features):
        return {}
    values = files.read_json(record)
    return {"metric": values["metric"], "value": values["value"]}


def average(rows: Sequence[TableRow]) -> TableRow:
    """Rows of several seeds as one: means, and standard deviations of what is measured."""
    if len(rows) == 1:
        return rows[0]
    values = dict(vars(rows[0]))
    for name in MEASURED:
        measured = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        values[name] = statistics.fmean(measured) if len(measured) == len(rows) else None
        if name in SPREAD:
            known = values[name] is not None
            values[f"{name}_spread"] = statistics.stdev(measured) if known else None
    return TableRow(**values | {"seeds": len(rows)})
