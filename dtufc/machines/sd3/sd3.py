"""Stable Diffusion 3, text to image: ``python sd3.py``.

The split is after the denoising (Esser et al., arXiv 2403.03206): the front half is the whole pipeline
up to the final latent, (1, 16, side / 8, side / 8), the back half is the VAE's decoder alone. Captions
are denoised in batches of a fixed size; the noise of the n-th caption of a split has the seed
``noise_seed`` + n, so that a resumed run gives the same latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.machines.command import parse_options, run
from dtufc.machines.options import ModelOptions
from dtufc.machines.sources import providers

PRESET = "sd3_tiny"
SOURCES = providers("captions")


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(ModelOptions):
    """A Stable Diffusion 3 pipeline and its captions."""

    source: Literal[SOURCES] = SOURCES[0]
    """Where the captions come from: lists under source/, or the generated world."""
    side: int = 1024
    """Height and width of the pictures, pixels."""
    steps: int = 28
    """Denoising steps."""
    guidance: float = 7.0
    """Scale of the classifier-free guidance; the negative prompt is empty."""
    noise_seed: int = 3407
    """Seed of the first caption's noise."""
    batch: int = 16
    """Captions that are denoised, and latents that are decoded, together."""
    t5: bool = True
    """Use the third text encoder; without it the pipeline needs 9 GB less."""
    t5_tokens: int = 256
    """Tokens that it gives, or zeros in its place."""
    judge: Literal["clip", "resnet"] = "clip"
    """clip: CLIP score and Inception features. resnet: share of pictures in which a classifier of the
    world sees what the caption names, and that network's features."""
    judge_checkpoint: str = "clip-vit-base-patch16"
    """Folder of the judge in transformers' format; looked for as checkpoint is."""
    inception: str = "pt_inception-2015-12-05-6726825d.pth"
    """clip: file of the Inception weights for the FID, of torch-fidelity; looked for likewise."""
    fid: bool = True
    """Compute the FID between the pictures of the given and those of the uncompressed latents."""

    def __post_init__(self):
        super().__post_init__()
        if min(self.side, self.steps, self.batch, self.t5_tokens) < 1 or self.noise_seed < 0:
            raise UserError(
                "side, steps, batch, t5_tokens: expected at least 1, noise_seed at least 0"
            )

    @property
    def computed_dtype(self) -> str:
        """float32 on a CPU, whatever is asked for: half precision is no gain there."""
        return "float32" if self.torch_device.type == "cpu" else self.dtype


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(DiffusionOptions, PRESET, argv, __doc__)
        from dtufc.machines.sd3.halves import DiffusionMachine

        run(DiffusionMachine(options), options)


if __name__ == "__main__":
    main()
