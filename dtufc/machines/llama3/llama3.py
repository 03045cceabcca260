"""LLaMA3, four-choice questions or the next tokens of a text: ``python llama3.py``.

The split is after any decoder layer; published is the last one, before the final norm. The feature is
the hidden state of every token, (1, 1, tokens, width) float32. The back half runs the remaining layers,
the norm and the head. With ``--source text`` the score is the perplexity of windows of a text, and how
far the next-token distributions are from the uncut model's (tasks.py). Any causal language model of
transformers whose decoder has ``layers`` and ``norm`` will do; Llama, Qwen2, Qwen3 and Mistral are
tested.
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

PRESET = "llama3_tiny"
SOURCES = (*providers("questions"), *providers("texts"))


@dataclass(frozen=True, kw_only=True)
class LlamaOptions(ModelOptions):
    """A causal language model, cut after a decoder layer, and its questions."""

    layer: int = -1
    """The last decoder layer of the front half, from 0; negative ones count from the end."""
    source: Literal[SOURCES] = SOURCES[0]
    """Where the questions come from, files under source/ or the generated world; or text."""
    answer: Literal["letter", "likelihood"] = "letter"
    """How questions are answered: by the next token, as published, or by the likelihood of each choice,
    for models that do not answer with letters."""
    texts: dict[str, Path] = field(default_factory=dict)
    """UTF-8 texts of the splits train, validation, test; source/<split>.txt where none is named."""
    window: int = 256
    """Tokens of a window of a text, the beginning-of-sequence token included."""

    def __post_init__(self):
        super().__post_init__()
        if self.window < 2:
            raise UserError(f"window: expected at least 2 tokens, got {self.window}")
        if self.texts.keys() - {"train", "validation", "test"}:
            raise UserError(f"texts: expected train, validation, test, got {[*self.texts]}")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(LlamaOptions, PRESET, argv, __doc__)
        from dtufc.machines.llama3.halves import LlamaMachine

        run(LlamaMachine(options), options)


if __name__ == "__main__":
    main()
