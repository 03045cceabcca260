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
    def _whole(self) -> np.ndarray:
        """(M, C, C) float32: the matrices over channels as they are."""
        return self.matrices / self.scale[:, None] * self.scale

    def forecast(self, before: np.ndarray, mode: int) -> np.ndarray:
        """Of tokens of a mode from ``first`` on, by those before them (R, C), (R, C) float32."""
        return fade(before, self.mean, self.reach) @ self._whole[mode - self.first]

    def forecasts(self, before: np.ndarray, modes: np.ndarray) -> np.ndarray:
        """The same of tokens of any modes (R,); 0 where a mode has no forecast."""
        out = np.zeros_like(before)
        for mode, mine in coder.by_value(modes):
            if mode >= self.first:
                out[mine] = self.forecast(before[mine], mode)
        return out

    def restore(self, vectors: np.ndarray, modes: np.ndarray, length: int, raw: np.ndarray) -> None:
        """Decoded vectors (R, C, 1), sequences of ``length`` in a row, become tokens, in place.

        Args:
            modes: (R,). raw: (R,) bool, rows that are tokens already.
        """
        x = vectors[:, :, 0].reshape(-1, length, vectors.shape[1])
        modes = np.where(raw, 0, modes).reshape(-1, length)
        for t in range(1, length):
            if modes[:, t].max() >= self.first:
                x[:, t] += self.forecasts(x[:, t - 1], modes[:, t])

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


Trial = tuple[int, np.ndarray, np.ndarray, np.ndarray]
"""A mode, rows (n,), what they cost in it, and the sums of their magnitudes."""


class Forecast:
    """The choice of modes and symbols for vectors (R, C, 1) float32 at one step.

    First each vector takes the best mode without a forecast, and all are decoded so. By these the modes
    with a forecast are judged, for all vectors at once. Then symbols are found from token to token, with
    the forecasts that the decoder will have.

    Args:
        length: rows of a sequence.
        most: modes without a forecast that are tried on each vector, where there is a shortlist; of
            the others, those that belong to them.
    """

    def __init__(self, model: "KltModel", vectors: np.ndarray, grade: int, length: int, most: int):
        self.model, self.vectors, self.grade, self.length = model, vectors, grade, length
        self.prediction, self.transform = model.prediction, model.transform
        self.tables = model.tables_at(grade)
        self.fine = trellis.FINE * model.transform.step(grade)
        self.weight = model.weight_at(grade) / trellis.FINE**2
        count = len(vectors)
        self.code = np.empty((model.transform.components, count), np.uint16)
        self.symbols = np.empty(self.code.shape, np.int32)
        self.modes, self.raw = np.zeros(count, np.int32), np.zeros(count, bool)
        self.trials: list[Trial] = []
        tame, _ = model.tame(vectors, grade)
        tried = model.shortlist(tame, grade, most)
        first = self.prediction.first
        self.tried = np.ones((count, first), bool) if tried is None else tried
        for mode in range(first):
            rows = np.flatnonzero(self.tried[:, mode])
            self._attempt(mode, tame[rows], rows)
        self._settle()

    def search(self) -> tuple[coder.Quantised, np.ndarray]:
        """Modes and symbols, and which (R,) bool no symbols can tell."""
        every = np.arange(len(self.vectors))
        if self.length > 1:
            self._forecast_modes(self._code(every, 0.0))
        known = np.zeros((len(every) // self.length, self.vectors.shape[1]), np.float32)
        for t in range(self.length):
            rows = every[t :: self.length]
            known = self.prediction.forecasts(known, self.modes[rows]) if t else known
            known = self._code(rows, known)
        escapes = int(np.count_nonzero((self.code & 255) == trellis.ESCAPE))
        return coder.Quantised(self.modes, self.code, self.symbols, escapes), self.raw

    def _forecast_modes(self, decoded: np.ndarray) -> None:
        """Take modes with a forecast where they cost less.

        Args:
            decoded: (R, C), by the modes that vectors have.
        """
        before = np.roll(decoded, 1, axis=0)
        behind = np.arange(len(decoded)) % self.length > 0
        first, count = self.prediction.first, self.transform.layout.clusters
        for mode in range(first, count):
            rows = np.flatnonzero(behind & self.tried[:, (mode - first) % first])
            if len(rows):
                known = self.prediction.forecast(before[rows], mode)
                left, far = self.model.tame(self.vectors[rows] - known[:, :, None], self.grade)
                self._attempt(mode, left[~far], rows[~far])
        self._settle()

    def _attempt(self, mode: int, vectors: np.ndarray, rows: np.ndarray) -> None:
        """What the rows (n,) would cost in a mode.

        Args:
            vectors: (n, C, 1), what is coded of them.
        """
        if len(rows):
            parameters = self.tables.parameters(self.weight)
            units, cost = coder.attempt(
                self.transform, self.tables, vectors, mode, self.fine, self.weight, parameters
            )
            size = np.abs(units).sum(0, dtype=np.int64)
            self.trials.append((mode, rows, cost, size))

    def _settle(self) -> None:
        """Let each vector have the mode that it costs least, of those in which it is not far larger than
        in another: of what lies far off estimates know little."""
        least = np.full(len(self.vectors), coder.NEVER)
        for _, rows, _, size in self.trials:
            least[rows] = np.minimum(least[rows], size)
        limit = 2 * least + trellis.UNIT * len(self.code)
        cheapest = np.full(len(self.vectors), coder.NEVER)
        for mode, rows, cost, size in self.trials:
            better = (cost < cheapest[rows]) & (size <= limit[rows])
            self.modes[rows[better]], cheapest[rows[better]] = mode, cost[better]

    def _code(self, rows: np.ndarray, known: np.ndarray | float) -> np.ndarray:
        """Find the symbols of some vectors, in the modes that they have -> decoded (n, C).

        Args:
            known: (n, C), what is forecast of them.
        """
        x, modes = self.vectors[rows, :, 0], self.modes[rows]
        left, far = self.model.tame((x - known)[:, :, None], self.grade)
        coder.search_rows(
            self.transform, self.tables, left, self.fine, self.weight, modes, rows, self.code,
            self.symbols,
        )  # fmt: skip
        y = self.tables.values_of(self.symbols[:, rows], modes) * np.float32(self.fine)
        decoded = coder.restore(self.transform, modes, y)[:, :, 0] + known
        decoded[far] = x[far]
        self.raw[rows] = far
        return decoded
