"""Draw the stages of ``klt``: ``python draw_klt.py --codec CODEC --features DIR --output STEM``.

Writes <output>_stages.png, one token on its way from values to bits and back, and <output>_spread.png,
which tells over all tokens of the folder how a basis spreads the variance and the bits. Takes a codec of
tokens, of format 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtufc import config


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """The pictures of one codec."""

    codec: Path
    """Codec folder, of format 2 and of tokens."""
    features: Path
    """Folder of features of its kind."""
    output: Path
    """Stem of the pictures."""
    quality: float | None = None
    """Rate on the codec's own scale; null takes its default."""
    token: int = 20
    """Which token of the first feature is followed."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(DrawConfig, argv, __doc__)
        from benches.draw_klt import draw  # after the flags: --help needs no codec

        for path in draw(cfg):
            print(path)


if __name__ == "__main__":
    main()
