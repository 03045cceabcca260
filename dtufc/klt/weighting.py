"""Errors weighed by what they cost: a metric of channels, and the importance of tokens.

    token x ─ @ root ─> z ─ klt, at the quality of the token's class ─> z_hat ─ @ unroot ─> x_hat

Small errors e_t of a feature's tokens move the distribution of the answer by about

    KL = 1/2 sum over t of w_t e_t' F e_t        (nats)

with F the Fisher information of the half behind. The root of F turns this into a squared error, which is
what klt knows: ``root`` is F^(1/2), or the root of its diagonal. The importances w_t differ by orders of
magnitude and depend on what is behind, which an encoder does not see. So log2 w_t is predicted from the
token (:mod:`dtufc.klt.importance`), and sent as its class c_t: the step is finer by 2^(-c_t / 2).

:mod:`dtufc.klt.fit_metric` measures both on a machine and writes them to a file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dtufc import files
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts
from dtufc.klt.importance import (
    CLASS_GRADES,
    FAR,
    MOST,
    Importance,
    count_features,
    to_classes,
)
from dtufc.rans import PRECISION
from dtufc.views import TOKEN_AXES

PREFIX = "weighting_"
"""Of the arrays' names, where others are beside them."""
LARGEST = 1e15
"""Magnitude of what a root, its inverse or a mean may hold."""
FLOOR = 1e-9  # of a root's largest eigenvalue, before the root is taken
FAR_OFF = 1e18
"""Magnitude of a token's values, weighed or not, above which it is sent as it is: float32 holds the
products of those below."""


@dataclass(frozen=True)
class Predictor:
    """How a token's importance is told from its weighed channels."""

    mean: np.ndarray
    """(C,) float32."""
    basis: np.ndarray
    """(C, C) float32 of float16 values, a column a component."""
    importance: Importance

    def classes(self, z: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The class of each token of z (R, C), (R,) int32.

        Args:
            position: (R,) in its sequence. How many tokens will come behind is taken as not known.
        """
        y = (z - self.mean) @ self.basis
        behind = np.full(len(z), FAR)
        return to_classes(self.importance.log2(y, behind, position))

    def arrays(self) -> dict[str, np.ndarray]:
        known = self.importance
        return {
            "mean": self.mean, "basis": self.basis.astype(np.float16), "sigma": known.sigma,
            "theta": known.theta, "line": np.array([known.bias, known.reach], np.float64),
            "freq": known.freq,
        }  # fmt: skip


@dataclass(frozen=True)
class Weighting:
    """A metric of channels and, where tokens differ in importance, how that is told."""

    root: np.ndarray
    """(C, C) float32, symmetric, or (C,): its diagonal, where there is nothing else."""
    unroot: np.ndarray
    """The inverse, of the same shape."""
    predictor: Predictor | None = None

    @property
    def channels(self) -> int:
        return len(self.root)

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (R, C) -> weighed (R, C), float32, and which (R,) bool are too far off: these are 0."""
        z = _times(x, self.root)
        wild = ~((np.abs(x).max(1) <= FAR_OFF) & (np.abs(z).max(1) <= FAR_OFF))
        z[wild] = 0
        return z, wild

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """The way back of :meth:`forward`."""
        return _times(z, self.unroot)

    def classes(self, z: np.ndarray, length: int) -> np.ndarray:
        """The class of each token, (R,) int32.

        Args:
            z: (R, C) weighed tokens, sequences of ``length`` in a row.
        """
        return self.told(z, np.arange(len(z)) % length)

    def told(self, z: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The class of each token, (R,) int32, by its position (R,) in its sequence."""
        if self.predictor is None:
            return np.zeros(len(z), np.int32)
        return self.predictor.classes(z, position)

    def write(self, classes: np.ndarray) -> bytes:
        """The string of classes (R,); empty where all tokens are alike."""
        return b"" if self.predictor is None else self.predictor.importance.write(classes)

    def read(self, data: bytes, count: int) -> np.ndarray:
        """The way back of :meth:`write`, (R,) int32, R = ``count``.

        Raises:
            RansError, ValueError: the string is damaged, or too short for so many.
        """
        if self.predictor is not None:
            return self.predictor.importance.read(data, count)
        if data:
            raise ValueError("classes of a codec that has none")
        return np.zeros(count, np.int32)

    def arrays(self) -> dict[str, np.ndarray]:
        """The state as it is stored."""
        out = {"root": self.root, "unroot": self.unroot}
        out |= self.predictor.arrays() if self.predictor else {}
        return {PREFIX + name: value for name, value in out.items()}

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], channels: int) -> Self | None:
        """The weighting from its stored form, or None where there is none.

        Raises:
            UserError: an array is missing or not sound; the message names it.
        """
        found = {
            name.removeprefix(PREFIX): value
            for name, value in arrays.items()
            if name.startswith(PREFIX)
        }
        if not found:
            return None
        check = _Check(found)
        square = (channels,) if found.get("root", np.empty(0)).ndim == 1 else (channels, channels)
        root, unroot = (check(name, np.float32, square) for name in ("root", "unroot"))
        if "basis" not in found:
            return cls(root, unroot)
        mean = check("mean", np.float32, (channels,))
        basis = check("basis", np.float16, (channels, channels)).astype(np.float32)
        sigma = check("sigma", np.float32, (channels,))
        theta = check("theta", np.float32, (count_features(channels),))
        line = check("line", np.float64, (2,))
        freq = check("freq", np.int32, (2 * MOST + 2,))
        check.expect("sigma", bool(sigma.min() > 0))
        check.expect("line", bool(line[1] >= 0))
        check.expect("freq", bool(freq.min() >= 1 and freq.sum() == 1 << PRECISION))
        importance = Importance(sigma, theta, float(line[0]), int(line[1]), freq)
        return cls(root, unroot, Predictor(mean, basis, importance))

    def save(self, path: Path, made_by: dict[str, Any]) -> None:
        """Write the file of a metric.

        Args:
            made_by: provenance, anything JSON holds.
        """
        arrays = {name: np.ascontiguousarray(value) for name, value in self.arrays().items()}
        files.write_bytes(path, save(arrays, metadata={"made_by": json.dumps(made_by)}))

    @classmethod
    def load(cls, path: Path) -> tuple[Self, dict[str, Any]]:
        """The weighting of a file, and its provenance.

        Raises:
            FileNotFoundError, UserError: there is none, or it is no sound one; the message names it.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such metric; coding/klt/fit_metric.py makes one")
        try:
            with safe_open(path, "np") as stored:
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                made_by = json.loads((stored.metadata() or {}).get("made_by", "{}"))
            found = cls.of_arrays(arrays, len(arrays.get(PREFIX + "root", ())))
        except (SafetensorError, ValueError, TypeError) as error:
            raise UserError(f"{path}: not a readable metric ({error})") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if found is None:
            raise UserError(f"{path}: not a metric; it holds {sorted(arrays)}")
        return found, made_by


def weighed_facts(channels: int) -> FeatureFacts:
    """As what feature weighed tokens are coded."""
    return FeatureFacts("klt", "weighed", [1, 1, None, channels], list(TOKEN_AXES))


class _Check:
    """Refuses what no fit gives."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __call__(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self.arrays:
            raise UserError(f"{PREFIX}{name} is missing")
        array = self.arrays[name]
        self.expect(name, array.dtype == dtype and array.shape == shape)
        self.expect(name, bool(np.abs(array.astype(np.float64)).max(initial=0) <= LARGEST))
        return array

    def expect(self, name: str, sound: bool) -> None:
        if not sound:
            raise UserError(f"{PREFIX}{name} is not sound")


def by_class(classes: np.ndarray, grade: int) -> Iterator[tuple[np.ndarray, int]]:
    """Per class, its rows, and their quality in 128ths where that of class 0 is ``grade``."""
    for each in np.unique(classes).tolist():
        yield np.flatnonzero(classes == each), grade + CLASS_GRADES * each


def _times(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(R, C) by a matrix (C, C), or by its diagonal (C,)."""
    with np.errstate(over="ignore", invalid="ignore"):  # values far off are sent as they are
        return x * matrix if matrix.ndim == 1 else x @ matrix


def weight_of(fisher: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric root of a Fisher information (C, C), and its inverse.

    Args:
        shrinkage: share of the mean eigenvalue that is spread over all directions.
    """
    mean = max(np.trace(fisher) / len(fisher), float(np.finfo(np.float32).tiny))
    shrunk = (1 - shrinkage) * fisher + shrinkage * mean * np.eye(len(fisher))
    values, vectors = np.linalg.eigh(shrunk)
    root = np.sqrt(np.maximum(values, FLOOR * values.max()))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
