"""Freeze a codec: the integers by which its symbols are coded on every device alike.

    python freeze.py --checkpoint CODEC --output FOLDER
    python freeze.py --checkpoint CODEC --output FOLDER --features DIR

Training ends with it, so that codec folders are frozen already; this serves those written before, and
ranges that shall be found on features of one's own. With features it also codes them with the float
networks and with the integers, and prints what freezing costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtufc import config
from dtufc.errors import UserError
from dtufc.memory import keep_memory


@dataclass(frozen=True)
class FreezeConfig:
    """Freezing of one codec."""

    checkpoint: Path
    """Codec folder with the float model; it may be frozen already."""
    output: Path
    """Folder of the frozen codec."""
    features: Path | None = None
    """Folder of .npy features: the integers' ranges cover them, and the cost is measured on them."""
    kind: str | None = None
    """<model>_<task>, where the codec knows several kinds that the features fit."""

    def __post_init__(self):
        if self.output.resolve() == self.checkpoint.resolve():
            raise UserError("output: another folder than the checkpoint's")


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        cfg = config.parse(FreezeConfig, argv, __doc__)
        from dtufc.CompressAI.freezing import freeze_codec

        found = freeze_codec(cfg)
        for key, value in found.items():
            print(f"{key:12s} {value:.6g}")


if __name__ == "__main__":
    main()
