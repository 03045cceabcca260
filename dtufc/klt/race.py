"""Which layout: candidates race on held-out vectors, by successive halving.

    round 1    every block, without mixtures          a small sample      the best blocks go on
    round 2    and mixtures, one shrinkage each       a small sample      the best layouts go on
               (of the other blocks the largest one)
    round 3    and other shrinkages of these          a middle sample     the best go on
    round 4                                           the whole sample    the best wins

All candidates of a round see the same vectors, so that small differences between them are sound; what is
close to the best goes on (K. Jamieson and A. Talwalkar, *Non-stochastic best arm identification and
hyperparameter optimization*, 2016, where half goes on). The exhaustive search takes all candidates to
the last round.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dtufc.devices import limit_threads
from dtufc.feature import FeatureFacts
from dtufc.klt.bases import Bases, Candidate
from dtufc.klt.fit_klt import COMPARED_AT, FitConfig
from dtufc.klt.fit_tables import WEIGHT, Coded, fit_chain
from dtufc.klt.model import PER_OCTAVE, RUNGS, KltModel, Layout, Transform
from dtufc.klt.statistics import Folds, Statistics

FEW = 3_000_000  # values at most that tables are made of
MAX_BASES = 32_000_000  # bytes of all bases as float16 in a mixture
SHRINKAGE = 0.5  # of the channels, in a mixture's first rounds
OTHERS = (0.25, 1.0)
PLENTY = 8  # rows per channel, from which on one basis needs no shrinkage


@dataclass(frozen=True)
class Round:
    """How candidates are compared."""

    told: int
    """Values at most that tables are made of."""
    unseen: int
    """Values at most that are coded."""
    margin: float
    """log2 of the rate that one may lie behind the best to go on."""
    most: int
    """Candidates at most that go on."""


SINGLES = Round(600_000, 300_000, 0.10, 4)
SMALL = Round(1_000_000, 300_000, 0.03, 2)
MIDDLE = Round(1_500_000, 600_000, 0.008, 2)
LAST = Round(FEW, FEW // 2, 0.0, 1)


def candidates(
    channels: int, rows: int, sample: int, block: int, cfg: FitConfig
) -> list[Candidate]:
    """What is worth trying for features of this kind at one size of block.

    Args:
        rows: vectors that moments are of. sample: vectors at hand.
    """
    straight = Layout(rotate=False, block=block, clusters=1, centre=True)
    rotated = replace(straight, rotate=True)
    out = [Candidate(straight, 0.0), Candidate(replace(straight, centre=False), 0.0)]
    shares = (0.0,) if rows >= PLENTY * channels and cfg.search == "race" else (0.0, 0.3)
    out += [Candidate(rotated, share * channels) for share in shares]
    for clusters in cfg.clusters or (4, 8, 16):
        affordable = 2 * clusters * channels**2 <= MAX_BASES
        if clusters > 1 and sample >= 16 * clusters and affordable:
            mixture = replace(rotated, clusters=clusters)
            out += [Candidate(mixture, share * channels) for share in (SHRINKAGE, *OTHERS)]
    return out


def layered(known: Statistics, cfg: FitConfig) -> list[Candidate]:
    """What is worth trying beside where vectors are of one layer each: all of :func:`candidates` that
    turns channels, and a basis per layer.

    Args:
        known: of vectors of one layer each.
    """
    found = candidates(len(known.covariance), known.rows, len(known.sample), 1, cfg)
    turned = [each for each in found if each.layout.rotate]
    shared = [replace(each, layout=replace(each.layout, layers="shared")) for each in turned]
    if cfg.format == 2:
        return shared
    own = [
        replace(each, layout=replace(each.layout, clusters=len(known.layers), layers="own"))
        for each in turned
        if each.layout.clusters == 1
    ]
    return own + shared


@dataclass(frozen=True)
class Part:
    """The two parts of the files as a layout sees them."""

    told: Statistics
    """What candidates are fitted on."""
    unseen: Statistics
    """What they are compared on; the sample alone counts."""
    bases: Bases
    """Of what is told."""


def octaves_of_giants(known: Statistics) -> int:
    """By how many octaves a few giants raise the standard deviation of all tokens above that of usual
    ones, to the nearest."""
    away = known.sample[:, :, 0] - np.median(known.sample[:, :, 0], axis=0)
    usual = np.median(np.square(away, dtype=np.float64).mean(1))
    power = np.trace(known.covariance) / len(known.covariance)
    return max(0, round(0.5 * float(np.log2(max(power, 1e-30) / max(usual, 1e-30)))))


class Race:
    """The comparison of candidates on the two parts of the files.

    Args:
        device: torch device of matrix products and eigenvectors.
    """

    def __init__(self, folds: dict[int, Folds], facts: FeatureFacts, cfg: FitConfig, device: str):
        self.folds, self.facts, self.device = folds, facts, device
        self.cfg, self.asked = cfg, cfg.compared_at
        if cfg.compared_at is None:
            self.cfg = replace(cfg, compared_at=[each + self.lift for each in COMPARED_AT])
        self.parts: dict[tuple[int, bool], Part] = {}
        self.transforms: dict[Candidate, Transform] = {}
        self.tried: dict[Candidate, dict[str, Any]] = {}
        self.measured: dict[tuple[Candidate, int, int, int], tuple[float, float]] = {}
        """Bits per point and MSE of a candidate, of so many values told and unseen, at a grade."""

    @cached_property
    def lift(self) -> int:
        """Octaves between the qualities that are asked of usual tokens and those of all tokens."""
        return 0 if self.facts.views.is_map else octaves_of_giants(self.folds[1].told)

    def excess(self, block: int) -> float:
        """Points of blocks of this side over points of the maps: blocks at an edge may go beyond it, and
        what lies there takes bits and is of no use."""
        return block**2 * self.folds[block].rows / self.folds[1].rows

    def at(self, qualities: Sequence[float]) -> "Race":
        """A race of the same candidates at other qualities; nothing is measured twice."""
        cfg = replace(self.cfg, layouts="one", compared_at=list(qualities))
        other = Race(self.folds, self.facts, cfg, self.device)
        other.parts, other.transforms, other.measured = self.parts, self.transforms, self.measured
        return other

    def part(self, layout: Layout) -> "Part":
        """What a layout is fitted on and compared on."""
        key = layout.block, layout.layers == "joint"
        if key not in self.parts:
            fold = self.folds[layout.block]
            told, unseen = fold.told, Statistics.of_sample(fold.unseen)
            if layout.layers != "joint":
                told, unseen = (each.apart(self.facts.shape[1]) for each in (told, unseen))
            self.parts[key] = Part(told, unseen, Bases(told, self.cfg.seed, self.device))
        return self.parts[key]

    def run(self) -> Candidate:
        """The best candidate."""
        best = self._joint()
        if self.facts.views.is_map or self.facts.shape[1] == 1:
            return best
        told = self.part(replace(best.layout, layers="shared")).told
        return self.compare([best, *layered(told, self.cfg)], LAST)[0]

    def _joint(self) -> Candidate:
        """The best candidate of those that see all layers together."""
        every = [each for block in self.folds for each in self._candidates(block)]
        if self.cfg.search == "exhaustive":
            return self.compare(every, LAST)[0]
        kept = self.compare([each for each in every if each.layout.clusters == 1], SINGLES)
        mixtures = [each for each in every if each.layout.clusters > 1]
        if mixtures:
            usual = self._usual(mixtures, {each.layout.block for each in kept})
            kept = self.compare([*kept, *usual], SMALL)
            alike = {each.layout for each in kept if each.layout.clusters > 1}
            others = [each for each in mixtures if each.layout in alike and each not in kept]
            kept = self.compare([*kept, *others], MIDDLE) if others else kept
        return self.compare(kept, LAST)[0] if len(kept) > 1 else kept[0]

    def _usual(self, mixtures: Sequence[Candidate], blocks: set[int]) -> list[Candidate]:
        """The mixtures of the first rounds: one shrinkage each, and of a block that lost without
        mixtures the largest one alone. Many bases may do what a block does, so that the order of blocks
        can turn about."""
        most: dict[int, int] = {}
        for each in mixtures:
            layout = each.layout
            most[layout.block] = max(most.get(layout.block, 0), layout.clusters)
        return [
            each
            for each in mixtures
            if each.shrinkage == SHRINKAGE * len(self.folds[each.layout.block].told.covariance)
            and (each.layout.block in blocks or each.layout.clusters == most[each.layout.block])
        ]

    def _candidates(self, block: int) -> list[Candidate]:
        told = self.folds[block].told
        return candidates(len(told.covariance), told.rows, len(told.sample), block, self.cfg)

    def compare(self, entrants: Sequence[Candidate], round_: Round) -> list[Candidate]:
        """Those that go on, the best first."""
        curves = [
            self.validate(each, round_)
            for each in tqdm(entrants, desc=f"layouts, {round_.told / 1e6:g} M values")
        ]
        scores = compare(curves)
        best = min(scores)
        for each, score, curve in zip(entrants, scores, curves, strict=True):
            told = {"layout": str(each), "values": round_.told}
            self.tried.pop(each, None)  # the later round stands for it, in its order
            self.tried[each] = told | {"log2_rate": score - best, "bpfp_mse": curve}
        order = np.argsort(scores, kind="stable")
        kept = [entrants[i] for i in order if scores[i] <= best + round_.margin][: round_.most]
        for each in entrants:
            if each not in kept:
                self.transforms.pop(each, None)  # tens of megabytes each
        return kept

    def transform(self, candidate: Candidate) -> Transform:
        """Means and bases, of the files that are not held out."""
        if candidate not in self.transforms:
            found = self.part(candidate.layout).bases.fit(candidate)
            self.transforms[candidate] = found
        return self.transforms[candidate]

    def validate(self, candidate: Candidate, round_: Round) -> list[tuple[float, float]]:
        """Bits per point and MSE on held-out vectors at some qualities."""
        keys = [
            (candidate, round_.told, round_.unseen, round(quality * PER_OCTAVE))
            for quality in sorted(self.cfg.compared_at)
        ]
        missing = [key for key in keys if key not in self.measured]
        if missing:
            grades = [grade for *_, grade in missing]
            self.measured.update(
                zip(missing, self._measure(candidate, round_, grades), strict=True)
            )
        return [self.measured[key] for key in keys]

    def _measure(
        self, candidate: Candidate, round_: Round, grades: Sequence[int]
    ) -> list[tuple[float, float]]:
        """:meth:`validate` at some qualities in 128ths."""
        part, layout = self.part(candidate.layout), candidate.layout
        transform = self.transform(candidate)
        sample, own = part.told.thinned(layout, round_.told)
        coded = Coded.plain(transform, sample, own, self.cfg.tables)
        unseen, owners = part.unseen.thinned(layout, round_.unseen)
        excess = self.excess(layout.block)

        def at(grade: int) -> tuple[float, float]:
            rung = fit_chain(transform, coded, [grade])[0]
            model = KltModel(self.facts, transform, (rung,) * RUNGS, WEIGHT)
            every = layout.clusters  # there is no sound shortlist of tables of one step
            clusters, symbols, bits, _, _ = model.quantise(unseen, grade, None, owners, every)
            error = model.restore(clusters, symbols, grade) - unseen
            spent = bits.sum() / unseen.size * excess
            return float(spent), float(np.mean(np.square(error)))

        return in_threads(at, grades)


def in_threads(call, items: Iterable) -> list:
    """``call`` of all items, on as many threads as torch has, each of one thread."""
    with ThreadPoolExecutor(
        torch.get_num_threads(), initializer=limit_threads, initargs=(1,)
    ) as pool:
        return list(pool.map(call, items))


def compare(curves: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """Mean log2 of each curve's rate over the range of MSE that all of them reach (Bjontegaard's
    measure, piecewise linear)."""
    logs = [np.log2(np.maximum(np.array(curve), 1e-30)) for curve in curves]  # (points, 2)
    low = max(log[:, 1].min() for log in logs)
    high = min(log[:, 1].max() for log in logs)
    at = np.linspace(low, high, 33)
    return [float(np.interp(at, log[::-1, 1], log[::-1, 0]).mean()) for log in logs]
