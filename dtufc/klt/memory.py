"""Memory: vectors coded as what they differ in from a training vector or from an earlier vector.

    y = basis_m (x - mean_m) - gain_m * basis_m (r - mean_m),    r = the reference of x

A coded mode m selects mean, basis and entropy tables as it does without memory; modes from ``first`` on
have a reference too. The first ``fixed`` of them refer to the dictionary, vectors of the training set
in the model; the others to decoded vectors of the same sequence that were coded without such a
reference themselves. So a chain of references has one link, and no error builds up. Tables depend on
the mode alone: a prediction enters at reconstruction only, and its last bits may differ between
machines without harm to any symbol.

References are sent beside the symbols, as the digits of numbers in mixed radix: an entry's index, or
how many vectors that may be referred to lie between.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
import torch

WINDOW = 1024
"""Rows back that a reference may lie."""
TRIALS = 3
"""Earlier vectors that are tried in each mode."""
GROUP = 256  # digits of one number
BLOCK = 512  # vectors that are compared at a time


class DigitError(ValueError):
    """References that no encoder wrote."""


@dataclass(frozen=True)
class Memory:
    """What is remembered of the training set, and how references predict."""

    first: int
    """K: modes below have no reference."""
    fixed: int
    """Modes from ``first`` on that refer to the dictionary; the others refer to earlier vectors."""
    dictionary: np.ndarray
    """(N, C) int8, in units of ``scale`` around ``middle``."""
    scale: np.ndarray
    """(C,) float32."""
    middle: np.ndarray
    """(C,) float32."""
    gain: np.ndarray
    """(M, C) float32 of float16 values, per mode from ``first`` on and component."""

    @property
    def earlier(self) -> int:
        """The first mode that refers to earlier vectors."""
        return self.first + self.fixed

    @cached_property
    def entries(self) -> np.ndarray:
        """(N, C, 1) float32: the dictionary's vectors."""
        return (self.middle + self.scale * self.dictionary)[:, :, None]

    @cached_property
    def bits(self) -> float:
        """Of an entry's index."""
        return float(np.log2(len(self.dictionary)))

    def predict(self, transform, mode: int, references: np.ndarray) -> np.ndarray:
        """What vectors (R, C, 1) predict in a mode, (R, C) float32."""
        return self.gain[mode - self.first] * transform.forward(references, mode)

    @cached_property
    def _predictions(self) -> dict[int, np.ndarray]:
        return {}

    def _of_entries(self, transform, mode: int) -> np.ndarray:
        """What the dictionary's vectors predict in a mode, (N, C) float32."""
        if mode not in self._predictions:
            self._predictions[mode] = self.predict(transform, mode, self.entries)
        return self._predictions[mode]

    def from_dictionary(
        self, transform, vectors: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each mode that refers to the dictionary, with the entry that predicts each vector best (R,)
        and its prediction (R, C)."""
        for mode in range(self.first, self.earlier):
            known = self._of_entries(transform, mode)
            entry = nearest(transform.forward(vectors, mode), known)
            yield mode, entry, known[entry]

    def from_earlier(
        self, transform, vectors: np.ndarray, decoded: np.ndarray, length: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each mode that refers to earlier vectors, several times: rows (R,) that predict each vector
        well, -1 for none, and their predictions (R, C).

        Args:
            vectors, decoded: (R, C, 1), sequences of ``length`` rows.
        """
        for mode in range(self.earlier, self.first + len(self.gain)):
            known = self.predict(transform, mode, decoded)
            rows = nearest_before(transform.forward(vectors, mode), known, length)
            for trial in rows.T:
                yield mode, trial, known[np.maximum(trial, 0)]

    def prediction(
        self, transform, mode: int, references: np.ndarray, decoded: np.ndarray
    ) -> np.ndarray | float:
        """What the references of one mode's vectors predict, (n, C) float32; 0 without references.

        Args:
            references: (n,) entries or rows. decoded: (R, C, 1), whole in all rows of lower modes.
        """
        if mode >= self.earlier:
            return self.predict(transform, mode, decoded[references])
        return self._of_entries(transform, mode)[references] if mode >= self.first else 0.0

    def choices(self, modes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """How many references each vector could have had (R,) int64, 0 where it has none, and how many
        vectors before each, in all sequences, may be referred to (R,)."""
        free = modes < self.earlier
        before = np.cumsum(free) - free
        start = before.reshape(-1, length)[:, :1]
        window = np.minimum(before.reshape(-1, length) - start, WINDOW).ravel()
        choices = np.where(modes < self.first, 0, len(self.dictionary))
        return np.where(free, choices, window), before

    def bits_of(self, modes: np.ndarray, length: int) -> np.ndarray:
        """(R,) float64: bits of each vector's reference, if there is one."""
        choices, _ = self.choices(modes, length)
        return np.log2(np.maximum(choices, 1)) * (modes >= self.first)

    def write(self, modes: np.ndarray, references: np.ndarray, length: int) -> bytes:
        """The part of the bitstream that holds references.

        Args:
            references: (R,) an entry or a row; of no meaning where the mode has none.
        """
        choices, before = self.choices(modes, length)
        some, late = modes >= self.first, modes >= self.earlier
        digit = np.where(late, before - 1 - before[np.where(late, references, 0)], references)
        return write_digits(digit[some].tolist(), choices[some].tolist())

    def read(self, part: bytes, modes: np.ndarray, length: int) -> np.ndarray:
        """The way back: (R,) int64.

        Raises:
            DigitError: the bytes are none that an encoder wrote for these modes.
        """
        choices, before = self.choices(modes, length)
        some = modes >= self.first
        if (choices[some] == 0).any():
            raise DigitError("a vector refers to one before the first")
        references = np.zeros(len(modes), np.int64)
        references[some] = read_digits(part, choices[some].tolist())
        late = modes >= self.earlier
        rows = np.flatnonzero(~late)
        references[late] = rows[before[late] - 1 - references[late]]
        return references

    def arrays(self) -> dict[str, np.ndarray]:
        """The state as it is stored."""
        return {
            "memory_modes": np.array([self.first, self.fixed], np.int32),
            "memory_dictionary": self.dictionary,
            "memory_scale": self.scale,
            "memory_middle": self.middle,
            "memory_gain": self.gain.astype(np.float16),
        }

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray]) -> Self | None:
        """The memory from its stored form, or None where there is none."""
        if "memory_modes" not in arrays:
            return None
        first, fixed = arrays["memory_modes"].tolist()
        return cls(
            first, fixed, arrays["memory_dictionary"], arrays["memory_scale"],
            arrays["memory_middle"], arrays["memory_gain"].astype(np.float32),
        )  # fmt: skip


Trial = tuple[int, np.ndarray, np.ndarray, np.ndarray]
"""Mode, rows (R,) that are referred to, their predictions (R, C), and what it costs (R,)."""


def settle(
    plain: np.ndarray, trials: Sequence[Trial], length: int, bit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which earlier vector each one takes, in their order: one that was coded without such a reference,
    if that costs less than to do without.

    Args:
        plain: (R,) costs without. bit: what a bit costs.

    Returns:
        the trial that each takes (R,) int64, -1 for none, and the bits of its reference (R,) float64.
    """
    free, taken, bits = np.zeros(len(plain), bool), np.full(len(plain), -1), np.zeros(len(plain))
    rows = [trial[1].tolist() for trial in trials]
    costs = [trial[3].tolist() for trial in trials]
    count = 0
    for r, limit in enumerate(plain.tolist()):
        count = 0 if r % length == 0 else count
        if count:
            bits[r] = math.log2(min(count, WINDOW))
            for number in range(len(trials)):
                row, cost = rows[number][r], costs[number][r] + bit * bits[r]
                if row >= 0 and free[row] and cost < limit:
                    taken[r], limit = number, cost
        free[r] = taken[r] < 0
        count += int(free[r])
    return taken, bits


def nearest(x: np.ndarray, known: np.ndarray, barred: np.ndarray | None = None) -> np.ndarray:
    """The nearest of ``known`` (N, C) to each of x (R, C), (R,) int64.

    Args:
        barred: (R, 2) first and last place of ``known`` that a row may not take, where training vectors
            look for others than those of their own file.
    """
    there = torch.from_numpy(known)
    square = there.square().sum(1)
    out = np.empty(len(x), np.int64)
    for first in range(0, len(x), BLOCK):
        part = slice(first, first + BLOCK)
        away = square - 2 * (torch.from_numpy(x[part]) @ there.T)
        if barred is not None:
            for row, (low, high) in zip(away, barred[part].tolist(), strict=True):
                row[low:high] = torch.inf
        out[part] = away.argmin(1).numpy()
    return out


def nearest_before(x: np.ndarray, known: np.ndarray, length: int) -> np.ndarray:
    """Up to TRIALS rows before each row of x (R, C) in its sequence that are nearest in ``known``
    (R, C): (R, TRIALS) int64, -1 for none."""
    there = torch.from_numpy(known)
    square = there.square().sum(1)
    out = np.full((len(x), TRIALS), -1)
    for start in range(0, len(x), length):
        for first in range(start, start + length, BLOCK):
            last = min(first + BLOCK, start + length)
            low = max(start, first - WINDOW)
            away = square[low:last] - 2 * (torch.from_numpy(x[first:last]) @ there[low:last].T)
            behind = torch.arange(first, last)[:, None] - torch.arange(low, last)
            away[(behind <= 0) | (behind > WINDOW)] = torch.inf
            size = min(TRIALS, last - low)
            cost, at = away.topk(size, 1, largest=False)
            out[first:last, :size] = np.where(np.isfinite(cost.numpy()), at.numpy() + low, -1)
    return out


@lru_cache(maxsize=64)
def _size(choices: tuple[int, ...]) -> tuple[int, int]:
    """How many numbers digits with so many choices make, and the bytes of one."""
    total = 1
    for count in choices:
        total *= count
    return total, ((total - 1).bit_length() + 7) // 8


def write_digits(digits: list[int], choices: list[int]) -> bytes:
    """Digits in mixed radix, GROUP of them to a little-endian number."""
    out = []
    for first in range(0, len(digits), GROUP):
        part, number = choices[first : first + GROUP], 0
        for digit, count in zip(digits[first : first + GROUP], part, strict=True):
            number = number * count + digit
        out.append(number.to_bytes(_size(tuple(part))[1], "little"))
    return b"".join(out)


def read_digits(data: bytes, choices: list[int]) -> list[int]:
    """The way back.

    Raises:
        DigitError: the bytes are too many or too few, or a number is too large.
    """
    out, at = [], 0
    for first in range(0, len(choices), GROUP):
        part = choices[first : first + GROUP]
        total, size = _size(tuple(part))
        number, at = int.from_bytes(data[at : at + size], "little"), at + size
        if at > len(data) or number >= total:
            raise DigitError("references are truncated or out of range")
        digits = []
        for count in reversed(part):
            number, digit = divmod(number, count)
            digits.append(digit)
        out += reversed(digits)
    if at != len(data):
        raise DigitError("bytes behind the references")
    return out
