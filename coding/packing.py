"""Packing: a feature (N, C, H, W) laid out as one plane (P, Q), and back.

Guarantee: ``unpack(pack(x), x.shape) == x`` bit for bit. What does not fit is an error, never a
guess: both directions only move values.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from coding.errors import UserError

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Packing:
    """How the four axes of a feature lie in the plane that a 2-D codec sees.

    ``tokens``: rows are tokens, columns are channels. (N, C, H, W) -> (N*H, C*W). LLaMA's
    (1, 1, T, 4096) becomes T x 4096; DINOv2's (crops, layers, 1370, 1536) becomes
    (crops*1370) x (layers*1536), as published.

    ``tiles``: every channel is a tile of H x W in a grid of ``rows`` x ``cols`` tiles; samples are
    stacked. (N, C, H, W) -> (N*rows*H, cols*W), rows*cols == C. SD3's (1, 16, 128, 128) becomes
    512 x 512 with a 4 x 4 grid, as published; ResNet50's (1, 2048, 7, 7) becomes 448 x 224 with a
    64 x 32 grid.
    """

    layout: Literal["tokens", "tiles"] = "tokens"
    """tokens: tokens x channels. tiles: a grid of channel maps."""
    rows: int = 0
    """tiles only: rows of the grid."""
    cols: int = 0
    """tiles only: columns of the grid."""

    def __post_init__(self):
        if self.layout == "tiles" and (self.rows < 1 or self.cols < 1):
            raise UserError("packing: layout tiles takes rows and cols of at least 1")
        if self.layout == "tokens" and (self.rows or self.cols):
            raise UserError("packing: rows and cols belong to layout tiles only")

    def plane(self, shape: Shape) -> tuple[int, int]:
        """Size (P, Q) of the plane of a feature of this shape.

        Raises:
            UserError: the shape is not 4-D, is empty, or does not fill the grid.
        """
        if len(shape) != 4 or min(shape) < 1:
            raise UserError(f"packing: expected a non-empty (N, C, H, W), got {tuple(shape)}")
        n, c, h, w = shape
        if self.layout == "tokens":
            return n * h, c * w
        if self.rows * self.cols != c:
            raise UserError(
                f"packing: a grid of {self.rows} x {self.cols} tiles takes "
                f"{self.rows * self.cols} channels, the feature has {c}"
            )
        return n * self.rows * h, self.cols * w

    def pack(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) -> (P, Q), any dtype, a C-contiguous copy."""
        p, q = self.plane(x.shape)
        n, _, h, w = x.shape
        if self.layout == "tokens":
            out = x.transpose(0, 2, 1, 3)  # (N, H, C, W)
        else:
            out = x.reshape(n, self.rows, self.cols, h, w)
            out = out.transpose(0, 1, 3, 2, 4)  # (N, rows, H, cols, W)
        return np.ascontiguousarray(out.reshape(p, q))

    def to_native(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) -> the feature in its own layout, channels second: tokens (N, C*W, H, 1), tiles
        as they are; a C-contiguous copy or ``x`` itself."""
        self.plane(x.shape)  # raises where the packing does not fit
        if self.layout == "tiles":
            return x
        n, c, h, w = x.shape
        return np.ascontiguousarray(x.transpose(0, 1, 3, 2).reshape(n, c * w, h, 1))

    def from_native(self, x: np.ndarray, shape: Shape) -> np.ndarray:
        """The inverse of :meth:`to_native`: -> (N, C, H, W) = ``shape``."""
        if self.layout == "tiles":
            return x.reshape(shape)
        n, c, h, w = shape
        return np.ascontiguousarray(x.reshape(n, c, w, h).transpose(0, 1, 3, 2))

    def native_size(self, shape: Shape) -> Shape:
        """Shape of :meth:`to_native`."""
        self.plane(shape)
        n, c, h, w = shape
        return shape if self.layout == "tiles" else (n, c * w, h, 1)

    def unpack(self, plane: np.ndarray, shape: Shape) -> np.ndarray:
        """(P, Q) -> (N, C, H, W) = ``shape``, any dtype, a C-contiguous copy.

        Raises:
            UserError: the plane is not the size that ``shape`` packs to.
        """
        if plane.shape != self.plane(shape):
            raise UserError(
                f"packing: {tuple(shape)} packs to {self.plane(shape)}, the plane is {plane.shape}"
            )
        n, c, h, w = shape
        if self.layout == "tokens":
            out = plane.reshape(n, h, c, w).transpose(0, 2, 1, 3)  # (N, C, H, W)
        else:
            out = plane.reshape(n, self.rows, h, self.cols, w)
            out = out.transpose(0, 1, 3, 2, 4)  # (N, rows, cols, H, W)
        return np.ascontiguousarray(out.reshape(shape))
