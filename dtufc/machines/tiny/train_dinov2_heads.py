"""Train further heads of the tiny DINOv2::

    python train_dinov2_heads.py --task cls
    python train_dinov2_heads.py --task dpt --pictures 400 --steps 300 --batch_size 8 --held_out 100

As with Meta's models, one frozen backbone serves all tasks, and each task has a linear head of its own.
The backbone is that of ``train_dinov2.py``, which learned segmentation. Its tokens of fresh pictures are
computed once, and the head learns on them: the classifier by cross-entropy, the depth head by the
relative error, of pictures and mirror images.

Seed 0, one thread of an AMD EPYC with AVX2 beside other work: cls 40 s, top-1 1.000 on 200 held-out
pictures; dpt 360 s, a mean relative error of 0.018 on 100 held-out pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.paths import PACKAGE


@dataclass(frozen=True)
class TrainConfig:
    """Training of a head of the tiny DINOv2."""

    task: Literal["cls", "dpt"] = "cls"
    """cls: class of the main shape. dpt: depth of every pixel."""
    output: Path | None = None
    """Folder of the head; null is that of the tiny machine."""
    pictures: int = 1500
    """Pictures whose tokens the head learns on."""
    steps: int = 1500
    """Optimiser steps."""
    batch_size: int = 32
    """Pictures per step."""
    learning_rate: float = 3e-3
    """The highest of the run."""
    seed: int = 0
    """Of weights, scenes and order."""
    held_out: int = 200
    """Test pictures that are scored at the end."""

    def __post_init__(self):
        if min(self.pictures, self.steps, self.batch_size, self.held_out) < 1:
            raise UserError("pictures, steps, batch_size and held_out: expected at least 1")

    @property
    def folder(self) -> Path:
        """Where the head goes."""
        return self.output or PACKAGE / "machines" / "tiny" / f"dinov2_{self.task}"


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(TrainConfig, argv, __doc__)
        from dtufc.machines.tiny.dinov2_heads_training import train

        told = ", ".join(f"{name} {value:.4f}" for name, value in train(cfg).items())
        print(f"{told} on {cfg.held_out} held-out pictures -> {cfg.folder}")


if __name__ == "__main__":
    main()
