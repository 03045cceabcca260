"""ResNet50, image classification: ``python cls.py``.

The split is after any stage (He et al., arXiv 1512.03385, table 1): ``stem``, ``layer1`` .. ``layer4``;
published is ``layer4``, before pooling. Two libraries give the same ordered list of stages: torchvision
(the full-size preset) and transformers (the tiny one). Pictures are computed one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.machines.command import parse_options, run
from dtufc.machines.options import ModelOptions
from dtufc.machines.sources import providers

PRESET = "resnet50_tiny"
SOURCES = providers("labelled_pictures")


@dataclass(frozen=True, kw_only=True)
class ResNetOptions(ModelOptions):
    """A ResNet, cut after a stage, and its pictures."""

    library: Literal["torchvision", "transformers"] = "torchvision"
    """Library of the network: torchvision's resnet50, or a ResNet in transformers' format."""
    weights: str = "IMAGENET1K_V1"
    """torchvision's name of the weights that it downloads where checkpoint is null."""
    split: str = "layer4"
    """The last stage of the front half."""
    source: Literal[SOURCES] = SOURCES[0]
    """Where the pictures come from: a folder with lists under source/, or the generated world."""
    resize: int = 256
    """Shorter side that photographs are resized to, pixels."""
    crop: int = 224
    """Side of the network's input, pixels: photographs are cropped at the centre, generated pictures
    are drawn at this size."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Taken off the RGB values in 0..1."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Divides the RGB values after that."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.resize, self.crop) < 1:
            raise UserError("resize and crop: expected at least 1 pixel")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError("mean and std: expected three values each, std above 0")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(ResNetOptions, PRESET, argv, __doc__)
        from dtufc.machines.resnet50.halves import ResNetMachine

        run(ResNetMachine(options), options)


if __name__ == "__main__":
    main()
