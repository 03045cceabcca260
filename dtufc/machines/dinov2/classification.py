"""DINOv2, classification: the machine of :mod:`dtufc.machines.dinov2.cls`."""

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dtufc.errors import UserError
from dtufc.machines.checkpoints import open_weights
from dtufc.machines.dinov2.backbone import Grid, load_head
from dtufc.machines.dinov2.cls import ClsOptions
from dtufc.machines.dinov2.halves import DinoMachine, pad, patches
from dtufc.machines.machine import Sample, Score, Split, score_top1


class PooledHead(nn.Module):
    """Linear over the class tokens of the last blocks, in order, and the mean of the last one's patches
    -> logits (1, classes)."""

    def __init__(self, width: int, layers: int, classes: int):
        super().__init__()
        self.linear = nn.Linear((1 + layers) * width, classes)

    def forward(self, outputs: Sequence[Tensor], grid: Grid) -> Tensor:
        return self.linear(pool(outputs))


def pool(outputs: Sequence[Tensor]) -> Tensor:
    """Tokens (B, 1 + h * w, D) after each block -> (B, (1 + blocks) * D)."""
    return torch.cat([*(x[:, 0] for x in outputs), outputs[-1][:, 1:].mean(dim=1)], dim=1)


class ClsMachine(DinoMachine):
    """DINOv2 with a linear classifier."""

    options: ClsOptions
    origin_keys = (*DinoMachine.origin_keys, "resize", "crop", "interpolation")

    @property
    def head_file(self) -> str:
        layers = self.options.head_layers
        return f"dinov2_vitg14_linear{layers if layers > 1 else ''}_head.pth"

    @property
    def read(self) -> list[int]:
        count = self.config.num_hidden_layers
        if self.options.head_layers > count:
            raise UserError(
                f"head_layers: {self.options.head_layers} of the model's {count} blocks"
            )
        return list(range(count - self.options.head_layers, count))

    def load_head(self, path: Path) -> PooledHead:
        weight = open_weights(path).get("weight")
        if weight is None or weight.ndim != 2:
            raise UserError(f"{path}: not a linear head: it has no matrix called weight")
        layers, width = self.options.head_layers, self.config.hidden_size
        head = PooledHead(width, layers, len(weight))
        load_head(head.linear, path, f"a linear head of {layers} class tokens of {width} values")
        return head

    def samples(self, split: Split) -> list[Sample]:
        return [Sample(p.name, p, p.label) for p in self.source.labelled_pictures(split)]

    def origin(self) -> dict[str, Any]:
        return super().origin() | {"sent": self.sent}

    @torch.inference_mode()
    def extract(self, sample: Sample) -> np.ndarray:
        options = self.options
        rgb = sample.source.rgb(options.resize, options.crop, options.interpolation)
        return self.front(pad(self.normalise(rgb))).float().cpu().numpy()  # (1, layers, tokens, D)

    def predict(self, sample: Sample, feature: np.ndarray) -> int:
        return self.predict_batch([sample], [feature])[0]

    def fits(self, sample: Sample, feature: np.ndarray) -> Hashable:
        return feature.shape

    @torch.inference_mode()
    def predict_batch(self, samples: Sequence[Sample], features: Sequence[np.ndarray]) -> list[int]:
        grid = patches((self.options.crop, self.options.crop))
        x = torch.cat([self.tokens(*pair, grid) for pair in zip(samples, features, strict=True)])
        logits = self.back(x, grid).split(
            [len(feature) for feature in features]
        )  # (1, classes) each
        return [self._label(*pair) for pair in zip(samples, logits, strict=True)]

    def _label(self, sample: Sample, logits: Tensor) -> int:
        if sample.label >= logits.shape[1]:
            raise UserError(
                f"{sample.name}: label {sample.label}, the head knows 0..{logits.shape[1] - 1}"
            )
        return int(logits.argmax())

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Top-1 accuracy, 0..1."""
        return score_top1(samples, predictions)
