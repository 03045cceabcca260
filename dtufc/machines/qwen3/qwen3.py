"""Qwen3, a text that is read on one device and goes on on another: ``python qwen3.py``.

The front half reads the first ``prefix`` tokens of a window of text. It sends the hidden state behind
layer L and the keys and values of layers 0 .. L: ``hidden``, ``k0``, ``v0``, ``k1``, ... The back half
runs the other layers on the hidden state. Then it has the cache of all layers, and reads the rest of the
window by itself, as it would generate. The score is the perplexity of that rest, and how far its
next-token distributions are from the uncut model's.

Any causal language model of transformers with a cache of keys and values will do; Qwen3 and Llama
(SmolLM2) are tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dtufc import config
from dtufc.errors import UserError
from dtufc.machines.command import parse_options, run
from dtufc.machines.llama3.llama3 import LlamaOptions
from dtufc.machines.options import StateOptions

PRESET = "qwen3_kv"


@dataclass(frozen=True, kw_only=True)
class ContinuedOptions(StateOptions, LlamaOptions):
    """A causal language model that continues a coded text."""

    prefix: int = 192
    """Tokens of a window that the front half reads, the beginning-of-sequence token included; the back
    half reads the others."""

    def __post_init__(self):
        super().__post_init__()
        if self.source != "text":
            raise UserError(f"source: expected text, got {self.source!r}")
        if not 1 <= self.prefix < self.window:
            raise UserError(f"prefix: expected 1 .. {self.window - 1} tokens, got {self.prefix}")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        options = parse_options(ContinuedOptions, PRESET, argv, __doc__)
        from dtufc.machines.qwen3.halves import ContinuedMachine

        run(ContinuedMachine(options), options)


if __name__ == "__main__":
    main()
