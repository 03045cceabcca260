"""What sources give: the sorts of samples, and for each the class of the sources that provide it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from dtufc.machines.machine import Split

EMPTY: Mapping[str, Path] = MappingProxyType({})

CHOICES = range(2, 6)
"""Numbers of choices that a question may have."""


@dataclass(frozen=True)
class Question:
    """One question with its choices."""

    id: str
    stem: str
    choices: tuple[str, ...]
    """As many as CHOICES allows."""
    answer: int
    """Index of the right choice."""


@dataclass(frozen=True)
class Caption:
    """What a picture should show."""

    name: str
    text: str
    label: str | int
    """What a judge looks for in the picture: the caption itself, or a class."""


@dataclass(frozen=True)
class MaskedPicture:
    """A picture and the class of each of its pixels; each is read when it is called."""

    name: str
    rgb: Callable[[], np.ndarray]
    """() -> (height, width, 3) uint8; FileNotFoundError where it is not there."""
    mask: Callable[[], np.ndarray]
    """() -> (height, width) uint8; FileNotFoundError where it is not there."""


@dataclass(frozen=True)
class LabelledPicture:
    """A picture and its class; it is read when it is called."""

    name: str
    label: int
    rgb: Callable[..., np.ndarray]
    """(resize, crop, interpolation="bilinear") -> (crop, crop, 3) uint8. A photograph is resized to a
    shorter side of ``resize`` pixels, bilinear or bicubic, and cropped at its centre; a generated
    picture is drawn at this size. FileNotFoundError where it is not there."""


@dataclass(frozen=True)
class DepthPicture:
    """A picture and the depth of each of its pixels; each is read when it is called."""

    name: str
    rgb: Callable[[], np.ndarray]
    """() -> (height, width, 3) uint8; FileNotFoundError where it is not there."""
    depth: Callable[[], np.ndarray]
    """() -> (height, width) float32, metres, 0 where it is not known; FileNotFoundError where it is not
    there."""


@dataclass(frozen=True)
class Utterance:
    """Something that is said; it is read when it is called."""

    name: str
    text: str
    """What is said."""
    wave: Callable[[int], np.ndarray]
    """(samples per second) -> (samples,) float32 in -1..1; FileNotFoundError where it is not there."""


class Source(ABC):
    """Samples of the splits train, validation and test, in a fixed order; no name comes twice.

    Args:
        folder: ``source/`` of the machine's data root, with the source's lists and files.
        counts: samples by split; a split that is not named is taken whole where it has an end.
        seed: of what is generated.
        files: the file of a split, where it is not the one in ``folder``.
    """

    def __init__(
        self, folder: Path, counts: Mapping[str, int], seed: int, files: Mapping[str, Path] = EMPTY
    ):
        self.folder, self.counts, self.seed, self.files = folder, counts, seed, files

    def list_path(self, split: Split) -> Path:
        """The list of a split's samples, of a source that has lists, or its text."""
        return self.files.get(split, self.folder / f"{split}.txt")

    @abstractmethod
    def inputs(self, split: Split) -> list[Path]:
        """The files that decide names, order and labels of a split's samples, those that exist.
        Pictures are not among them: they decide features alone."""


class Questions(Source):
    @abstractmethod
    def questions(self, split: Split) -> list[Question]:
        """Raises FileNotFoundError or UserError where files of the source are missing or unsound, as
        do the other sorts."""


class Texts(Source):
    @abstractmethod
    def texts(self, split: Split) -> list[str]:
        """The documents of a split."""


class Captions(Source):
    @abstractmethod
    def captions(self, split: Split) -> list[Caption]: ...


class MaskedPictures(Source):
    @abstractmethod
    def masked_pictures(self, split: Split) -> list[MaskedPicture]: ...


class LabelledPictures(Source):
    @abstractmethod
    def labelled_pictures(self, split: Split) -> list[LabelledPicture]: ...


class DepthPictures(Source):
    @abstractmethod
    def depth_pictures(self, split: Split) -> list[DepthPicture]: ...


class Utterances(Source):
    @abstractmethod
    def utterances(self, split: Split) -> list[Utterance]: ...
