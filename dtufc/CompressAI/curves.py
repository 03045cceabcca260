"""Loss curves of a training run."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

PANELS = {
    "loss": "rate–distortion loss",
    "mse": "MSE of u",
    "bpp": "rate (bits per point)",
    "aux_loss": "auxiliary loss",
}

MARGINS = {"left": 0.08, "right": 0.98, "bottom": 0.07, "top": 0.95, "wspace": 0.2, "hspace": 0.14}
"""Of the page, in fractions of its size; between panels, of theirs. The widest labels fit."""


def plot_curves(log: Path, output: Path) -> None:
    """Draw ``log.csv`` of a run as ``<output>.png`` and ``.pdf``: validation and training losses."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    # margins and titles have their place: to measure all labels for it takes most of the time
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, gridspec_kw=MARGINS)
    for axis, (key, title) in zip(axes.flat, PANELS.items(), strict=True):
        values = [float(row[key]) for row in rows]
        axis.plot(epochs, values, color="tab:blue", label="validation")
        if f"train_{key}" in rows[0]:
            limits = axis.get_ylim()
            train = [float(row[f"train_{key}"]) for row in rows]
            axis.plot(epochs, train, color="tab:gray", linewidth=1, label="training", zorder=1)
            # the first steps may be far off: the scale is that of the validation
            axis.set_ylim(min(limits[0], min(train)), limits[1])
        axis.set_title(title, y=1)
        axis.grid(alpha=0.3)
        if key != "bpp":
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter("{x:g}")
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    axes[0, 0].legend()
    for suffix in (".png", ".pdf"):
        figure.savefig(output.with_suffix(suffix), dpi=120)
    plt.close(figure)
