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

from dtufc.kernels import kernel

FEWEST = 4
"""Clusters below which all are tried."""
LEADING = 64
"""Components of the estimate at most."""
TRIED = 4
"""Clusters that are tried at most, where nothing else is asked for."""
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

    def tried(self, transform, tokens: np.ndarray, most: int = TRIED) -> np.ndarray:
        """Which clusters are tried on each token (R, C), ``most`` at most: (R, K) bool."""
        z = transform.product(tokens - self.origin, self.lead)
        out = np.zeros((len(tokens), len(self.constant)), np.bool_)
        _mark(transform.product(z, self.weights), self.offset, self.constant, most, out)
        return out


@kernel
def _mark(turned, offset, constant, most, out):
    """Mark the ``most`` clusters of the least estimates, those within MARGIN of the least.

    Args:
        turned: (R, K * L), leading components in each cluster. offset, constant: of :class:`Estimate`.
        out: (R, K) bool, all false.
    """
    clusters = len(constant)
    leading = turned.shape[1] // clusters
    bits = np.empty(clusters, np.float32)
    for r in range(len(turned)):
        for k in range(clusters):
            total = np.float32(0)
            for i in range(k * leading, (k + 1) * leading):
                total += abs(turned[r, i] - offset[i])
            bits[k] = constant[k] + total
        least = bits.min()
        for _ in range(most):
            k = bits.argmin()
            if bits[k] > least + np.float32(MARGIN):
                break
            out[r, k], bits[k] = True, np.inf


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
        parts.append((np.sqrt(share)[:, None] * (means - origin)).T)
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
