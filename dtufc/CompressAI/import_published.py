"""Make a codec folder of a published checkpoint.

    python import_published.py --checkpoint FILE.pth.tar --arch bmshj2018-hyperprior \\
        --mapping transform_mapping_csr_kmeans10_bitdepth8.json --machine llama3 --output DIR

Widths are inferred from the weights. ``coding/evaluate.py --published`` on the folder then gives the
rates and features that the published evaluation gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtufc import config


@dataclass(frozen=True)
class ImportConfig:
    """Import of one published checkpoint."""

    checkpoint: Path
    """The published file, ``*_checkpoint_best.pth.tar``."""
    mapping: list[Path]
    """Mapping file of each kind that the codec is to code."""
    output: Path
    """Codec folder to write."""
    arch: Literal["bmshj2018-hyperprior", "elic2022-official"] = "bmshj2018-hyperprior"
    """Architecture, by CompressAI's name."""
    machine: list[str] | None = None
    """Machine preset or YAML of each mapping, in the same order. By default the mapping's file name
    tells the task: csr is llama3, seg is dinov2, tti is sd3, cls is resnet50."""
    assignment: Literal["nearest", "left", "continuous"] = "left"
    """How values become levels; the published codecs were trained with left."""


TASK_MACHINES = {"csr": "llama3", "seg": "dinov2", "tti": "sd3", "cls": "resnet50"}
"""The published tasks and their machine presets."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(ImportConfig, argv, __doc__)
        from dtufc.CompressAI.published import import_published

        import_published(cfg)
        print(f"{cfg.output}: a codec for coding/evaluate.py, encode.py and decode.py")


if __name__ == "__main__":
    main()
