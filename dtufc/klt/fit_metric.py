"""Measure what errors of a feature cost the model behind: ``python fit_metric.py --machine smollm2
--features DIR --output FILE``.

Training features go through the machine's back half. Gradients of its answers give the Fisher
information of the channels, and which tokens matter more than others; a linear model learns to tell
that from a token alone. ``fit_klt.py --metric FILE`` then fits a codec whose squared error is the
divergence of the answers, to second order. See :mod:`dtufc.klt.weighting`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtufc import config
from dtufc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    """The measurement of a metric."""

    machine: str
    """Preset or YAML of the machine, which must have gradients: language models do."""
    features: Path
    """Folder of its training features, a file for each sample."""
    output: Path
    """File that is written."""
    samples: int = 40
    """Of the training features, evenly spaced, whose gradients are taken; all where there are fewer."""
    draws: int = 1
    """Gradients of each."""
    diagonal: bool = False
    """Weigh each channel for itself, in place of all of them by a matrix."""
    shrinkage: float | None = None
    """Share of the information's mean that is spread over all directions; null tries some, and takes
    what promises the fewest bits on the last quarter of the samples."""
    importance: bool = False
    """Learn which tokens matter, so that their steps follow it: KL falls, and perplexity rises."""
    focus: float = 1.0
    """How far steps follow it, 0 .. 1: 1 is best at high rates, a half at two bits per point and
    less."""
    options: list[str] = field(default_factory=list)
    """Flags of the machine's own script, key=value each: device=cuda."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self):
        for name, least in (("samples", 4), ("draws", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 <= self.focus <= 1:
            raise UserError(f"focus: expected 0 .. 1, got {self.focus}")
        if self.shrinkage is not None and not 0 < self.shrinkage <= 1:
            raise UserError(f"shrinkage: expected above 0 and at most 1, got {self.shrinkage}")


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(MetricConfig, argv, __doc__)
        from dtufc.klt.metric import Promise, measure
        from dtufc.records import format_table

        told = measure(cfg)
        text = f"{told['channels']} channels, {told['samples']} samples, shrinkage {told['shrinkage']:g}"
        print(f"{text} -> {cfg.output}")
        print("bits per point of an ideal codec, on samples that none of it was fitted to:")
        print(format_table([Promise(**each) for each in told["promises"]]))


if __name__ == "__main__":
    main()
