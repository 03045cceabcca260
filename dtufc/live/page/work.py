"""What the page must know of a kind of machine: its inputs, its answers, and how two answers differ."""

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dtufc.errors import UserError
from dtufc.live.limits import LiveLimits
from dtufc.machines.machine import Sample
from dtufc.machines.opening import CODE

OFFERED = 8
"""Samples that the page offers."""
WORK = {
    "SegMachine": "seeing:Segmenting",
    "ClsMachine": "seeing:DinoNaming",
    "DptMachine": "seeing:Measuring",
    "ResNetMachine": "seeing:ResNetNaming",
    "DiffusionMachine": "painting:Painting",
    "LlamaMachine": "speaking:Speaking",
}
"""Module and class for each class of machines."""


@dataclass(frozen=True)
class Given:
    """An input."""

    sample: Sample
    title: str
    """In a few words."""
    shown: dict[str, Any]
    """As the page shows it: ``picture``, a PNG as a data URI, or ``text``, or ``tokens``, a list."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else its work keeps of it."""


class Distance(NamedTuple):
    """How far an answer is from the one without coding; 0 where it is the same."""

    name: str
    unit: str


class Work(ABC):
    """A kind of machine.

    Raises:
        UserError: the page does not know such a machine.
    """

    takes: ClassVar[str]
    """What is dropped on the page: picture, text or caption."""
    asks: ClassVar[str]
    """What the machine does with it, for the reader."""
    distance: ClassVar[Distance]

    def __init__(self, machine: Any, limits: LiveLimits):
        self.machine, self.limits = machine, limits
        self.facts = machine.options.facts  # a copy each time

    def offers(self) -> list[Given]:
        """Samples of the test split; none where its files are not there."""
        try:
            return [self.offer(sample) for sample in self.machine.samples("test")[:OFFERED]]
        except FileNotFoundError:
            return []

    @abstractmethod
    def offer(self, sample: Sample) -> Given:
        """A sample as an input."""

    @abstractmethod
    def read(self, data: bytes) -> Given:
        """What a browser posted -> an input.

        Raises:
            Refusal: it is none, or too large.
        """

    def extract(self, given: Given) -> np.ndarray:
        """The front half -> (N, C, H, W)."""
        return self.machine.extract(given.sample)

    @abstractmethod
    def answer(self, given: Given, feature: np.ndarray, codec: Any) -> Any:
        """The back half's answer.

        Args:
            feature: decoded, or as it is where ``codec`` is None.
        """

    @abstractmethod
    def measure(self, answer: Any, uncoded: Any) -> float:
        """The distance of the two answers."""

    @abstractmethod
    def show(self, answer: Any, uncoded: Any) -> dict[str, Any]:
        """An answer as JSON for the page: ``words``, and what its kind has."""

    def grid(self, given: Given) -> tuple[int, int] | None:
        """Rows and columns of the tokens behind the first one; None where tokens are no grid."""
        return None

    def panels(self, count: int) -> list[str]:
        """Names of so many grids of a feature."""
        return [f"{n + 1} of {count}" if count > 1 else "" for n in range(count)]


def open_work(machine: Any, limits: LiveLimits) -> Work:
    """The work of a machine.

    Raises:
        UserError: the page does not know such a machine.
    """
    target = WORK.get(type(machine).__name__)
    if target is None:
        raise UserError(f"page: shows no {machine.options.facts.kind}; it knows {[*CODE]}")
    module, _, name = target.partition(":")
    kind = getattr(importlib.import_module(f"dtufc.live.page.{module}"), name)
    return kind(machine, limits)
