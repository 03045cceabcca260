"""What ``bench_link.py`` prints, writes and draws. No script of its own."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benches.link_arithmetic import Stages, pipelined_break_even, serial_break_even
from benches.link_socket import CheckRow

from dtufc import files
from dtufc.records import write_rows

LINKS = {
    "1 Mb/s": 1e6, "10 Mb/s": 1e7, "100 Mb/s": 1e8, "1 Gb/s": 1e9, "10 Gb/s": 1e10, "100 Gb/s": 1e11,
}  # fmt: skip
ALWAYS, NEVER = "always", "never"


@dataclass(frozen=True)
class LinkRow:
    """One codec on one part of a machine."""

    machine: str
    part: str
    codec: str
    quality: float | None
    points: int
    """Values that are sent at once."""
    bytes: float
    """Mean of a message."""
    bpfp: float
    nmse: float
    token_error: float | None
    same: float | None
    """Share of the answers that are as without coding."""
    stages: Stages
    wire_bytes: float
    """Bytes on the wire, with frames and packets."""
    processor: str
    threads: int
    revision: str | None
    serial: float = math.inf
    """Break-even bandwidth, bits per second; raw against itself has none."""
    pipelined: float = math.inf

    def beside(self, raw: "LinkRow") -> "LinkRow":
        """With the break-even against raw."""
        sides = (self.stages, self.wire_bytes, raw.stages, raw.wire_bytes)
        return replace(
            self, serial=serial_break_even(*sides), pipelined=pipelined_break_even(*sides)
        )

    def cells(self) -> dict[str, Any]:
        """A row of the CSV: milliseconds, and break-evens in Mb/s."""
        values = {key: value for key, value in vars(self).items() if key != "stages"}
        processor, threads, revision = (values.pop(k) for k in ("processor", "threads", "revision"))
        values |= {f"{key}_ms": 1e3 * value for key, value in asdict(self.stages).items()}
        values |= {f"{key} break-even Mb/s": mbps(values.pop(key)) for key in WAYS}
        for way in WAYS:
            for name, rate in LINKS.items():
                seconds = getattr(self.stages, way)(self.wire_bytes, rate)
                values[f"{way} ms at {name}"] = 1e3 * seconds
        return values | {"processor": processor, "threads": threads, "revision": revision}


WAYS = ("serial", "pipelined")


def mbps(rate: float) -> float | str:
    """Bits per second as Mb/s; below every link is never, above every one always."""
    return NEVER if rate == 0 else ALWAYS if math.isinf(rate) else rate / 1e6


@dataclass(frozen=True)
class ToldRow:
    """What is printed of a row."""

    machine: str
    part: str
    codec: str
    quality: float | None
    bytes: float
    bpfp: float
    error: float
    """Per token, or of maps the NMSE."""
    same: float | None
    front_ms: float
    encode_ms: float
    decode_ms: float
    back_ms: float
    at_10_mbps: float
    """Milliseconds end to end, serial."""
    at_1_gbps: float
    serial: float | str
    """Break-even, Mb/s."""
    pipelined: float | str


def told(row: LinkRow) -> ToldRow:
    stages = {f"{key}_ms": 1e3 * value for key, value in asdict(row.stages).items()}
    ends = [1e3 * row.stages.serial(row.wire_bytes, rate) for rate in (1e7, 1e9)]
    error = row.nmse if row.token_error is None else row.token_error
    is_raw = row.codec == "raw bf16"
    break_even = ["", ""] if is_raw else [mbps(getattr(row, way)) for way in WAYS]
    return ToldRow(
        row.machine, row.part, row.codec, row.quality, row.bytes, row.bpfp, error, row.same, **stages,
        at_10_mbps=ends[0], at_1_gbps=ends[1], serial=break_even[0], pipelined=break_even[1],
    )  # fmt: skip


def write(folder: Path, rows: Sequence[LinkRow], checks: Sequence[CheckRow]) -> None:
    """``link.csv``, ``link_check.csv`` and ``link.png``."""
    cells = [row.cells() for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*cells[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    files.write_text(folder / "link.csv", out.getvalue())
    if checks:
        write_rows(folder / "link_check.csv", checks)
    draw(folder / "link.png", rows)


def draw(path: Path, rows: Sequence[LinkRow]) -> None:
    """A panel per part of a machine: each codec's break-even, serial and pipelined, on a log axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parts = list(dict.fromkeys((row.machine, row.part) for row in rows))
    across = min(3, len(parts))
    down = math.ceil(len(parts) / across)
    tall = max(sum((row.machine, row.part) == part for row in rows) for part in parts)
    size = (4.6 * across, (0.9 + 0.24 * tall) * down + 0.5)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axis, part in zip(axes.flat, parts, strict=False):
        _panel(axis, part, [row for row in rows if (row.machine, row.part) == part])
    for axis in axes.flat[len(parts) :]:
        axis.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle("Below this bandwidth coding is faster than raw bfloat16", fontsize=11)
    with files.write_atomic(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


EDGES = (1e4, 1e12)
"""Of the axis, bits per second; a dot that is farther out is drawn at its edge."""


def _panel(axis: Any, part: tuple[str, str], rows: Sequence[LinkRow]) -> None:
    coded = [row for row in rows if row.codec != "raw bf16"]
    places = range(len(coded))[::-1]
    names = [row.codec if row.quality is None else f"{row.codec}, {row.quality:g}" for row in coded]
    ends = [[min(max(getattr(row, way), EDGES[0]), EDGES[1]) for row in coded] for way in WAYS]
    axis.hlines(places, *ends, color="#9aa6b5", linewidth=1.2, zorder=1)
    colours = {"serial": "#0072B2", "pipelined": "#D55E00"}
    for way, values, marker in zip(WAYS, ends, "os", strict=True):
        axis.scatter(values, places, s=30, marker=marker, color=colours[way], label=way, zorder=2)
    axis.set_yticks(places, names, fontsize=8)
    axis.set_xscale("log")
    axis.set_xlim(EDGES[0] * 0.6, EDGES[1] * 1.6)
    ticks = {
        1e5: "100k",
        1e6: "1M",
        1e7: "10M",
        1e8: "100M",
        1e9: "1G",
        1e10: "10G",
        1e12: "always",
    }
    axis.set_xticks([EDGES[0], *ticks], ["never", *ticks.values()], fontsize=7)
    axis.minorticks_off()
    axis.grid(axis="x", color="#d5dbe3", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_title(part[0] if part[1] == "whole" else f"{part[0]}, {part[1]}", fontsize=10)
