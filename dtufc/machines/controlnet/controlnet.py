"""Stable Diffusion 3.5 with a ControlNet, cut before or amid the denoising: ``python controlnet.py``.

The front half has the text encoders and the VAE. It encodes caption and control picture, and denoises
for ``front_steps`` steps. It sends what the other steps need, four tensors: ``latent`` (1, 16, side / 8,
side / 8); ``prompt`` (2, 1, tokens, width), the embeddings of the empty and the real prompt; ``pooled``
(1, 1, 2, width), their pooled vectors; ``control`` (1, 16, side / 8, side / 8), the control picture's
latent. The back half has transformer, ControlNet and VAE: it denoises on and draws the picture.

Before the first step the latent is noise, which no codec makes smaller. Control pictures are
``source/control/<name>.png``, a picture for each caption by its name, edges or a depth map as the
ControlNet wants them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dtufc import config
from dtufc.errors import UserError
from dtufc.machines.command import parse_options, run
from dtufc.machines.options import StateOptions
from dtufc.machines.sd3.sd3 import DiffusionOptions

PRESET = "sd35_controlnet"


@dataclass(frozen=True, kw_only=True)
class ControlOptions(StateOptions, DiffusionOptions):
    """A Stable Diffusion 3 pipeline with a ControlNet, its captions and control pictures."""

    controlnet: str | None = None
    """Folder of the ControlNet in diffusers' format; looked for as checkpoint is."""
    front_steps: int = 0
    """Denoising steps of the front half."""
    scale: float = 1.0
    """Weight of the ControlNet."""
    batch: int = 1
    """Always 1: pictures are made one by one."""
    fid: bool = False
    """Always false: the FID compares with the pictures of single latents."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.front_steps < self.steps:
            raise UserError(f"front_steps: expected 0 .. {self.steps - 1}, got {self.front_steps}")
        if self.fid or self.batch != 1 or self.guidance <= 1:
            raise UserError("fid, batch, guidance: expected false, 1, and a number above 1")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(ControlOptions, PRESET, argv, __doc__)
        from dtufc.machines.controlnet.halves import ControlMachine

        run(ControlMachine(options), options)


if __name__ == "__main__":
    main()
