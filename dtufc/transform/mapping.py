"""The peaky-to-balanced mapping: feature values x <-> u in [0, 1) (DT-UFC, arXiv 2506.16495).

A codebook of L = 2^b strictly increasing centres c_0 < ... < c_{L-1} turns the peaky distribution
of a large model's feature into a balanced one, u = level(x) / L, that one codec can serve for all
models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dtufc import files
from dtufc.errors import UserError
from dtufc.transform import lookup
from dtufc.transform.choices import ASSIGNMENTS, Assignment

if TYPE_CHECKING:
    import torch

MAX_BIT_DEPTH = 16
Values = TypeVar("Values", np.ndarray, "torch.Tensor")


class Mapping:
    """One codebook for all channels, or one per channel, with a rule that assigns values to levels.

    With c the centres rounded to float32 (the values that come out), L the levels::

        nearest     level = #{i : (c_i + c_{i+1}) / 2 < x}           u = level / L
        left        level = clip(#{i : c_i <= x} - 1, 0, L - 1)      u = level / L
        continuous  u = (i + (x - c_i) / (c_{i+1} - c_i)) / L, c_i <= x < c_{i+1}; clamped to
                    0 below c_0 and to (L - 1) / L above c_{L-1}

    ``nearest`` gives the lower level to a value exactly between two centres. ``left`` is the
    published ``np.digitize(x, c) - 1``; it costs 3 to 7 times the MSE and is here so that published
    mappings and codecs give their published results. ``continuous`` rounds nothing.

    The inverse takes any float u: level = clip(round(u L), 0, L - 1), ties to even, and
    x = c_level; ``continuous`` interpolates between the centres instead. NaN counts as 0.

    With an offset and a scale, x is first (x - offset) / scale, and what the inverse gives is
    x scale + offset.

    Guarantees and requirements:
        - ``forward(inverse(i / L)) == i / L`` for every level and assignment, if the centres are
          distinct in float32 (and nothing is normalised).
        - numpy arrays and torch tensors on any device give the same numbers.
        - ``x`` is finite or infinite; NaN takes some level.

    Args:
        codebooks: (L,) or (C, L), finite, strictly increasing along the last axis, L = 2 .. 65536 a
            power of two.
        assignment: nearest, left or continuous.
        offset, scale: (C, 1, W) or (C, 1, 1), finite, the scale above 0; both or neither.

    Raises:
        UserError: a codebook, the assignment, offset or scale is not as above.
    """

    def __init__(
        self,
        codebooks: np.ndarray | Sequence,
        assignment: Assignment = "nearest",
        offset: np.ndarray | Sequence | None = None,
        scale: np.ndarray | Sequence | None = None,
    ):
        self.codebooks = check_codebooks(codebooks)
        self.codebooks.flags.writeable = False
        if assignment not in ASSIGNMENTS:
            raise UserError(f"assignment: expected one of {ASSIGNMENTS}, got {assignment!r}")
        self.assignment = assignment
        self.offset, self.scale = check_normalisation(offset, scale)

    @property
    def normalised(self) -> bool:
        """Whether there are an offset and a scale."""
        return self.offset is not None

    @property
    def plain(self) -> Mapping:
        """The codebooks alone, for values that are normalised already."""
        return Mapping(self.codebooks, self.assignment)

    @property
    def levels(self) -> int:
        """L, the number of centres."""
        return self.codebooks.shape[-1]

    @property
    def bit_depth(self) -> int:
        """log2 of the number of centres."""
        return self.levels.bit_length() - 1

    @property
    def per_channel(self) -> bool:
        """Whether every channel (axis 1) has its own codebook."""
        return self.codebooks.ndim == 2

    @cached_property
    def id(self) -> bytes:
        """32 bytes that name the codebooks, the assignment and the normalisation, for bitstreams."""
        parts = [self.codebooks.astype("<f8").tobytes(), str(self.codebooks.shape), self.assignment]
        if self.normalised:
            parts += [str(self.offset.shape), self.offset.tobytes(), self.scale.tobytes()]
        return bytes.fromhex(files.digest(*parts))

    @cached_property
    def zero(self) -> float:
        """The u that 0.0 (after normalisation) maps to, for padding; the mean over channels if each has
        its codebook."""
        channels = self.codebooks.shape[0] if self.per_channel else 1
        u = self.plain.forward(np.zeros((1, channels, 1, 1), np.float32))
        return float(np.float32(u.mean(dtype=np.float64)))

    def forward(self, x: Values) -> Values:
        """Values -> u.

        Args:
            x: (N, C, H, W) float16 or float32, array or tensor on any device; any shape for a
                single codebook. float16 is widened exactly.

        Returns:
            float32, same shape, library and device, in [0, 1).

        Raises:
            UserError: another dtype, or a channel count that is not the codebooks'.
        """
        return self._apply(x, self._forward_array, self._forward_device)

    def inverse(self, u: Values) -> Values:
        """u -> values: float32, same shape, library and device. ``u`` as :meth:`forward` gives it,
        or any number a decoder makes of it.

        Raises:
            UserError: another dtype, or a channel count that is not the codebooks'.
        """
        return self._apply(u, self._inverse_array, self._inverse_device)

    @classmethod
    def load(
        cls, path: str | Path | Sequence[str | Path], assignment: Assignment = "nearest"
    ) -> Mapping:
        """Read a mapping: a JSON list of centres, a list of such lists (one per channel), an object with
        such a list and its normalisation, or several files of one list each (one per channel).

        Raises:
            FileNotFoundError: no such file.
            UserError: the file is no sound mapping; the message names it.
        """
        if not isinstance(path, (str, Path)):
            return cls(_stack_channels(path), assignment)
        value = files.read_json(path)
        extra = {}
        if isinstance(value, dict):
            if value.keys() != {"centres", "offset", "scale"}:
                raise UserError(
                    f"{path}: a mapping is a list, or holds the keys centres, offset and scale; "
                    f"got {sorted(value)}"
                )
            extra = {key: value[key] for key in ("offset", "scale")}
            value = value["centres"]
        try:
            return cls(value, assignment, **extra)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the bare JSON list that published code reads too (an object, which it does not, where
        values are normalised); whole or not at all."""
        value = self.codebooks.tolist()
        if self.normalised:
            value = {
                "centres": value,
                "offset": self.offset.tolist(),
                "scale": self.scale.tolist(),
            }
        files.write_text(path, json.dumps(value, allow_nan=False) + "\n")

    def _apply(self, values: Values, on_array, on_device) -> Values:
        """Run on numpy memory where there is some (an array, a CPU tensor), else on the device."""
        if isinstance(values, np.ndarray):
            if values.dtype.name not in ("float16", "float32"):
                raise UserError(f"mapping: expected float16 or float32, got {values.dtype}")
            self._check_channels(values.shape)
            return on_array(values)
        import torch  # here, so that codecs without a network need not load it

        if not isinstance(values, torch.Tensor) or values.dtype not in (
            torch.float16,
            torch.bfloat16,
            torch.float32,
        ):
            kind = getattr(values, "dtype", type(values).__name__)
            raise UserError(f"mapping: expected a float16 or float32 array, got {kind}")
        self._check_channels(values.shape)
        values = values.detach().float()
        if values.device.type == "cpu":
            return torch.from_numpy(on_array(values.numpy()))
        return on_device(values)

    def _check_channels(self, shape: Sequence[int]) -> None:
        if self.per_channel and (len(shape) < 2 or shape[1] != self.codebooks.shape[0]):
            raise UserError(
                f"mapping: {self.codebooks.shape[0]} codebooks, one per channel (axis 1), "
                f"do not fit the shape {tuple(shape)}"
            )
        if self.normalised:
            channels, _, width = self.offset.shape
            if len(shape) != 4 or shape[1] != channels or width not in (1, shape[3]):
                raise UserError(
                    f"mapping: normalised for (N, {channels}, H, {width if width > 1 else 'W'}), "
                    f"got {tuple(shape)}"
                )

    def _rows(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """A shape as (N, C, points) with C the number of codebooks."""
        if not self.per_channel:
            return 1, 1, math.prod(shape)
        return shape[0], shape[1], math.prod(shape[2:])

    def _forward_array(self, x: np.ndarray) -> np.ndarray:
        if self.normalised:
            x = (x.astype(np.float32, copy=False) - self.offset) / self.scale
        flat = np.ascontiguousarray(x, dtype=np.float32).reshape(self._rows(x.shape))
        out = np.empty(flat.shape, np.float32)
        scale = 1 / self.levels
        if self.per_channel:
            step, thresholds = self.levels // 2, self._padded
            if self.assignment == "continuous":
                centres, slopes = self._centres, self._slopes
                lookup.continuous_channels(flat, thresholds, step, centres, slopes, scale, out)
            else:
                lookup.discrete_channels(flat, thresholds, step, np.float32(scale), out)
            return out.reshape(x.shape)
        line, cells, thresholds = flat.reshape(-1), self._cells, self._padded[0]
        args = (line, line.view(np.int32), cells, thresholds)
        if self.assignment == "continuous":
            centres, slopes = self._centres[0], self._slopes[0]
            lookup.continuous_shared(*args, centres, slopes, scale, out.reshape(-1))
        else:
            lookup.discrete_shared(*args, np.float32(scale), out.reshape(-1))
        return out.reshape(x.shape)

    def _inverse_array(self, u: np.ndarray) -> np.ndarray:
        flat = np.ascontiguousarray(u, dtype=np.float32).reshape(self._rows(u.shape))
        out = np.empty(flat.shape, np.float32)
        if self.assignment == "continuous":
            lookup.restore_continuous(flat, self._centres, out)
        else:
            lookup.restore_discrete(flat, self._centres.astype(np.float32), out)
        out = out.reshape(u.shape)
        if self.normalised:
            out *= self.scale
            out += self.offset
        return out

    def _forward_device(self, x: torch.Tensor) -> torch.Tensor:
        """The same comparisons by ``torch.bucketize``, channel by channel."""
        import torch

        if self.normalised:
            offset, scale = (torch.from_numpy(a).to(x.device) for a in (self.offset, self.scale))
            x = (x - offset) / scale
        flat = x.reshape(self._rows(x.shape))
        out = torch.empty_like(flat)
        for c, row in enumerate(self._thresholds):
            values = flat[:, c].contiguous()
            level = torch.bucketize(values, torch.from_numpy(row).to(x.device))  # #{T < x}
            if self.assignment == "continuous":
                centres = torch.from_numpy(self._centres[c]).to(x.device)
                slopes = torch.from_numpy(self._slopes[c]).to(x.device)
                position = level + (values.double() - centres[level]) * slopes[level]
                # below c_0 the level is 0; above c_{L-1} the slope is 0
                position = torch.maximum(position, level.double())
                position = position.clamp(max=self.levels - 1)
                out[:, c] = (position * (1 / self.levels)).float()
            else:
                out[:, c] = level.float() * (1 / self.levels)
        return out.reshape(x.shape)

    def _inverse_device(self, u: torch.Tensor) -> torch.Tensor:
        import torch

        flat = u.reshape(self._rows(u.shape))
        out = torch.empty_like(flat)
        for c, row in enumerate(self._centres):
            values = flat[:, c].nan_to_num(nan=0.0, posinf=1.0, neginf=0.0)
            if self.assignment == "continuous":
                centres = torch.from_numpy(row).to(u.device)
                position = (values.double() * self.levels).clamp(0, self.levels - 1)
                level = position.long()
                above = centres[(level + 1).clamp(max=self.levels - 1)]
                step = (position - level) * (above - centres[level])
                out[:, c] = (centres[level] + step).float()
            else:
                centres = torch.from_numpy(row.astype(np.float32)).to(u.device)
                position = (values * self.levels).clamp(0, self.levels - 1)
                out[:, c] = centres[position.round().long()]
        out = out.reshape(u.shape)
        if self.normalised:
            offset, scale = (torch.from_numpy(a).to(u.device) for a in (self.offset, self.scale))
            out = out * scale + offset
        return out

    @cached_property
    def _centres(self) -> np.ndarray:
        """(C or 1, L) float64, the centres at float32 precision: the values that come out."""
        centres = self.codebooks.astype(np.float32).astype(np.float64)
        return np.ascontiguousarray(centres.reshape(-1, self.levels))

    @cached_property
    def _slopes(self) -> np.ndarray:
        """(C or 1, L) levels per unit of x right of each centre; 0 after the last, or at no gap."""
        gaps = np.diff(self._centres)
        slopes = np.zeros_like(self._centres)
        np.divide(1.0, gaps, out=slopes[:, :-1], where=gaps > 0)
        return slopes

    @cached_property
    def _thresholds(self) -> np.ndarray:
        """(C or 1, L - 1) float32: the level of a float32 x is the number of thresholds < x.

        ``nearest``: the midpoints, rounded down. ``left`` and ``continuous``: x >= c_i is the same
        as x > the float32 before c_i; c_0 needs none, the lowest level reaches down without end.
        """
        if self.assignment == "nearest":
            centres = self._centres
            return lookup.floor_float32((centres[:, :-1] + centres[:, 1:]) / 2)
        upper = self._centres[:, 1:].astype(np.float32)
        return np.nextafter(upper, np.float32(-np.inf))

    @cached_property
    def _cells(self) -> lookup.Cells:
        """The table of a single codebook; codebooks a channel do without, 128 kB each would not
        stay in the processor's cache."""
        return lookup.build_cells(self._thresholds[0])

    @cached_property
    def _padded(self) -> np.ndarray:
        """The thresholds with the room that the search needs behind them."""
        step = self.levels // 2 if self.per_channel else self._cells.step
        return lookup.pad_thresholds(self._thresholds, step)


def check_codebooks(codebooks: np.ndarray | Sequence) -> np.ndarray:
    """A sound codebook (L,) or (C, L), copied to contiguous float64.

    Raises:
        UserError: not numbers, ragged, not a power of two long, not finite in float32, or not
            strictly increasing.
    """
    if not isinstance(codebooks, (list, tuple, np.ndarray)):
        raise UserError(f"a mapping is a list of numbers, got {type(codebooks).__name__}")
    try:
        raw = np.asarray(codebooks)
    except ValueError as error:
        raise UserError("a mapping is a list of numbers, or lists of equal length") from error
    if raw.dtype.kind not in "fiu":
        raise UserError("a mapping is a list of numbers, or lists of equal length")
    values = np.array(raw, dtype=np.float64, order="C")
    if values.ndim not in (1, 2) or values.size == 0:
        raise UserError(f"a mapping has shape (L,) or (C, L), got {values.shape}")
    levels = values.shape[-1]
    if levels < 2 or levels > 1 << MAX_BIT_DEPTH or levels & (levels - 1):
        raise UserError(f"a mapping has 2^b centres, b = 1 .. {MAX_BIT_DEPTH}, got {levels}")
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise UserError("a mapping's centres are finite float32 numbers")
    if not (np.diff(values) > 0).all():
        raise UserError("a mapping's centres increase strictly")
    return values


def check_normalisation(
    offset: np.ndarray | Sequence | None, scale: np.ndarray | Sequence | None
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Sound float32 copies of an offset and a scale, (C, 1, W) or (C, 1, 1).

    Raises:
        UserError: only one of them is given, their shapes differ, a value is not finite, or a scale
            is not above 0.
    """
    if offset is None and scale is None:
        return None, None
    if offset is None or scale is None:
        raise UserError("a mapping has an offset and a scale, or neither")
    try:
        offset, scale = (np.array(value, dtype=np.float32) for value in (offset, scale))
    except (TypeError, ValueError) as error:
        raise UserError("offset, scale: lists of numbers of the shape (C, 1, W)") from error
    if offset.ndim != 3 or offset.shape[1] != 1 or offset.shape != scale.shape or not offset.size:
        raise UserError(f"offset, scale: expected (C, 1, W), got {offset.shape}, {scale.shape}")
    if not (np.isfinite(offset).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise UserError("offset, scale: finite numbers, the scale above 0")
    return offset, scale


def _stack_channels(paths: Sequence[str | Path]) -> list[np.ndarray]:
    """The single codebooks of several files, one per channel."""
    rows = [Mapping.load(path) for path in paths]
    for path, row in zip(paths, rows, strict=True):
        if row.normalised or row.codebooks.shape != (rows[0].levels,):
            raise UserError(
                f"{path}: one list of {rows[0].levels} centres expected, "
                f"got shape {row.codebooks.shape}"
            )
    if not rows:
        raise UserError("mapping: no file given")
    return np.stack([row.codebooks for row in rows])
