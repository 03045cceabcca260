"""DINOv2, depth estimation: the machine of :mod:`dtufc.machines.dinov2.dpt`."""

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dtufc.errors import UserError
from dtufc.machines.dinov2.backbone import Grid, load_head
from dtufc.machines.dinov2.dpt import DptOptions
from dtufc.machines.dinov2.halves import DinoMachine, pad, patches
from dtufc.machines.machine import Sample, Score, Split

UPSAMPLE = 4
"""How much finer than the patches the head's map is."""
FLOOR = 0.1
"""Weight that every bin has, so that weights can be normalised."""


class DepthHead(nn.Module):
    """Tokens of some blocks -> depth (B, 1, 4 h, 4 w) in metres.

    Every patch takes its own values and its picture's class token of each block, (B, 2 blocks D, h, w).
    A 1x1 convolution gives each bin a logit. The logits are enlarged, and the depth is the mean of the
    bins' depths by weights max(0, logit) + 0.1. Meta's code enlarges before the convolution. Both are
    linear, so the results differ by rounding alone; here it takes a fiftieth of the memory.
    """

    def __init__(self, width: int, blocks: int, bins: int, nearest: float, farthest: float):
        super().__init__()
        self.conv_depth = nn.Conv2d(2 * blocks * width, bins, 1)
        self.nearest, self.farthest = nearest, farthest

    def forward(self, outputs: Sequence[Tensor], grid: Grid) -> Tensor:
        x = torch.cat([planes(tokens, grid) for tokens in outputs], dim=1)
        size = (UPSAMPLE * grid[0], UPSAMPLE * grid[1])
        return self.depth(nn.functional.interpolate(self.conv_depth(x), size, mode="bilinear"))

    def depth(self, logits: Tensor) -> Tensor:
        """(B, bins, h, w) -> (B, 1, h, w) metres, from the nearest to the farthest."""
        weights = logits.float().relu() + FLOOR
        weights = weights / weights.sum(dim=1, keepdim=True)
        bins = torch.linspace(self.nearest, self.farthest, weights.shape[1], device=weights.device)
        depth = torch.einsum("bkhw,k->bhw", weights, bins)[:, None]
        return depth.clamp(self.nearest, self.farthest)


def planes(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, 1 + h * w, D) -> patches, and the class token at every place, (B, 2 D, h, w)."""
    patch = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
    return torch.cat([patch, tokens[:, 0, :, None, None].expand_as(patch)], dim=1)


class DptMachine(DinoMachine):
    """DINOv2 with a linear head that tells the depth of every patch."""

    options: DptOptions
    head_file = "dinov2_vitg14_nyu_linear4_head.pth"
    normed = False
    origin_keys = (*DinoMachine.origin_keys, "mirror")

    @property
    def read(self) -> list[int]:
        blocks, count = self.options.head_blocks, self.config.num_hidden_layers
        if not 0 <= blocks[0] <= blocks[-1] < count:
            raise UserError(f"head_blocks: {blocks} are not among the model's {count} blocks")
        return blocks

    def load_head(self, path: Path) -> DepthHead:
        options, width = self.options, self.config.hidden_size
        blocks = len(options.head_blocks)
        head = DepthHead(width, blocks, options.bins, options.nearest, options.farthest)
        load_head(
            head, path, f"a linear depth head of {options.bins} bins, {blocks} x {width} wide"
        )
        return head

    def samples(self, split: Split) -> list[Sample]:
        """source is the picture with its depth, which stands for the label."""
        return [Sample(p.name, p, None) for p in self.source.depth_pictures(split)]

    def origin(self) -> dict[str, Any]:
        return super().origin() | {"sent": self.sent}

    @torch.inference_mode()
    def extract(self, sample: Sample) -> np.ndarray:
        x = self.normalise(sample.source.rgb())
        views = [x, x.flip(3)] if self.options.mirror else [x]
        # one at a time, as predict computes them: batches give other last bits
        tokens = [self.front(pad(view)) for view in views]
        return torch.cat(tokens).float().cpu().numpy()  # (1 or 2, layers, tokens, D)

    def predict(self, sample: Sample, feature: np.ndarray) -> np.ndarray:
        """Depth of every pixel in metres, (height, width) float32."""
        return self.predict_batch([sample], [feature])[0]

    def fits(self, sample: Sample, feature: np.ndarray) -> Hashable:
        return sample.source.depth().shape, feature.shape

    @torch.inference_mode()
    def predict_batch(
        self, samples: Sequence[Sample], features: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """:meth:`predict` of pictures of one size."""
        sample = samples[0]
        size = sample.source.depth().shape  # known to the receiver
        grid, count = patches(size), 1 + self.options.mirror
        if len(features[0]) != count:
            raise UserError(
                f"{sample.name}: {len(features[0])} views of the picture, expected {count}"
            )
        maps = []
        for views in zip(*features, strict=True):
            small = self.back(self.tokens(sample, np.stack(views), grid), grid)  # (B, 1, h, w)
            maps.append(nn.functional.interpolate(small, size, mode="bilinear"))
        if self.options.mirror:
            maps[1] = maps[1].flip(3)
        return list((sum(maps) / len(maps))[:, 0].cpu().numpy())

    def picture_of(self, prediction: np.ndarray) -> np.ndarray:
        """Near is bright, (height, width, 3) uint8 grey: one plane alone would stand for classes."""
        near = 255 * (1 - prediction / self.options.farthest)
        return np.repeat(near.astype(np.uint8)[:, :, None], 3, axis=2)

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Root mean squared error in metres, the mean over pictures; the other usual figures."""
        rows = []
        for sample, prediction in zip(samples, predictions, strict=True):
            counted = self._counted(sample)
            figures = errors(sample.source.depth()[counted], prediction[counted])
            rows.append({"name": sample.name, **figures})
        means = {key: float(np.mean([row[key] for row in rows])) for key in list(rows[0])[1:]}
        return Score("rmse", means.pop("rmse"), rows, means, less_is_better=True)

    def _counted(self, sample: Sample) -> np.ndarray:
        """(height, width) bool: the pixels of known depth inside what is scored.

        Raises:
            UserError: there is none.
        """
        depth = sample.source.depth()
        counted = (depth > self.options.nearest) & (depth < self.options.farthest)
        if self.options.scored is not None:
            top, bottom, left, right = self.options.scored
            inside = np.zeros_like(counted)
            inside[top:bottom, left:right] = True
            counted &= inside
        if not counted.any():
            raise UserError(f"{sample.name}: no pixel of known depth inside what is scored")
        return counted


def errors(true: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    """What is usually told of depths (pixels,) in metres (Eigen et al., arXiv 1406.2283, section 4).

    ``a1``, ``a2`` and ``a3`` are shares of pixels within a factor of 1.25, 1.25^2 and 1.25^3;
    ``silog`` is in percent.
    """
    true, guess = true.astype(np.float64), guess.astype(np.float64)
    factor = np.maximum(true / guess, guess / true)
    difference, logarithm = guess - true, np.log(guess) - np.log(true)
    spread = np.mean(logarithm**2) - np.mean(logarithm) ** 2
    return {
        "rmse": float(np.sqrt(np.mean(difference**2))),
        "abs_rel": float(np.mean(np.abs(difference) / true)),
        **{f"a{n}": float(np.mean(factor < 1.25**n)) for n in (1, 2, 3)},
        "log_10": float(np.mean(np.abs(logarithm)) / np.log(10)),
        "rmse_log": float(np.sqrt(np.mean(logarithm**2))),
        "silog": float(100 * np.sqrt(max(spread, 0.0))),
        "sq_rel": float(np.mean(difference**2 / true)),
    }
