"""DINOv3, the tokens after several blocks: ``python dinov3.py``.

The front half runs a picture through the blocks up to the last one that is sent. It sends the tokens
after each of ``blocks`` as a tensor of its own, ``block9``, ``block19``, ..., (1, 1, tokens, width):
class token, registers, patches. The back half runs the blocks that are left, and normalises the tokens
after each of ``blocks`` and after the last block. That is what a head would read.

The released transformers hold no head of DINOv3. The score does without one: the cosine of the tokens
that a head would read with those of the uncut model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.machines.command import parse_options, run
from dtufc.machines.options import StateOptions
from dtufc.machines.sources import providers

PRESET = "dinov3"
SOURCES = providers("labelled_pictures")


@dataclass(frozen=True, kw_only=True)
class BlocksOptions(StateOptions):
    """A DINOv3 and its pictures."""

    blocks: list[int] = field(default_factory=lambda: [9, 19, 29, 39])
    """Blocks whose tokens are sent, from 0, rising. The front half ends with the last."""
    source: Literal[SOURCES] = SOURCES[0]
    """Where the pictures come from: files under source/, or the generated world."""
    resize: int = 256
    """Shorter side of the resized picture."""
    crop: int = 256
    """Side of the crop from its centre, a multiple of the patch's side."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Of each colour, of values in 0..1."""
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Of each colour, of values in 0..1."""

    def __post_init__(self):
        super().__post_init__()
        if not self.blocks or min(self.blocks) < 0 or sorted({*self.blocks}) != self.blocks:
            raise UserError(f"blocks: expected rising numbers from 0, got {self.blocks}")
        if self.crop < 1 or self.resize < self.crop:
            raise UserError(f"resize, crop: expected 1 <= crop <= resize, got {self.crop}")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(BlocksOptions, PRESET, argv, __doc__)
        from dtufc.machines.dinov3.halves import BlocksMachine

        run(BlocksMachine(options), options)


if __name__ == "__main__":
    main()
