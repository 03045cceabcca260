"""The fit of a klt codec: the work of :mod:`dtufc.klt.fit_klt`.

    files ─ moments, samples ─ race of layouts ─ means and bases ─ tables of all steps ─ post-filter

With ``--layouts two`` there may be two layouts (:mod:`dtufc.klt.fit_layouts`), and a model of each.


With ``--memory true`` a memory is looked for behind the race (:mod:`dtufc.klt.fit_memory`), with
``--predict true`` forecasts of tokens (:mod:`dtufc.klt.fit_prediction`). With a
metric (``--metric FILE``) all of it sees weighed tokens (:mod:`dtufc.klt.weighting`).
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dtufc import locks, provenance
from dtufc.devices import check_device
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts, list_features, write_feature
from dtufc.klt import fit_ladder, fit_tables
from dtufc.klt.bases import Bases, Candidate
from dtufc.klt.fit_filter import fit_filter
from dtufc.klt.fit_klt import FitConfig
from dtufc.klt.fit_layouts import Side, find_pair
from dtufc.klt.fit_memory import Remembered, Sequences, affordable, try_memory
from dtufc.klt.fit_prediction import Forecasts, fit_forecasts, try_prediction
from dtufc.klt.fit_prediction import affordable as forecast_affordable
from dtufc.klt.fit_tables import WEIGHT, Coded
from dtufc.klt.model import LOWEST, PER_OCTAVE, RUNGS, RUNGS_PER_OCTAVE, KltModel, Transform
from dtufc.klt.race import FEW, Race
from dtufc.klt.statistics import Statistics, read_folds
from dtufc.klt.weighting import Weighting, weighed_facts

ALIKE = 0.06  # of the vectors held out: with so few more, means and bases stay what they are


def fit(cfg: FitConfig) -> KltModel:
    """Fit and write the codec folder.

    Raises:
        FeatureError, FileNotFoundError, UserError: no features, or unsound ones, or of another kind
            than the facts say; the message names the file.
    """
    paths = list_features(cfg.features)
    facts = cfg.facts()
    if facts.views.channels(facts.shape) is None:
        raise UserError(f"shape: a klt codec takes a fixed number of channels, got {facts.shape}")
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    weighting, made_by = _read_metric(cfg, facts)
    if cfg.predict and weighting is not None and weighting.predictor is not None:
        raise UserError(f"predict: {cfg.metric} tells tokens apart, so none has a neighbour")
    with locks.hold(cfg.output), tempfile.TemporaryDirectory() as room:
        run = provenance.Run(cfg.output, cfg, cfg.stamp())
        if weighting is None:
            model, told, name = _fit(cfg, paths, facts, device)
        else:
            weighed = write_weighed(paths, facts, weighting, Path(room))
            if weighting.predictor is not None:
                cfg = replace(cfg, post_filter=False)
            inner = weighed_facts(weighting.channels)
            model, told, name = _fit(cfg, weighed, inner, device)
            model = weigh(model, facts, weighting)
            told, name = told | {"files": len(paths), "metric": made_by}, f"{name}, weighed"
        model.save(cfg.output, cfg.quality, told)
        run.finish(layout=name, vectors=told["vectors"])
    return model


def _read_metric(
    cfg: FitConfig, facts: FeatureFacts
) -> tuple[Weighting | None, dict[str, Any] | None]:
    """The metric that errors are weighed by, and its provenance.

    Raises:
        FileNotFoundError, UserError: it is missing, not sound, or of other features.
    """
    if cfg.metric is None:
        return None, None
    weighting, made_by = Weighting.load(cfg.metric)
    channels = facts.views.channels(facts.shape)
    if facts.views.is_map or channels != weighting.channels:
        raise UserError(
            f"metric: {cfg.metric} is for tokens of {weighting.channels} channels, the features are "
            f"{facts.shape}, {facts.axes}"
        )
    return weighting, made_by


def weigh(model: KltModel, facts: FeatureFacts, weighting: Weighting) -> KltModel:
    """A model of weighed tokens as one of the features that they were made of."""
    fine = model.fine and replace(model.fine, facts=facts, weighting=weighting)
    return replace(model, facts=facts, weighting=weighting, fine=fine)


def write_weighed(
    paths: Sequence[Path], facts: FeatureFacts, weighting: Weighting, room: Path
) -> list[Path]:
    """Weighed features, a file for each sequence of the ``paths``, in the folder ``room``."""
    found = []
    for path in tqdm(paths, desc="weighed"):
        x = facts.read(path)
        vectors = facts.views.to_vectors(x, 1)[:, :, 0]
        length = facts.views.sequence(x.shape) or len(vectors)
        z = weighting.forward(vectors)[0]
        for each in z.reshape(-1, 1, 1, length, weighting.channels):
            found.append(room / f"{len(found):08d}.npy")
            write_feature(found[-1], each)
    return found


def _fit(
    cfg: FitConfig, paths: Sequence[Path], facts: FeatureFacts, device: str
) -> tuple[KltModel, dict[str, Any], str]:
    """The model, what is told of its making, and the name of its layout."""
    folds = read_folds(paths, facts, blocks(facts), cfg.sample, FEW, cfg.seed, device)
    if not folds:
        raise UserError(f"{paths[0]}: a single file of so few vectors; klt takes two files or more")
    race = Race(folds, facts, cfg, device)
    best = race.run()
    pair, compared = find_pair(race, best) if cfg.layouts == "two" else (None, None)
    sides = [Side(race, best)] if pair is None else [pair.coarse, pair.fine]
    plans = [_plan(cfg, paths, facts, side) for side in sides]
    rows = folds[sides[0].best.layout.block].rows
    told = {"files": len(paths), "vectors": rows, "seed": cfg.seed}
    if compared is not None:
        told["layouts"] = compared
    first = pair and pair.first
    del race, folds, sides, pair  # what follows takes memory of its own
    (model, name), *second = [_make(cfg, paths, facts, plan) for plan in plans]
    told |= plans[0].told
    for fine, more in second:
        model = replace(model, fine=fine, fine_from=first)
        told["fine"] = plans[1].told
        name += f"; from quality {first / PER_OCTAVE:g} {more}"
    return model, told, name


@dataclass
class _Plan:
    """What a model is made of, once all was compared."""

    best: Candidate
    transform: Transform
    known: Statistics
    """Of all files."""
    bases: Bases
    """Of them."""
    forecasts: Forecasts | None
    remember: bool
    told: dict[str, Any]
    """Of what was compared, and the post-filter."""


def _plan(cfg: FitConfig, paths: Sequence[Path], facts: FeatureFacts, side: Side) -> _Plan:
    """What is left to compare with a layout, and its means and bases, of all files."""
    race, best = side.race, side.best
    fold = race.folds[best.layout.block]
    told: dict[str, Any] = {"tried": [*race.tried.values()]}
    forecasts = None
    if cfg.predict and forecast_affordable(best.layout, facts) and len(paths) > 1:
        forecasts, told["prediction"] = try_prediction(paths, race, best)
    remember, told["memory"] = False, None
    if cfg.memory and affordable(best.layout, facts) and len(paths) > 1:
        bases = race.part(best.layout).bases
        remember, told["memory"] = try_memory(
            paths, fold.every, facts, race.transform(best), bases, race.cfg
        )
    if fold.share <= ALIKE:
        transform, known = race.transform(best), race.part(best.layout).told
    else:
        known = fold.everything()
        if best.layout.layers != "joint":
            known = known.apart(facts.shape[1])
        transform = Bases(known, cfg.seed, race.device).fit(best)
    transform = replace(transform, unit=transform.unit * 2.0**side.turned)
    bases = Bases(known, cfg.seed, race.device)
    if forecasts is not None:
        forecasts = fit_forecasts(paths, race, best, transform, bases)
    return _Plan(best, transform, known, bases, forecasts, remember, told)


def _make(
    cfg: FitConfig, paths: Sequence[Path], facts: FeatureFacts, plan: _Plan
) -> tuple[KltModel, str]:
    """The model of a plan, and the name of its layout."""
    transform, known, bases, forecasts = plan.transform, plan.known, plan.bases, plan.forecasts
    sample, owners = known.thinned(plan.best.layout, FEW)
    coded = Coded.plain(transform, sample, owners, cfg.tables)
    memory, prediction, name = None, None, str(plan.best)
    if plan.remember:
        remembered = Remembered(Sequences.read(paths, facts, FEW), transform, bases)
        coded, memory, transform = remembered.coded, remembered.memory, remembered.transform
        name += ", memory"
    if forecasts is not None:
        coded, prediction, transform = forecasts.coded, forecasts.prediction, forecasts.transform
        cfg, name = replace(cfg, post_filter=False), name + ", predicted"
    if cfg.contexts:
        name += ", tables by context"
    width = PER_OCTAVE // RUNGS_PER_OCTAVE
    grades = [LOWEST * PER_OCTAVE + width * n for n in range(RUNGS)]
    if cfg.format == 2:
        steps = tqdm(grades, desc="tables")
        rungs = list(fit_ladder.fit(transform, coded, steps, WEIGHT, cfg.contexts))
    else:
        rungs = fit_tables.fit_ladder(transform, coded, grades)
    model = KltModel(facts, transform, tuple(rungs), WEIGHT, memory=memory, prediction=prediction)
    if cfg.post_filter and not facts.views.is_map:
        basis = bases.common if transform.layout.clusters > 1 else None
        post, plan.told["post_filter"] = fit_filter(paths, known.mean[:, 0], basis, model)
        model = replace(model, post=post)
    return model, name


def blocks(facts: FeatureFacts) -> list[int]:
    """Sides of blocks worth trying: none, 4, 8, and the whole of a small map."""
    size = facts.views.sides(facts.shape)
    if size is None:
        return [1]
    sides = {1, 4, 8}
    height, width = size
    if height is not None and height == width and height <= 16:
        sides.add(height)
    return sorted(side for side in sides if height is None or side <= max(height, width or side))
