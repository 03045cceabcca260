"""The tables of codecs, speed and runs."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dtufc.codec import CONFIG_JSON
from dtufc.paths import RATE_CSV
from dtufc.records import read_rate
from dtufc.report.curves import Curve, Machine, merge_seeds
from dtufc.report.figures import bd_figures, find_anchor, one_point, reach
from dtufc.report.records import COSTS, HYBRID, Run
from dtufc.report.table import Estimate, Table, show

NOT_REACHED = "not reached"
WEIGHTS = "model.safetensors"
TARGETS = {"nmse": (0.1, 0.01), "token_error": (0.1, 0.01), "kl": (0.01, 0.001)}
"""Costs whose rates are told."""


def headline(machines: Sequence[Machine]) -> Table:
    """What each codec needs for (nearly) the uncompressed accuracy; the fewest bits first."""
    columns = ["evaluated_on", "metric", "uncompressed", "samples", "bits", "codec"]
    columns += ["bpfp at 99 %", "bpfp at 99.9 %", "bpfp within 1 point"]
    columns += ["bpfp without loss beyond noise", "times smaller at 99 %", "best metric"]
    rows: list[list[Any]] = []
    bold: set[tuple[int, int]] = set()
    for machine in machines:
        full = machine.accuracy.get("value")
        if full is None:
            continue
        uncoded = Estimate(full, machine.accuracy.get("low"), machine.accuracy.get("high"))
        samples = machine.accuracy.get("samples")
        facts = [machine.kind, machine.metric, uncoded, samples, machine.bits]
        less = bool(machine.accuracy.get("less_is_better"))
        sign = -1 if less else 1
        curves = [(curve, points) for curve in machine.curves if (points := curve.points("gain"))]
        found = [
            (reach(points, sign * full - 0.01 * abs(full)), curve, points)
            for curve, points in curves
        ]
        found.sort(key=lambda item: (item[0] is None, item[0]))
        least, *others = [near for near, _, _ in found] or [None]
        # a bound may lie anywhere below, so that only exact rates are beaten for certain
        if least and all(not near or (near[0] > least[0] and not near[1]) for near in others):
            bold |= {(len(rows), len(facts)), (len(rows), len(facts) + 1)}
        for near, curve, points in found:
            times = machine.bits and near and (machine.bits / near[0], near[1])
            cells = [_limit(near, "<=", NOT_REACHED)]
            # a share of 200 samples cannot lose a thousandth; a perplexity can gain one
            nearer = reach(points, -1.001 * full) if less else None
            cells += [_limit(nearer, "<=", NOT_REACHED) if less else None]
            # points are of shares and scores, which have an upper end
            cells += [
                None if less else _limit(reach(points, full - one_point(full)), "<=", NOT_REACHED)
            ]
            judged = [run for run in curve.runs if run.value is not None]
            best = max(judged, key=lambda run: run.gain)
            cells += [_noiseless(judged), _limit(times, ">=")]
            rows.append([*facts, curve.label, *cells, Estimate(best.value, best.low, best.high)])
    return Table("headline", columns, rows, group=5, bold=frozenset(bold))


def _noiseless(runs: Sequence[Run]) -> float | str | None:
    """The lowest measured rate from which on, at all higher ones too, the loss may be chance."""
    if any(run.within_noise is None for run in runs):
        return None
    rate = None
    for run in reversed(runs):
        if not run.within_noise:
            break
        rate = run.bpfp
    return NOT_REACHED if rate is None else rate


def nmse_headline(machines: Sequence[Machine]) -> Table:
    """What each codec needs for an error, on machines without a task metric; the fewest bits first."""
    named = [machine for machine in machines if machine.accuracy.get("value") is None]
    return _cost_headline("nmse", named, ("nmse", "token_error"))


def kl_headline(machines: Sequence[Machine]) -> Table:
    """What each codec needs for a KL divergence, on language models; the fewest bits first."""
    return _cost_headline("kl", machines, ("kl",))


def _cost_headline(name: str, machines: Sequence[Machine], costs: Sequence[str]) -> Table:
    """The rates at which each codec reaches the costs' targets, and the least of the first cost."""
    first, targets = COSTS[costs[0]], [(cost, target) for cost in costs for target in TARGETS[cost]]
    columns = ["evaluated_on", "bits", "codec"]
    columns += [f"bpfp at {COSTS[cost]} {target:g}" for cost, target in targets]
    columns += [f"times smaller at {first} {targets[0][1]:g}", f"least {first}", "at bpfp"]
    rows = []
    for machine in machines:
        found = [
            ([_reach_cost(curve, *target) for target in targets], curve)
            for curve in machine.curves
            if any(getattr(run, costs[0]) is not None for run in curve.runs)
        ]
        found.sort(key=lambda pair: [(rate is None, rate) for rate in pair[0]])
        for rates, curve in found:
            times = machine.bits and rates[0] and (machine.bits / rates[0][0], rates[0][1])
            measured = [run for run in curve.runs if getattr(run, costs[0]) is not None]
            best = min(measured, key=lambda run: getattr(run, costs[0]))
            told = [
                any(getattr(run, cost) is not None for run in curve.runs) for cost, _ in targets
            ]
            cells = [
                _limit(rate, "<=", NOT_REACHED if is_told else None)
                for rate, is_told in zip(rates, told, strict=True)
            ]
            cells += [_limit(times, ">="), getattr(best, costs[0]), best.bpfp]
            rows.append([machine.kind, machine.bits, curve.label, *cells])
    return Table(name, columns, rows, group=2)


def _reach_cost(curve: Curve, cost: str, target: float) -> tuple[float, bool] | None:
    """The least rate at which a curve reaches a cost, as :func:`dtufc.report.figures.reach`."""
    lossless = min((run.bpfp for run in curve.runs if getattr(run, cost) == 0), default=None)
    bound = None if lossless is None else (lossless, True)
    return reach(curve.points(cost), -10 * math.log10(target)) or bound


def _limit(found: tuple[float, bool] | None, sign: str, none: str | None = None) -> Any:
    """A number, behind the sign if it is a bound."""
    if not found:
        return none
    return f"{sign} {show(found[0])}" if found[1] else found[0]


def bd_table(machines: Sequence[Machine], wanted: str | None) -> Table:
    """Bjontegaard's differences of each curve to its machine's anchor."""
    columns = ["evaluated_on", "anchor", "codec", "BD-rate on NMSE %", "BD-SNR dB", "shared SNR %"]
    columns += ["BD-rate on metric %", "shared metric %"]
    costs = [cost for cost in COSTS if cost != "nmse"]
    columns += [f"BD-rate on {COSTS[cost]} %" for cost in costs]
    rows = []
    for machine in machines:
        anchor = find_anchor(machine, wanted)
        for curve in machine.curves if anchor else []:
            if curve is not anchor:
                snr = bd_figures(anchor.points("nmse"), curve.points("nmse"))
                rate, _, shared = bd_figures(anchor.points("gain"), curve.points("gain"))
                task = [rate, shared] if machine.metric else [None, None]
                more = [
                    bd_figures(anchor.points(cost), curve.points(cost))[0]
                    if anchor.points(cost) and curve.points(cost)
                    else None
                    for cost in costs
                ]
                rows.append([machine.kind, anchor.label, curve.label, *snr, *task, *more])
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
            (run.kind, run.trained_on): {
                "bpfp": run.bpfp, "nmse": run.nmse, "token_error": run.token_error, run.metric: run.value
            }
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
    fields = ("codec", "trained_on", "transform", "name", "kind", "bpfp", *COSTS, "metric", "value")
    fields += ("low", "high", "within_noise", "agreement")
    rows = [
        [getattr(run, f) for f in fields] + [run.record["processes"][-1].get("revision")]
        for run in runs
    ]
    titles = {"name": "run", "kind": "evaluated_on", "within_noise": "loss within noise"}
    columns = [*(titles.get(field, field) for field in fields), "revision"]
    return Table("points", columns, rows, title="All finished runs")
