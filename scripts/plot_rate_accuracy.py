"""Draw a batch's table: ``python plot_rate_accuracy.py --table FILE.csv [--output STEM]``.

Panels for each kind of feature: task metric, normalised MSE and, of tokens, the relative error per token
against BPFP.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtufc import config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNCOMPRESSED = "uncompressed"
ERRORS = {"nmse": "MSE / variance of the features", "token_error": "relative error per token"}


@dataclass(frozen=True)
class PlotConfig:
    """A rate–accuracy plot."""

    table: Path
    """Table of run_batch.py."""
    output: Path | None = None
    """Plots <output>_<kind>.png and .pdf; beside the table by default."""


def plot(cfg: PlotConfig) -> list[Path]:
    """Draw the table -> the PNG files."""
    with cfg.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    stem = cfg.output or cfg.table.with_suffix("")
    paths = []
    for kind in dict.fromkeys(row["evaluated_on"] for row in rows):
        figure = _draw(kind, [row for row in rows if row["evaluated_on"] == kind])
        for suffix in (".pdf", ".png"):
            path = stem.with_name(f"{stem.name}_{kind}{suffix}")
            figure.savefig(path, dpi=120)
        paths.append(path)
    return paths


def _draw(kind: str, rows: list[dict[str, str]]) -> "Figure":
    from matplotlib.figure import Figure

    errors = [key for key in ERRORS if any(row.get(key) for row in rows)]
    figure = Figure(figsize=(5.5 * (1 + len(errors)), 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(errors), squeeze=False)[0]
    curves = dict.fromkeys(
        (row["codec"], row["trained_on"]) for row in rows if row["codec"] != UNCOMPRESSED
    )
    for axis, key in zip(axes, ("value", *errors), strict=True):
        for codec, trained_on in curves:
            points = sorted(
                (float(row["bpfp"]), float(row[key]))
                for row in rows
                if (row["codec"], row["trained_on"]) == (codec, trained_on) and row.get(key)
            )
            if points:
                axis.plot(
                    *zip(*points, strict=True), "o-", label=f"{codec}, trained on {trained_on}"
                )
        axis.set_xlabel("rate (bits per feature point)")
        axis.grid(alpha=0.3)
    metrics = [row["metric"] for row in rows if row["metric"]]
    axes[0].set_ylabel(metrics[0] if metrics else "task metric")
    for row in rows:
        if row["codec"] == UNCOMPRESSED and row["value"]:
            axes[0].axhline(float(row["value"]), color="gray", linestyle="--", label=UNCOMPRESSED)
    for axis, key in zip(axes[1:], errors, strict=True):
        axis.set_ylabel(ERRORS[key])
        axis.set_yscale("log")
    handles, labels = max(
        (axis.get_legend_handles_labels() for axis in axes), key=lambda all: len(all[0])
    )
    if handles:  # below both, so that it hides no point
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(kind)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        for path in plot(config.parse(PlotConfig, argv, __doc__)):
            print(path)


if __name__ == "__main__":
    main()
