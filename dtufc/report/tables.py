"""The tables of codecs, speed and runs."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dtufc.codec import CONFIG_JSON
from dtufc.paths import RATE_CSV
from dtufc.records import read_rate
from dtufc.report.figures import bd_figures, find_anchor, one_point, reach
from dtufc.report.records import HYBRID, Machine, Run, merge_seeds
from dtufc.report.table import Table, show

NOT_REACHED = "not reached"
WEIGHTS = "model.safetensors"


def headline(machines: Sequence[Machine]) -> Table:
    """What each codec needs for (nearly) the uncompressed accuracy; the fewest bits first."""
    columns = ["evaluated_on", "metric", "uncompressed", "samples", "bits", "codec"]
    columns += ["bpfp at 99 %", "bpfp within 1 point", "times smaller at 99 %", "best metric"]
    rows: list[list[Any]] = []
    bold: set[tuple[int, int]] = set()
    for machine in machines:
        full = machine.accuracy.get("value")
        if full is None:
            continue
        facts = [machine.kind, machine.metric, full, machine.accuracy.get("samples"), machine.bits]
        curves = [(c.label, points) for c in machine.curves if (points := c.points("value"))]
        found = [(reach(points, 0.99 * full), label, points) for label, points in curves]
        found.sort(key=lambda item: (item[0] is None, item[0]))
        least, *others = [near for near, _, _ in found] or [None]
        # a bound may lie anywhere below, so that only exact rates are beaten for certain
        if least and all(not near or (near[0] > least[0] and not near[1]) for near in others):
            bold |= {(len(rows), len(facts)), (len(rows), len(facts) + 1)}
        for near, label, points in found:
            within = reach(points, full - one_point(full))
            times = machine.bits and near and (machine.bits / near[0], near[1])
            cells = [_limit(near, "<=", NOT_REACHED), _limit(within, "<=", NOT_REACHED)]
            cells += [_limit(times, ">="), max(value for _, value in points)]
            rows.append([*facts, label, *cells])
    return Table("headline", columns, rows, group=5, bold=frozenset(bold))


def _limit(found: tuple[float, bool] | None, sign: str, none: str | None = None) -> Any:
    """A number, behind the sign if it is a bound."""
    if not found:
        return none
    return f"{sign} {show(found[0])}" if found[1] else found[0]


def bd_table(machines: Sequence[Machine], wanted: str | None) -> Table:
    """Bjontegaard's differences of each curve to its machine's anchor."""
    columns = ["evaluated_on", "anchor", "codec", "BD-rate on NMSE %", "BD-SNR dB", "shared SNR %"]
    columns += ["BD-rate on metric %", "shared metric %"]
    rows = []
    for machine in machines:
        anchor = find_anchor(machine, wanted)
        for curve in machine.curves if anchor else []:
            if curve is not anchor:
                snr = bd_figures(anchor.points("snr"), curve.points("snr"))
                rate, _, shared = bd_figures(anchor.points("value"), curve.points("value"))
                task = [rate, shared] if machine.metric else [None, None]
                rows.append([machine.kind, anchor.label, curve.label, *snr, *task])
    return Table("bd_rate", columns, rows, group=2)


def cross_tables(runs: Sequence[Run]) -> list[Table]:
    """Universal against task-specific codecs, at the rate parameter that most training sets share."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in merge_seeds(runs):
        groups.setdefault((run.codec, run.transform, run.variant), []).append(run)
    tables = []
    for names, members in sorted(groups.items()):
        rate = shared_rate((run.rate, run.trained_on) for run in members)
        chosen = [run for run in members if run.rate == rate]
        chosen.sort(key=lambda run: run.trained_on != HYBRID)
        if len({run.kind for run in chosen}) == len(chosen):
            continue
        columns, rows = cross({
            (run.kind, run.trained_on): {"bpfp": run.bpfp, "nmse": run.nmse, run.metric: run.value}
            for run in chosen
        })  # fmt: skip
        own = ["_" + column.removeprefix("trained on ") for column in columns]
        places = [(i, k) for i in range(len(rows)) for k in range(len(columns))]
        bold = frozenset((i, k) for i, k in places if rows[i][0].endswith(own[k]))
        name = re.sub(r"[^\w.-]+", "_", "_".join(("cross", *names)).strip("_"))
        title = f"{' · '.join(filter(None, names))}, {rate}"
        tables.append(Table(name, columns, rows, 1, bold, title))
    return tables


def shared_rate(rates: Iterable[tuple[str, str]]) -> str:
    """The rate parameter that most training sets share, of pairs of both."""
    return Counter(rate for rate, _ in dict.fromkeys(rates)).most_common(1)[0][0]


def cross(cells: dict[tuple[str, str], dict[str | None, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table with machines down and training sets across.

    Args:
        cells: figures by their names, of each (kind of feature, training set).
    """
    trained = dict.fromkeys(name for _, name in cells)
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in cells):
        found = [cells.get((kind, name), {}) for name in trained]
        for figure in dict.fromkeys(name for figures in found for name in figures):
            numbers = [figures.get(figure) for figures in found]
            if any(number is not None for number in numbers):
                rows.append([kind, figure, *numbers])
    return ["evaluated_on", "figure", *(f"trained on {name}" for name in trained)], rows


def speed_table(root: Path, machines: Sequence[Machine]) -> Table:
    """Speed and size of each curve's codec."""
    columns = ["evaluated_on", "codec", "encode Mpoints/s", "decode Mpoints/s"]
    columns += ["encode after first", "decode after first", "device", "threads", "cores"]
    columns += ["kB of a model", "models"]
    rows = []
    for machine in machines:
        for curve in machine.curves:
            singles = [run for each in curve.runs for run in each.singles]
            hosts = [each["machine"] for run in singles for each in run.record["processes"]]
            facts = [_each(run.record["config"].get("device") for run in curve.runs)]
            facts += [_each(host.get("threads") or "all" for host in hosts)]
            facts += [_each(host.get("cores") for host in hosts)]
            folders = {run.codec_folder(root) for run in singles} - {None}
            facts += [max(map(_size, folders), default=None), len(folders) or None]
            rows.append([machine.kind, curve.label, *_speeds(singles), *facts])
    return Table("speed", columns, rows, group=1)


def _speeds(runs: Sequence[Run]) -> list[float | None]:
    """Millions of points per second, pooled: to bytes, back; both without each run's first feature."""
    rows = [read_rate(run.folder / RATE_CSV) for run in runs]
    speeds = []
    for some in (
        [row for each in rows for row in each],
        [row for each in rows for row in each[1:]],
    ):
        points = sum(row.points for row in some) / 1e6
        for seconds in (sum(row.encode_s for row in some), sum(row.decode_s for row in some)):
            speeds.append(points / seconds if seconds > 0 else None)
    return speeds


def _size(codec: Path) -> float:
    """kB."""
    paths = [codec / CONFIG_JSON, codec / WEIGHTS]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e3


def _each(values: Iterable[Any]) -> str:
    """The distinct values, in words."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))


def points_table(runs: Sequence[Run]) -> Table:
    """Every finished run."""
    columns = ["codec", "trained_on", "transform", "run", "evaluated_on", "bpfp", "nmse", "metric"]
    fields = ("codec", "trained_on", "transform", "name", "kind", "bpfp", "nmse", "metric", "value")
    rows = [
        [getattr(run, f) for f in fields] + [run.record["processes"][-1].get("revision")]
        for run in runs
    ]
    return Table("points", [*columns, "value", "revision"], rows, title="All finished runs")
