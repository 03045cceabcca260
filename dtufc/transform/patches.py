"""Training patches: their sizes, folding wide ones, random crops."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

from dtufc.errors import UserError
from dtufc.feature import FeatureFacts

if TYPE_CHECKING:
    from dtufc.transform.mapping import Mapping

STEP = {"plane": 64, "native": 4}
LIMIT = {"plane": 256, "native": 64}
"""The default patch is the plane (or the feature in its own layout), rounded up to multiples of the
step, up to the limit."""

Size = tuple[int, int]
Layout = Literal["plane", "native"]
"""plane: crops of the packed feature. native: crops of the feature in its own layout."""


def parse_patch_size(text: str) -> Size:
    """``"height-width"`` -> (height, width).

    Raises:
        UserError: anything else than two positive integers.
    """
    parts = text.split("-")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"patch_size: expected height-width, for example 256-256, got {text!r}")
    return int(parts[0]), int(parts[1])


def folded_size(size: Size) -> Size:
    """The size that :func:`fold` gives: (64, 1024) -> (256, 256); (128, 64) stays."""
    blocks = _blocks(size)
    return size[0] * blocks, size[1] // blocks


def fold(patch: np.ndarray) -> np.ndarray:
    """Cut a wide patch into sqrt(w / h) blocks side by side and stack them: (h, w) -> a square.

    As published for 64 x 1024. What is no square number of heights wide stays as it is.
    """
    h, w = patch.shape
    blocks = _blocks((h, w))
    out = patch.reshape(h, blocks, w // blocks).transpose(1, 0, 2)  # (blocks, h, w / blocks)
    return out.reshape(folded_size((h, w)))


def _blocks(size: Size) -> int:
    ratio, rest = divmod(size[1], size[0])
    root = math.isqrt(ratio)
    return root if rest == 0 and root > 1 and root * root == ratio else 1


def crop(plane: np.ndarray, size: Size, fill: float, rng: np.random.Generator) -> np.ndarray:
    """A random crop of (..., P, Q); where that is smaller, ``fill`` is added below and right."""
    missing = [max(0, want - got) for want, got in zip(size, plane.shape[-2:], strict=True)]
    if any(missing):
        padding = [(0, 0)] * (plane.ndim - 2) + [(0, missing[0]), (0, missing[1])]
        plane = np.pad(plane, padding, constant_values=np.float32(fill))
    top, left = (
        int(rng.integers(got - want + 1)) for want, got in zip(size, plane.shape[-2:], strict=True)
    )
    return plane[..., top : top + size[0], left : left + size[1]]


def default_size(facts: FeatureFacts, x: np.ndarray, layout: Layout) -> Size:
    """Height and width of the patches where none are asked for.

    Args:
        x: (N, C, H, W), a feature like all.
    """
    native = layout == "native"
    sides = facts.views.native_size(x.shape)[2:] if native else facts.views.plane(x.shape)
    step, limit = STEP[layout], LIMIT[layout]
    height, width = (1 if side == 1 else min(limit, -(-side // step) * step) for side in sides)
    return height, width


def draw(
    facts: FeatureFacts, u: np.ndarray, layout: Layout, size: Size, fill: float,
    rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """u (N, C, H, W) -> one training patch, (h, w) folded, or (K, h, w) in the native layout."""
    if layout == "plane":
        return fold(crop(facts.views.pack(u), size, fill, rng))
    native = facts.views.to_native(u)
    return crop(native[rng.integers(len(native))], size, fill, rng)


def patch_dtype(mapping: Mapping) -> type[np.floating]:
    """float16 where it holds every u exactly (levels of 10 bits and the fill), else float32."""
    exact = mapping.assignment != "continuous" and mapping.bit_depth <= 10
    return np.float16 if exact and float(np.float16(mapping.zero)) == mapping.zero else np.float32
