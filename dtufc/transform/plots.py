"""The distribution of a feature's values before the transform (peaky) and after (balanced)."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dtufc import files
from dtufc.transform.mapping import Mapping
from dtufc.transform.samples import Samples

X_BINS = 512
U_BINS = 64


def plot_distributions(
    samples: Samples, mapping: Mapping, span: tuple[float, float], title: str, stem: Path
) -> list[Path]:
    """Histograms (log scale) and cumulative shares of x and u, side by side -> PNG and PDF paths.

    Args:
        span: least and greatest value of x.
    """
    low, high = span if span[0] < span[1] else (span[0] - 0.5, span[1] + 0.5)
    x_edges = np.linspace(low, high, X_BINS + 1)
    u_edges = np.linspace(0, 1, min(U_BINS, mapping.levels) + 1)
    x_counts, u_counts = np.zeros(len(x_edges) - 1), np.zeros(len(u_edges) - 1)
    for x in samples:
        x_counts += np.histogram(x, x_edges)[0]
        u_counts += np.histogram(mapping.forward(x), u_edges)[0]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    figure.suptitle(title)
    columns = (
        ("x, before: peaky", "C0", x_edges, x_counts),
        ("u, after: balanced", "C1", u_edges, u_counts),
    )
    for column, (label, colour, edges, counts) in enumerate(columns):
        shares = counts / counts.sum()
        top, bottom = axes[0, column], axes[1, column]
        top.stairs(shares, edges, fill=True, color=colour)
        top.set(yscale="log", ylabel="share of values", xlabel=label)
        bottom.plot(edges, np.concatenate([[0], np.cumsum(shares)]), color=colour)
        bottom.set(ylim=(0, 1.02), ylabel="cumulative share", xlabel=label)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
    for path in paths:
        with files.write_atomic(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=120)
    return paths
