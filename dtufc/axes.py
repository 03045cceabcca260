"""What the axes of an array are: guessed from sizes and values, and put in the order of a feature.

A stranger's arrays have one to four axes in any of the usual orders::

    (C,)  (T, C)  (C, T)  (B, T, C)  (C, H, W)  (H, W, C)  (N, layers, T, C)  (N, C, H, W)  (N, H, W, C)

Three things tell them apart: channels are equally many in all files; the rows and columns of a map are
mostly equally many; and the means of channels differ more than those of tokens or positions. Where none
of these decides there is no guess.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dtufc.errors import UserError
from dtufc.views import MAPS, TOKENS

Axes = tuple[str, ...]

CANDIDATES: dict[int, tuple[Axes, ...]] = {
    1: (("channel",),),
    2: (("token", "channel"), ("channel", "token")),
    3: (
        ("sample", "token", "channel"), ("sample", "channel", "token"),
        ("channel", "row", "column"), ("row", "column", "channel"),
    ),
    4: (
        ("sample", "layer", "token", "channel"), ("sample", "channel", "row", "column"),
        ("sample", "row", "column", "channel"),
    ),
}  # fmt: skip
"""What an array of so many axes may be."""
STACKED: dict[int, tuple[Axes, ...]] = {2: (("sample", "channel"),)}
"""The same where the first axis is known to count samples, if that adds any."""
CONSTANT = ("channel", "layer", "head")
"""Axes of one size in all files."""
TIMES, LEAST = 2.0, 0.01
"""Means along the channels must explain so many times the variance of any other axis, and so much."""
SMOOTH = 0.3
"""Correlation of neighbours from which on an axis may be one of positions."""
LONGEST_MAP = 4
"""Rows over columns, or the reverse, up to which two axes may be a map's."""


class AmbiguousAxes(UserError):
    """Sizes and values do not tell what the axes are."""

    def __init__(self, candidates: Sequence[Axes], shape: tuple[int, ...]):
        super().__init__(f"axes: ambiguous, {shape} may be {candidates}")
        self.candidates = tuple(candidates)
        """What they may be."""
        self.shape = shape
        """Of the first file."""


@dataclass(frozen=True)
class Guess:
    """Names of an array's axes."""

    axes: Axes
    why: str
    """What told them, in words."""


def guess_axes(
    shapes: Sequence[tuple[int, ...]], arrays: Sequence[np.ndarray], stacked: bool = False
) -> Guess:
    """Guess what the axes of a kind of array are.

    Args:
        shapes: of all files; equally many axes each.
        arrays: some of the files' arrays, whose values are looked at where shapes do not tell.
        stacked: whether the first axis must be one of samples.

    Raises:
        AmbiguousAxes: they may be several things.
        UserError: they are none that is known.
    """
    count = len(shapes[0])
    if not 1 <= count <= max(CANDIDATES):
        raise UserError(
            f"expected arrays of 1 to {max(CANDIDATES)} axes, got the shape {shapes[0]}"
        )
    known = CANDIDATES[count]
    if stacked:
        known = STACKED.get(count, tuple(c for c in known if c[0] == "sample"))
    varying = {axis for axis in range(count) if len({shape[axis] for shape in shapes}) > 1}
    left = [c for c in known if not any(c[axis] in CONSTANT for axis in varying)]
    alike = [c for c in left if _is_square(c, shapes)]
    # one channel alone is likelier another axis, unless the others make a square picture
    several = [c for c in left if shapes[0][_channel(c)] > 1 or c in alike]
    left = several or left
    if not left:
        raise UserError(
            f"no axis can be the channels, which are equally many in all files: the shapes are "
            f"{shapes[0]}, {next(shape for shape in shapes if shape != shapes[0])}, ..."
        )
    if len(left) == 1:
        return Guess(left[0], "sizes" if varying or len(known) > 1 else "number of axes")
    strength = explained(arrays, sorted({_channel(c) for c in left}))
    if len(alike) == 1:
        own, *others = sorted(strength, key=lambda axis: axis != _channel(alike[0]))
        rival = max((strength[axis] for axis in others), default=0.0)
        if rival < LEAST or rival < TIMES * strength[own]:
            return Guess(alike[0], "equal rows and columns")
        raise AmbiguousAxes(left, shapes[0])
    best, *others = sorted(strength, key=lambda axis: -strength[axis])
    rival = max((strength[axis] for axis in others), default=0.0)
    if others and (strength[best] < LEAST or strength[best] < TIMES * rival):
        raise AmbiguousAxes(left, shapes[0])
    why = f"means along axis {best}" if others else "sizes"
    left = [c for c in left if _channel(c) == best]
    if len(left) > 1:
        left = [c for c in left if ("row" in c) == _may_be_map(left, shapes, arrays)]
    return Guess(left[0], why)


def _channel(axes: Axes) -> int:
    return axes.index("channel")


def _is_square(axes: Axes, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether the maps of all files are square, and larger than one position."""
    if "row" not in axes:
        return False
    row, column = axes.index("row"), axes.index("column")
    return all(shape[row] == shape[column] > 1 for shape in shapes)


def _may_be_map(
    left: Sequence[Axes], shapes: Sequence[tuple[int, ...]], arrays: Sequence[np.ndarray]
) -> bool:
    """False where rows and columns cannot be what the axes before the channels are.

    Raises:
        AmbiguousAxes: they can, but need not.
    """
    axes = next(c for c in left if "row" in c)
    row, column = axes.index("row"), axes.index("column")
    sizes = [(shape[row], shape[column]) for shape in shapes]
    if any(min(pair) == 1 or max(pair) > LONGEST_MAP * min(pair) for pair in sizes):
        return False
    if smoothness(arrays, row) < SMOOTH:  # samples next to each other are not alike
        return False
    raise AmbiguousAxes(left, shapes[0])


def explained(arrays: Sequence[np.ndarray], axes: Sequence[int]) -> dict[int, float]:
    """By axis, the share of the variance that the means along it explain, corrected for chance (omega
    squared of an analysis of variance over all arrays together).

    Args:
        axes: those of one size in all arrays.
    """
    count = sum(x.size for x in arrays)
    mean = sum(float(x.sum(dtype=np.float64)) for x in arrays) / count
    total = sum(float(np.sum(np.square(x.astype(np.float64) - mean))) for x in arrays)
    shares = {}
    for axis in axes:
        groups = arrays[0].shape[axis]
        others = tuple(k for k in range(arrays[0].ndim) if k != axis)
        sums = sum(np.sum(x, axis=others, dtype=np.float64) for x in arrays)  # (groups,)
        each = count / groups
        between = float(np.sum(np.square(sums / each - mean))) * each
        within = (total - between) / max(1.0, count - groups)
        shares[axis] = (between - (groups - 1) * within) / max(total + within, 1e-300)
    return shares


def smoothness(arrays: Sequence[np.ndarray], axis: int) -> float:
    """Correlation of neighbours along ``axis``, the mean along it taken off; -1 .. 1."""
    products = squares = 0.0
    for x in arrays:
        x = np.moveaxis(x.astype(np.float64), axis, 0)
        x = x - x.mean(axis=0)
        products += float(np.sum(x[1:] * x[:-1])) * len(x) / max(1, len(x) - 1)
        squares += float(np.sum(x * x))
    return products / max(squares, 1e-300)


def check_axes(axes: Sequence[str]) -> Axes:
    """Names of an array's axes, if they make a feature.

    Raises:
        UserError: an unknown name, one that comes twice, no channel, or tokens beside rows.
    """
    family = _family(axes)
    known = [name for names in family for name in names]
    places = [k for name in axes for k, names in enumerate(family) if name in names]
    if set(axes) - set(known) or len(set(places)) < len(axes) or "channel" not in axes:
        raise UserError(
            "axes: expected names of sample, layer, token, channel (features of tokens) or of sample, "
            f"channel, row, column (maps), each once, channel among them; got {','.join(axes)}"
        )
    return tuple(axes)


def _family(axes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return MAPS if {"row", "column"} & set(axes) else TOKENS


def feature_axes(axes: Axes) -> Axes:
    """The four axes of the feature that :func:`to_feature` makes."""
    family = _family(axes)
    return tuple(next((a for a in axes if a in names), names[0]) for names in family)


def to_feature(x: np.ndarray, axes: Axes) -> np.ndarray:
    """An array with these axes -> (N, C, H, W), its dtype: a view; missing axes have size 1."""
    wanted = feature_axes(axes)
    order = [axes.index(name) for name in wanted if name in axes]
    sizes = [x.shape[axes.index(name)] if name in axes else 1 for name in wanted]
    return x.transpose(order).reshape(sizes)
