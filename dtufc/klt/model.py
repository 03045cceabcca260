"""What the codec without a network has learned of one kind of feature, and its two directions.

    vectors (R, C, S) ─ minus mean ─ basis of channels ─ DCT of positions ─> y (R, C * S) ─ / step ─> q

S is 1 for tokens. There may be several means and bases (a mixture of Karhunen-Loeve transforms): each
vector takes the one that costs least, and its index is coded. One uniform step serves all components
(H. Gish and J. Pierce, *Asymptotically efficient quantizing*, 1968: optimal with entropy coding), so
that one model gives every rate: ``quality`` is log2 of the feature's standard deviation over the step.
The entropy tables are those of the nearest of a ladder of steps for which they were trained. A model may
hold a second one, of another layout, for its fine steps.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.fft import dct

from dtufc import config, files, rans
from dtufc.codec import CONFIG_JSON, read_number
from dtufc.errors import UserError
from dtufc.feature import FeatureFacts
from dtufc.kernels import kernel
from dtufc.klt import chain, coder, ladder, lanes, trellis
from dtufc.klt.contexts import MOST_TABLES
from dtufc.klt.entropy import CENTROIDS, Bank, choose, mean_squares, reconstruct
from dtufc.klt.memory import Memory, settle
from dtufc.klt.post_filter import PostFilter
from dtufc.klt.prediction import Prediction, predicted
from dtufc.klt.recall import Recall, recall
from dtufc.klt.shortlist import FEWEST, TRIED, Estimate, Shortlist
from dtufc.klt.tables import Tables
from dtufc.klt.weighting import Weighting, weighed_facts
from dtufc.views import Shape

WEIGHTS = "model.safetensors"
MAX_UNIT = 1e30
"""Largest standard deviation of a feature and largest magnitude of a mean, far below the end of
float32."""
MAX_CHANGE = 1e37
"""Largest magnitude that a post-filter may add to a value: what a step makes is below, too."""
MAX_LENGTH = 2.0
"""Longest row or column of a basis, whose are 1 long but for rounding."""
FORMATS = (1, 2)
"""Of codec folders: 1 with :class:`Rung`, plain quantisation and one string; 2 with
:class:`~dtufc.klt.tables.Tables`, dependent quantisation and lanes."""
MAX_ENTRIES = 1 << 16
"""Vectors in a memory's dictionary at most."""
FORMAT = 1
FINE = "fine_"
"""What the names of the second model's arrays begin with."""
PER_OCTAVE = 128
"""Steps that a file can name within a factor of two: quality is coded as a multiple of 1 / 128."""
LOWEST, HIGHEST, RUNGS_PER_OCTAVE = -3, 7, 8
"""The ladder of qualities for which tables are trained."""
RUNGS = (HIGHEST - LOWEST) * RUNGS_PER_OCTAVE + 1
MAX_BANK = 63
"""Tables of a quantiser at most: all of a step's are told by 7 bits."""
MAX_SHIFT = 16
"""Low bits of a component at most: no symbol has more."""
MAX_VALUE = 2.0**18
"""Largest value over the step that becomes a symbol: float32 tells it from its neighbours. Vectors that
exceed it are sent as they are."""
MAX_NORM = 2.0**22
"""Likewise, of a vector's length over the step, in format 2."""
TILT = 0.18
"""How much less a bit costs at the upper end of a rung than at its lower end, as a logarithm. A rung's
tables hold symbols back as the step shrinks; this lets rate and error pass from rung to rung evenly."""


def rung(grade: int) -> int:
    """The ladder's nearest rung to a quality of ``grade`` / 128, 0 .. RUNGS - 1."""
    width = PER_OCTAVE // RUNGS_PER_OCTAVE
    return min(max((grade - LOWEST * PER_OCTAVE + width // 2) // width, 0), RUNGS - 1)


@lru_cache
def dct_basis(block: int) -> np.ndarray:
    """Orthonormal two-dimensional DCT-II over block x block positions, (S, S) float32: y = x @ basis."""
    one = dct(np.eye(block), axis=1, norm="ortho")  # a row's transform, as a matrix
    return np.kron(one, one).astype(np.float32)


def product(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(R, C) @ (C, D), float32; of one row by NumPy, which calls a faster routine for it."""
    if len(x) == 1:
        return x.dot(matrix)
    return (torch.from_numpy(x) @ torch.from_numpy(matrix)).numpy()


@dataclass(frozen=True)
class Layout:
    """How vectors are made of a feature and turned."""

    rotate: bool
    """Karhunen-Loeve basis over channels; else the channels as they are."""
    block: int
    """Side of the blocks of positions, transformed by a DCT; 1 for tokens and for none."""
    clusters: int
    """Means and bases."""
    centre: bool
    """Take the channels' means off; not for one-sided values that are mostly zero."""
    layers: Literal["joint", "own", "shared"] = "joint"
    """What a vector of tokens of several layers is. joint: the channels of all layers. Else one vector
    per layer: own gives each layer its mean and basis, ``clusters`` of them, and as the layer is known
    their index is not coded; shared takes the same for all layers."""

    def __str__(self) -> str:
        parts = ["klt" if self.rotate else "identity"]
        if self.block > 1:
            parts.append(f"dct{self.block}")
        if not self.centre:
            parts.append("uncentred")
        if self.layers == "own":
            return "+".join(parts) + f" per layer, {self.clusters}"
        name = "+".join(parts) + (f" x{self.clusters}" if self.clusters > 1 else "")
        return name if self.layers == "joint" else f"{name} shared by layers"

    @property
    def tells_cluster(self) -> bool:
        """Whether the clusters' indexes are coded."""
        return self.clusters > 1 and self.layers != "own"

    def seen(self, shape: Shape) -> Shape:
        """The shape that a feature is taken as: layers are further samples unless they are joint."""
        n, c, h, w = shape
        return shape if self.layers == "joint" else (n * c, 1, h, w)

    def owners(self, shape: Shape) -> np.ndarray | None:
        """The cluster of each vector of a feature where its layer decides it, (R,) int32, else None."""
        n, c, h, _ = shape
        if self.layers != "own":
            return None
        return np.tile(np.repeat(np.arange(c, dtype=np.int32), h), n)


@dataclass(frozen=True)
class Transform:
    """Means and bases, K of each."""

    layout: Layout
    mean: np.ndarray
    """(K, C, S) float32."""
    basis: np.ndarray | None
    """(K, C, C) float32 of float16 values, a column a component; None where there is no rotation."""
    unit: float
    """Standard deviation of the feature around its mean: the step at quality 0."""

    def step(self, grade: int) -> float:
        """The step of quality ``grade`` / 128."""
        return self.unit * 2.0 ** (-grade / PER_OCTAVE)

    @cached_property
    def kernel(self) -> chain.Bases:
        """Of tokens, as compiled kernels take it."""
        rows = np.ascontiguousarray(self.basis.transpose(0, 2, 1).astype(np.float16))
        return chain.Bases(np.ascontiguousarray(self.mean[:, :, 0]), rows.view(np.uint16))

    @cached_property
    def components(self) -> int:
        """C * S."""
        return self.mean.shape[1] * self.mean.shape[2]

    def forward(self, vectors: np.ndarray, cluster: int) -> np.ndarray:
        """(R, C, S) -> (R, C * S) float32."""
        x = vectors - self.mean[cluster]
        if x.shape[2] == 1:
            x = x[:, :, 0]
            return x if self.basis is None else self.product(x, self.basis[cluster])
        x = torch.from_numpy(x)
        if self.basis is not None:
            x = torch.einsum("rcs,cd->rds", x, torch.from_numpy(self.basis[cluster]))
        if self.layout.block > 1:
            x = x @ torch.from_numpy(dct_basis(self.layout.block))
        return x.reshape(len(vectors), -1).numpy()

    def product(self, x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """The product (R, C) @ (C, D), float32, by which vectors are turned."""
        return product(x, matrix)

    def inverse(self, y: np.ndarray, cluster: int) -> np.ndarray:
        """(R, C * S) -> (R, C, S) float32."""
        if self.mean.shape[2] == 1:
            x = y if self.basis is None else product(y, self.basis[cluster].T)
            return x[:, :, None] + self.mean[cluster]
        x = torch.from_numpy(y).reshape(len(y), *self.mean.shape[1:])
        if self.layout.block > 1:
            x = x @ torch.from_numpy(dct_basis(self.layout.block)).T
        if self.basis is not None:
            x = torch.einsum("rds,cd->rcs", x, torch.from_numpy(self.basis[cluster]))
        return x.numpy() + self.mean[cluster]


@dataclass(frozen=True)
class Rung:
    """The entropy model at one step."""

    bank: Bank
    chosen: np.ndarray
    """(K, C * S) int32: the table of each component."""
    clusters: np.ndarray
    """(K + 1,) int32 frequencies of the clusters' indexes and of an escape, sum 2^16."""

    @cached_property
    def tables(self) -> rans.Tables:
        """The bank's tables and, last, that of the clusters' indexes."""
        bank = self.bank
        offset = np.append(bank.offset, 0).astype(np.int32)
        return Bank((*bank.freqs, self.clusters), offset, bank.centroid).tables()

    @cached_property
    def bits(self) -> np.ndarray:
        return self.bank.bits()

    @cached_property
    def power(self) -> np.ndarray:
        """(K, C * S): mean squares of the components' symbols, in squared steps."""
        return mean_squares(self.bank.freqs, self.bank.offset)[self.chosen]

    @cached_property
    def heads(self) -> np.ndarray:
        """(K,) float64: bits of the clusters' indexes."""
        return rans.PRECISION - np.log2(self.clusters[:-1])

    def least(self, tells_cluster: bool) -> float:
        """The fewest bits that a vector's symbols take, with its cluster's index where that is coded."""
        return self._least + (float(self.tables.least[-1]) if tells_cluster else 0.0)

    @cached_property
    def _least(self) -> float:
        return float(self.tables.least[self.chosen].sum(1).min())


@dataclass(frozen=True)
class Scale:
    """What a quality decides, in units of the feature where nothing else is said."""

    rung: int
    tables: Rung | Tables
    fine: float
    """The fine step."""
    weight: float
    """What a bit costs, in squared fine steps."""
    norm: float
    """Longest vector that symbols can tell."""
    each: float
    """Largest value with which no vector can be longer."""
    value: float
    """Largest value that symbols can tell."""


@dataclass(frozen=True)
class KltModel:
    """All that encoder and decoder share for one kind of feature."""

    facts: FeatureFacts
    transform: Transform
    rungs: tuple[Rung, ...] | tuple[Tables, ...]
    """RUNGS entropy models, from the coarsest step to the finest."""
    weight: float
    """What a bit costs, in squared steps, when symbols are chosen."""
    post: PostFilter | None = None
    """Of tokens, where it was found to help."""
    memory: Memory | None = None
    """Of tokens, where it was found to help."""
    weighting: Weighting | None = None
    """Of tokens; all else is of the weighed ones then."""
    prediction: Prediction | None = None
    """Of tokens, format 2."""
    fine: Self | None = None
    """What codes the fine steps in its place, with the same facts, format and weighting."""
    fine_from: int = 0
    """The lowest quality in 128ths at which ``fine`` does."""

    def at(self, grade: int) -> Self:
        """The model that codes at quality ``grade`` / 128: the one place that picks, for encoders and
        decoders. It holds no second one."""
        if self.fine is None:
            return self
        return self.fine if grade >= self.fine_from else self._coarse

    @property
    def each(self) -> tuple[Self, ...]:
        """The one or two models that :meth:`at` picks from, the coarse one first."""
        return (self,) if self.fine is None else (self._coarse, self.fine)

    @cached_property
    def _coarse(self) -> Self:
        """This model without the second one."""
        return replace(self, fine=None, fine_from=0)

    @cached_property
    def weighed(self) -> Self:
        """What codes weighed tokens, as features of one layer."""
        facts = weighed_facts(self.transform.mean.shape[1])
        return replace(self, facts=facts, weighting=None)

    @cached_property
    def plain(self) -> int:
        """Clusters whose vectors refer to no others."""
        known = self.memory or self.prediction
        return self.transform.layout.clusters if known is None else known.first

    def to_vectors(self, x: np.ndarray) -> np.ndarray:
        """A feature (N, C, H, W) -> its vectors (R, C, S) float32."""
        layout = self.transform.layout
        if layout.layers != "joint":
            x = x.reshape(layout.seen(x.shape))
        return self.facts.views.to_vectors(x, layout.block)

    def from_vectors(self, vectors: np.ndarray, shape: Shape) -> np.ndarray:
        """The way back of :meth:`to_vectors`: -> (N, C, H, W) = ``shape``."""
        layout = self.transform.layout
        if layout.layers == "joint":
            return self.facts.views.from_vectors(vectors, shape, layout.block)
        x = self.facts.views.from_vectors(vectors, layout.seen(shape), layout.block)
        return x.reshape(shape)

    @cached_property
    def format(self) -> int:
        """Which of FORMATS it is."""
        return 2 if isinstance(self.rungs[0], Tables) else 1

    @property
    def for_cpu(self) -> bool:
        """Whether a part of it, in format 2, has no kernels for a GPU."""
        known = self.memory, self.weighting, self.prediction, self.rungs[0].contexts
        return any(each is not None for each in known)

    def tables_at(self, grade: int) -> Rung | Tables:
        """The entropy model of quality ``grade`` / 128."""
        return self.rungs[rung(grade)]

    def weight_at(self, grade: int) -> float:
        """What a bit costs at quality ``grade`` / 128."""
        place = grade * RUNGS_PER_OCTAVE / PER_OCTAVE - LOWEST * RUNGS_PER_OCTAVE - rung(grade)
        return self.weight * math.exp(-TILT * min(max(place, -0.5), 0.5))

    def quantise(
        self,
        vectors: np.ndarray,
        grade: int,
        length: int | None = None,
        owners: np.ndarray | None = None,
        most: int = TRIED,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The cheapest cluster, symbols and, with a memory, reference of each vector at one step.

        Args:
            vectors: (R, C, S) float32.
            length: rows of a sequence, in which a vector may refer to an earlier one; None: to none.
            owners: (R,) the cluster of each, where it is known.
            most: clusters that are tried on each vector, where there is a shortlist.

        Returns:
            clusters (R,) int32, symbols (R, C * S) int32, bits (R,) float64 that the tables promise,
            which vectors (R,) bool no symbols can tell; theirs are nought; and references (R,) int64,
            as :mod:`dtufc.klt.memory` defines them.
        """
        if self.format == 2:
            found, raw = self.search(vectors, grade, length, most)
            bits = self.tables_at(grade).promised(found.code, found.modes)
            if self.memory is not None:
                bits += self.memory.bits_of(found.modes, length or len(vectors))
            return found.modes, found.symbols.T, bits, raw, found.references
        tame, raw = self.tame(vectors, grade)
        if self.memory is not None:
            return self._remember(tame, raw, grade, length)
        if owners is not None:
            tried = owners[:, None] == np.arange(self.transform.layout.clusters)
        else:
            tried = self.shortlist(tame, grade, most)
        clusters, symbols, bits = self._try(tame, grade, tried)
        if raw.any():
            symbols[raw], clusters[raw] = 0, 0 if owners is None else owners[raw]
        return clusters, symbols, bits, raw, np.zeros(len(vectors), np.int64)

    def _try(
        self, vectors: np.ndarray, grade: int, tried: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The cheapest of some clusters, format 1 -> clusters, symbols and bits of :meth:`quantise`.

        Args:
            tried: (R, K) bool, the clusters that are tried on each vector; None: all.
        """
        model, weight, count = self.tables_at(grade), self.weight_at(grade), len(vectors)
        step = np.float32(self.transform.step(grade))
        heads = model.heads if self.transform.layout.tells_cluster else np.zeros(self.plain)
        clusters, bits = np.zeros(count, np.int32), np.zeros(count)
        symbols = np.zeros((count, self.transform.components), np.int32)
        cheapest, rows = np.full(count, np.inf), np.arange(count)
        some = range(self.plain) if tried is None else np.flatnonzero(tried.any(0)).tolist()
        for cluster in some:
            mine = rows if tried is None else np.flatnonzero(tried[:, cluster])
            y = self.transform.forward(vectors if tried is None else vectors[mine], cluster) / step
            trial, head = np.empty(y.shape, np.int32), float(heads[cluster])
            tables = model.chosen[cluster], model.bits, model.bank.centroid
            cost, rate = choose(y, *tables, weight, cheapest[mine] - weight * head, trial)
            cost += weight * head
            better = cost < cheapest[mine]
            where = mine[better]
            clusters[where], symbols[where] = cluster, trial[better]
            cheapest[where], bits[where] = cost[better], rate[better] + head
        return clusters, symbols, bits

    def shortlist(self, vectors: np.ndarray, grade: int, most: int = TRIED) -> np.ndarray | None:
        """The clusters that are tried on each vector (R, C, S), ``most`` at most, (R, K) bool; None:
        all."""
        if most >= self.plain or self._shortlist is None:
            return None
        return self._estimate(rung(grade)).tried(self.transform, vectors[:, :, 0], most)

    @cached_property
    def _shortlist(self) -> Shortlist | None:
        """Where clusters of tokens are so many that a shortlist pays, and none of them has a memory."""
        layout, finest = self.transform.layout, self.rungs[-1]
        if self.plain < FEWEST or not layout.tells_cluster or self.memory is not None:
            return None
        if self.transform.basis is None or self.transform.mean.shape[2] > 1:
            return None
        some = slice(self.plain)
        power = finest.power[some] * self.transform.step(HIGHEST * PER_OCTAVE) ** 2
        share = 2.0 ** -finest.heads[some]
        return Shortlist.of(
            self.transform.mean[some, :, 0], self.transform.basis[some], power, share / share.sum()
        )

    @cached_property
    def _estimate(self) -> Callable[[int], Estimate]:
        """The estimate of each rung; those that were asked for last are kept."""

        def estimate(at: int) -> Estimate:
            grade = (at + LOWEST * RUNGS_PER_OCTAVE) * PER_OCTAVE // RUNGS_PER_OCTAVE
            heads = self.rungs[at].heads[: self.plain]
            return self._shortlist.at(self.transform.step(grade), heads)

        return lru_cache(maxsize=16)(estimate)

    def _remember(
        self, tame: np.ndarray, raw: np.ndarray, grade: int, length: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """:meth:`quantise` of a model of format 1 with a memory.

        Args:
            tame, raw: as :meth:`tame` returns them.
        """
        count, step = len(tame), np.float32(self.transform.step(grade))
        clusters, references = np.zeros(count, np.int32), np.zeros(count, np.int64)
        symbols = np.zeros((count, self.transform.components), np.int32)
        cheapest, bits = np.full(count, np.inf), np.zeros(count)
        model, weight = self.tables_at(grade), self.weight_at(grade)
        trial = np.empty_like(symbols)

        @lru_cache(maxsize=1)
        def forward(cluster: int) -> np.ndarray:
            return self.transform.forward(tame, cluster) / step

        def attempt(cluster: int, prediction=None, more=0.0) -> tuple[np.ndarray, np.ndarray]:
            """Costs and bits of all vectors, whose references take ``more`` bits."""
            y = forward(cluster)
            if prediction is not None:
                y = np.clip(y - prediction / step, -2 * MAX_VALUE, 2 * MAX_VALUE)
            head = rans.PRECISION - np.log2(model.clusters[cluster]) + more
            tables = model.chosen[cluster], model.bits, model.bank.centroid
            cost, rate = choose(y, *tables, weight, cheapest - weight * head, trial)
            return cost + weight * head, rate + head

        def keep(better: np.ndarray, cluster: int, cost, rate, reference=0) -> None:
            cheapest[better], clusters[better] = cost[better], cluster
            symbols[better], bits[better] = trial[better], rate[better]
            references[better] = np.broadcast_to(reference, count)[better]

        for cluster in range(self.plain):
            cost, rate = attempt(cluster)
            keep(cost < cheapest, cluster, cost, rate)
        for cluster, entry, known in self.memory.from_dictionary(self.transform, tame):
            cost, rate = attempt(cluster, known, self.memory.bits)
            keep(cost < cheapest, cluster, cost, rate, entry)
        if length:
            symbols[raw], clusters[raw], references[raw], cheapest[raw] = 0, 0, 0, -np.inf
            decoded = self.restore(clusters, symbols, grade, references=references)
            trials = [
                (cluster, rows, known, attempt(cluster, known)[0])
                for cluster, rows, known in self.memory.from_earlier(
                    self.transform, tame, decoded, length
                )
            ]
            taken, own = settle(cheapest, trials, length, weight)
            cheapest[:] = np.where(taken >= 0, np.inf, -np.inf)  # others are given up at once
            for number, (cluster, rows, known, _) in enumerate(trials):
                cost, rate = attempt(cluster, known, own)
                keep(taken == number, cluster, cost, rate, rows)
                cheapest[taken == number] = -np.inf
        symbols[raw], clusters[raw], references[raw] = 0, 0, 0
        return clusters, symbols, bits, raw, references

    def search(
        self,
        vectors: np.ndarray,
        grade: int,
        length: int | None = None,
        most: int = TRIED,
        before: np.ndarray | None = None,
    ) -> tuple[coder.Quantised, np.ndarray]:
        """Modes and symbols of vectors (R, C, S), format 2, and which (R,) bool no symbols can tell.

        Args:
            length: rows of a sequence, in which a vector may refer to an earlier one; None: to none.
            most: modes that are tried on each vector, where there is a shortlist.
            before: (N, C), the decoded tokens before the sequences, of a model with a prediction.
        """
        if self.prediction is not None:
            return predicted(self, vectors, grade, length or 1, most, before)
        tame, raw = self.tame(vectors, grade)
        scale = self.scale(grade)
        if self.memory is None:
            tried = self.shortlist(tame, grade, most)
            found = coder.quantise(
                self.transform, scale.tables, tame, scale.fine, scale.weight, tried
            )
            return found, raw
        recall = Recall(self.transform, scale.tables, self.memory, tame, scale.fine, scale.weight)
        return recall.quantise(length), raw

    @cached_property
    def scale(self) -> Callable[[int], "Scale"]:
        """What a quality in 128ths comes to; those that were asked for last are kept."""
        norm = MAX_NORM if self.format == 2 else math.inf  # integers of 32 bits
        each = norm / math.sqrt(self.transform.components)

        def scale(grade: int) -> Scale:
            step, weight = self.transform.step(grade), self.weight_at(grade)
            return Scale(
                rung=rung(grade),
                tables=self.tables_at(grade),
                fine=trellis.FINE * step,
                weight=weight / trellis.FINE**2,
                norm=norm * step,
                each=each * step,
                value=MAX_VALUE * step,
            )

        return lru_cache(maxsize=16)(scale)

    def tame(self, vectors: np.ndarray, grade: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors, replaced where no symbols can tell them, and where (R,) bool."""
        scale = self.scale(grade)
        largest, most = largest_of(vectors)
        if most <= scale.value and most <= scale.each:
            return vectors, np.zeros(len(vectors), bool)
        raw, flat = largest > scale.value, vectors.reshape(len(vectors), -1)
        far = np.flatnonzero(largest > scale.each)
        raw[far] |= np.linalg.norm(flat[far].astype(np.float64), axis=1) > scale.norm
        if not raw.any():
            return vectors, raw
        fill = self.transform.mean[0] if self.format == 2 else np.float32(0)
        return np.where(raw[:, None, None], fill, vectors), raw

    def finish(
        self,
        clusters: np.ndarray,
        y: np.ndarray,
        grade: int,
        length: int | None = None,
        references: np.ndarray | None = None,
    ) -> np.ndarray:
        """Clusters (R,) and components (D, R) in fine steps, which are overwritten, of format 2 ->
        vectors (R, C, S) float32.

        Args:
            length: rows of a sequence, over which the post-filter runs; None leaves it out.
            references: (R,) of a model with a memory.
        """
        scale, post = self.scale(grade), self.post
        filters = length and post is not None and post.changes[scale.rung]
        y *= np.float32(scale.fine)
        if filters and post.basis is None:
            post.apply(y, length, scale.rung)
        if self.prediction is not None:  # as its encoder does
            y = np.ascontiguousarray(y.T)
            out = chain.inverse(y, clusters, self.transform.kernel)[:, :, None]
        elif self.memory is None:
            out = coder.restore(self.transform, clusters, y)
        else:
            out = recall(self.transform, self.memory, clusters, references, y)
        if filters and post.basis is not None:
            out[:, :, 0] = post.refine(out[:, :, 0], length, scale.rung)
        return out

    def restore(
        self,
        clusters: np.ndarray,
        symbols: np.ndarray,
        grade: int,
        length: int | None = None,
        references: np.ndarray | None = None,
    ) -> np.ndarray:
        """Clusters (R,) and symbols (R, C * S) -> vectors (R, C, S) float32.

        Args:
            length: rows of a sequence, over which the post-filter runs; None leaves it out.
            references: (R,) of a model with a memory.
        """
        at = rung(grade)
        if self.format == 2:
            y = self.rungs[at].values_of(symbols.T, clusters)
            return self.finish(clusters, y, grade, length, references)
        post = self.post if length else None
        out = np.empty((len(symbols), *self.transform.mean.shape[1:]), np.float32)
        step = np.float32(self.transform.step(grade))
        # ascending: what refers to other rows comes last
        for cluster, own in coder.by_value(clusters):
            mine = symbols[own]
            y = np.empty(mine.shape, np.float32)
            reconstruct(mine, self.rungs[at].chosen[cluster], self.rungs[at].bank.centroid, y)
            y *= step
            if self.memory is not None and references is not None:
                y += self.memory.prediction(self.transform, cluster, references[own], out)
            if post and post.basis is None:  # one basis: all rows are here, in its components
                y += post.change(y, length, at)
            out[own] = self.transform.inverse(y, cluster)
        if post and post.basis is not None and post.taps[at].any():
            out[:, :, 0] = post.refine(out[:, :, 0], length, at)
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        """The state as it is stored."""
        out = {"mean": self.transform.mean}
        out |= ladder.arrays(self.rungs) if self.format == 2 else _rung_arrays(self.rungs)
        if self.transform.basis is not None:
            out["basis"] = self.transform.basis.astype(np.float16)
        out |= self.memory.arrays() if self.memory else {}
        out |= self.weighting.arrays() if self.weighting else {}
        out |= self.prediction.arrays() if self.prediction else {}
        out |= self.post.arrays() if self.post else {}
        if self.fine is not None:  # the weighting stands once
            second = replace(self.fine, weighting=None).arrays()
            out |= {FINE + name: value for name, value in second.items()}
        return out

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all that decides bytes and decoded values (32 bytes)."""
        hasher = hashlib.sha256(json.dumps(self._values(), sort_keys=True).encode())
        for name, value in sorted(self.arrays().items()):
            hasher.update(f"{name} {value.dtype} {value.shape}".encode())
            hasher.update(np.ascontiguousarray(value).tobytes())
        return hasher.digest()

    def _values(self) -> dict[str, Any]:
        layout = asdict(self.transform.layout)
        if layout["layers"] == "joint":  # what earlier versions knew: their ids stay
            del layout["layers"]
        values = {
            "facts": self.facts.identity(),
            "layout": layout,
            "unit": self.transform.unit,
            "weight": self.weight,
        }
        if self.fine is not None:
            second = self.fine._values()
            del second["facts"]
            values["fine"] = {"from": self.fine_from} | second
        return values

    def save(self, folder: Path, quality: float, made_by: dict[str, Any]) -> None:
        """Write the codec folder, ``config.json`` last.

        Args:
            quality: what the codec takes where nothing is asked for.
            made_by: provenance, anything JSON holds.
        """
        arrays = {name: np.ascontiguousarray(value) for name, value in self.arrays().items()}
        for name in {"freqs", FINE + "freqs"} & arrays.keys():
            arrays[name] = arrays[name].astype(np.uint16)  # two or more sum to 2^16
        files.write_bytes(folder / WEIGHTS, save(arrays))
        values = {"format": self.format, "codec": "klt", "quality": quality}
        values |= self._values() | {"facts": self.facts.record(), "made_by": made_by}
        files.write_json(folder / CONFIG_JSON, values)

    @classmethod
    def load(cls, folder: Path) -> tuple[Self, float]:
        """The model of a codec folder and its quality.

        Raises:
            UserError: a file is missing, damaged or of another format; the message names it.
        """
        path = folder / WEIGHTS
        values = files.read_json(folder / CONFIG_JSON)
        version = values.get("format")
        if version not in FORMATS or isinstance(version, bool):
            raise UserError(
                f"{folder / CONFIG_JSON}: format {version!r}, expected one of {FORMATS}"
            )
        try:
            arrays = load(path.read_bytes())
            for name in {"freqs", FINE + "freqs"} & arrays.keys():
                if arrays[name].dtype == np.uint16:  # int32 in earlier versions
                    arrays[name] = arrays[name].astype(np.int32)
        except FileNotFoundError as error:
            raise UserError(f"{path}: missing from the codec folder") from error
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from error
        try:
            facts = FeatureFacts.of_record(values["facts"], "facts")
            model = cls._of_state(facts, values, arrays, version)
            if (second := values.get("fine")) is not None:
                model = _with_fine(model, second, arrays)
            return model, read_number(values, "quality")
        except _ArrayError as error:
            raise UserError(f"{path}: not a sound klt codec ({error})") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder}: not a sound klt codec ({error!r})") from error

    @classmethod
    def _of_state(
        cls,
        facts: FeatureFacts,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
        version: int,
    ) -> Self:
        """One model, from its stored form.

        Args:
            values: with layout, unit and weight. version: one of FORMATS.

        Raises:
            KeyError, TypeError, ValueError, UserError: it is not sound.
        """
        layout = config.build(Layout, values["layout"], "layout")
        numbers = {name: read_number(values, name) for name in ("unit", "weight")}
        _check_state(layout, facts, arrays, numbers, version)
        basis = arrays["basis"].astype(np.float32) if layout.rotate else None
        transform = Transform(layout, arrays["mean"], basis, numbers["unit"])
        post = PostFilter.of_arrays(arrays, own_basis=layout.clusters > 1)
        rungs = ladder.rungs(arrays) if version == 2 else _rungs(arrays)
        memory = Memory.of_arrays(arrays)
        weighting = _read_weighting(arrays, layout, facts)
        model = cls(facts, transform, rungs, numbers["weight"], post, memory, weighting)
        return replace(model, prediction=_read_prediction(arrays, model))


def _with_fine(model: KltModel, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> KltModel:
    """A model and its second one, from the stored form.

    Raises:
        KeyError, TypeError, ValueError, UserError: the second one is not sound; the message names the
            array as the file does.
    """
    first = values["from"]
    if type(first) is not int or not LOWEST * PER_OCTAVE < first <= HIGHEST * PER_OCTAVE:
        raise UserError(
            f"fine.from: expected a whole number of 128ths on the ladder, got {first!r}"
        )
    own = {name[len(FINE) :]: each for name, each in arrays.items() if name.startswith(FINE)}
    try:
        fine = KltModel._of_state(model.facts, values, own, model.format)
    except _ArrayError as error:
        raise _ArrayError(f"{FINE}{error}") from error
    except UserError as error:
        raise UserError(f"fine: {error}") from error
    if fine.weighting is not None:
        raise UserError("fine: a weighting of its own")
    if model.weighting is not None and fine.transform.layout.layers != "joint":
        raise UserError("fine.layout.layers: a weighting is for all layers together")
    fine = replace(fine, weighting=model.weighting)
    _check_prediction(fine)
    return replace(model, fine=fine, fine_from=first)


def _read_weighting(
    arrays: dict[str, np.ndarray], layout: Layout, facts: FeatureFacts
) -> Weighting | None:
    """The weighting of a codec folder's arrays, if it has one.

    Raises:
        UserError: it is not sound, or of what no weighting is for.
    """
    channels = facts.views.channels(facts.shape)
    try:
        found = Weighting.of_arrays(arrays, channels)
    except UserError as error:
        raise _ArrayError(str(error)) from error
    if found is not None and (facts.views.is_map or layout.layers != "joint"):
        raise UserError("a weighting is for tokens, all layers together")
    return found


def _read_prediction(arrays: dict[str, np.ndarray], model: KltModel) -> Prediction | None:
    """The prediction of a codec folder's arrays, if it has one.

    Args:
        model: all else that the folder holds.

    Raises:
        UserError: it is not sound, or of what there is none for.
    """
    try:
        channels = model.facts.views.channels(model.facts.shape)
        found = Prediction.of_arrays(arrays, model.transform.layout.clusters, channels)
    except UserError as error:
        raise _ArrayError(str(error)) from error
    _check_prediction(replace(model, prediction=found))
    return found


def _check_prediction(model: KltModel) -> None:
    """Refuse a prediction of what there is none for.

    Raises:
        UserError: there is one.
    """
    if model.prediction is None:
        return
    known, tokens = model.transform.layout, not model.facts.views.is_map
    apart = model.weighting is not None and model.weighting.predictor is not None
    if (
        not tokens
        or not known.rotate
        or known.layers != "joint"
        or model.format != 2
        or model.memory
        or model.post
        or apart
    ):
        raise UserError(
            "a prediction is for tokens in bases, all layers together, in format 2, without a "
            "memory, a post-filter or importances"
        )


@kernel
def largest_of(rows):
    """The largest magnitude of each row of finite float32 (R, C, S), (R,) float32, and of all."""
    flat = rows.ravel().view(np.int32)  # a float's bits order magnitudes
    width = rows.shape[1] * rows.shape[2]
    out, whole = np.empty(rows.shape[0], np.int32), np.int32(0)
    for r in range(rows.shape[0]):
        most = np.int32(0)
        for i in range(r * width, (r + 1) * width):
            most = max(most, np.int32(flat[i] & np.int32(0x7FFFFFFF)))
        out[r], whole = most, max(whole, most)
    return out.view(np.float32), np.array([whole]).view(np.float32)[0]


class _ArrayError(UserError):
    """An array of ``model.safetensors`` is not what a fit gives."""


def _check_state(
    layout: Layout,
    facts: FeatureFacts,
    arrays: dict[str, np.ndarray],
    numbers: dict[str, float],
    version: int,
) -> None:
    """Refuse what no fit gives, before it decodes to nonsense or to what float32 does not hold.

    Raises:
        UserError: the message names the array or number.
    """

    def expect(name: str, sound: bool) -> None:
        if not sound:
            raise (_ArrayError if name in arrays else UserError)(f"{name} is not sound")

    def shaped(name: str, dtype: str, *shape: int) -> np.ndarray:
        if name not in arrays:
            raise _ArrayError(f"{name} is missing")
        array = arrays[name]
        expect(name, array.dtype == dtype and array.shape == shape)
        expect(name, bool(np.isfinite(array).all()))
        return array

    def check_basis(name: str) -> None:
        for axis in (-1, -2):
            squares = np.square(arrays[name], dtype=np.float64).sum(axis)
            expect(name, bool(squares.max() <= MAX_LENGTH**2))

    clusters, positions = layout.clusters, layout.block**2
    channels = facts.views.channels(facts.shape)
    if layout.layers != "joint":
        expect("layout.layers", not facts.views.is_map)
        channels = facts.shape[3]
    expect("layout.clusters", clusters >= 1)
    expect("layout.clusters", layout.layers != "own" or clusters == facts.shape[1])
    expect("layout.block", layout.block >= 1 and (facts.views.is_map or positions == 1))
    expect("facts", channels is not None)
    expect("unit", 0 < numbers["unit"] < MAX_UNIT)
    expect("weight", numbers["weight"] >= 0)
    mean = shaped("mean", "float32", clusters, channels, positions)
    expect("mean", bool(np.abs(mean).max() <= MAX_UNIT))
    if layout.rotate:
        shaped("basis", "float16", clusters, channels, channels)
        check_basis("basis")
    banks, precision = (RUNGS,), rans.PRECISION
    if version == 2:
        banks, precision = (RUNGS, 2), lanes.PRECISION
        shift = shaped("shift", "uint8", RUNGS, channels * positions)
        expect("shift", bool(shift.max() <= MAX_SHIFT))
    banks = shaped("banks", "int32", *banks)
    expect("banks", bool(banks.min() >= 1 and (version == 1 or banks.max() <= MAX_BANK)))
    tables = int(banks.sum(dtype=np.int64))
    sizes = shaped("sizes", "int32", tables)
    expect("sizes", bool(sizes.min() >= 2 and (version == 1 or sizes.max() <= lanes.ROW)))
    freqs = shaped("freqs", "int32", int(sizes.sum(dtype=np.int64)))
    expect("freqs", bool(freqs.min() >= 1))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    expect("freqs", bool((np.add.reduceat(freqs, starts) == 1 << precision).all()))
    offset = shaped("offset", "int32", tables).astype(np.int64)
    expect("offset", bool(np.abs(offset).max() <= MAX_VALUE))
    centroid = shaped("centroid", "float32", tables, 2 * CENTROIDS - 1)
    expect("centroid", bool(np.abs(centroid).max() <= MAX_VALUE))
    chosen = shaped("chosen", "uint8", *banks.shape, clusters, channels * positions)
    expect("chosen", bool((chosen.max(axis=(-2, -1)) < banks).all()))
    indexes = shaped("clusters", "int32", RUNGS, clusters + 1)
    expect("clusters", bool(indexes.min() >= 1 and (indexes.sum(1) == 1 << precision).all()))
    if any(name.startswith("context_") for name in arrays):
        expect("context_freqs", version == 2 and int(banks.sum(1).max()) <= MOST_TABLES)
        each = np.repeat(sizes, lanes.CLASSES)
        freqs = shaped("context_freqs", "uint16", int(each.sum(dtype=np.int64)))
        starts = np.concatenate([[0], np.cumsum(each)[:-1]])
        sums = np.add.reduceat(freqs, starts, dtype=np.int64)
        expect("context_freqs", bool(freqs.min() >= 1 and (sums == 1 << precision).all()))
        shaped("context_bounds", "uint16", tables, lanes.CLASSES - 1)
    if any(name.startswith("memory_") for name in arrays):
        modes = shaped("memory_modes", "int32", 2)
        first, fixed = modes.tolist()
        expect("memory_modes", 1 <= first <= first + fixed <= clusters and not facts.views.is_map)
        expect("memory_modes", first < clusters and layout.rotate and fixed >= 0)
        expect("memory_modes", layout.layers == "joint")
        known = shaped(
            "memory_dictionary", "int8", *arrays["memory_dictionary"].shape[:1], channels
        )
        expect("memory_dictionary", 1 <= len(known) <= MAX_ENTRIES)
        scale = shaped("memory_scale", "float32", channels)
        expect("memory_scale", bool(scale.min() >= 0 and scale.max() <= MAX_UNIT / 128))
        middle = shaped("memory_middle", "float32", channels)
        expect("memory_middle", bool(np.abs(middle).max() <= MAX_UNIT))
        gain = shaped("memory_gain", "float16", clusters - first, channels)
        expect("memory_gain", bool(np.abs(gain).max() <= MAX_LENGTH))
    if not any(name.startswith("post_") for name in arrays):
        return
    taps = shaped("post_taps", "float16", RUNGS, channels, 2).astype(np.float64)
    limit = shaped("post_limit", "float32", channels)
    mean = shaped("post_mean", "float32", channels)
    expect("post_limit", bool(limit.min() >= 0))
    expect("post_mean", bool(np.abs(mean).max() <= MAX_UNIT))
    if clusters > 1:
        shaped("post_basis", "float16", channels, channels)
        check_basis("post_basis")
    change = (np.abs(taps) @ (1.0, 2.0)).max(0) * limit  # of a component, at most
    expect("post_limit", bool(math.sqrt(channels) * np.linalg.norm(change) <= MAX_CHANGE))


def _rung_arrays(rungs: Sequence[Rung]) -> dict[str, np.ndarray]:
    """The stored form of format 1's entropy models."""
    freqs = [freq for model in rungs for freq in model.bank.freqs]
    return {
        "freqs": np.concatenate(freqs).astype(np.int32),
        "sizes": np.array([len(freq) for freq in freqs], np.int32),
        "banks": np.array([len(model.bank.freqs) for model in rungs], np.int32),
        "offset": np.concatenate([model.bank.offset for model in rungs]),
        "centroid": np.concatenate([model.bank.centroid for model in rungs]),
        "chosen": np.stack([model.chosen for model in rungs]).astype(np.uint8),
        "clusters": np.stack([model.clusters for model in rungs]).astype(np.int32),
    }


def _rungs(arrays: dict[str, np.ndarray]) -> tuple[Rung, ...]:
    """The entropy models from their stored form."""
    ends = np.cumsum(arrays["sizes"])[:-1]
    freqs = np.split(arrays["freqs"], ends)
    out, first = [], 0
    for row, count in enumerate(arrays["banks"].tolist()):
        own = slice(first, first + count)
        bank = Bank(tuple(freqs[own]), arrays["offset"][own], arrays["centroid"][own])
        chosen = arrays["chosen"][row].astype(np.int32)
        out.append(Rung(bank, chosen, arrays["clusters"][row]))
        first += count
    return tuple(out)
