"""DINOv2, depth estimation: ``python dpt.py``.

A ViT with patches of 14 pixels and Meta's linear depth head (Oquab et al., arXiv 2304.07193, section
7.4). The picture and its mirror image are padded around to multiples of 14. The head reads the tokens of
four blocks before the norm; published is the split after the last block, whose feature holds all four:
(2, 4, tokens, width) float32. Each of the head's bins stands for a depth; the depth is their mean by
weight. The two maps are averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.machines.command import parse_options, run
from dtufc.machines.dinov2.options import DinoOptions
from dtufc.machines.sources import providers

PRESET = "dinov2_tiny_dpt"
SOURCES = providers("depth_pictures")


@dataclass(frozen=True, kw_only=True)
class DptOptions(DinoOptions):
    """A DINOv2 with a linear depth head, cut after a block, and its pictures."""

    head_blocks: list[int] = field(default_factory=lambda: [9, 19, 29, 39])
    """Blocks after which the head reads the tokens, from 0. Meta's: 2, 5, 8, 11 of ViT-S and ViT-B,
    4, 11, 17, 23 of ViT-L, 9, 19, 29, 39 of ViT-g."""
    bins: int = 256
    """Depths that the head weighs, evenly from the nearest to the farthest."""
    nearest: float = 0.001
    """Depth of the first bin, metres. Nearer pixels of the true map are not counted."""
    farthest: float = 10.0
    """Depth of the last bin, metres. Pixels of the true map so far or farther are not counted."""
    mirror: bool = True
    """Code the mirror image too, and average both maps."""
    source: Literal[SOURCES] = SOURCES[0]
    """Where the pictures with depth come from: files under source/, or the generated world."""
    scored: list[int] | None = None
    """Rows and columns that are counted: first row, last row + 1, first column, last column + 1. Eigen's
    crop of NYUv2 is 45, 471, 41, 601. null counts all."""

    def __post_init__(self):
        super().__post_init__()
        if not self.head_blocks or sorted({*self.head_blocks}) != self.head_blocks:
            raise UserError(f"head_blocks: expected rising numbers, got {self.head_blocks}")
        if self.bins < 2 or not 0 < self.nearest < self.farthest:
            raise UserError(
                "bins, nearest, farthest: expected 2 bins or more, 0 < nearest < farthest"
            )
        if self.scored is not None:
            top, bottom, left, right = [*self.scored, *[0] * 4][:4]
            if len(self.scored) != 4 or not (0 <= top < bottom and 0 <= left < right):
                raise UserError(f"scored: expected two rows and two columns, got {self.scored}")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(DptOptions, PRESET, argv, __doc__)
        from dtufc.machines.dinov2.depth import DptMachine

        run(DptMachine(options), options)


if __name__ == "__main__":
    main()
