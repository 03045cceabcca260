"""Which codec is ahead at a rate, and which curve a machine's samples are shown of."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dtufc.report.curves import Curve, Machine
from dtufc.report.figures import at_rate, within
from dtufc.report.records import COSTS
from dtufc.report.table import Estimate, Table

RATES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Bits per feature point."""


@dataclass(frozen=True)
class Best:
    """The best figure for at most a rate."""

    curve: Curve
    value: Estimate
    gain: float
    """The figure, turned so that more is better."""
    bpfp: float
    """Where it is: the rate itself, or a lower one that was measured."""


@dataclass(frozen=True)
class Winner:
    """The best of the codecs for at most a rate."""

    rate: float
    metric: Best | None
    ties: tuple[Curve, ...]
    """Curves whose metric lies within the winner's error bar."""
    costs: dict[str, Best]
    """By COSTS, as far as the codecs have them."""

    @property
    def curve(self) -> Curve | None:
        """By the metric, where there is one; where it ties, the one of least cost, by the last of COSTS
        that there is: it tells most of what the task sees."""
        least = next(reversed(self.costs.values()), None)
        if least and (not self.metric or least.curve in self.ties):
            return least.curve
        return self.metric and self.metric.curve


def winners(machine: Machine) -> list[Winner]:
    """The winner at each of RATES that lies between the least and the greatest measured rate."""
    rates = [run.bpfp for curve in machine.curves for run in curve.runs]
    reached = [rate for rate in RATES if rates and min(rates) <= rate <= max(rates)]
    return [_winner(machine.curves, rate) for rate in reached]


def _winner(curves: Sequence[Curve], rate: float) -> Winner:
    metric = _best(curves, "gain", rate)
    costs = {name: found[0] for name in COSTS if (found := _best(curves, name, rate))}
    if not metric:
        return Winner(rate, None, (), costs)
    best, *others = metric
    less = best.curve.first.less_is_better
    end = best.value.high if less else best.value.low
    least = best.gain if end is None else -end if less else end
    ties = tuple(other.curve for other in others if other.gain >= least)
    return Winner(rate, best, ties, costs)


def _best(curves: Sequence[Curve], figure: str, rate: float) -> list[Best]:
    """The curves that have the figure for at most the rate, the best first; of equals at fewer bits."""
    found = []
    for curve in curves:
        if there := within(curve.points(figure), rate):
            gain, bpfp = there
            bar = (at_rate(curve.points(end), bpfp) for end in ("low", "high"))
            if figure in COSTS:
                estimate = Estimate(10 ** (-gain / 10))  # the cost itself
            else:
                estimate = Estimate(-gain if curve.first.less_is_better else gain, *bar)
            found.append(Best(curve, estimate, gain, bpfp))
    return sorted(found, key=lambda best: (-best.gain, best.bpfp))


def winner_table(machines: Sequence[Machine]) -> Table:
    """The winner of each machine and rate; ties are named as such."""
    columns = ["evaluated_on", "metric", "bpfp up to", "best metric", "metric by", "metric at"]
    for name in COSTS.values():
        columns += [f"least {name}", f"{name} by", f"{name} at"]
    columns.append("metric tied with")
    rows: list[list[Any]] = []
    for machine in machines:
        for winner in winners(machine):
            row: list[Any] = [machine.kind, machine.metric, winner.rate]
            for best in (winner.metric, *map(winner.costs.get, COSTS)):
                row += [best.value, best.curve.label, best.bpfp] if best else [None] * 3
            rows.append([*row, "; ".join(curve.label for curve in winner.ties) or None])
    return Table("winners", columns, rows, group=2)


def leading_curve(machine: Machine) -> Curve | None:
    """The curve that wins at most rates; where none does, the longest one."""
    wins = Counter(winner.curve.label for winner in winners(machine) if winner.curve)
    return max(machine.curves, key=lambda curve: (wins[curve.label], len(curve.runs)), default=None)
