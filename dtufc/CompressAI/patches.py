"""Folders of training patches, as ``coding/transform/generate_data.py`` writes them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dtufc.errors import UserError
from dtufc.feature import read_array

_CACHE_BYTES = 1 << 30  # patch sets up to this size are read once and kept


class PatchDataset(Dataset):
    """The patches of several folders, one after the other, as (K, h, w) float32 in [0, 1); K is 1 but in
    the native layout.

    Args:
        folders: patch folders; each has ``train`` and ``test``.
        split: ``train`` or ``test``.

    Raises:
        FileNotFoundError: a folder has no such split or no patch in it.
        UserError: patches differ in size, or are not in [0, 1); the message names the file.
    """

    def __init__(self, folders: Sequence[Path], split: str):
        self.paths: list[Path] = []
        for folder in folders:
            found = sorted((folder / split).glob("*.npy"))
            if not found:
                raise FileNotFoundError(
                    f"{folder / split}: no patches; coding/transform/generate_data.py makes them"
                )
            self.paths += found
        self.size = _read_patch(self.paths[0]).shape
        fits = len(self.paths) * math.prod(self.size) * 4 <= _CACHE_BYTES
        self._cache = np.stack([self._read(path) for path in self.paths]) if fits else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        patch = self._cache[index] if self._cache is not None else self._read(self.paths[index])
        return torch.from_numpy(patch)

    def _read(self, path: Path) -> np.ndarray:
        patch = _read_patch(path)
        if patch.shape != self.size:
            raise UserError(f"{path}: size {patch.shape}, but {self.paths[0]} has {self.size}")
        return patch


def _read_patch(path: Path) -> np.ndarray:
    patch = read_array(path)
    sound = patch.ndim in (2, 3) and patch.size and patch.dtype.kind == "f"
    if not sound or not (0 <= patch.min() <= patch.max() < 1):
        raise UserError(f"{path}: expected a plane, or several, of floats in [0, 1)")
    return patch.astype(np.float32).reshape(-1, *patch.shape[-2:])
