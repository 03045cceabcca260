"""Time and memory of the paper-size machines: ``python bench_machines.py --machine llama3``.

Builds the architecture with random weights in the format of the published checkpoint, makes up one
input, and runs extract and predict once each through the machine's own code. The accuracy means
nothing, time and memory are those of the real checkpoint. A checkpoint lies in a temporary folder
while this runs: 16 GB for llama3, 4.5 GB for dinov2, 7 GB for sd3 (without its third text encoder).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dtufc import config


@dataclass(frozen=True)
class BenchConfig:
    """One machine at the paper's size."""

    machine: Literal["llama3", "dinov2", "sd3"] = "dinov2"
    """Preset."""
    device: str = "auto"
    """torch device."""
    flags: list[str] = field(default_factory=list)
    """Further flags of the machine: --flags "[--steps, '1']"."""
    folder: Path | None = None
    """Where the temporary data root goes; null takes the system's."""


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(BenchConfig, argv, __doc__)
        from benches.machines import bench

        bench(cfg)


if __name__ == "__main__":
    main()
