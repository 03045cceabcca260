"""DINOv2, semantic segmentation: ``python seg.py``.

A ViT with patches of 14 pixels and a linear head (Oquab et al., arXiv 2304.07193, section 7.4). The
picture is resized and covered by sliding crops; the split is after any block, published is the last
one, before the norm; the feature has one row of tokens per crop, the class token kept:
(crops, 1, tokens, width) float32. The back half runs the remaining blocks, norm and head, averages
where crops overlap, and resizes to the picture. Meta's own checkpoints load, and folders in
transformers' format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.machines.command import parse_options, run
from dtufc.machines.dinov2.options import DinoOptions
from dtufc.machines.sources import providers

PRESET = "dinov2_tiny"
SOURCES = providers("masked_pictures")


@dataclass(frozen=True, kw_only=True)
class SegOptions(DinoOptions):
    """A DINOv2 with a linear head, cut after a block, and its pictures."""

    source: Literal[SOURCES] = SOURCES[0]
    """Where the pictures with masks come from: files under source/, or the generated world."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes, in the order of the masks' values."""
    resize: list[int] = field(default_factory=lambda: [2048, 512])
    """Longest and shortest side that a picture is fitted into, pixels; its ratio is kept."""
    crop: int = 512
    """Side of the sliding crops, pixels; each is padded around to a multiple of 14."""
    stride: int = 341
    """Step of the sliding crops, pixels."""
    ignore: int = 255
    """Value of the mask that is not counted."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.resize) != 2 or min(*self.resize, self.crop, self.stride) < 1:
            raise UserError("resize, crop and stride: expected at least 1 pixel, resize two sides")
        if len(self.classes) < 2:
            raise UserError("classes: expected at least two names")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(SegOptions, PRESET, argv, __doc__)
        from dtufc.machines.dinov2.segmentation import SegMachine

        run(SegMachine(options), options)


if __name__ == "__main__":
    main()
