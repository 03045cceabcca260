"""Train a learned codec on patches: ``python train.py --patches DIR --output DIR --lambda_value 0.01``.

Loss as published (DT-UFC section 4; CompressAI's rate-distortion loss)::

    loss = 255^2 * lambda * MSE(u, u_hat) + bits / points

Adam 1e-4 on the networks, Adam 1e-3 on the entropy bottleneck's quantiles, gradients clipped to norm
1, learning rate cut by ten when the validation loss has not fallen for ten epochs. Several folders
make a universal (hybrid) codec. Several processes: ``accelerate launch --num_processes N train.py``.

The output folder is a codec (see ``checkpoint.py``) with, beside it::

    last/            the codec after the last epoch, rather than the best one
    state.pt         all that resuming needs; written after every epoch
    log.csv          losses of every epoch;   curves.png, curves.pdf: the same, drawn
    tensorboard/     the same, live
    run.json         config, stamp, and each process: revision, versions, machine, wall time

Guarantees: every epoch depends on the seed, its number and the state before it alone, so that a run
killed at any moment and resumed ends with the same weights, bit for bit, on the same machine with
the same threads. A loss that is not finite stops the run and leaves the last state as it is.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dtufc import config, files, locks, provenance
from dtufc.codec import codec_digest
from dtufc.errors import UserError
from dtufc.memory import keep_memory
from dtufc.registry import BUILT_IN
from dtufc.stamps import Stamp, digest_file

IDLE = (
    "patches", "output", "save_period", "pretrained_model", "device", "num_workers", "resume",
    "restart",
)  # fmt: skip
"""Fields that do not decide the weights: places, devices, and what a stamp holds by its content."""


@dataclass(frozen=True)
class TrainConfig:
    """Training of one codec."""

    patches: list[Path]
    """Patch folders (with train/ and test/); several make a hybrid codec."""
    output: Path
    """Folder of the codec."""
    codec: str = "hyperprior"
    """Which codec: hyperprior, elic, or native, which takes patches of the native layout."""
    arch: dict[str, Any] = field(default_factory=dict)
    """Widths that differ from the published ones: {N: 64, M: 96}."""
    lambda_value: float = 0.01
    """Weight of the distortion: more is better quality at a higher rate."""
    epochs: int = 600
    """Passes over the training patches."""
    batch_size: int = 128
    """Patches a step, over all processes together."""
    learning_rate: float = 1e-4
    """Adam's learning rate of the networks."""
    aux_learning_rate: float = 1e-3
    """Adam's learning rate of the quantiles."""
    clip_max_norm: float = 1.0
    """Largest norm of the gradient; 0 leaves it as it is."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """plateau: as published. cosine: falls to zero over the epochs; better for short runs."""
    patience: int = 10
    """plateau: epochs without a better validation loss before the rate is cut by ten."""
    early_stop: int = 0
    """Stop after so many epochs without a better validation loss; 0 never stops early."""
    save_period: int = 20
    """Write codec folder and curves every so many epochs (the state: every epoch)."""
    pretrained_model: str | None = None
    """Start from a codec folder or a published .pth.tar with the same widths."""
    seed: int = 0
    """Of initial weights, order of patches and noise."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bf16 autocast where the device gains by it; entropy models are float32 always."""
    device: str | None = None
    """torch device; the best there is by default."""
    num_workers: int = 0
    """Processes that read patches; sets up to 1 GiB are kept in memory anyway."""
    resume: bool = False
    """Go on where a killed run ended; starts afresh where there is nothing to resume."""
    restart: bool = False
    """With resume: start afresh too where settings or patches have changed since; else that is an
    error."""

    def __post_init__(self):
        trained = [entry.name for entry in BUILT_IN if entry.trained]
        if self.codec not in trained:
            raise UserError(f"codec: {self.codec!r} is none of {trained}")
        for name in ("lambda_value", "learning_rate", "aux_learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: must be above 0, got {getattr(self, name)}")
        for name in ("epochs", "batch_size", "patience", "save_period"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not self.patches:
            raise UserError("patches: at least one folder")
        for name in ("clip_max_norm", "early_stop", "num_workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: must not be negative, got {getattr(self, name)}")

    @property
    def science(self) -> dict[str, Any]:
        """What decides the weights, beside patches and the pretrained model's content."""
        return {k: v for k, v in files.jsonable(asdict(self)).items() if k not in IDLE}

    def stamp(self) -> Stamp:
        """Of the codec that training would give now; its inputs are patches and pretrained model.

        Raises:
            FileNotFoundError, UserError: one of them is missing.
        """
        from dtufc.CompressAI.kinds import digest_patches, load_patch_kind

        inputs = {}
        for folder in self.patches:
            name = f"patches of {load_patch_kind(folder).facts.kind}"
            inputs[f"{name} {len(inputs)}" if name in inputs else name] = digest_patches(folder)
        if self.pretrained_model:
            path = Path(self.pretrained_model)
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such checkpoint")
            inputs["pretrained model"] = codec_digest(path) if path.is_dir() else digest_file(path)
        return Stamp(self.science, inputs)

    def why_not_made(self) -> str | None:
        """Why the codec must be trained, in words; ``None`` if it is there and current."""
        return provenance.why_no_codec(self.output, self.stamp())


class TrainingError(UserError):
    """Training cannot go on; the last good state is on the disk."""


def train(cfg: TrainConfig) -> dict[str, float]:
    """Train, or resume, to the end -> losses of the best epoch.

    Raises:
        FileNotFoundError, UserError: patches, checkpoint or settings that do not fit.
        TrainingError: the loss became NaN or infinite.
    """
    from dtufc.CompressAI.training import Training

    main = os.environ.get("RANK", "0") == "0"  # one process of several writes
    with locks.hold(cfg.output) if main else contextlib.nullcontext():
        return Training(cfg).run()


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        best = train(config.parse(TrainConfig, argv, __doc__))
        losses = ", ".join(f"{key} {best[key]:.6g}" for key in ("loss", "bpp", "mse"))
        print(f"best epoch {best['epoch']}: {losses}")


if __name__ == "__main__":
    main()
