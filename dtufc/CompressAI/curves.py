"""Loss curves of a training run."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {
    "loss": "rate–distortion loss",
    "mse": "MSE of u",
    "bpp": "rate (bits per point)",
    "aux_loss": "auxiliary loss",
}


def plot_curves(log: Path, output: Path) -> None:
    """Draw ``log.csv`` of a run as ``<output>.png`` and ``.pdf``: validation and training losses."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, layout="constrained")
    for axis, (key, title) in zip(axes.flat, PANELS.items(), strict=True):
        values = [float(row[key]) for row in rows]
        axis.plot(epochs, values, color="tab:blue", label="validation")
        if f"train_{key}" in rows[0]:
            limits = axis.get_ylim()
            train = [float(row[f"train_{key}"]) for row in rows]
            axis.plot(epochs, train, color="tab:gray", linewidth=1, label="training", zorder=1)
            # the first steps may be far off: the scale is that of the validation
            axis.set_ylim(min(limits[0], min(train)), limits[1])
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if key != "bpp":
            axis.set_yscale("log")
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    axes[0, 0].legend()
    for suffix in (".png", ".pdf"):
        figure.savefig(output.with_suffix(suffix), dpi=120)
    plt.close(figure)
