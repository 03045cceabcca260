"""Means and bases of a layout, from statistics: one Karhunen-Loeve transform, or a mixture of them.

A mixture is found in the leading components of the common basis, where all that costs bits at a middle
rate is; only the means and bases that come of it are made for all channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from dtufc.klt.model import Layout, Transform
from dtufc.klt.statistics import LARGEST, Statistics, spaced

NOISE = 0.1  # of the variance: what is below it needs no bits, and tells nothing of the cluster
LEADING = 96  # channels at most in which clusters are told apart
MEMBERS = 16_000  # vectors at most that tell where the clusters are
MEMBER_VALUES = 8_000_000  # likewise values: a vector of a block of positions has many
PRIOR = 8  # vectors' worth of belief in the common mean
TURNS = 12


@dataclass(frozen=True)
class Candidate:
    """A layout and how it is fitted."""

    layout: Layout
    shrinkage: float
    """Vectors' worth of belief in the common covariance (mixtures) or in its diagonal (one)."""

    def __str__(self) -> str:
        return f"{self.layout}, shrinkage {self.shrinkage:g}"


class Bases:
    """Transforms of the candidates for one set of vectors; what several of them need is made once.

    Args:
        device: torch device of matrix products and eigenvectors.
    """

    def __init__(self, known: Statistics, seed: int, device: str):
        self.known, self.seed, self.device = known, seed, device
        self._mixtures: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def fit(self, candidate: Candidate) -> Transform:
        """Means and bases of a candidate."""
        known, layout = self.known, candidate.layout
        if layout.layers == "own":
            return self._per_layer(candidate)
        mean = known.mean if layout.centre else np.zeros_like(known.mean)
        unit = known.square
        if layout.centre:
            unit = float(np.trace(known.covariance)) / len(known.covariance)
        unit = min(max(float(np.sqrt(unit)), 1e-30), LARGEST)
        if not layout.rotate:
            return Transform(layout, mean[None], None, unit)
        if layout.clusters == 1:
            return Transform(layout, mean[None], self._shrunk(candidate.shrinkage)[None], unit)
        means, seconds, sizes = self._clusters(layout, unit)
        belief = candidate.shrinkage
        bases = [
            self.eigenbasis((second + belief * known.covariance) / (size + belief))
            for second, size in zip(seconds, sizes, strict=True)
        ]
        return Transform(layout, means, np.stack(bases), unit)

    def _per_layer(self, candidate: Candidate) -> Transform:
        """A mean and a basis per layer."""
        layout = candidate.layout
        one = replace(candidate, layout=replace(layout, clusters=1, layers="shared"))
        each = [Bases(layer, self.seed, self.device).fit(one) for layer in self.known.layers]
        means, bases = (
            np.concatenate([getattr(t, name) for t in each]) for name in ("mean", "basis")
        )
        unit = float(np.sqrt(np.mean([transform.unit**2 for transform in each])))
        return Transform(layout, means, bases, unit)

    def eigenbasis(self, covariance: np.ndarray) -> np.ndarray:
        """Eigenvectors as columns, the largest eigenvalue first, in the precision that is stored."""
        exact = torch.from_numpy(covariance)
        if len(covariance) > 1024:  # twice as fast, and float16 keeps less anyway
            exact = exact.float()
        found = torch.linalg.eigh(exact.to(self.device))[1].flip(1).cpu()
        return found.numpy().astype(np.float16).astype(np.float32)

    @cached_property
    def common(self) -> np.ndarray:
        """(C, C): the basis of all vectors together."""
        return self._shrunk(0.0)

    def _shrunk(self, belief: float) -> np.ndarray:
        if belief == 0 and "common" in self.__dict__:
            return self.common
        covariance = self.known.covariance
        part = belief / (self.known.rows + belief)
        diagonal = np.diag(np.diag(covariance))
        return self.eigenbasis((1 - part) * covariance + part * diagonal)

    def _clusters(self, layout: Layout, unit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means (K, C, S), sums of outer products around them (K, C, C) and how many vectors and
        positions went into each (K,); of the sample."""
        if layout.clusters not in self._mixtures:
            x, count = self.known.sample, layout.clusters
            own = self._assign(layout, unit)
            means = np.empty((count, *x.shape[1:]), np.float32)
            seconds = np.empty((count, x.shape[1], x.shape[1]))
            for k in range(count):
                mine = x[own == k]
                mean = (mine.sum(0) + PRIOR * self.known.mean) / (len(mine) + PRIOR)
                means[k] = np.clip(mean, -LARGEST, LARGEST)
                seconds[k] = outer(mine - means[k], self.device)
            sizes = np.bincount(own, minlength=count) * x.shape[2]
            self._mixtures[count] = means, seconds, sizes
        return self._mixtures[layout.clusters]

    def _assign(self, layout: Layout, unit: float) -> np.ndarray:
        """The cluster of each vector of the sample, (r,) int64."""
        known, common, noise = self.known, self.common, NOISE * unit**2
        variance = np.einsum("cd,cd->d", common, known.covariance.astype(np.float32) @ common)
        audible = int((variance > noise / 4).sum())
        leading = min(max(audible, 16), LEADING, len(variance))
        one = replace(layout, clusters=1)
        start = Transform(one, known.mean[None], common[None, :, :leading], unit)
        z = torch.from_numpy(start.forward(known.sample, 0))
        z = z.reshape(len(z), leading, -1)  # (r, L, S)
        few = spaced(len(z), max(min(MEMBERS, MEMBER_VALUES // z[0].numel()), 1))
        return nearest(z, fit_mixture(z[few], layout.clusters, noise, self.seed)).numpy()


def outer(x: np.ndarray, device: str) -> np.ndarray:
    """Sum of the outer products of channels, over vectors (R, C, S) and positions, (C, C) float64."""
    flat = torch.from_numpy(x).transpose(1, 2).reshape(-1, x.shape[1]).to(device)
    return (flat.T @ flat).double().cpu().numpy()


@dataclass(frozen=True)
class Gaussian:
    """One cluster of a mixture, around 0 in its own basis."""

    mean: torch.Tensor
    """(L, S) float32."""
    basis: torch.Tensor
    """(L, L) float32, a column a component."""
    power: torch.Tensor
    """(L, S) float32: mean squares of the components, what needs no bits included."""
    prior: float
    """log2 of the cluster's share of the vectors."""

    def squares(self, z: torch.Tensor) -> torch.Tensor:
        """Squared components of vectors (R, L, S), in this basis."""
        return torch.einsum("rls,ld->rds", z - self.mean, self.basis).square()

    def bits(self, z: torch.Tensor) -> torch.Tensor:
        """Code length of vectors (R, L, S), (R,), but for what is common to all clusters."""
        away = self.squares(z).flatten(1) @ (1 / self.power).flatten()
        return 0.5 * (torch.log2(self.power).sum() + away / np.log(2)) - self.prior


def fit_mixture(z: torch.Tensor, count: int, noise: float, seed: int) -> list[Gaussian]:
    """A mixture of Gaussians: hard assignment by code length, in turns with means and covariances of
    the assigned, shrunk to the common ones.

    Args:
        z: (R, L, S) float32, around 0 and without correlation between the L.
    """
    rows, leading, positions = z.shape
    common = z.square().mean((0, 2))  # (L,)
    first = (z / (z.var(0) + noise).sqrt().sqrt())[:, :32].flatten(1)
    few = spaced(rows, max(50 * count, 4_000_000 // first.shape[1]))
    centres, _ = kmeans2(first[few].numpy(), count, iter=20, minit="++", seed=seed)
    own = torch.cdist(first, torch.from_numpy(centres)).argmin(1)
    belief = leading / 2
    found: list[Gaussian] = []
    for _ in range(TURNS):
        found.clear()
        for k in range(count):
            mine = z[own == k]
            mean = mine.sum(0) / (len(mine) + PRIOR)
            centred = (mine - mean).transpose(1, 2).reshape(-1, leading)
            second = centred.T @ centred + belief * torch.diag(common)
            basis = torch.linalg.eigh(second / (len(centred) + belief))[1]
            draft = Gaussian(mean, basis, torch.ones(leading, positions), 0.0)
            usual = draft.squares(mine if len(mine) else z).mean(0)
            power = (draft.squares(mine).sum(0) + PRIOR * usual) / (len(mine) + PRIOR) + noise
            prior = float(np.log2((len(mine) + 1) / (rows + count)))
            found.append(replace(draft, power=power, prior=prior))
        before, own = own, nearest(z, found)
        if (before == own).float().mean() > 0.999:
            break
    return found


def nearest(z: torch.Tensor, clusters: Sequence[Gaussian]) -> torch.Tensor:
    """The cluster that codes each vector (R, L, S) in the fewest bits, (R,) int64."""
    return torch.stack([cluster.bits(z) for cluster in clusters]).argmin(0)
