"""Whisper, speech to text, cut between encoder and decoder: ``python whisper.py``.

The front half takes 30 seconds of speech and gives the encoder's output, (1, 1, 1500, width) float32,
one tensor. The back half writes the text, greedily. The score is the word error rate against the
transcripts, both in Whisper's plain normal form: lower case, without punctuation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dtufc import config
from dtufc.machines.command import parse_options, run
from dtufc.machines.options import ModelOptions
from dtufc.machines.sources import providers

PRESET = "whisper"
SOURCES = providers("utterances")


@dataclass(frozen=True, kw_only=True)
class WhisperOptions(ModelOptions):
    """A Whisper and its speech."""

    source: Literal[SOURCES] = SOURCES[0]
    """Where speech and transcripts come from: files under source/."""
    language: str | None = None
    """Language of the speech, en, for models of many languages; null lets the model say."""
    tokens: int = 224
    """Tokens of an answer at most."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(WhisperOptions, PRESET, argv, __doc__)
        from dtufc.machines.whisper.halves import WhisperMachine

        run(WhisperMachine(options), options)


if __name__ == "__main__":
    main()
