"""How much a token matters to what comes behind it, told from its own components: of a feature, or of
keys and values (:mod:`dtufc.kv`).

A few tokens are read again and again, most hardly ever: what an error costs varies by orders of
magnitude from token to token. The future is not known when a token is coded, but tokens that are going
to matter look alike. So log2 of a token's importance is predicted by a linear model of its
components, of their energies, and of its place, fitted to measured gradients::

    log2 w = theta' features(components, tokens behind it, position) + bias

Each token gets a class c, about log2 w. Its step is finer by 2^(-c/2), which costs c/2 bits per value.
So an error of any token costs about the same. The classes are coded: the receiver predicts nothing.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dtufc import range_coder, rans
from dtufc.klt.entropy import to_frequencies

MOST = 12
"""Largest magnitude of a class."""
CLASS_GRADES = 64
"""Quality in 128ths per class: half an octave of the step."""
LEADING, SQUARED = 192, 64
"""Components whose values, and whose squares, are features."""
CLIP = 5.0  # standard deviations of a component
FAR = 1 << 30
"""Tokens behind a token of which nothing is known: as many as the fit has seen at most."""


@dataclass(frozen=True)
class Importance:
    """The prediction for one group's rows of D components."""

    sigma: np.ndarray
    """(D,) float32, standard deviations of the components, above 0."""
    theta: np.ndarray
    """(features,) float32."""
    bias: float
    reach: int
    """Tokens behind, and positions, above which there is no difference."""
    freq: np.ndarray
    """(2 MOST + 2,) int32: frequencies of the classes -MOST .. MOST and of an escape, sum 2^16."""

    def log2(self, y: np.ndarray, behind: np.ndarray, position: np.ndarray) -> np.ndarray:
        """log2 of the importance of rows, (R,) float64.

        Args:
            y: (R, D) components. behind: (R,) tokens behind each. position: (R,) of each.
        """
        found = features(y, self.sigma, behind, position, self.reach)
        return (found * self.theta).sum(1, dtype=np.float64) + self.bias

    def values(self) -> dict[str, float]:
        """What is stored beside its arrays."""
        return {"bias": self.bias, "reach": self.reach}

    @cached_property
    def tables(self) -> rans.Tables:
        cdf = np.append(0, np.cumsum(self.freq))[None]
        return rans.Tables(cdf, np.array([cdf.shape[1]]), np.array([-MOST]))

    def write(self, classes: np.ndarray) -> bytes:
        """The string of classes (R,)."""
        return range_coder.encode(classes, np.zeros(len(classes), np.int32), self.tables)

    def read(self, data: bytes, count: int) -> np.ndarray:
        """The way back of :meth:`write`, (R,) int32.

        Raises:
            RansError: the string is damaged, or too short for so many.
        """
        range_coder.check_room(data, count * float(self.tables.least[0]))
        reader = range_coder.Decoder(data, self.tables)
        found = reader.decode(np.zeros(count, np.int32))
        reader.finish()
        if np.abs(found).max() > MOST:
            raise rans.RansError("a class is none")
        return found


def to_classes(log2: np.ndarray) -> np.ndarray:
    """log2 of importances -> classes, int32."""
    return np.clip(np.rint(log2), -MOST, MOST).astype(np.int32)


def count_features(components: int) -> int:
    """Of rows of so many components."""
    bands = int(np.log2(components)) + 1
    return min(LEADING, components) + min(SQUARED, components) + bands + 4


def features(
    y: np.ndarray, sigma: np.ndarray, behind: np.ndarray, position: np.ndarray, reach: int
) -> np.ndarray:
    """(R, features) float32: leading components and their squares, log2 of the mean squares in octaves
    of components, and the place. A row's features depend on that row alone."""
    z = y / sigma
    starts = 2 ** np.arange(int(np.log2(y.shape[1])) + 1) - 1
    energy = np.add.reduceat(np.square(z), starts, axis=1)
    sizes = np.diff(np.append(starts, y.shape[1]))
    near = np.log2(1 + np.minimum(behind, reach), dtype=np.float32)
    place = np.log2(1 + np.minimum(position, reach), dtype=np.float32)
    clipped = np.clip(z[:, :LEADING], -CLIP, CLIP)
    places = np.stack([near, np.square(near), 2.0**-near, place], 1)
    columns = [clipped, np.square(clipped[:, :SQUARED]), np.log2(energy / sizes + 2.0**-10), places]
    return np.concatenate(columns, 1, dtype=np.float32)


@dataclass(frozen=True)
class Probed:
    """Rows whose sensitivity was measured, (windows, tokens, ...) each."""

    y: np.ndarray
    """(n, t, D)."""
    sensitivity: np.ndarray
    """(n, t), mean 1 about: what an error costs, relative to the mean."""
    behind: np.ndarray
    """(t,)."""
    position: np.ndarray
    """(t,)."""

    def features(self, sigma: np.ndarray, reach: int) -> np.ndarray:
        """(n, t, features)."""
        n, t, d = self.y.shape
        places = [np.tile(each, n) for each in (self.behind, self.position)]
        return features(self.y.reshape(n * t, d), sigma, *places, reach).reshape(n, t, -1)


def fit_importance(probed: Probed, sigma: np.ndarray, reach: int, focus: float = 1.0) -> Importance:
    """The prediction that saves the most bits on windows that it was not fitted to, fitted to all.

    Tried are ridges, and factors that pull the prediction towards its mean.

    Args:
        focus: how far the prediction follows what was found, 0 .. 1. What saves most at fine steps is 1;
            at coarse ones, where most symbols are 0, less of it saves more.
    """
    f = probed.features(sigma, reach)
    log2 = np.log2(np.maximum(probed.sensitivity, 2.0**-20))
    held = max(1, len(f) // 4)
    best, found = -np.inf, (1e3, 0.0)
    for ridge in (30.0, 300.0, 3000.0):
        theta, bias = _ridge(f[:-held], log2[:-held], ridge) if len(f) > held else _none(f)
        guess = f[-held:] @ theta + bias
        for factor in (0.0, 0.5, 0.7, 0.85, 1.0):
            gain = saved(probed.sensitivity[-held:], factor * guess)
            if gain > best:
                best, found = gain, (ridge, factor)
    theta, bias = _ridge(f, log2, found[0])
    theta, bias = focus * found[1] * theta, focus * found[1] * bias
    predicted = np.clip(f @ theta + bias, -MOST, MOST)
    bias += np.log2((probed.sensitivity / 2**predicted).mean())  # of mean cost 1
    classes = to_classes(f @ theta + bias).ravel() + MOST
    counts = np.append(np.bincount(classes, minlength=2 * MOST + 1) + 0.2, 0.2)
    return Importance(
        sigma.astype(np.float32),
        theta.astype(np.float32),
        float(bias),
        reach,
        to_frequencies(counts),
    )


def saved(sensitivity: np.ndarray, log2: np.ndarray) -> float:
    """Bits per value that steps by predicted importances save over one step, at equal cost and fine
    steps: half of log2 mean(s) - log2 mean(s / w) - mean(log2 w)."""
    log2 = np.clip(log2, -MOST, MOST)
    after = np.log2((sensitivity / 2**log2).mean()) + log2.mean()
    return float(np.log2(sensitivity.mean()) - after) / 2


def _ridge(f: np.ndarray, target: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """theta (features,) and bias of the regression of target (n, t) on f (n, t, features)."""
    x, y = f.reshape(-1, f.shape[-1]).astype(np.float64), target.ravel()
    centre, spread = x.mean(0), x.std(0) + 1e-6
    z = (x - centre) / spread
    theta = np.linalg.solve(z.T @ z + ridge * np.eye(z.shape[1]), z.T @ (y - y.mean())) / spread
    return theta, float(y.mean() - centre @ theta)


def _none(f: np.ndarray) -> tuple[np.ndarray, float]:
    return np.zeros(f.shape[-1]), 0.0
