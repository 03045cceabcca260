"""Features as vectors: what one transform of the codec sees at a time.

Token features (packing ``tokens``): a vector is a token, a component a channel. Spatial maps (packing
``tiles``): a vector is a block of ``block`` x ``block`` positions of all channels; maps whose sides are
no multiples of the block are continued by their last row and column, which decoding cuts off.
"""

import numpy as np

from coding.packing import Packing, Shape


def is_map(packing: Packing) -> bool:
    """Whether positions have neighbours in two directions."""
    return packing.layout == "tiles"


def to_vectors(x: np.ndarray, packing: Packing, block: int) -> np.ndarray:
    """(N, C, H, W) -> (R, channels, positions) float32, C-contiguous."""
    x = x.astype(np.float32, copy=False)
    if not is_map(packing):
        plane = packing.pack(x)  # (N * H, C * W)
        return plane[:, :, None]
    n, c, h, w = x.shape
    rows, cols = -(-h // block), -(-w // block)
    x = np.pad(x, ((0, 0), (0, 0), (0, rows * block - h), (0, cols * block - w)), "edge")
    x = x.reshape(n, c, rows, block, cols, block).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(x.reshape(n * rows * cols, c, block * block))


def from_vectors(vectors: np.ndarray, shape: Shape, packing: Packing, block: int) -> np.ndarray:
    """The way back: (R, channels, positions) -> (N, C, H, W) = ``shape``."""
    if not is_map(packing):
        return packing.unpack(vectors[:, :, 0], shape)
    n, c, h, w = shape
    rows, cols = -(-h // block), -(-w // block)
    x = vectors.reshape(n, rows, cols, c, block, block).transpose(0, 3, 1, 4, 2, 5)
    x = x.reshape(n, c, rows * block, cols * block)
    return np.ascontiguousarray(x[:, :, :h, :w])


def count_vectors(shape: Shape, packing: Packing, block: int) -> int:
    """R of :func:`to_vectors`."""
    n, _, h, w = shape
    return n * h if not is_map(packing) else n * -(-h // block) * -(-w // block)
