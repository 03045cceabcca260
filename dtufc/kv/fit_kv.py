"""Fit a KV codec to a model: ``python coding/kv.py fit --machine smollm2 --texts FILE --output DIR``.

Windows of the text go through the model. Their caches give means, bases and tables. Gradients of sampled
answers give what an error of each key and value costs, and which tokens matter.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dtufc import config
from dtufc.errors import UserError

PLACES = ("texts", "output", "device")
"""Fields that do not decide a codec, or that a stamp holds by their content."""


@dataclass(frozen=True, kw_only=True)
class KvFitConfig:
    """Fitting of a KV codec."""

    machine: str
    """Preset of a language model (smollm2), or a model's folder in transformers' format."""
    texts: Path
    """UTF-8 text to fit on."""
    output: Path
    """Codec folder."""
    windows: int = 96
    """Windows of the text whose caches are taken."""
    window: int = 384
    """Tokens of a window, the one that begins a sequence included."""
    prompt: int = 256
    """First tokens of a window, whose keys and values are taken; answers are drawn behind them."""
    probed: int = 40
    """Windows whose gradients are taken."""
    draws: int = 2
    """Answers that are drawn per probed window."""
    shrinkage: float = 0.02
    """Share of a weight's mean that is spread over all directions."""
    rope: Literal["auto", "before", "after"] = "auto"
    """Code keys as they are before RoPE, or after it, as they are cached; auto takes what codes held-out
    windows in fewer bits."""
    span: int | None = None
    """Neighbouring layers that are coded together, 0: keys and values apart; null tries all of SPANS."""
    widest: int = 2048
    """Channels of a group at most where spans are tried."""
    rows: int = 3000
    """Rows per group that tables are fitted on."""
    quality: float = 2.0
    """What the codec takes where nothing is asked for."""
    sinks: int = 1
    """First tokens that are sent as they are."""
    recent: int = 256
    """Last tokens, whose steps are the finer the fewer tokens are behind them."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """dtype that the model computes in; gradients are taken in it, too."""
    device: str = "cpu"
    """torch device of the model."""
    seed: int = 0
    """Of the answers that are drawn, and of the rows that tables are fitted on."""

    def __post_init__(self):
        if not 1 < self.prompt < self.window - 1:
            raise UserError(
                f"prompt: expected 2 .. window - 2 = {self.window - 2} tokens, got {self.prompt}"
            )
        if self.windows < 5:
            raise UserError(f"windows: expected at least 5, got {self.windows}")
        if not 4 <= self.probed <= self.windows:
            raise UserError(f"probed: expected 4 .. {self.windows} windows, got {self.probed}")
        for name in ("draws", "widest", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.shrinkage <= 1:
            raise UserError(f"shrinkage: expected above 0 and at most 1, got {self.shrinkage}")
        if self.span is not None and self.span < 0:
            raise UserError(f"span: expected at least 0 layers, got {self.span}")
        self.defaults()

    def defaults(self) -> Any:
        """What the codec takes where nothing is asked for.

        Raises:
            UserError: a value that is none.
        """
        from dtufc.kv.model import Defaults

        return Defaults(self.quality, self.sinks, self.recent)

    def decides(self) -> dict[str, Any]:
        """What decides the codec, for its stamp."""
        from dtufc import files

        return files.jsonable({k: v for k, v in asdict(self).items() if k not in PLACES})


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(KvFitConfig, argv, __doc__)
        from dtufc.kv.fit import fit

        model, told = fit(cfg)
        print(
            f"{len(model.groups)} groups, keys {told['rope']} RoPE, "
            f"{len(model.known)} known first tokens -> {cfg.output}"
        )


if __name__ == "__main__":
    main()
