"""Judge a KV codec: ``python coding/kv.py evaluate --machine smollm2 --codec DIR --texts FILE``.

The cache of a window's first tokens is coded, and the model reads on from the decoded one. The
distributions of the tokens behind are compared to those from the exact cache. Integers in groups,
8-bit floats and transformers' own quantised caches stand beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtufc import config
from dtufc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class KvEvalConfig:
    """Judging of a KV codec."""

    machine: str
    """Preset of a language model (smollm2), or a model's folder in transformers' format."""
    codec: Path
    """Folder of the KV codec."""
    texts: Path
    """UTF-8 text that the codec was not fitted on."""
    output: Path | None = None
    """CSV that the table is written to, each row with revision, computer and what the codec was fitted
    to."""
    qualities: list[float] | None = None
    """Qualities to judge; null takes -1 to 4 in steps of a half."""
    windows: int = 16
    """Windows of the text."""
    window: int = 384
    """Tokens of a window, the one that begins a sequence included."""
    prompt: int = 256
    """Its first tokens, whose cache is coded; the others are judged."""
    sinks: int | None = None
    """First tokens that are sent as they are; null takes the codec's own setting, here as below."""
    recent: int | None = None
    """Last tokens of the cache, whose steps are the finer the fewer tokens are behind them."""
    focus: list[float] | None = None
    """How far steps follow tokens' importances, 0 .. 1; each is judged at all qualities."""
    rivals: bool = True
    """Judge integers, 8-bit floats and transformers' caches, too."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """dtype that the model computes in, and that the cache has."""
    device: str = "cpu"
    """torch device of the model."""

    def __post_init__(self):
        if not 1 < self.prompt < self.window - 1:
            raise UserError(
                f"prompt: expected 2 .. window - 2 = {self.window - 2} tokens, got {self.prompt}"
            )
        if self.windows < 1:
            raise UserError(f"windows: expected at least 1, got {self.windows}")

    def settings(self) -> dict[str, float]:
        """What differs from the codec's own settings."""
        names = ("sinks", "recent")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(KvEvalConfig, argv, __doc__)
        from dtufc.kv.evaluate import evaluate
        from dtufc.records import format_table

        rows, said = evaluate(cfg)
        print(format_table(rows))
        for line in said:
            print(line)


if __name__ == "__main__":
    main()
