"""PASCAL VOC 2012: the pictures that ``source/<split>.txt`` lists, with their masks, below
``source/VOC2012``; ``scripts/prepare_voc.py`` puts them there."""

from functools import partial
from pathlib import Path

import numpy as np

from dtufc.errors import UserError
from dtufc.machines.machine import Split
from dtufc.machines.sources.lists import read_names, read_picture
from dtufc.machines.sources.source import MaskedPicture, MaskedPictures

HELP = (
    "pictures are at source/VOC2012/JPEGImages and masks at source/VOC2012/SegmentationClass of "
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
)


class Voc(MaskedPictures):
    def inputs(self, split: Split) -> list[Path]:
        """The list and the masks: a mask tells the picture's size too."""
        listed = self.list_path(split)
        if not listed.is_file():
            return []
        masks = [self._mask(name) for name in self._names(split)]
        return [listed, *(path for path in masks if path.is_file())]

    def masked_pictures(self, split: Split) -> list[MaskedPicture]:
        """The listed pictures, in the list's order; mask values are VOC's, 255 is its border."""
        pictures = self.folder / "VOC2012" / "JPEGImages"
        return [
            MaskedPicture(
                name,
                partial(read_rgb, pictures / f"{name}.jpg"),
                partial(read_mask, self._mask(name)),
            )
            for name in self._names(split)
        ]

    def _names(self, split: Split) -> list[str]:
        holds = f"ids of VOC2012 pictures, one per line; {HELP}"
        names = read_names(self.list_path(split), holds, "prepare_voc.py")
        return names[: self.counts.get(split)]

    def _mask(self, name: str) -> Path:
        return self.folder / "VOC2012" / "SegmentationClass" / f"{name}.png"


def read_rgb(path: Path) -> np.ndarray:
    """(height, width, 3) uint8 RGB.

    Raises:
        FileNotFoundError, UserError: not there, or not a picture.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; {HELP}")
    return np.asarray(read_picture(path).convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """(height, width) uint8: the class of every pixel.

    Raises:
        FileNotFoundError, UserError: not there, or not a picture with one value per pixel.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; {HELP}")
    image = read_picture(path)
    if image.mode not in ("P", "L"):
        raise UserError(f"{path}: expected one value per pixel, got mode {image.mode}")
    return np.asarray(image)
