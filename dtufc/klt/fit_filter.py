"""The post-filter of token features, from coded training features."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dtufc.klt.model import LOWEST, PER_OCTAVE, RUNGS, RUNGS_PER_OCTAVE, KltModel
from dtufc.klt.post_filter import PostFilter, neighbours
from dtufc.klt.race import in_threads

FILTERED = 1_500_000  # values at most that it is found on


def fit_filter(
    paths: Sequence[Path], mean: np.ndarray, basis: np.ndarray | None, model: KltModel
) -> tuple[PostFilter | None, list[dict[str, float]]]:
    """The post-filter of token features, by least squares over some of the files, coded.

    Args:
        mean: (C,) of all features. basis: (C, C) in which to filter; None: the codec's only one.

    Returns:
        the filter, or None where it helps at no step; and what it does to the MSE of every fifth file,
        fitted on the others, at the steps where this was measured.
    """
    channels = len(mean)
    taps = np.zeros((RUNGS, channels, 2), np.float32)
    post = PostFilter(taps, np.zeros(channels, np.float32), mean, basis)

    def components(x: np.ndarray) -> np.ndarray:
        return model.transform.forward(x, 0) if basis is None else post.components(x[:, :, 0])

    size = model.facts.read(paths[0]).size
    features = [model.facts.read(path) for path in paths[:: -(-len(paths) * size // FILTERED)]]
    vectors = [model.to_vectors(x) for x in features]
    exact = [components(each) for each in vectors]
    for y in exact:
        np.maximum(post.limit, np.abs(y).max(0), out=post.limit)

    def moments(place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        grade = _grade(place)
        square, cross, error = (np.zeros((2, channels, *end)) for end in ((2, 2), (2,), ()))
        for i, x in enumerate(features):
            length = model.facts.views.sequence(x.shape)
            owners = model.transform.layout.owners(x.shape)
            quantised = model.quantise(vectors[i], grade, length, owners)
            clusters, symbols, _, raw, references = quantised
            y = components(model.restore(clusters, symbols, grade, references=references))
            missing = (exact[i] - y)[~raw]
            told = np.stack([y, neighbours(y, length)], axis=2)[~raw]  # (rows, C, 2)
            fold = int(i % 5 == 0)
            square[fold] += np.einsum("rci,rcj->cij", told, told)
            cross[fold] += np.einsum("rci,rc->ci", told, missing)
            error[fold] += np.square(missing).sum(0)
        return square, cross, error

    measured = range(0, RUNGS, RUNGS_PER_OCTAVE)
    changes = []
    for place, (square, cross, error) in zip(measured, in_threads(moments, measured), strict=True):
        found = _least_squares(square[0], cross[0], error[0])
        gain = 2 * (found * cross[1]).sum() - np.einsum("ci,cij,cj->", found, square[1], found)
        change = -gain / max(error[1].sum(), 1e-30)
        changes.append({"quality": _grade(place) / PER_OCTAVE, "mse": float(change)})
        if change < -1e-3:
            taps[place] = _least_squares(square.sum(0), cross.sum(0), error.sum(0))
    for place in range(RUNGS):  # between two steps, between their taps
        before = place - place % measured.step
        after = min(before + measured.step, RUNGS - 1)
        share = (place - before) / measured.step
        taps[place] = (1 - share) * taps[before] + share * taps[after]
    taps[:] = taps.astype(np.float16)
    return (post if taps.any() else None), changes


def _grade(place: int) -> int:
    """The quality of a rung, in 128ths."""
    return LOWEST * PER_OCTAVE + place * (PER_OCTAVE // RUNGS_PER_OCTAVE)


def _least_squares(square: np.ndarray, cross: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(C, 2) taps of (C, 2, 2) and (C, 2) moments and the (C,) squared errors that they are to lower; a
    component of which next to nothing is sent has next to no taps."""
    ridge = 1e-3 * (np.trace(square, axis1=1, axis2=2) + error) + 1e-30
    return np.linalg.solve(square + ridge[:, None, None] * np.eye(2), cross[:, :, None])[:, :, 0]
