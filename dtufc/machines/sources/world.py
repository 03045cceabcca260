"""The generated world of :mod:`dtufc.machines.tiny.world` as a source of all that machines ask for."""

from functools import partial
from pathlib import Path

import numpy as np

from dtufc.errors import UserError
from dtufc.machines.machine import Split
from dtufc.machines.sources.source import (
    Caption,
    Captions,
    DepthPicture,
    DepthPictures,
    LabelledPicture,
    LabelledPictures,
    MaskedPicture,
    MaskedPictures,
    Question,
    Questions,
)
from dtufc.machines.tiny import world

CHOICES = 4
DEPTH_SIZE = (120, 150)
"""Height and width of the pictures with depth, pixels."""


class Scenes(LabelledPictures):
    """Scenes 0, 1, .. of each split, named by five digits. The world has no end, so ``counts`` must
    name the split; it has no files either."""

    def inputs(self, split: Split) -> list[Path]:
        return []

    def labelled_pictures(self, split: Split) -> list[LabelledPicture]:
        """Square pictures; the label is the class of the main shape."""
        return [
            LabelledPicture(_name(i), world.label(scene), partial(_square, scene))
            for i, scene in enumerate(self._scenes(split))
        ]

    def _scenes(self, split: Split) -> list[world.Scene]:
        return [world.scene(self.seed, i, split) for i in self._indices(split)]

    def _indices(self, split: Split) -> range:
        if split not in self.counts:
            raise UserError(f"counts: the world needs the number of {split} samples")
        return range(self.counts[split])


class World(Scenes, Questions, MaskedPictures, Captions):
    """The world as it is; masked pictures are plain."""

    def questions(self, split: Split) -> list[Question]:
        return [world_question(self.seed, i, split) for i in self._indices(split)]

    def masked_pictures(self, split: Split) -> list[MaskedPicture]:
        """:func:`plain_picture` of each scene."""
        numbers = [(self.seed, i, split) for i in self._indices(split)]
        return [MaskedPicture(_name(n[1]), partial(_rgb, *n), partial(_mask, *n)) for n in numbers]

    def captions(self, split: Split) -> list[Caption]:
        """The title of each scene; its label is the class of the main shape."""
        scenes = enumerate(self._scenes(split))
        return [Caption(_name(i), world.title(s), world.label(s)) for i, s in scenes]


class PlainWorld(Scenes, DepthPictures):
    """The same scenes as easier pictures, by :func:`dtufc.machines.tiny.world.plain`: those on which the
    tiny DINOv2 was trained."""

    def depth_pictures(self, split: Split) -> list[DepthPicture]:
        """Pictures of DEPTH_SIZE."""
        size = DEPTH_SIZE
        return [
            DepthPicture(_name(i), partial(_oblong, s), partial(world.depth, s, *size))
            for i, s in enumerate(self._scenes(split))
        ]

    def _scenes(self, split: Split) -> list[world.Scene]:
        return [world.plain(scene) for scene in super()._scenes(split)]


def world_question(seed: int, index: int, split: str) -> Question:
    """A question about a scene of the world that is told in words, with four choices."""
    scene = world.scene(seed, index, split)
    rng = np.random.default_rng([seed, index, world.SPLITS.index(split)])
    facts = world.facts(scene)
    fact = facts[rng.integers(len(facts))]
    wrong = rng.permutation(fact.wrong)[: CHOICES - 1]
    choices = [str(text) for text in wrong]
    answer = int(rng.integers(CHOICES))
    choices.insert(answer, fact.answer)
    stem = f"A picture shows {world.caption(scene)}. {fact.question}"
    return Question(_name(index), stem, tuple(choices), answer)


def plain_picture(seed: int, index: int, split: str) -> world.Picture:
    """A plain picture of the world, 112 pixels high and 1 to 1.4 times as wide."""
    ratio = np.random.default_rng([seed, index, world.SPLITS.index(split)]).uniform(1, 1.4)
    return world.render(world.plain(world.scene(seed, index, split)), 112, round(112 * ratio))


def _name(index: int) -> str:
    return f"{index:05d}"


def _rgb(seed: int, index: int, split: str) -> np.ndarray:
    return plain_picture(seed, index, split).rgb


def _mask(seed: int, index: int, split: str) -> np.ndarray:
    return plain_picture(seed, index, split).mask


def _square(
    scene: world.Scene, resize: int, crop: int, interpolation: str = "bilinear"
) -> np.ndarray:
    return world.render(scene, crop, crop).rgb


def _oblong(scene: world.Scene) -> np.ndarray:
    return world.render(scene, *DEPTH_SIZE).rgb
