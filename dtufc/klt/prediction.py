"""Linear prediction: a token is coded as what it differs in from a forecast by the token before it.

    encode:  x_t ─ minus p_t ─> r_t ─ klt ─> symbols          p_t = fade(x_hat_{t-1} - mean) @ matrix
    decode:  symbols ─> r_hat_t ─ plus p_t ─> x_hat_t         p_0 = 0

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

from dtufc.errors import UserError
from dtufc.klt import coder, trellis

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

    mean: np.ndarray
    """(C,) float32."""
    scale: np.ndarray
    """(C,) float32: standard deviations of the channels, around which ``matrix`` is of magnitude 1."""
    matrix: np.ndarray
    """(C, C) float32 of float16 values, over channels that are divided by ``scale``."""
    reach: float
    """Length of a difference from the mean above which a token counts less."""

    @cached_property
    def _whole(self) -> np.ndarray:
        """(C, C) float32: the matrix over channels as they are."""
        return np.ascontiguousarray(self.matrix / self.scale[:, None] * self.scale)

    def forecast(self, before: np.ndarray) -> np.ndarray:
        """Of the tokens behind those of ``before`` (R, C), (R, C) float32."""
        away = before - self.mean
        length = np.sqrt(np.einsum("rc,rc->r", away, away, dtype=np.float64))
        if length.max(initial=0) > self.reach:
            away *= np.minimum(1, np.square(self.reach / length)).astype(np.float32)[:, None]
        return away @ self._whole

    def residuals(self, x: np.ndarray, length: int) -> np.ndarray:
        """What tokens (R, C, 1), sequences of ``length`` in a row, differ in from the forecasts by the
        exact tokens before them."""
        out = x.reshape(-1, length, x.shape[1]).copy()
        before = out[:, :-1].reshape(-1, x.shape[1])
        out[:, 1:] -= self.forecast(before).reshape(len(out), -1, x.shape[1])
        return out.reshape(x.shape)

    def restore(self, residuals: np.ndarray, length: int, raw: np.ndarray) -> None:
        """Decoded residuals (R, C, 1), sequences of ``length`` in a row, become tokens, in place.

        Args:
            raw: (R,) bool, rows that are tokens already.
        """
        x = residuals[:, :, 0].reshape(-1, length, residuals.shape[1])
        coded = ~raw.reshape(-1, length)
        for t in range(1, length):
            mine = coded[:, t]
            if mine.all():
                x[:, t] += self.forecast(x[:, t - 1])
            elif mine.any():
                x[mine, t] += self.forecast(x[mine, t - 1])

    def arrays(self) -> dict[str, np.ndarray]:
        """The state as it is stored."""
        return {
            f"{PREFIX}mean": self.mean,
            f"{PREFIX}scale": self.scale,
            f"{PREFIX}matrix": self.matrix.astype(np.float16),
            f"{PREFIX}reach": np.array([self.reach]),
        }

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], channels: int | None) -> Self | None:
        """The prediction from its stored form, or None where there is none.

        Raises:
            UserError: an array is missing or not sound; the message names it.
        """
        if not any(name.startswith(PREFIX) for name in arrays):
            return None

        def read(name: str, dtype: type, *shape: int | None) -> np.ndarray:
            array = arrays.get(PREFIX + name)
            if array is None:
                raise UserError(f"{PREFIX}{name} is missing")
            expect(name, array.dtype == dtype and array.shape == shape)
            expect(name, bool(np.abs(array.astype(np.float64)).max(initial=0) <= LARGEST))
            return array

        def expect(name: str, sound: bool) -> None:
            if not sound:
                raise UserError(f"{PREFIX}{name} is not sound")

        mean, scale = (read(name, np.float32, channels) for name in ("mean", "scale"))
        expect("scale", bool(scale.min() >= SMALLEST))
        matrix = read("matrix", np.float16, channels, channels).astype(np.float32)
        reach = float(read("reach", np.float64, 1)[0])
        expect("reach", reach > 0)
        return cls(mean, scale, matrix, reach)


def search(
    model: "KltModel", vectors: np.ndarray, grade: int, length: int, most: int
) -> tuple[coder.Quantised, np.ndarray]:
    """Modes and symbols of the residuals of vectors (R, C, 1), and which (R,) bool no symbols can tell.

    Modes are chosen for all vectors at once, as if the tokens before them came exact. Then symbols are
    found from token to token, with the forecasts that the decoder will have.

    Args:
        length: rows of a sequence.
        most: modes that are tried on each vector, where there is a shortlist.
    """
    prediction, transform, tables = model.prediction, model.transform, model.tables_at(grade)
    fine, weight = trellis.FINE * transform.step(grade), model.weight_at(grade) / trellis.FINE**2
    tame, _ = model.tame(prediction.residuals(vectors, length), grade)
    tried = model.shortlist(tame, grade, most)
    modes = coder.modes_of(transform, tables, tame, fine, weight, tried)
    code = np.empty((transform.components, len(vectors)), np.uint16)
    symbols = np.empty(code.shape, np.int32)
    raw, escapes = np.zeros(len(vectors), bool), 0
    known = np.zeros((len(vectors) // length, vectors.shape[1]), np.float32)
    for t in range(length):
        rows = np.arange(t, len(vectors), length)
        tame, raw[rows] = model.tame(vectors[rows] - known[:, :, None], grade)
        escapes += coder.search_rows(
            transform, tables, tame, fine, weight, modes[rows], rows, code, symbols
        )
        y = tables.values_of(symbols[:, rows], modes[rows]) * np.float32(fine)
        decoded = coder.restore(transform, modes[rows], y)[:, :, 0] + known
        decoded[raw[rows]] = vectors[rows[raw[rows]], :, 0]
        known = prediction.forecast(decoded)
    return coder.Quantised(modes, code, symbols, escapes), raw
