"""The fit of a klt codec: the work of :mod:`dtufc.klt.fit_klt`.

    files ─ moments, samples ─ race of layouts ─ means and bases ─ tables of all steps ─ post-filter

With ``--memory true`` a memory is looked for behind the race (:mod:`dtufc.klt.fit_memory`).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from dtufc import locks, provenance
from dtufc.devices import check_device
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts, list_features
from dtufc.klt import fit_ladder, fit_tables
from dtufc.klt.bases import Bases
from dtufc.klt.fit_filter import fit_filter
from dtufc.klt.fit_klt import FitConfig
from dtufc.klt.fit_memory import Remembered, Sequences, affordable, try_memory
from dtufc.klt.fit_tables import WEIGHT, Coded
from dtufc.klt.model import LOWEST, PER_OCTAVE, RUNGS, RUNGS_PER_OCTAVE, KltModel
from dtufc.klt.race import FEW, Race
from dtufc.klt.statistics import read_folds

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
    with locks.hold(cfg.output):
        return _fit(cfg, paths, facts, device)


def _fit(cfg: FitConfig, paths: Sequence[Path], facts: FeatureFacts, device: str) -> KltModel:
    run = provenance.Run(cfg.output, cfg, cfg.stamp())
    folds = read_folds(paths, facts, blocks(facts), cfg.sample, FEW, cfg.seed, device)
    if not folds:
        raise UserError(f"{paths[0]}: a single file of so few vectors; klt takes two files or more")
    race = Race(folds, facts, cfg, device)
    best = race.run()
    fold = folds[best.layout.block]
    made_by = {"files": len(paths), "vectors": fold.rows, "seed": cfg.seed}
    made_by["tried"] = [*race.tried.values()]
    remember, made_by["memory"] = False, None
    if cfg.memory and affordable(best.layout, facts) and len(paths) > 1:
        bases = race.part(best.layout).bases
        remember, made_by["memory"] = try_memory(
            paths, fold.every, facts, race.transform(best), bases, cfg
        )
    if fold.share <= ALIKE:
        transform, known = race.transform(best), race.part(best.layout).told
    else:
        known = fold.everything()
        if best.layout.layers != "joint":
            known = known.apart(facts.shape[1])
        transform = Bases(known, cfg.seed, device).fit(best)
    del race, folds, fold  # what follows takes memory of its own
    bases = Bases(known, cfg.seed, device)
    sample, owners = known.thinned(best.layout, FEW)
    coded, memory, name = Coded.plain(transform, sample, owners, cfg.tables), None, str(best)
    if remember:
        remembered = Remembered(Sequences.read(paths, facts, FEW), transform, bases)
        coded, memory, transform = remembered.coded, remembered.memory, remembered.transform
        name += ", memory"
    width = PER_OCTAVE // RUNGS_PER_OCTAVE
    grades = [LOWEST * PER_OCTAVE + width * n for n in range(RUNGS)]
    if cfg.format == 2:
        rungs = list(fit_ladder.fit(transform, coded, tqdm(grades, desc="tables"), WEIGHT))
    else:
        rungs = fit_tables.fit_ladder(transform, coded, grades)
    model = KltModel(facts, transform, tuple(rungs), WEIGHT, memory=memory)
    if cfg.post_filter and not facts.views.is_map:
        basis = bases.common if transform.layout.clusters > 1 else None
        post, made_by["post_filter"] = fit_filter(paths, known.mean[:, 0], basis, model)
        model = replace(model, post=post)
    model.save(cfg.output, cfg.quality, made_by)
    run.finish(layout=name, vectors=made_by["vectors"])
    return model


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
