"""Universal against task-specific codecs: ``python cross_table.py --table FILE.csv``.

From a batch's table, for one codec and one lambda: what a codec trained on each set (columns) gives
on each machine (rows), in rate, error and task metric. Also written as ``<table>_cross.csv``.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coding import config, files

FIGURES = ("bpfp", "nmse", "value")


@dataclass(frozen=True)
class CrossConfig:
    """A cross table."""

    table: Path
    """Table of run_batch.py."""
    codec: str = "hyperprior"
    """Codec whose rows are compared."""
    lambda_value: float | None = None
    """Lambda whose rows are compared; null takes the one that most training sets share."""


def cross(cfg: CrossConfig) -> list[list[str]]:
    """The lines of the table, the first one its head.

    Raises:
        ValueError: the table has no row of this codec and lambda.
    """
    with cfg.table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["codec"] == cfg.codec]
    sets = {row["lambda_value"]: set() for row in rows}
    for row in rows:
        sets[row["lambda_value"]].add(row["trained_on"])
    chosen = max(sets, key=lambda value: len(sets[value]), default=None)
    if cfg.lambda_value is not None:
        chosen = next((value for value in sets if float(value) == cfg.lambda_value), None)
    if chosen is None:
        have = sorted(float(value) for value in sets)
        raise ValueError(f"{cfg.table}: codec {cfg.codec} has no such lambda_value, it has {have}")
    cells = {
        (row["evaluated_on"], row["trained_on"]): row
        for row in rows
        if row["lambda_value"] == chosen
    }
    trained = list(dict.fromkeys(trained_on for _, trained_on in cells))
    lines = [["evaluated_on", "figure", *(f"trained on {name}" for name in trained)]]
    for machine in dict.fromkeys(evaluated_on for evaluated_on, _ in cells):
        for figure in FIGURES:
            found = [cells.get((machine, name), {}).get(figure, "") for name in trained]
            if any(found):
                name = next(r["metric"] for (m, _), r in cells.items() if m == machine)
                lines.append([machine, name if figure == "value" else figure, *found])
    return lines


def print_cross(cfg: CrossConfig) -> Path:
    """Print the table and write it -> its file."""
    lines = cross(cfg)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    path = cfg.table.with_name(f"{cfg.table.stem}_cross.csv")
    files.write_text(path, out.getvalue())
    short = [line[:2] + [f"{float(cell):.4g}" if cell else "" for cell in line[2:]]
             for line in lines[1:]]  # fmt: skip
    cells = [lines[0], *short]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    return path


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        print(print_cross(config.parse(CrossConfig, argv, __doc__)))


if __name__ == "__main__":
    main()
