"""Views of a feature that follow from what its axes are: planes, vectors, matrices, channels.

A feature has four axes, which its facts name. Two families are known::

    tokens   (sample | crop, layer | head, token, channel)    LLaMA3 (1, 1, T, 4096)
    maps     (sample | crop, channel, row, column)            SD3 (1, 16, 128, 128)

Everything that asks where channels, tokens or positions lie asks here.

Guarantees: each way back gives what its way there was given, bit for bit; what does not fit is an error,
never a guess. All of them only move values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dtufc.errors import UserError

Shape = tuple[int, int, int, int]
Grid = tuple[int, int]
"""Rows and columns of channel maps in a plane."""

TOKENS = (("sample", "crop"), ("layer", "head"), ("token",), ("channel",))
MAPS = (("sample", "crop"), ("channel",), ("row",), ("column",))
"""What each axis of a family may be called."""
TOKEN_AXES = ("sample", "layer", "token", "channel")
MAP_AXES = ("sample", "channel", "row", "column")


@dataclass(frozen=True)
class Views:
    """The views of features with these axes.

    Args:
        axes: four names, in the order of the array's axes.
        tiles: maps only: the grid of channel maps in the plane. ``None``: the most square one with at
            least as many rows as columns.

    Raises:
        UserError: no such axes, or a grid that is none.
    """

    axes: tuple[str, ...]
    tiles: Grid | None = None

    def __post_init__(self):
        if not any(_fits(self.axes, family) for family in (TOKENS, MAPS)):
            raise UserError(
                f"axes: expected {list(TOKEN_AXES)} (or crop for sample, head for layer) or "
                f"{list(MAP_AXES)}, got {list(self.axes)}; transpose features of another order"
            )
        if self.tiles is not None:
            if not self.is_map:
                raise UserError(
                    "tiles: only maps (axes channel, row, column) are laid out in tiles"
                )
            if len(self.tiles) != 2 or min(self.tiles) < 1:
                raise UserError(f"tiles: expected rows and columns of at least 1, got {self.tiles}")

    @cached_property
    def is_map(self) -> bool:
        """Whether positions have neighbours in two directions."""
        return self.axes[1] == "channel"

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """The axes that tell channels apart: of a token all layers' channels, of maps the maps."""
        return (1,) if self.is_map else (1, 3)

    def channels(self, shape: Sequence[int | None]) -> int | None:
        """Number of channels; ``None`` where a size is not known."""
        sizes = [shape[axis] for axis in self.channel_axes]
        return None if None in sizes else int(np.prod(sizes))

    def grid(self, channels: int) -> Grid | None:
        """Rows and columns of the tiles of a plane; ``None`` for tokens.

        Raises:
            UserError: the channels do not fill the grid.
        """
        if not self.is_map:
            return None
        if self.tiles is None:
            cols = next(n for n in range(math.isqrt(channels), 0, -1) if channels % n == 0)
            return channels // cols, cols
        rows, cols = self.tiles
        if rows * cols != channels:
            raise UserError(
                f"tiles: a grid of {rows} x {cols} takes {rows * cols} channels, "
                f"the feature has {channels}"
            )
        return rows, cols

    def sequence(self, shape: Shape) -> int | None:
        """Number of consecutive tokens along the token axis; ``None`` for maps."""
        return None if self.is_map else shape[2]

    def sides(self, shape: Sequence[int | None]) -> Sequence[int | None] | None:
        """Rows and columns of a map, ``None`` each where not known; ``None`` for tokens."""
        return shape[2:] if self.is_map else None

    # One plane (P, Q), which 2-D codecs see.

    def plane(self, shape: Shape) -> tuple[int, int]:
        """Size (P, Q) of the plane: tokens (N*H, C*W), as published; maps (N*rows*H, cols*W).

        Raises:
            UserError: the shape is not 4-D, is empty, or does not fill the grid.
        """
        if len(shape) != 4 or min(shape) < 1:
            raise UserError(f"shape: expected a non-empty (N, C, H, W), got {tuple(shape)}")
        n, c, h, w = shape
        if (grid := self.grid(c)) is None:
            return n * h, c * w
        return n * grid[0] * h, grid[1] * w

    def pack(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) -> (P, Q), any dtype, a C-contiguous copy."""
        size = self.plane(x.shape)
        n, c, h, w = x.shape
        if (grid := self.grid(c)) is None:
            out = x.transpose(0, 2, 1, 3)  # (N, H, C, W)
        else:
            out = x.reshape(n, *grid, h, w).transpose(0, 1, 3, 2, 4)  # (N, rows, H, cols, W)
        return np.ascontiguousarray(out.reshape(size))

    def unpack(self, plane: np.ndarray, shape: Shape) -> np.ndarray:
        """(P, Q) -> (N, C, H, W) = ``shape``, any dtype, a C-contiguous copy.

        Raises:
            UserError: the plane is not the size that ``shape`` packs to.
        """
        if plane.shape != self.plane(shape):
            raise UserError(
                f"shape: {tuple(shape)} packs to {self.plane(shape)}, the plane is {plane.shape}"
            )
        n, c, h, w = shape
        if (grid := self.grid(c)) is None:
            out = plane.reshape(n, h, c, w).transpose(0, 2, 1, 3)  # (N, C, H, W)
        else:
            rows, cols = grid
            out = plane.reshape(n, rows, h, cols, w).transpose(0, 1, 3, 2, 4)
        return np.ascontiguousarray(out.reshape(shape))

    # The feature in its own layout (B, K, P, Q), channels second.

    def native_size(self, shape: Shape) -> Shape:
        """Shape of :meth:`to_native`: tokens (N, C*W, H, 1), maps as they are."""
        self.plane(shape)  # raises where the shape does not fit
        n, c, h, w = shape
        return shape if self.is_map else (n, c * w, h, 1)

    def to_native(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) -> (B, K, P, Q), a C-contiguous copy or ``x`` itself."""
        size = self.native_size(x.shape)
        return x if self.is_map else np.ascontiguousarray(x.transpose(0, 1, 3, 2).reshape(size))

    def from_native(self, x: np.ndarray, shape: Shape) -> np.ndarray:
        """The way back of :meth:`to_native`: -> (N, C, H, W) = ``shape``."""
        if self.is_map:
            return x.reshape(shape)
        n, c, h, w = shape
        return np.ascontiguousarray(x.reshape(n, c, w, h).transpose(0, 1, 3, 2))

    # Vectors (R, channels, positions), which one transform sees at a time: a token, or a block of
    # positions of all maps. Maps whose sides are no multiples of the block are continued by their last
    # row and column, which the way back cuts off.

    def count_vectors(self, shape: Shape, block: int) -> int:
        """R of :meth:`to_vectors`."""
        n, _, h, w = shape
        return n * -(-h // block) * -(-w // block) if self.is_map else n * h

    def to_vectors(self, x: np.ndarray, block: int) -> np.ndarray:
        """(N, C, H, W) -> (R, channels, positions) float32, C-contiguous.

        Args:
            block: side of the blocks of maps; without meaning for tokens.
        """
        x = x.astype(np.float32, copy=False)
        n, c, h, w = x.shape
        if not self.is_map:
            return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(n * h, c * w, 1)
        rows, cols = -(-h // block), -(-w // block)
        x = np.pad(x, ((0, 0), (0, 0), (0, rows * block - h), (0, cols * block - w)), "edge")
        x = x.reshape(n, c, rows, block, cols, block).transpose(0, 2, 4, 1, 3, 5)
        return np.ascontiguousarray(x.reshape(n * rows * cols, c, block * block))

    def from_vectors(self, vectors: np.ndarray, shape: Shape, block: int) -> np.ndarray:
        """The way back: (R, channels, positions) -> (N, C, H, W) = ``shape``."""
        n, c, h, w = shape
        if not self.is_map:
            return np.ascontiguousarray(vectors.reshape(n, h, c, w).transpose(0, 2, 1, 3))
        rows, cols = -(-h // block), -(-w // block)
        x = vectors.reshape(n, rows, cols, c, block, block).transpose(0, 3, 1, 4, 2, 5)
        x = x.reshape(n, c, rows * block, cols * block)
        return np.ascontiguousarray(x[:, :, :h, :w])

    # A matrix, a column per channel.

    def to_matrix(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) -> (points per channel, channels) float32."""
        if not self.is_map:
            return self.pack(x).astype(np.float32)
        return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1]).astype(np.float32)

    def from_matrix(self, matrix: np.ndarray, shape: Shape) -> np.ndarray:
        """The way back of :meth:`to_matrix`: -> (N, C, H, W) = ``shape``."""
        if not self.is_map:
            return self.unpack(matrix, shape)
        n, c, h, w = shape
        return np.ascontiguousarray(matrix.reshape(n, h, w, c).transpose(0, 3, 1, 2))


def _fits(axes: Sequence[str], family: Sequence[Sequence[str]]) -> bool:
    return len(axes) == len(family) and all(
        name in known for name, known in zip(axes, family, strict=True)
    )
