"""A sentence encoder on paragraphs of a text: ``python minilm.py``.

The split is after any layer of a BERT, such as all-MiniLM. The feature is the hidden state of every
token, (1, 1, tokens, width) float32. The back half runs the remaining layers, takes the mean over tokens
and scales it to length 1. The score is the mean cosine of these embeddings to the uncut model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dtufc import config
from dtufc.errors import UserError
from dtufc.machines.command import parse_options, run
from dtufc.machines.options import ModelOptions
from dtufc.machines.sources import providers

PRESET = "minilm_text"
SOURCES = providers("texts")


@dataclass(frozen=True, kw_only=True)
class EncoderOptions(ModelOptions):
    """A sentence encoder, cut after a layer, and its texts."""

    layer: int = -1
    """The last layer of the front half, from 0; negative ones count from the end."""
    source: Literal[SOURCES] = SOURCES[0]
    """Where the paragraphs come from."""
    texts: dict[str, Path] = field(default_factory=dict)
    """UTF-8 texts of the splits train, validation, test, with a paragraph per line; source/<split>.txt
    where none is named."""
    shortest: int = 32
    """Tokens of a paragraph at least; shorter ones, such as headings, are left out."""
    longest: int = 256
    """Tokens of a paragraph at most; what is longer is cut off there."""

    def __post_init__(self):
        super().__post_init__()
        if not 3 <= self.shortest <= self.longest:
            raise UserError(
                "shortest, longest: expected 3 <= shortest <= longest, "
                f"got {self.shortest}, {self.longest}"
            )
        if self.texts.keys() - {"train", "validation", "test"}:
            raise UserError(f"texts: expected train, validation, test, got {[*self.texts]}")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(EncoderOptions, PRESET, argv, __doc__)
        from dtufc.machines.minilm.halves import EncoderMachine

        run(EncoderMachine(options), options)


if __name__ == "__main__":
    main()
