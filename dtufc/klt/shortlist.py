"""Which clusters of a mixture an encoder tries on a token.

    token ─ minus origin ─ leading components z ─ whitened by cluster, magnitudes summed ─> estimates

To try all K clusters takes K products of C x C. The estimate takes L = 64 components of all tokens
together, in which a cluster is a mean and a covariance. What it would cost there is the code length of
a Laplacian in the cluster's own components, whose variance holds the noise of the quantiser. The
clusters of the least estimates are tried in full, so the choice is the encoder's alone: a decoder knows
nothing of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

FEWEST = 4
"""Clusters below which all are tried."""
LEADING = 64
"""Components of the estimate at most."""
TRIED = 2
"""Clusters that are tried at most."""
MARGIN = 16.0
"""Bits by which the estimate of another cluster may be above the least to be tried as well."""
NOISE = 0.2
"""Variance, in squared steps, below which a component tells nothing of the cluster."""
SLOPE = 2**0.5 / np.log(2)
"""Bits of a Laplacian per magnitude over the standard deviation."""


@dataclass(frozen=True)
class Estimate:
    """What is estimated at one step."""

    origin: np.ndarray
    """(C,) float32."""
    lead: np.ndarray
    """(C, L) float32."""
    weights: np.ndarray
    """(L, K * L) float32, cluster by cluster."""
    offset: np.ndarray
    """(K * L,) float32."""
    constant: np.ndarray
    """(K,) float32, bits."""

    def bits(self, transform, tokens: np.ndarray) -> np.ndarray:
        """About the bits of tokens (R, C) in each cluster, but for what is common to all, (R, K)."""
        z = transform.product(tokens - self.origin, self.lead)
        away = transform.product(z, self.weights)
        away -= self.offset
        np.abs(away, out=away)
        return away.reshape(len(z), len(self.constant), -1).sum(2) + self.constant

    def tried(self, transform, tokens: np.ndarray) -> np.ndarray:
        """Which clusters are tried on each token (R, C): (R, K) bool, one at least."""
        bits = self.bits(transform, tokens)
        limit = np.minimum(
            bits.min(1) + np.float32(MARGIN), np.partition(bits, TRIED - 1)[:, TRIED - 1]
        )
        return bits <= limit[:, None]


@dataclass(frozen=True)
class Shortlist:
    """Clusters as Gaussians of the L leading components."""

    origin: np.ndarray
    """(C,) float64: the mean of all."""
    lead: np.ndarray
    """(C, L) float64."""
    middle: np.ndarray
    """(K, L) float64: means."""
    turn: np.ndarray
    """(K, L, L) float64: eigenvectors of the covariances, a column each."""
    power: np.ndarray
    """(K, L) float64: their eigenvalues."""

    @classmethod
    def of(cls, means: np.ndarray, bases: np.ndarray, power: np.ndarray, share: np.ndarray) -> Self:
        """Of clusters whose components are not correlated.

        Args:
            means: (K, C). bases: (K, C, C), a column a component. power: (K, C), variances of the
                components. share: (K,) of the tokens, sum 1.
        """
        leading = min(LEADING, means.shape[1])
        origin = share @ means.astype(np.float64)
        scaled = bases * np.sqrt(power, dtype=np.float32)[:, None]
        # what may lie in the leading components of all: the leading ones of each, and the means
        parts = [
            np.sqrt(part) * each[:, :leading] for part, each in zip(share, scaled, strict=True)
        ]
        parts.append(np.sqrt(share)[:, None] * (means - origin))
        parts[-1] = parts[-1].T
        spread = torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))
        common = torch.linalg.eigh((spread @ spread.T).double())[1].flip(1)[:, :leading]
        seen = (common.float().T @ torch.from_numpy(scaled)).double()  # (K, L, C)
        values, turn = torch.linalg.eigh(seen @ seen.mT)
        lead = common.numpy()
        return cls(origin, lead, (means - origin) @ lead, turn.numpy(), values.clamp(min=0).numpy())

    def at(self, step: float, bits: Sequence[float] | np.ndarray) -> Estimate:
        """The estimate at a step.

        Args:
            bits: (K,) of the clusters' indexes.
        """
        spread = np.sqrt(self.power + NOISE * step**2)  # (K, L)
        weights = SLOPE * self.turn / spread[:, None]  # (K, L, L)
        offset = np.einsum("kl,klm->km", self.middle, weights)
        return Estimate(
            origin=self.origin.astype(np.float32),
            lead=self.lead.astype(np.float32),
            weights=np.ascontiguousarray(
                weights.transpose(1, 0, 2).reshape(len(weights[0]), -1), np.float32
            ),
            offset=offset.ravel().astype(np.float32),
            constant=(np.log2(spread).sum(1) + bits).astype(np.float32),
        )
