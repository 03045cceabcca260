"""The machine protocol: a large model in two halves, a list of samples, a score.

    extract(sample) ─> feature ─ (files, codecs, networks) ─> predict(sample, feature) ─> score(...)

A :class:`StateMachine` sends several named tensors, a state (:mod:`dtufc.states`), not one feature.

Guarantee that every machine keeps: ``predict(s, extract(s))`` is what the uncut model gives, bit for
bit in float32 on a CPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dtufc.errors import UserError
from dtufc.states import State

if TYPE_CHECKING:
    from torch import Generator, Tensor

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Sample:
    """One input of a machine."""

    name: str
    """Name of its feature file, without ending; unique in its split."""
    source: Any
    """What the machine needs to read it."""
    label: Any
    """What the prediction is compared with."""


@dataclass(frozen=True)
class Score:
    """Task accuracy over a set."""

    metric: str
    """Name of the metric."""
    value: float
    """The metric; more is better unless ``less_is_better``."""
    rows: list[dict[str, Any]]
    """One per sample, same keys. The report takes a sample's own metric from the column of the metric's
    name, or from ``correct``, and its answer from ``prediction``."""
    others: dict[str, float] = field(default_factory=dict)
    """Further metrics by name: the IoU of each class, the CLIP score."""
    less_is_better: bool = False
    """Of the metric: perplexity."""


class Machine(ABC):
    """A split model with its samples. Loads each half when it is first used."""

    @property
    def batch_size(self) -> int:
        """Samples that are computed together. Part of the machine's definition: another size gives
        other last bits."""
        return 1

    @abstractmethod
    def samples(self, split: Split) -> list[Sample]:
        """train: to fit and train codecs on; validation: to validate them; test: to evaluate."""

    @abstractmethod
    def origin(self) -> dict[str, Any]:
        """What decides the features, as JSON values: the settings and a digest of the weights. None
        stands for what this half cannot tell, such as weights that it does without."""

    def inputs(self) -> list[Path]:
        """The files beside the features that decide predictions and scores of the test split: weights
        of the back half, what scores with its own weights, lists and labels. A file that is not there
        is left out."""
        return []

    @abstractmethod
    def extract(self, sample: Sample) -> np.ndarray:
        """Front half: one sample -> its feature (N, C, H, W), float16 or float32."""

    @abstractmethod
    def predict(self, sample: Sample, feature: np.ndarray) -> Any:
        """Back half: a feature, coded or not -> the prediction."""

    def extract_batch(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """:meth:`extract` of ``batch_size`` samples, fewer at the end of a list."""
        return [self.extract(sample) for sample in samples]

    def predict_batch(self, samples: Sequence[Sample], features: Sequence[np.ndarray]) -> list[Any]:
        """:meth:`predict` of ``batch_size`` samples, fewer at the end of a list."""
        return [self.predict(*pair) for pair in zip(samples, features, strict=True)]

    def fits(self, sample: Sample, feature: np.ndarray) -> Hashable | None:
        """Which features :meth:`predict_batch` computes at once, whatever ``batch_size`` is: those of
        which this gives the same. None: each alone. A batch may give other last bits."""
        return None

    def slopes(
        self, sample: Sample, feature: np.ndarray, draws: int, generator: "Generator"
    ) -> np.ndarray:
        """Gradients that tell what errors of a feature cost: the mean of their outer products is the
        Fisher information of the answer's distribution by the feature.

        Args:
            feature: (N, C, H, W), as :meth:`extract` gives it.
            draws: independent draws.

        Returns:
            (draws, N, C, H, W) float32.

        Raises:
            UserError: the machine has no gradients.
        """
        raise UserError(f"machine: {type(self).__name__} gives no gradients")

    def picture_of(self, prediction: Any) -> np.ndarray | None:
        """The picture as which a prediction is saved: classes (H, W) or RGB (H, W, 3), uint8; None
        where it is none."""
        return prediction if isinstance(prediction, np.ndarray) else None

    @abstractmethod
    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Compare predictions, which come one by one in the order of the samples, with labels."""


class StateMachine(Machine):
    """A machine that sends several named tensors: ``extract`` gives a dict, ``predict`` takes one.

    Beside predictions it says how far a damaged state moves what the model computes, so that bits go
    where they matter (:mod:`dtufc.machines.sensitivity`).
    """

    @abstractmethod
    def extract(self, sample: Sample) -> State:
        """Front half: one sample -> its tensors by name, in the order of the facts."""

    @abstractmethod
    def respond(self, sample: Sample, state: State) -> Any:
        """What the back half computes from a state, before a prediction is read off it: logits,
        embeddings, a latent."""

    @abstractmethod
    def divergence(self, uncoded: Any, coded: Any) -> float:
        """How far the response to a coded state is from that to the uncoded one: 0 where they are equal,
        about the square of small errors, and 1 for a large one. KL divergence in nats, or the squared
        error over the power."""


def relative_error(uncoded: "Tensor", coded: "Tensor") -> float:
    """Squared error over the power of ``uncoded`` around its mean: a distance of responses."""
    x, y = uncoded.double(), coded.double()
    return float(((y - x) ** 2).sum() / ((x - x.mean()) ** 2).sum().clamp_min(1e-30))


def score_top1(samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
    """Share of the predictions that are the sample's label, 0..1."""
    rows = [
        {"name": s.name, "label": s.label, "prediction": p, "correct": int(p == s.label)}
        for s, p in zip(samples, predictions, strict=True)
    ]
    return Score("top1", sum(row["correct"] for row in rows) / len(rows), rows)
