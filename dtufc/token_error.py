"""Relative error per token: what a few giant values cannot hide.

A hidden state's squared error says next to nothing where one token in 256 carries 94 % of the variance,
as the first token of many language models does. Here each token counts the same::

    mean over tokens t of  |x_t - x_hat_t|^2 / |x_t - m|^2

with m the channels' centre: the mean over features of the median over a feature's tokens, per layer. (A
mean over tokens would follow the giants.) 0 is lossless; 1 is what m itself would give.
"""

import numpy as np


class TokenErrors:
    """The channels' centre of a set of features, then the error of each.

    All features have axes (sample, layer, token, channel), (N, L, T, C).
    """

    def __init__(self):
        self.count = 0
        self.sums: np.ndarray | float = 0.0

    def add(self, x: np.ndarray) -> None:
        """Count a feature in the centre."""
        self.count += 1
        self.sums = self.sums + np.median(x, axis=(0, 2)).astype(np.float64)  # (L, C)

    def error(self, x: np.ndarray, x_hat: np.ndarray) -> float:
        """Mean relative error over the tokens of one feature; a token that is the centre counts as 0."""
        centre = (self.sums / self.count)[None, :, None]  # (1, L, 1, C)
        spread = np.sum((x - centre) ** 2, axis=-1)  # (N, L, T)
        squares = np.sum((x_hat.astype(np.float64) - x) ** 2, axis=-1)
        return float(np.divide(squares, spread, np.zeros_like(squares), where=spread > 0).mean())


def count_tokens(shape: tuple[int, ...]) -> int:
    """Tokens of a feature (N, L, T, C), those of each layer by themselves."""
    return int(np.prod(shape[:3]))
