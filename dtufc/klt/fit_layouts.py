"""Two layouts for one codec, one for its coarse steps and one for its fine ones: where that pays.

    race at all qualities ─────────── one layout ─┐
    race at the lower ones ────── one for these ──┼─ curves ─ the best pair, and where it changes
    race at the higher ones ───── one for these ──┘

A pair changes at an error: above it the first layout codes, below it the second. It is kept where one of
the two takes LEAST less than the one layout on its side of the change, on vectors that were held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Generic, TypeVar

import numpy as np

from dtufc.klt.bases import Candidate
from dtufc.klt.model import PER_OCTAVE
from dtufc.klt.race import LAST, Race

COARSE = (-2.5, -1.5, -0.5)
"""Qualities of the race for coarse steps, where nothing else is asked for."""
FINE = (2.5, 3.5, 4.5)
"""Likewise, for fine steps."""
LEAST = 0.0215  # of the log2 of the rate, 1.5 %: less does not pay for a folder of twice the size
ROOM = 1.0  # octaves of steps at least on either side of the change
POINTS = 129  # errors at which curves are compared
CLOSER = (
    0.5,
    0.125,
)  # octaves around a change at which curves are measured to find it more closely
Curve = Sequence[tuple[float, float]]
"""Bits per point and MSE, by quality."""
L = TypeVar("L")
"""What curves are of."""


@dataclass(frozen=True)
class Side:
    """A layout, and the race of the qualities that it codes."""

    race: Race
    best: Candidate
    turned: float = 0.0
    """log2 of what its step is larger by than its unit says, so that errors do not jump where layouts
    change."""


@dataclass(frozen=True)
class Pair:
    """Two layouts."""

    coarse: Side
    fine: Side
    first: int
    """The lowest quality in 128ths that the second one codes."""


@dataclass(frozen=True)
class Change(Generic[L]):
    """Which two curves are best, and where they change."""

    pair: tuple[L, L]
    at: float
    """log2 of the error."""
    gains: tuple[float, float]
    """Of log2 of the rate against the one layout, above and below that error, as means."""


def find_pair(race: Race, one: Candidate) -> tuple[Pair | None, dict[str, Any]]:
    """The best two layouts in place of ``one``, which won the race, where they pay; and what was
    measured."""
    low, high = halves(race)
    races = [race.at(qualities) for qualities in (low, high)]
    best = [each.run() for each in races]
    asked = sorted({*race.cfg.compared_at, *low, *high})
    every = [*dict.fromkeys([one, *best])]
    about: dict[str, Any] = {"one": str(one), "low": str(best[0]), "high": str(best[1])}
    curves, found = _curves(race, every, asked), None
    for width in CLOSER:
        found = best_pair(curves, asked)
        if found is None:
            return None, about | _told(curves, asked) | {"kept": False}
        near = [grade_at(curves[each], asked, found.at) for each in found.pair]
        asked = sorted(
            {*asked, *(_round(each + side * width) for each in near for side in (-1, 1))}
        )
        curves = _curves(race, every, asked)
    found = best_pair(curves, asked)
    before, after = (grade_at(curves[each], asked, found.at) for each in found.pair)
    grade = round(PER_OCTAVE * before)
    about |= _told(curves, asked) | {
        "coarse": str(found.pair[0]),
        "fine": str(found.pair[1]),
        "from": grade / PER_OCTAVE,
        "log2_rate_coarse": found.gains[0],
        "log2_rate_fine": found.gains[1],
        "kept": min(found.gains) <= -LEAST,
    }
    if not about["kept"]:
        return None, about
    sides = [Side(each, layout) for each, layout in zip(races, found.pair, strict=True)]
    return Pair(sides[0], replace(sides[1], turned=before - after), grade), about


def halves(race: Race) -> tuple[list[float], list[float]]:
    """The qualities of the two further races: the lower and the upper half of those that were asked
    for, or usual ones."""
    asked = race.asked
    if asked is None:
        return [each + race.lift for each in COARSE], [each + race.lift for each in FINE]
    half = max(2, len(asked) // 2)
    return sorted(asked)[:half], sorted(asked)[-half:]


def best_pair(curves: Mapping[L, Curve], qualities: Sequence[float]) -> Change[L] | None:
    """The two curves, and where to change from one to the other, of the least rate over the range of
    errors that all come to; None where the range is too short, or there is one curve.

    Args:
        curves: the first of them is that of the one layout; bits per point and MSE at the
            ``qualities``, ascending.
    """
    logs = {each: np.log2(np.maximum(np.array(curve), 1e-30)) for each, curve in curves.items()}
    low = max(log[:, 1].min() for log in logs.values())
    high = min(log[:, 1].max() for log in logs.values())
    at = np.linspace(high, low, POINTS)  # as the step shrinks
    rates = {each: np.interp(at, log[::-1, 1], log[::-1, 0]) for each, log in logs.items()}
    one, found = next(iter(rates.values())), []
    for first, second in permutations(curves, 2):
        grades = np.interp(-at, -logs[first][:, 1], qualities)
        inside = (grades >= qualities[0] + ROOM) & (grades <= qualities[-1] - ROOM)
        for place in np.flatnonzero(inside[1:-1] & (low < high)) + 1:
            mean = rates[first][:place].sum() + rates[second][place:].sum()
            found.append((float(mean), len(found), first, second, int(place)))
    if not found:
        return None
    *_, first, second, place = min(found)
    gains = (rates[first] - one)[:place].mean(), (rates[second] - one)[place:].mean()
    return Change((first, second), float(at[place]), (float(gains[0]), float(gains[1])))


def grade_at(curve: Curve, qualities: Sequence[float], error: float) -> float:
    """The quality at which a curve has an error, whose log2 is given."""
    logs = np.log2(np.maximum([mse for _, mse in curve], 1e-30))
    return float(np.interp(-error, -logs, qualities))


def _curves(
    race: Race, candidates: Sequence[Candidate], qualities: Sequence[float]
) -> dict[Candidate, Curve]:
    """Bits per point and MSE of each, on the whole sample."""
    every = race.at(qualities)
    return {each: every.validate(each, LAST) for each in candidates}


def _told(curves: Mapping[Candidate, Curve], qualities: Sequence[float]) -> dict[str, Any]:
    return {"qualities": qualities, "bpfp_mse": {str(k): curve for k, curve in curves.items()}}


def _round(quality: float) -> float:
    """To what a file can name."""
    return round(PER_OCTAVE * quality) / PER_OCTAVE
