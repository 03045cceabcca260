"""NYU Depth v2: the pictures that ``source/<split>.txt`` lists, with their depth;
``scripts/prepare_nyu.py`` puts them there."""

from functools import partial
from pathlib import Path

import numpy as np

from dtufc.errors import UserError
from dtufc.machines.machine import Split
from dtufc.machines.sources.lists import read_lines, read_picture
from dtufc.machines.sources.source import DepthPicture, DepthPictures

MILLIMETRES = 1000
"""Levels of a depth map per metre."""


class Nyu(DepthPictures):
    def inputs(self, split: Split) -> list[Path]:
        """The list and the depth maps: a map tells the picture's size too."""
        listed = self.list_path(split)
        if not listed.is_file():
            return []
        maps = [depth for _, depth in self._pairs(split).values()]
        return [listed, *(path for path in maps if path.is_file())]

    def depth_pictures(self, split: Split) -> list[DepthPicture]:
        """The list's lines ``picture depth``, paths relative to ``source/``.

        Raises:
            FileNotFoundError: the list is not there; the message says what goes where.
            UserError: a line is not as above, or two pictures would share a feature file.
        """
        return [
            DepthPicture(name, partial(read_rgb, picture), partial(read_depth, depth))
            for name, (picture, depth) in self._pairs(split).items()
        ]

    def _pairs(self, split: Split) -> dict[str, tuple[Path, Path]]:
        path = self.list_path(split)
        holds = (
            f"the {split} pictures of NYU Depth v2 (https://cs.nyu.edu/~fergus/datasets/"
            f"nyu_depth_v2.html), each on a line: paths of picture and depth map below {self.folder}"
        )
        found: dict[str, tuple[Path, Path]] = {}
        for number, line in read_lines(path, holds, "prepare_nyu.py"):
            parts = line.split()
            if len(parts) != 2:
                raise UserError(f"{path}:{number}: expected 'picture depth', got {line!r}")
            name = "_".join(Path(parts[0]).with_suffix("").parts[-2:])  # basement_0001_rgb_00045
            if name in found:
                raise UserError(
                    f"{path}:{number}: a second picture named {name}; names must differ"
                )
            found[name] = self.folder / parts[0], self.folder / parts[1]
        return dict(list(found.items())[: self.counts.get(split)])


def read_rgb(path: Path) -> np.ndarray:
    """(height, width, 3) uint8 RGB.

    Raises:
        FileNotFoundError, UserError: not there, or not a picture.
    """
    return np.asarray(read_picture(path).convert("RGB"))


def read_depth(path: Path) -> np.ndarray:
    """(height, width) float32 metres of a 16-bit PNG in millimetres; 0 where it is not known.

    Raises:
        FileNotFoundError, UserError: not there, or no picture with one number per pixel.
    """
    image = read_picture(path)
    if image.mode not in ("I;16", "I;16B", "I"):
        raise UserError(f"{path}: expected a 16-bit grey picture of millimetres, got {image.mode}")
    return np.asarray(image).astype(np.float32) / MILLIMETRES
