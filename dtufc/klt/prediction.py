"""Linear prediction: a token is coded as what it differs in from a forecast by the token before it.

    y_t = basis_m (x_t - mean_m - p_t)        p_t = fade(x_hat_{t-1} - mean) @ matrix_m

A coded mode m selects mean, basis and entropy tables as it does without; modes from ``first`` on have a
matrix too, and forecast. Tokens without a neighbour, or that it tells nothing of, take another mode.
The loop is closed (differential pulse-code modulation; N. Jayant and P. Noll, *Digital coding of
waveforms*, 1984, chapter 6): the encoder forecasts from what the decoder has, so that errors do not add
up. Symbols and their tables know nothing of it. A forecast enters at reconstruction only, and its last
bits may differ between machines without harm to any symbol.

A few tokens are a thousand times larger than all others, and say nothing of the next one. ``fade`` keeps
a difference up to the length ``reach`` and lets longer ones fall off as 1 / length, so that a forecast
is bounded whatever was decoded, and changes evenly with it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from dtufc.errors import UserError
from dtufc.klt import chain, coder, trellis

if TYPE_CHECKING:
    from dtufc.klt.model import KltModel

PREFIX = "prediction_"
"""Of the arrays' names, where others are beside them."""
LARGEST = 1e15
"""Magnitude of what a mean, a scale or the reach may hold."""
SMALLEST = 1e-15
"""Smallest scale."""


@dataclass(frozen=True)
class Prediction:
    """How a token is forecast from the one before it."""

    first: int
    """K: modes below have no forecast."""
    mean: np.ndarray
    """(C,) float32."""
    scale: np.ndarray
    """(C,) float32: standard deviations of the channels, around which matrices are of magnitude 1."""
    matrices: np.ndarray
    """(M, C, C) float32 of float16 values, per mode from ``first`` on, over channels that are divided by
    ``scale``."""
    reach: float
    """Length of a difference from the mean above which a token counts less."""

    @cached_property
    def kernel(self) -> chain.Forecasts:
        """As compiled kernels take it."""
        rows = np.ascontiguousarray(self.matrices.transpose(0, 2, 1).astype(np.float16))
        return chain.Forecasts(self.first, self.mean, self.scale, self.reach, rows.view(np.uint16))

    def forecast(self, before: np.ndarray, mode: int) -> np.ndarray:
        """Of tokens of a mode from ``first`` on, by those before them (R, C), (R, C) float32."""
        away = fade(before, self.mean, self.reach) / self.scale
        matrix = self.matrices[mode - self.first]
        return (torch.from_numpy(away) @ torch.from_numpy(matrix)).numpy() * self.scale

    def restore(
        self,
        vectors: np.ndarray,
        modes: np.ndarray,
        length: int,
        raw: np.ndarray,
        before: np.ndarray | None = None,
    ) -> None:
        """Decoded vectors (R, C, 1), sequences of ``length`` in a row, become tokens, in place.

        Args:
            modes: (R,). raw: (R,) bool, rows that are tokens already.
            before: (N, C), the tokens before the sequences, where there are any.
        """
        x = vectors[:, :, 0]
        chain.restore(x, modes, raw, length, known_before(before, x.shape[1]), self.kernel)

    def arrays(self) -> dict[str, np.ndarray]:
        """The state as it is stored."""
        return {
            f"{PREFIX}mean": self.mean,
            f"{PREFIX}scale": self.scale,
            f"{PREFIX}matrices": self.matrices.astype(np.float16),
            f"{PREFIX}reach": np.array([self.reach]),
        }

    @classmethod
    def of_arrays(
        cls, arrays: dict[str, np.ndarray], modes: int, channels: int | None
    ) -> Self | None:
        """The prediction from its stored form, or None where there is none.

        Args:
            modes: all, with a forecast or without.

        Raises:
            UserError: an array is missing or not sound; the message names it.
        """
        if not any(name.startswith(PREFIX) for name in arrays):
            return None

        def read(name: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
            array = arrays.get(PREFIX + name)
            if array is None:
                raise UserError(f"{PREFIX}{name} is missing")
            expect(name, array.dtype == dtype and array.shape == shape)
            expect(name, bool(np.abs(array.astype(np.float64)).max(initial=0) <= LARGEST))
            return array

        def expect(name: str, sound: bool) -> None:
            if not sound:
                raise UserError(f"{PREFIX}{name} is not sound")

        mean, scale = (read(name, np.float32, (channels,)) for name in ("mean", "scale"))
        expect("scale", bool(scale.min() >= SMALLEST))
        count = len(arrays.get(PREFIX + "matrices", ()))
        matrices = read("matrices", np.float16, (count, channels, channels))
        expect("matrices", 1 <= count < modes)
        reach = float(read("reach", np.float64, (1,))[0])
        expect("reach", reach > 0)
        return cls(modes - count, mean, scale, matrices.astype(np.float32), reach)


def fade(x: np.ndarray, mean: np.ndarray, reach: float) -> np.ndarray:
    """Tokens (R, C) -> their differences from the mean (R, C) float32, as far as they count."""
    away = x - mean
    length = np.sqrt(np.einsum("rc,rc->r", away, away, dtype=np.float64))
    if length.max(initial=0) > reach:
        away *= np.minimum(1, np.square(reach / length)).astype(np.float32)[:, None]
    return away


def known_before(before: np.ndarray | None, channels: int) -> np.ndarray:
    """Tokens before sequences as kernels take them: (0, C) where there are none."""
    return np.empty((0, channels), np.float32) if before is None else before


def predicted(
    model: "KltModel",
    vectors: np.ndarray,
    grade: int,
    length: int,
    most: int,
    before: np.ndarray | None,
) -> tuple[coder.Quantised, np.ndarray]:
    """Modes and symbols of vectors (R, C, 1) float32, and which (R,) bool no symbols can tell.

    Args:
        length: rows of a sequence.
        most: modes without a forecast that are tried on each vector, where there is a shortlist; of
            the others, those that belong to them.
        before: (N, C), the tokens before the sequences, where there are any.
    """
    transform, prediction = model.transform, model.prediction
    tame, raw = model.tame(vectors, grade)
    tried = model.shortlist(tame, grade, most)
    if tried is None:
        tried = np.ones((len(vectors), prediction.first), bool)
    scale = model.scale(grade)
    tables, fine, weight = scale.tables, scale.fine, scale.weight
    heads = [tables.mode_cost(mode, weight) for mode in range(transform.layout.clusters)]
    symbols = chain.Symbols(
        tables.chosen, tables.shift, tables.parameters(weight), tables.low, tables.size,
        tables.values, np.array(heads),
    )  # fmt: skip
    modes = np.empty(len(vectors), np.int32)
    code = np.empty((transform.components, len(vectors)), np.uint16)
    found = np.empty(code.shape, np.int32)
    chain.search(
        np.ascontiguousarray(vectors[:, :, 0]), length,
        known_before(before, vectors.shape[1]), tried,
        _without(model, tame, tried, fine, weight, tables), prediction.kernel, transform.kernel,
        symbols, chain.Limits(fine, scale.value, scale.norm), modes, code, found, raw,
    )  # fmt: skip
    escapes = int(np.count_nonzero((code & 255) == trellis.ESCAPE))
    return coder.Quantised(modes, code, found, escapes), raw


def _without(
    model: "KltModel", tame: np.ndarray, tried: np.ndarray, fine: float, weight: float, tables
) -> chain.Without:
    """The best mode without a forecast of each vector (R, C, 1).

    Args:
        tried: (R, first) bool, those that are tried.
    """
    trials, parameters = [], tables.parameters(weight)
    modes = np.zeros(len(tame), np.int32)
    costs, sizes, least = np.full((3, len(tame)), coder.NEVER)
    for mode in np.flatnonzero(tried.any(0)).tolist():
        rows = np.flatnonzero(tried[:, mode])
        units, cost = coder.attempt(
            model.transform, tables, tame[rows], mode, fine, weight, parameters
        )
        size = np.abs(units).sum(0, dtype=np.int64)
        least[rows] = np.minimum(least[rows], size)
        trials.append((mode, rows, cost, size))
    for mode, rows, cost, size in trials:
        better = (cost < costs[rows]) & chain.is_near(size, least[rows], tame.shape[1])
        where = rows[better]
        modes[where], costs[where], sizes[where] = mode, cost[better], size[better]
    return chain.Without(modes, costs, sizes, least)
