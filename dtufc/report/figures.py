"""Figures of merit of curves, which are (rate, figure) points by rising rate."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from dtufc.report.curves import Curve, Machine
from dtufc.report.records import HYBRID
from dtufc.transform.options import TransformOptions

PUBLISHED = TransformOptions(assignment="left").transform_name
BD_POINTS = 3  # a curve of two points is a line, whose bend nobody measured
DIP = 0.1  # of a curve's span: what it may fall and still count as rising
NO_OVERLAP, TOO_FEW, NOT_MONOTONE = "no overlap", "too few points", "not monotone"

Points = Sequence[tuple[float, float]]


def reach(points: Points, target: float) -> tuple[float, bool] | None:
    """The least rate at which a curve reaches ``target``: linear in log rate between the points of its
    rising envelope.

    Returns:
        The rate, and whether it is only an upper bound, since the lowest measured rate reaches the
        target already; ``None`` if no rate does.
    """
    before: tuple[float, float] | None = None
    for rate, value in points:
        if value >= target:
            if before is None:
                return rate, True
            share = (target - before[1]) / (value - before[1])
            return before[0] ** (1 - share) * rate**share, False
        before = rate, value if before is None else max(value, before[1])
    return None


def one_point(uncompressed: float) -> float:
    """One percentage point in a metric's own unit: shares are up to 1, CLIP scores up to 100."""
    return 0.01 if uncompressed <= 1 else 1.0


def rising(points: Points) -> list[tuple[float, float]] | None:
    """The points above all of lower rate; ``None`` where one lies more than DIP of the span below."""
    values = [value for _, value in points]
    kept: list[tuple[float, float]] = []
    for rate, value in points:
        if not kept or (value > kept[-1][1] and rate > kept[-1][0]):
            kept.append((rate, value))
        elif value < kept[-1][1] - DIP * (max(values) - min(values)):
            return None
    return kept


def bd_figures(anchor: Points, test: Points) -> tuple[float | str, float | str, float | None]:
    """Bjontegaard's mean differences of two curves, piecewise cubic (pchip) over log rate.

    Args:
        anchor, test: the figure is the more the better.

    Returns:
        Rate at equal figure in percent; figure at equal rate; the share of both curves' figures
        that they have in common, in percent. Text says why there is no number.
    """
    curves = [rising(points) for points in (anchor, test)]
    if None in curves:
        return NOT_MONOTONE, NOT_MONOTONE, None
    if min(map(len, curves)) < BD_POINTS:
        return TOO_FEW, TOO_FEW, None
    (rate_a, figure_a), (rate_b, figure_b) = (np.array(curve).T for curve in curves)
    axes = (rate_a, figure_a, rate_b, figure_b)
    import bjontegaard  # draws too, and so takes a second to load

    options = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    shared = _overlap(figure_a, figure_b)
    rate = float(bjontegaard.bd_rate(*axes, **options)) if shared else NO_OVERLAP
    overlaps = _overlap(rate_a, rate_b) > 0
    figure = float(bjontegaard.bd_psnr(*axes, **options)) if overlaps else NO_OVERLAP
    return rate, figure, 100 * shared


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """What two rising ranges share, over what they cover together."""
    return max(0.0, min(a[-1], b[-1]) - max(a[0], b[0])) / (max(a[-1], b[-1]) - min(a[0], b[0]))


def at_rate(points: Points, rate: float) -> float | None:
    """The figure at a rate, linear in log rate between the measured neighbours; ``None`` outside."""
    for (before, low), (after, high) in itertools.pairwise(points):
        if before <= rate <= after:
            share = math.log(rate / before) / math.log(after / before) if after > before else 1.0
            return (1 - share) * low + share * high
    return next((value for measured, value in points if measured == rate), None)


def within(points: Points, rate: float) -> tuple[float, float] | None:
    """The best figure for at most a rate: measured, or interpolated at the rate itself.

    Returns:
        The figure and its rate; ``None`` where the least measured rate is higher.
    """
    found = [(value, -measured) for measured, value in points if measured <= rate]
    if (here := at_rate(points, rate)) is not None:
        found.append((here, -rate))
    value, negative = max(found, default=(None, None))  # of equals the lowest rate
    return None if value is None else (value, -negative)


def find_anchor(machine: Machine, wanted: str | None) -> Curve | None:
    """The curve that a machine's BD-rates are relative to.

    Args:
        wanted: codec/trained_on/transform; ``None`` takes, of the curves with at least BD_POINTS
            points, the one that most of the others can be compared with. Of equals a Hyperprior comes
            first, of the published transform, then hybrid, then of many rates.

    Returns:
        ``None`` where no curve can be compared with another.
    """
    if wanted is not None:
        return next((curve for curve in machine.curves if curve.name == wanted), None)

    def usefulness(curve: Curve) -> tuple[int, bool, bool, bool, int]:
        run = curve.first
        is_hyperprior = run.codec == "hyperprior"
        is_published = is_hyperprior and run.transform == PUBLISHED
        is_hybrid = is_hyperprior and run.trained_on == HYBRID
        return compared[curve.label], is_hyperprior, is_published, is_hybrid, len(curve.runs)

    compared = {curve.label: _comparable(curve, machine.curves) for curve in machine.curves}
    found = [curve for curve in machine.curves if compared[curve.label]]
    return max(found, key=usefulness, default=None)


def _comparable(anchor: Curve, curves: Sequence[Curve]) -> int:
    """To how many BD-rates of other curves, on NMSE and on the metric, it can be the anchor."""
    count = 0
    for figure in ("nmse", "gain"):
        own = rising(anchor.points(figure)) or []
        for other in curves:
            points = rising(other.points(figure)) or []
            if other is not anchor and min(len(own), len(points)) >= BD_POINTS:
                count += _overlap(*(np.array(each)[:, 1] for each in (own, points))) > 0
    return count
