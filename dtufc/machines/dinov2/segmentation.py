"""DINOv2, segmentation: the machine of :mod:`dtufc.machines.dinov2.seg`."""

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from torch import Tensor, nn

from dtufc.errors import UserError
from dtufc.machines.dinov2.backbone import Grid, load_head
from dtufc.machines.dinov2.halves import DinoMachine, pad, patches
from dtufc.machines.dinov2.seg import SegOptions
from dtufc.machines.machine import Sample, Score, Split

Box = tuple[int, int, int, int]


class LinearHead(nn.Module):
    """Batch norm and a 1x1 convolution of the last block's patches: their logits (1, classes, h, w)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, outputs: Sequence[Tensor], grid: Grid) -> Tensor:
        (x,) = outputs  # (1, 1 + h * w, D)
        x = x[:, 1:]  # without the class token
        return self.conv_seg(self.bn(x.transpose(1, 2).unflatten(2, grid)))


class SegMachine(DinoMachine):
    """DINOv2 with a linear head that tells the class of every patch."""

    options: SegOptions
    head_file = "dinov2_vitg14_voc2012_linear_head.pth"
    origin_keys = (*DinoMachine.origin_keys, "resize", "crop", "stride")

    @property
    def read(self) -> list[int]:
        return [self.config.num_hidden_layers - 1]

    def load_head(self, path: Path) -> LinearHead:
        head = LinearHead(self.config.hidden_size, len(self.options.classes))
        load_head(head, path, "a linear head of this width and classes")
        return head

    def samples(self, split: Split) -> list[Sample]:
        """source is the picture with its mask, which stands for the label."""
        return [Sample(p.name, p, None) for p in self.source.masked_pictures(split)]

    def picture(self, sample: Sample) -> np.ndarray:
        """(height, width, 3) uint8 RGB.

        Raises:
            FileNotFoundError: not there. Only extraction needs pictures.
        """
        return sample.source.rgb()

    def mask(self, sample: Sample) -> np.ndarray:
        """(height, width) uint8: the class of every pixel. Only evaluation needs masks."""
        return sample.source.mask()

    def prepare(self, picture: np.ndarray) -> Tensor:
        """RGB uint8 -> the resized, normalised picture, (1, 3, height, width)."""
        return self.normalise(mmcv.imrescale(picture, tuple(self.options.resize)))

    @torch.inference_mode()
    def extract(self, sample: Sample) -> np.ndarray:
        x = self.prepare(self.picture(sample))
        boxes = sliding_boxes(*x.shape[2:], self.options.crop, self.options.stride)
        tokens = [self.front(pad(x[:, :, top:bottom, left:right]))
                  for top, left, bottom, right in boxes]  # fmt: skip
        return torch.cat(tokens).float().cpu().numpy()  # (crops, 1, tokens, D)

    def predict(self, sample: Sample, feature: np.ndarray) -> np.ndarray:
        """The class of every pixel, (height, width) uint8."""
        return self.predict_batch([sample], [feature])[0]

    def fits(self, sample: Sample, feature: np.ndarray) -> Hashable:
        return self.mask(sample).shape, feature.shape

    @torch.inference_mode()
    def predict_batch(
        self, samples: Sequence[Sample], features: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """:meth:`predict` of pictures of one size."""
        options, (sample, *_) = self.options, samples
        original = self.mask(sample).shape  # the size is known to the receiver
        # (width, height) as mmcv has it
        width, height = mmcv.rescale_size(original[::-1], tuple(options.resize))
        boxes = list(sliding_boxes(height, width, options.crop, options.stride))
        if len(boxes) != len(features[0]):
            raise UserError(
                f"{sample.name}: {len(features[0])} crops, the picture has {len(boxes)}"
            )
        device = options.torch_device
        total = torch.zeros(len(samples), len(options.classes), height, width, device=device)
        count = torch.zeros(height, width, device=device)
        for crops, (top, left, bottom, right) in zip(
            zip(*features, strict=True), boxes, strict=True
        ):
            size = (bottom - top, right - left)
            grid = patches(size)
            x = self.tokens(sample, np.stack(crops), grid)  # (B, 1, tokens, D)
            logits = nn.functional.interpolate(self.back(x, grid).float(), size, mode="bilinear")
            total[:, :, top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
        logits = nn.functional.interpolate(total / count, original, mode="bilinear")
        return list(logits.argmax(1).to(torch.uint8).cpu().numpy())

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """Mean IoU over the classes that occur, 0..1, pooled over the set; the IoU of each class.

        The rows hold each picture's pixels by class, since error bars of pooled figures need them.
        """
        classes, ignore = self.options.classes, self.options.ignore
        total = np.zeros((len(classes), len(classes)), np.int64)
        rows = []
        for sample, prediction in zip(samples, predictions, strict=True):
            counts = confusion(self.mask(sample), prediction, len(classes), ignore, sample.name)
            total += counts
            right = counts.trace() / max(1, counts.sum())
            inside, union = areas(counts)
            rows.append({"name": sample.name, "miou": float(np.nanmean(iou(counts))),
                         "pixels_right": float(right),
                         "intersections": " ".join(map(str, inside)),
                         "unions": " ".join(map(str, union))})  # fmt: skip
        each = iou(total)
        others = {"pixels_right": float(total.trace() / total.sum())}
        others |= {f"iou_{name}": float(value) for name, value in zip(classes, each, strict=True)
                   if not np.isnan(value)}  # fmt: skip
        return Score("miou", float(np.nanmean(each)), rows, others)


def sliding_boxes(height: int, width: int, crop: int, stride: int) -> Iterator[Box]:
    """(top, left, bottom, right) of the crops: every ``stride`` pixels, the last ones moved inside."""

    def starts(length: int) -> list[int]:
        count = math.ceil(max(length - crop, 0) / stride) + 1
        return [max(min(i * stride, length - crop), 0) for i in range(count)]

    for top in starts(height):
        for left in starts(width):
            yield top, left, min(top + crop, height), min(left + crop, width)


def confusion(
    mask: np.ndarray, prediction: np.ndarray, classes: int, ignore: int, name: str
) -> np.ndarray:
    """Pixels by true and predicted class, (classes, classes) int64, without those to ignore.

    Raises:
        UserError: the mask holds a class that is not known; the message starts with ``name``.
    """
    kept = mask != ignore
    true, guess = mask[kept].astype(np.int64), prediction[kept].astype(np.int64)
    if true.size and true.max() >= classes:
        raise UserError(f"{name}: class {true.max()} in the mask, the preset has {classes} classes")
    return np.bincount(true * classes + guess, minlength=classes**2).reshape(classes, classes)


def areas(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each class in both mask and prediction, and in either of them, (classes,) each."""
    inside = counts.diagonal()
    return inside, counts.sum(0) + counts.sum(1) - inside


def iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, NaN where it is neither there nor predicted."""
    inside, union = areas(counts)
    return np.divide(inside, union, out=np.full(len(counts), np.nan), where=union > 0)
