"""What the machines of all DINOv2 tasks can be told."""

from dataclasses import dataclass, field

from dtufc.errors import UserError
from dtufc.machines.options import ModelOptions

PATCH = 14
"""Side of a patch in all of Meta's models, pixels."""


@dataclass(frozen=True, kw_only=True)
class DinoOptions(ModelOptions):
    """A DINOv2 with a head, cut after a block."""

    head: str = "head.safetensors"
    """Weights of the head, a file; looked for as checkpoint is."""
    layer: int = -1
    """The last block of the front half, from 0; negative ones count from the end."""
    mean: list[float] = field(default_factory=lambda: [123.675, 116.28, 103.53])
    """Taken off the RGB values in 0..255."""
    std: list[float] = field(default_factory=lambda: [58.395, 57.12, 57.375])
    """Divides the RGB values after that."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UserError("mean and std: expected three values each, std above 0")
