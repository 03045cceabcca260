"""What the tokens beside a decoded token tell of it, at no cost in bits.

    y[t] += own * v[t] + beside * (v[t - 1] + v[t + 1]),    v = y, within what training has seen

for each component of one basis: the linear filter of least squared error (N. Wiener, 1949) over three
tokens, found on coded training features, with taps of their own at every rung of the ladder of steps.
The bound keeps an outlier from spilling over.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from dtufc.kernels import kernel


@dataclass(frozen=True)
class PostFilter:
    """Taps, and the basis in which they work."""

    taps: np.ndarray
    """(rungs, C, 2) float32 of float16 values: ``own`` and ``beside``."""
    limit: np.ndarray
    """(C,) float32: the largest component of either sign that was seen."""
    mean: np.ndarray
    """(C,) float32: the middle of all components."""
    basis: np.ndarray | None
    """(C, C) float32 of float16 values, a column a component; None: the components of the codec's own
    basis, where it has but one, so that filtering takes no rotation more."""

    def components(self, x: np.ndarray) -> np.ndarray:
        """(R, C) values -> (R, C) in the filter's own basis."""
        return (x - self.mean) @ self.basis

    def change(self, y: np.ndarray, length: int, rung: int) -> np.ndarray:
        """What is to be added to components y (R, C), sequences of ``length`` tokens in a row."""
        own, beside = self.taps[rung].T
        seen = np.clip(y, -self.limit, self.limit)
        return own * seen + beside * neighbours(seen, length)

    @cached_property
    def changes(self) -> list[bool]:
        """Whether there is anything to be added, of each rung."""
        return self.taps.any((1, 2)).tolist()

    def apply(self, y: np.ndarray, length: int, rung: int) -> None:
        """Add the change to components y (C, R), in place."""
        _filter(y, self.taps[rung], self.limit, length, np.zeros(y.shape[1] + 2, np.float32))

    def refine(self, x: np.ndarray, length: int, rung: int) -> np.ndarray:
        """(R, C) decoded values -> better ones, through the filter's own basis."""
        return x + self.change(self.components(x), length, rung) @ self.basis.T

    def arrays(self) -> dict[str, np.ndarray]:
        """The state as it is stored."""
        out = {"post_taps": self.taps.astype(np.float16)}
        out |= {"post_limit": self.limit, "post_mean": self.mean}
        if self.basis is not None:
            out["post_basis"] = self.basis.astype(np.float16)
        return out

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], own_basis: bool) -> Self | None:
        """The filter from its stored form, or None where there is none.

        Args:
            own_basis: whether the codec has several bases, so that the filter needs its own.
        """
        if "post_taps" not in arrays:
            return None
        basis = arrays["post_basis"].astype(np.float32) if own_basis else None
        taps = arrays["post_taps"].astype(np.float32)
        return cls(taps, arrays["post_limit"], arrays["post_mean"], basis)


def neighbours(y: np.ndarray, length: int) -> np.ndarray:
    """(R, D) -> the sum of the rows before and after each, within sequences of ``length`` rows."""
    y = y.reshape(-1, length, y.shape[1])
    out = np.zeros_like(y)
    out[:, 1:] = y[:, :-1]
    out[:, :-1] += y[:, 1:]
    return out.reshape(-1, y.shape[2])


@kernel
def _filter(y, taps, limit, length, seen):
    """Components (C, R), sequences of ``length`` in a row; ``seen``: room for R + 2 values."""
    count = y.shape[1]
    for i in range(y.shape[0]):
        own, beside, most = taps[i, 0], taps[i, 1], limit[i]
        if own == 0 and beside == 0:
            continue
        for r in range(count):
            seen[r + 1] = min(max(y[i, r], -most), most)
        for r in range(count):
            y[i, r] += own * seen[r + 1] + beside * (seen[r] + seen[r + 2])
        for r in range(0, count, length):  # the first and the last have one neighbour
            if r > 0:
                y[i, r] -= beside * seen[r]
            if r + length < count:
                y[i, r + length - 1] -= beside * seen[r + length + 1]
