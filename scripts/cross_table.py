"""Universal against task-specific codecs: ``python cross_table.py --table FILE.csv``.

From a batch's table, for one codec and one lambda: what a codec trained on each set (columns) gives
on each machine (rows), in rate, error and task metric. Also written as ``<table>_cross.csv``.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtufc import config, files
from dtufc.errors import UserError

if TYPE_CHECKING:
    from dtufc.report.table import Table


@dataclass(frozen=True)
class CrossConfig:
    """A cross table."""

    table: Path
    """Table of run_batch.py."""
    codec: str = "hyperprior"
    """Codec whose rows are compared."""
    lambda_value: float | None = None
    """Lambda whose rows are compared; null takes the one that most training sets share."""


def cross_table(cfg: CrossConfig) -> "Table":
    """The table, its numbers as the batch's table has them.

    Raises:
        UserError: the batch's table has no row of this codec and lambda.
    """
    from dtufc.report.table import Table
    from dtufc.report.tables import cross, shared_rate  # after the flags: --help needs none of it

    with cfg.table.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["codec"] == cfg.codec]
    rows = [row for row in found if row["lambda_value"]]  # fitted codecs have qualities instead
    have = {float(row["lambda_value"]): row["lambda_value"] for row in rows}
    chosen = have.get(cfg.lambda_value)
    if rows and cfg.lambda_value is None:
        chosen = shared_rate((row["lambda_value"], row["trained_on"]) for row in rows)
    if chosen is None:
        raise UserError(
            f"{cfg.table}: codec {cfg.codec} has no such lambda_value, it has {sorted(have)}"
        )
    columns, lines = cross({
        (row["evaluated_on"], row["trained_on"]):
            {"bpfp": row["bpfp"], "nmse": row["nmse"], "token_error": row.get("token_error") or None,
             row["metric"]: row["value"] or None}
        for row in rows if row["lambda_value"] == chosen
    })  # fmt: skip
    return Table(f"{cfg.table.stem}_cross", columns, lines)


def print_cross(cfg: CrossConfig) -> Path:
    """Print the table and write it -> its file."""
    table = cross_table(cfg)
    path = cfg.table.with_name(f"{table.name}.csv")
    files.write_text(path, table.csv())
    short = [line[:2] + [f"{float(cell):.4g}" if cell else "" for cell in line[2:]]
             for line in table.rows]  # fmt: skip
    cells = [table.columns, *short]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    return path


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        print(print_cross(config.parse(CrossConfig, argv, __doc__)))


if __name__ == "__main__":
    main()
