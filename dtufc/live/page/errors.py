"""Where in a feature the error is: one number per token, or per position of a map.

Of tokens it is the relative error of :mod:`dtufc.token_error`, with the centre of this feature alone. Of
maps it is the squared error of a position over the mean squared distance of all positions from their
channels' means.
"""

from typing import Any

import numpy as np

from dtufc.live.page.work import Given, Work


def error_by_place(is_map: bool, x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """Features (N, C, H, W) -> (panels, H, W) of maps, (panels, tokens) else; 0 is without loss."""
    difference = x_hat.astype(np.float64) - x
    if is_map:
        spread = np.sum((x - x.mean(axis=(2, 3), keepdims=True, dtype=np.float64)) ** 2, axis=1)
        squares = np.sum(difference**2, axis=1)  # (N, H, W)
        return squares / max(float(spread.mean()), np.finfo(np.float64).tiny)
    centre = np.median(x, axis=(0, 2)).astype(np.float64)[None, :, None]  # (1, L, 1, C)
    spread = np.sum((x - centre) ** 2, axis=-1)
    squares = np.sum(difference**2, axis=-1)  # (N, L, T)
    relative = np.divide(squares, spread, np.zeros_like(squares), where=spread > 0)
    return relative.reshape(-1, relative.shape[-1])


def show_errors(work: Work, given: Given, x: np.ndarray, x_hat: np.ndarray) -> dict[str, Any]:
    """The error by place as JSON: a list for a text, grids else. The first token, which is no patch,
    stands beside its grid."""
    is_map = work.facts.views.is_map
    errors = error_by_place(is_map, x, x_hat)
    found: dict[str, Any] = {"mean": _short(errors.mean()), "worst": _short(errors.max())}
    grid = None if is_map else work.grid(given)
    if is_map:
        firsts, grids = [None] * len(errors), errors
    elif grid is None:
        return found | {"values": _list(errors[0])}
    else:
        firsts, grids = errors[:, 0].tolist(), errors[:, 1:].reshape(-1, *grid)
    names = work.panels(len(grids))
    panels = [
        {"name": name, "values": _list(values), "first": None if first is None else _short(first)}
        for name, first, values in zip(names, firsts, grids, strict=True)
    ]
    return found | {"rows": grids.shape[1], "columns": grids.shape[2], "panels": panels}


def _list(values: np.ndarray) -> list[float]:
    return [_short(value) for value in values.reshape(-1)]


def _short(value: float) -> float:
    return float(f"{value:.3g}")
