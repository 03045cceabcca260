"""LLaMA3, four-choice questions: ``python llama3.py``.

The split is after any decoder layer; published is the last one, before the final norm. The feature is
the hidden state of every token of the prompt, (1, 1, tokens, width) float32. The back half runs the
remaining layers, the norm and the head, and the greedy next token is the answer: right if it is the
letter of the key. Any causal language model of transformers whose decoder has ``layers`` and ``norm``
will do; Llama, Qwen2, Qwen3 and Mistral are tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dtufc import config
from dtufc.machines.command import parse_options, run
from dtufc.machines.options import ModelOptions
from dtufc.machines.sources import providers

PRESET = "llama3_tiny"
SOURCES = providers("questions")


@dataclass(frozen=True, kw_only=True)
class LlamaOptions(ModelOptions):
    """A causal language model, cut after a decoder layer, and its questions."""

    layer: int = -1
    """The last decoder layer of the front half, from 0; negative ones count from the end."""
    source: Literal[SOURCES] = SOURCES[0]
    """Where the questions come from: files under source/, or the generated world."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(LlamaOptions, PRESET, argv, __doc__)
        from dtufc.machines.llama3.halves import LlamaMachine

        run(LlamaMachine(options), options)


if __name__ == "__main__":
    main()
