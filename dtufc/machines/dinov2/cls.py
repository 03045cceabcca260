"""DINOv2, image classification: ``python cls.py``.

A ViT with patches of 14 pixels and Meta's linear classifier (Oquab et al., arXiv 2304.07193, section
7.1). The picture is resized and its centre cropped; the split is after any block, published is the last
one, before the norm, the class token kept: (1, 1, tokens, width) float32. The classifier of one layer
reads class token and mean of the patches after the norm. With ``--head_layers 4`` it reads the class
tokens of the last four blocks, and the feature holds all four: (1, 4, tokens, width).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.machines.command import parse_options, run
from dtufc.machines.dinov2.options import DinoOptions
from dtufc.machines.sources import providers

PRESET = "dinov2_tiny_cls"
SOURCES = providers("labelled_pictures")


@dataclass(frozen=True, kw_only=True)
class ClsOptions(DinoOptions):
    """A DINOv2 with a linear classifier, cut after a block, and its pictures."""

    head_layers: int = 1
    """Blocks, the last ones, whose class tokens the head reads: 1 or 4 in Meta's files."""
    source: Literal[SOURCES] = SOURCES[0]
    """Where the pictures come from: a folder with lists under source/, or the generated world."""
    resize: int = 256
    """Shorter side that photographs are resized to, pixels."""
    crop: int = 224
    """Side of the network's input, pixels, padded around to a multiple of 14: photographs are cropped
    at the centre, generated pictures are drawn at this size."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How photographs are resized; Meta's evaluation takes bicubic."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.resize, self.crop, self.head_layers) < 1:
            raise UserError("resize, crop and head_layers: expected at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(ClsOptions, PRESET, argv, __doc__)
        from dtufc.machines.dinov2.classification import ClsMachine

        run(ClsMachine(options), options)


if __name__ == "__main__":
    main()
