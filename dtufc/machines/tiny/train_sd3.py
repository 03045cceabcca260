"""Train the tiny Stable Diffusion 3 on captions of the generated world: ``python train_sd3.py``.

The classes of the real pipeline, small: a VAE with 16 latent channels and a factor of 8, an MMDiT with
patches of 2 x 2 latents, two CLIP text encoders, no T5. Pictures are 112 x 112. Three stages: the VAE
on crops of scenes without noise (L1, features of the tiny ResNet, a little KL); the text encoders,
so that their embeddings tell what a caption says; then MMDiT and text encoders together on latents of
plain scenes by flow matching with logit-normal times (Esser et al., arXiv 2403.03206, section 3), one
caption in ten empty for guidance. The mean of the weights is kept.

Made in three calls, times of one thread. Seed 0: VAE 5000 steps, 1123 s, the rest 6500 steps, 4343 s
beside two other trainings: the ResNet sees the right shape in 0.775 of 200 pictures. ``--start
THAT_FOLDER --pictures 12000 --steps 1900 --learning_rate 1.5e-3``, 714 s (two threads): 0.80. Then
``--start THAT_FOLDER --pictures 24000 --steps 7500 --learning_rate 2e-3 --seed 1``, 4330 s: 0.935, loss
0.102 at the end of the decay. Colours and places were right early; corners came last. With shapes in all
turns, 2000 steps gave 0.17.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtufc import config
from dtufc.paths import PACKAGE


@dataclass(frozen=True)
class TrainConfig:
    """Training of the tiny Stable Diffusion 3."""

    output: Path = PACKAGE / "machines" / "tiny" / "sd3"
    """Folder of the pipeline. A VAE that is there already is kept unless vae_steps is above 0."""
    vae_steps: int = 5000
    """Optimiser steps of the VAE."""
    vae_batch_size: int = 16
    """Crops of fresh scenes per step of the VAE."""
    vae_learning_rate: float = 1.5e-3
    """Peak of its one-cycle schedule."""
    text_steps: int = 600
    """Optimiser steps of each text encoder on the facts of the captions, before all else."""
    pictures: int = 20000
    """Scenes whose latents the MMDiT is trained on."""
    steps: int = 8000
    """Optimiser steps of the MMDiT and the text encoders."""
    batch_size: int = 64
    """Latents per step."""
    learning_rate: float = 2e-3
    """The highest of this stage."""
    start: Path | None = None
    """Folder of a pipeline to go on from; null begins afresh. Its VAE and its words stay as they are."""
    seed: int = 0
    """Of weights, scenes and noise."""
    workers: int = 1
    """Processes that draw pictures."""
    held_out: int = 200
    """Test captions whose pictures are judged at the end."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(TrainConfig, argv, __doc__)
        from dtufc.machines.tiny.sd3_training import train

        print(f"caption accuracy on {cfg.held_out} held-out captions: {train(cfg):.4f}")


if __name__ == "__main__":
    main()
