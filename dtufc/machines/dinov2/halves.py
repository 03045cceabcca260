"""What the DINOv2 machines of all tasks share: two halves of a backbone, a head, an origin."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import mmcv
import numpy as np
import torch
from torch import Tensor, nn
from transformers import Dinov2Config

from dtufc.errors import UserError
from dtufc.machines.checkpoints import (
    checkpoint_files,
    find_checkpoint,
    find_folder,
    loading,
    open_weights,
    weights_digest,
)
from dtufc.machines.dinov2.backbone import (
    Back,
    Front,
    Grid,
    load_backbone,
    read_config,
    sent_blocks,
)
from dtufc.machines.dinov2.options import PATCH, DinoOptions
from dtufc.machines.machine import Machine, Sample
from dtufc.machines.options import find_layer

BACKBONE_HELP = (
    "It is Meta's file (https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/"
    "dinov2_vitg14_pretrain.pth; vits14, vitb14 and vitl14 likewise) or a folder in transformers' "
    "format; --hub ID downloads one"
)
HEAD_HELP = (
    "It is Meta's linear head (https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/{file}; vits14, "
    "vitb14 and vitl14 likewise)"
)


class DinoMachine(Machine):
    """A DINOv2 in two halves; each loads its own weights when it is first used."""

    head_file: str
    """Meta's name of the head."""
    normed: ClassVar[bool] = True
    """Whether the head reads tokens after the model's last norm."""
    origin_keys: ClassVar[Sequence[str]] = ("source", "seed", "mean", "std")
    """Options that decide the features."""

    def __init__(self, options: DinoOptions):
        self.options = options

    @property
    @abstractmethod
    def read(self) -> list[int]:
        """The blocks after which the head reads the tokens, from 0, in order."""

    @abstractmethod
    def load_head(self, path: Path) -> nn.Module:
        """The head with its weights, as :class:`dtufc.machines.dinov2.backbone.Back` calls it.

        Raises:
            UserError: the file does not hold such a head.
        """

    @cached_property
    def source(self) -> Any:
        return self.options.open_source()

    @cached_property
    def path(self) -> Path:
        """Of the backbone's weights."""
        if self.options.hub is not None:
            return find_folder(self.options, BACKBONE_HELP)
        return find_checkpoint(self.options, self.options.checkpoint, BACKBONE_HELP)

    @cached_property
    def config(self) -> Dinov2Config:
        with loading(self.path):
            if self.path.is_dir():
                return Dinov2Config.from_pretrained(self.path)
            return read_config(open_weights(self.path), self.path)

    @property
    def layer(self) -> int:
        """The last block of the front half, 0 .. blocks - 1."""
        return find_layer(self.options.layer, self.config.num_hidden_layers)

    @property
    def sent(self) -> list[int]:
        """The blocks whose tokens the feature holds."""
        return sent_blocks(self.read, self.layer)

    @cached_property
    def front(self) -> Front:
        half = Front(load_backbone(self.path, self.config, range(self.layer + 1)), self.sent)
        return half.eval().to(self.options.torch_device, self.options.torch_dtype)

    @cached_property
    def back(self) -> Back:
        blocks = range(self.layer + 1, self.config.num_hidden_layers)
        head = self.load_head(self.find_head())
        model = load_backbone(self.path, self.config, blocks)
        half = Back(model, self.sent, self.read, head, self.normed)
        return half.eval().to(self.options.torch_device, self.options.torch_dtype)

    def find_head(self) -> Path:
        """Where the head's weights are."""
        what = HEAD_HELP.format(file=self.head_file)
        return find_checkpoint(self.options, self.options.head, what)

    def origin(self) -> dict[str, Any]:
        known = {key: getattr(self.options, key) for key in self.origin_keys}
        known |= {"dtype": self.options.origin_dtype, "layer": self.layer}
        return known | {"weights": weights_digest(self.path)}

    def inputs(self) -> list[Path]:
        """The list and the labels, the weights of the backbone, and the head."""
        weights = [*checkpoint_files(lambda: self.path), *checkpoint_files(self.find_head)]
        # the head may lie in the backbone's folder
        return [*self.source.inputs("test"), *dict.fromkeys(weights)]

    def normalise(self, rgb: np.ndarray) -> Tensor:
        """(h, w, 3) uint8 RGB -> (1, 3, h, w) on the machine's device, mean and std as told."""
        mean, std = np.array(self.options.mean), np.array(self.options.std)
        x = torch.from_numpy(mmcv.imnormalize(rgb, mean, std, to_rgb=False))
        return x.permute(2, 0, 1)[None].to(self.options.torch_device, self.options.torch_dtype)

    def tokens(self, sample: Sample, feature: np.ndarray, grid: Grid) -> Tensor:
        """A feature, or a crop of one, (B, layers, tokens, D), as the back half takes it.

        Raises:
            UserError: it has not the layers or the tokens that it should have.
        """
        wanted = (len(self.sent), 1 + grid[0] * grid[1])
        if feature.shape[1:3] != wanted:
            raise UserError(
                f"{sample.name}: {feature.shape[1]} layers of {feature.shape[2]} tokens, expected "
                f"{wanted[0]} of 1 + {grid[0]} x {grid[1]}"
            )
        return torch.from_numpy(feature).to(self.options.torch_device, self.options.torch_dtype)


def pad(x: Tensor) -> Tensor:
    """Zeros around a picture (B, 3, h, w) up to multiples of 14; an odd one goes right and below."""
    missing = [-length % PATCH for length in (x.shape[3], x.shape[2])]
    return nn.functional.pad(x, [part for m in missing for part in (m // 2, m - m // 2)])


def patches(size: tuple[int, int]) -> Grid:
    """Rows and columns of patches of a picture of ``size`` (height, width) after :func:`pad`."""
    return -(-size[0] // PATCH), -(-size[1] // PATCH)
