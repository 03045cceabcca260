"""ImageNet: the pictures and labels of ``source/<split>.txt``, which ``scripts/prepare_imagenet.py``
writes."""

from functools import partial
from pathlib import Path

import numpy as np
from torchvision.transforms import functional as vision

from dtufc.errors import UserError
from dtufc.machines.machine import Split
from dtufc.machines.sources.lists import read_lines, read_picture
from dtufc.machines.sources.source import LabelledPicture, LabelledPictures


class Imagenet(LabelledPictures):
    def inputs(self, split: Split) -> list[Path]:
        path = self.list_path(split)
        return [path] if path.is_file() else []

    def labelled_pictures(self, split: Split) -> list[LabelledPicture]:
        """The list's lines ``path label``, paths relative to ``source/``.

        Raises:
            FileNotFoundError: the list is not there; the message says what goes where.
            UserError: a line is not as above, or two pictures would share a feature file.
        """
        path = self.list_path(split)
        holds = (
            f"the {split} pictures of ImageNet (https://image-net.org), each on a line: path below "
            f"{self.folder}, space, class index 0..999"
        )
        found: dict[str, LabelledPicture] = {}
        for number, line in read_lines(path, holds, "prepare_imagenet.py"):
            name, _, label = line.rpartition(" ")
            if not name or not label.isdecimal():
                raise UserError(f"{path}:{number}: expected 'path label', got {line!r}")
            stem = Path(name).stem
            if stem in found:
                raise UserError(
                    f"{path}:{number}: a second picture named {stem}; names must differ"
                )
            found[stem] = LabelledPicture(stem, int(label), partial(read_rgb, self.folder / name))
        return list(found.values())[: self.counts.get(split)]


def read_rgb(path: Path, resize: int, crop: int, interpolation: str = "bilinear") -> np.ndarray:
    """(crop, crop, 3) uint8 RGB: the shorter side resized to ``resize`` pixels, the centre cropped.

    Args:
        interpolation: torchvision's name of it, bilinear or bicubic.

    Raises:
        FileNotFoundError, UserError: not there, or not a picture.
    """
    mode = vision.InterpolationMode(interpolation)
    image = vision.resize(read_picture(path).convert("RGB"), resize, mode)
    return np.array(vision.center_crop(image, [crop, crop]))  # a copy: PIL's memory is read-only
