"""The plots, as plotly's own dictionaries."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dtufc.report.curves import Curve, Machine
from dtufc.report.figures import one_point
from dtufc.report.records import COSTS, Run
from dtufc.report.table import show

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B3FB5", "#8A5A2B")
MARKERS = (
    ("circle", "●○"), ("square", "■□"), ("diamond", "◆◇"), ("triangle-up", "▲△"),
    ("triangle-down", "▼▽"), ("star", "★☆"), ("hexagon", "⬢⬡"), ("pentagon", "⬟⬠"),
)  # fmt: skip
AXES = COSTS | {"token_error": "relative error per token", "kl": "KL divergence, nats"}
AXIS_POINTS = 10  # least span of a metric's axis, in percentage points
HOVER = (
    "%{fullData.name}<br>%{text}<br>bpfp %{x:.4g}<br>%{yaxis.title.text} %{y:.4g}<extra></extra>"
)
BARS = 128  # of a histogram

Look = tuple[str, str, str]  # colour; marker; the marker as a character, for the legend


def choose_looks(machines: Sequence[Machine]) -> dict[tuple, Look]:
    """A look for each style of curve, the same on all machines: a colour a style, a marker a codec."""
    styles = sorted({curve.style for machine in machines for curve in machine.curves})
    codecs = list(dict.fromkeys(style[0] for style in styles))
    looks = {}
    for i, style in enumerate(styles):
        symbol, glyphs = MARKERS[codecs.index(style[0]) % len(MARKERS)]
        hollow = i // len(COLOURS) % 2  # where the colours begin anew
        looks[style] = COLOURS[i % len(COLOURS)], symbol + "-open" * hollow, glyphs[hollow]
    return looks


def curve_plots(machine: Machine, looks: dict[tuple, Look]) -> list[dict[str, Any]]:
    """The task metric and the costs against BPFP, as far as there are points to draw."""
    plots = []
    for figure in ("value", *COSTS):
        traces = [
            _trace(number, curve, runs, figure, looks[curve.style])
            for number, curve in enumerate(machine.curves)
            if (runs := [run for run in curve.runs if _is_drawn(run, figure)])
        ]
        if traces:
            rates = [x for trace in traces for x in trace["x"]]
            heights = [y for trace in traces for y in trace["y"] + _ends(trace)]
            layout = {"xaxis": _log_axis(rates, "bits per feature point (BPFP)")}
            if figure in COSTS:
                layout["yaxis"] = _log_axis(heights, AXES[figure])
            else:
                layout |= _metric(machine, heights)
            plots.append({"data": traces, "layout": layout})
    return plots


def _is_drawn(run: Run, figure: str) -> bool:
    """Whether a run has a place in the plot; a lossless one has none on a log axis."""
    return run.value is not None if figure == "value" else bool(getattr(run, figure))


def _trace(number: int, curve: Curve, runs: Sequence[Run], figure: str, look: Look) -> dict:
    bars: dict[str, Any] = {}
    words = [run.name for run in runs]
    if figure == "value" and all(run.low is not None for run in runs):
        up, down = ([run.high - run.value for run in runs], [run.value - run.low for run in runs])
        bars["error_y"] = {
            "type": "data", "symmetric": False, "array": up, "arrayminus": down,
            "thickness": 1, "width": 3,
        }  # fmt: skip
        words = [f"{run.name}<br>95 %: {run.low:.3g} to {run.high:.3g}" for run in runs]
    return {
        **bars,
        "type": "scatter", "mode": "lines+markers", "name": curve.label, "meta": number,
        "x": [run.bpfp for run in runs], "y": [getattr(run, figure) for run in runs],
        "text": words, "hovertemplate": HOVER,
        "line": {"color": look[0], "width": 2}, "marker": {"symbol": look[1], "size": 9},
    }  # fmt: skip


def _ends(trace: dict[str, Any]) -> list[float]:
    """The ends of a trace's error bars."""
    if "error_y" not in trace:
        return []
    bars = [trace["error_y"]["array"], [-down for down in trace["error_y"]["arrayminus"]]]
    return [y + bar for each in bars for y, bar in zip(trace["y"], each, strict=True)]


def _metric(machine: Machine, heights: list[float]) -> dict[str, Any]:
    """The metric's axis, around the uncompressed value too, which is a dashed line in a band, its
    error bar."""
    layout: dict[str, Any] = {}
    full = machine.accuracy.get("value")
    if full is not None:
        heights = [*heights, full]
        layout["shapes"] = [{
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": full, "y1": full,
            "line": {"dash": "dash", "width": 1.5, "color": "#888888"},
        }]  # fmt: skip
        if "low" in machine.accuracy:
            low, high = machine.accuracy["low"], machine.accuracy["high"]
            heights += [low, high]
            layout["shapes"] += [{
                "type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high,
                "line": {"width": 0}, "fillcolor": "rgba(136, 136, 136, 0.15)", "layer": "below",
            }]  # fmt: skip
        layout["annotations"] = [{
            "xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": 1, "yanchor": "bottom",
            "showarrow": False, "text": f"╌╌ uncompressed {show(full)}",
        }]  # fmt: skip
    high = max(heights)
    # a few points at least, so that one sample more or less is no cliff
    low = min(*heights, high - AXIS_POINTS * one_point(high))
    margin = 0.08 * (high - low)
    axis = {"title": {"text": machine.metric}, "range": [low - margin, high + margin]}
    return {**layout, "yaxis": axis}


def _log_axis(values: Sequence[float], title: str) -> dict[str, Any]:
    """A log axis around the values, with the more ticks a decade the fewer decades there are."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = 0.06 * (high - low) or 0.3
    low, high = low - margin, high + margin
    steps = (1,) if high - low > 3 else (1, 2, 5) if high - low > 1 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in steps]
    text = [f"{tick:.15g}" if tick >= 1e-4 else f"{tick:.0e}" for tick in ticks]
    axis = {"type": "log", "range": [low, high], "tickvals": ticks, "ticktext": text}
    return {**axis, "title": {"text": title}}


def histogram_plot(values: np.ndarray, span: tuple[float, float], colour: str, title: str) -> dict:
    """Shares of the values over equal bins, on a log axis."""
    counts, edges = np.histogram(values, BARS, span)
    shares = counts / values.size
    return {
        "data": [{
            "type": "bar", "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
            "y": [float(share) or None for share in shares],
            "marker": {"color": colour, "line": {"width": 0}},
            "hovertemplate": "%{x:.4g}: %{y:.3g}<extra></extra>",
        }],
        "layout": {
            "bargap": 0, "xaxis": {"title": {"text": title}},
            "yaxis": _log_axis(shares[shares > 0].tolist(), "share of values"),
        },
    }  # fmt: skip
