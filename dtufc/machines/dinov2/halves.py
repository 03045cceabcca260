"""DINOv2 in two halves: the machine of :mod:`dtufc.machines.dinov2.seg`."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from dtufc.errors import UserError
from dtufc.machines.checkpoints import (
    checkpoint_files,
    find_checkpoint,
    find_folder,
    loading,
    open_weights,
    weights_digest,
)
from dtufc.machines.dinov2.seg import DinoOptions
from dtufc.machines.machine import Machine, Sample, Score, Split
from dtufc.machines.options import find_layer
from dtufc.machines.sources.source import MaskedPictures

BACKBONE_HELP = (
    "It is Meta's file (https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/"
    "dinov2_vitg14_pretrain.pth; vits14, vitb14 and vitl14 likewise) or a folder in transformers' "
    "format; --hub ID downloads one"
)
HEAD_HELP = (
    "It is Meta's linear head (https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/"
    "dinov2_vitg14_voc2012_linear_head.pth; vits14, vitb14 and vitl14 likewise)"
)
PATCH = 14
HEAD_WIDTH = 64
"""Width of an attention head in all of Meta's models."""

Box = tuple[int, int, int, int]


class MetaEmbeddings(Dinov2Embeddings):
    """Patch embedding whose positions are resized as Meta's code does it.

    Bicubic with the scale (new + 0.1) / old, from which the sampling places follow; transformers takes
    them from the sizes. On the native grid both are the identity.
    """

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        positions = self.position_embeddings  # (1, 1 + M * M, D)
        side = math.isqrt(positions.shape[1] - 1)
        grid = (height // PATCH, width // PATCH)
        if grid == (side, side):
            return positions
        table = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = tuple((size + 0.1) / side for size in grid)
        table = nn.functional.interpolate(table, scale_factor=scale, mode="bicubic")
        if table.shape[2:] != grid:
            raise RuntimeError(f"positions resized to {tuple(table.shape[2:])}, not {grid}")
        table = table.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)  # (1, h * w, D)
        return torch.cat([positions[:, :1], table], dim=1)


class Front(nn.Module):
    """Pixels (1, 3, h, w), multiples of 14 -> tokens (1, 1 + h * w / 196, D)."""

    def __init__(self, model: Dinov2Model, last: int):
        super().__init__()
        embeddings = MetaEmbeddings(model.config)
        embeddings.load_state_dict(model.embeddings.state_dict(), assign=True)
        self.embeddings = embeddings
        self.layers = model.encoder.layer[: last + 1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.embeddings(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Back(nn.Module):
    """Tokens (1, 1 + h * w, D) and their grid (h, w) -> logits (1, classes, h, w)."""

    def __init__(self, model: Dinov2Model, last: int, head: nn.Module):
        super().__init__()
        self.layers, self.norm = model.encoder.layer[last + 1 :], model.layernorm
        self.head = head

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)[:, 1:]  # without the class token
        return self.head(x.transpose(1, 2).unflatten(2, grid))


class LinearHead(nn.Module):
    """Batch norm and a 1x1 convolution: tokens as planes (1, D, h, w) -> logits (1, classes, h, w)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_seg(self.bn(x))


class DinoMachine(Machine):
    """A DINOv2 in two halves; each loads its own weights when it is first used."""

    def __init__(self, options: DinoOptions):
        self.options = options

    @cached_property
    def source(self) -> MaskedPictures:
        return self.options.open_source()

    @cached_property
    def path(self) -> Path:
        if self.options.hub is not None:
            return find_folder(self.options, BACKBONE_HELP)
        return find_checkpoint(self.options, self.options.checkpoint, BACKBONE_HELP)

    @cached_property
    def config(self) -> Dinov2Config:
        with loading(self.path):
            if self.path.is_dir():
                return Dinov2Config.from_pretrained(self.path)
            return read_config(open_weights(self.path), self.path)

    @property
    def layer(self) -> int:
        """The last block of the front half, 0 .. blocks - 1."""
        return find_layer(self.options.layer, self.config.num_hidden_layers)

    @cached_property
    def front(self) -> Front:
        half = Front(load_backbone(self.path, self.config, range(self.layer + 1)), self.layer)
        return half.eval().to(self.options.torch_device, self.options.torch_dtype)

    @cached_property
    def back(self) -> Back:
        blocks = range(self.layer + 1, self.config.num_hidden_layers)
        head = LinearHead(self.config.hidden_size, len(self.options.classes))
        load_head(head, self._find_head())
        half = Back(load_backbone(self.path, self.config, blocks), self.layer, head)
        return half.eval().to(self.options.torch_device, self.options.torch_dtype)

    def _find_head(self) -> Path:
        return find_checkpoint(self.options, self.options.head, HEAD_HELP)

    def samples(self, split: Split) -> list[Sample]:
        """source is the picture with its mask, which stands for the label."""
        return [Sample(p.name, p, None) for p in self.source.masked_pictures(split)]

    def origin(self) -> dict[str, Any]:
        keys = ("source", "seed", "resize", "crop", "stride", "mean", "std")
        known = {key: getattr(self.options, key) for key in keys}
        known |= {"dtype": self.options.origin_dtype, "layer": self.layer}
        return known | {"weights": weights_digest(self.path)}

    def inputs(self) -> list[Path]:
        """The list and the masks, the weights of the backbone, and the head."""
        weights = [*checkpoint_files(lambda: self.path), *checkpoint_files(self._find_head)]
        # the head may lie in the backbone's folder
        return [*self.source.inputs("test"), *dict.fromkeys(weights)]

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
        options = self.options
        resized = mmcv.imrescale(picture, tuple(options.resize))
        x = mmcv.imnormalize(resized, np.array(options.mean), np.array(options.std), to_rgb=False)
        x = torch.from_numpy(x).permute(2, 0, 1)[None]
        return x.to(options.torch_device, options.torch_dtype)

    @torch.inference_mode()
    def extract(self, sample: Sample) -> np.ndarray:
        x = self.prepare(self.picture(sample))
        boxes = sliding_boxes(*x.shape[2:], self.options.crop, self.options.stride)
        tokens = [self.front(pad(x[:, :, top:bottom, left:right]))
                  for top, left, bottom, right in boxes]  # fmt: skip
        return torch.stack(tokens).float().cpu().numpy()  # (crops, 1, tokens, D)

    @torch.inference_mode()
    def predict(self, sample: Sample, feature: np.ndarray) -> np.ndarray:
        """The class of every pixel, (height, width) uint8."""
        options = self.options
        original = self.mask(sample).shape  # the size is known to the receiver
        # (width, height) as mmcv has it
        width, height = mmcv.rescale_size(original[::-1], tuple(options.resize))
        boxes = list(sliding_boxes(height, width, options.crop, options.stride))
        if len(boxes) != len(feature):
            raise UserError(f"{sample.name}: {len(feature)} crops, the picture has {len(boxes)}")
        device, dtype = options.torch_device, options.torch_dtype
        total = torch.zeros(1, len(options.classes), height, width, device=device)
        count = torch.zeros(height, width, device=device)
        for tokens, (top, left, bottom, right) in zip(feature, boxes, strict=True):
            size = (bottom - top, right - left)
            grid = tuple(math.ceil(length / PATCH) for length in size)
            x = torch.from_numpy(tokens).to(device, dtype)  # (1, tokens, D)
            if x.shape[1] != 1 + grid[0] * grid[1]:
                raise UserError(f"{sample.name}: {x.shape[1]} tokens per crop, expected 1 + {grid}")
            logits = nn.functional.interpolate(self.back(x, grid).float(), size, mode="bilinear")
            total[:, :, top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
        logits = nn.functional.interpolate(total / count, original, mode="bilinear")
        return logits[0].argmax(0).to(torch.uint8).cpu().numpy()

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


def pad(x: Tensor) -> Tensor:
    """Zeros around a crop (1, 3, h, w) up to multiples of 14; an odd one goes right and below."""
    missing = [-length % PATCH for length in (x.shape[3], x.shape[2])]
    return nn.functional.pad(x, [part for m in missing for part in (m // 2, m - m // 2)])


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


def read_config(weights: Mapping[str, Tensor], path: Path) -> Dinov2Config:
    """The architecture of Meta's checkpoint, from the shapes of its weights.

    Raises:
        UserError: it is none of a DINOv2 without registers.
    """
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    if not depth or "pos_embed" not in weights or "register_tokens" in weights:
        raise UserError(f"{path}: not Meta's weights of a DINOv2 without registers")
    positions, width = weights["pos_embed"].shape[1:]
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // HEAD_WIDTH,
        mlp_ratio=4,
        use_swiglu_ffn="blocks.0.mlp.w12.weight" in weights,
        image_size=PATCH * math.isqrt(positions - 1),
        patch_size=PATCH,
    )


def load_backbone(path: Path, known: Dinov2Config, blocks: range) -> Dinov2Model:
    """The model with the weights of some blocks; of Meta's file no others are read.

    The other blocks are there without weights, for the caller to drop; likewise the embedding where
    block 0 is not among them, and the norm where the last one is.

    Raises:
        UserError: the file lacks a weight, or is damaged.
    """
    if path.is_dir():
        with loading(path):
            return Dinov2Model.from_pretrained(path, dtype=torch.float32)
    stored = open_weights(path)
    with init_empty_weights():
        model = Dinov2Model(known)
    needed = [f"encoder.layer.{i}." for i in blocks]
    needed += ["embeddings."] if 0 in blocks else ["layernorm."]
    if len(blocks) == known.num_hidden_layers:
        needed += ["layernorm."]
    names = [name for name, _ in model.named_parameters() if name.startswith(tuple(needed))]
    try:
        state = {name: from_meta(stored, name) for name in names}
    except KeyError as error:
        raise UserError(f"{path}: lacks the weight {error}") from error
    with loading(path):
        model.load_state_dict(state, strict=False, assign=True)
    return model


RENAMED = (
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.", ""),
    ("encoder.layer.", "blocks."),
    ("layernorm.", "norm."),
    (".attention.o_proj.", ".attn.proj."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    (".mlp.down_proj.", ".mlp.w3."),
)
JOINED = {"q_proj": ("attn.qkv", 0, 3), "k_proj": ("attn.qkv", 1, 3), "v_proj": ("attn.qkv", 2, 3),
          "gate_proj": ("mlp.w12", 0, 2), "up_proj": ("mlp.w12", 1, 2)}  # fmt: skip
"""What Meta's model computes with one matrix: its name, which part, of how many."""


def from_meta(stored: Mapping[str, Tensor], name: str) -> Tensor:
    """The weight that transformers calls ``name``, from Meta's checkpoint, float32."""
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    parts = name.split(".")  # blocks, 3, attention, q_proj, weight
    if len(parts) < 2 or parts[-2] not in JOINED:
        return stored[name].float()
    joined, index, count = JOINED[parts[-2]]
    return stored[".".join([*parts[:2], joined, parts[-1]])].float().chunk(count)[index]


def load_head(head: LinearHead, path: Path) -> None:
    """Read a head: Meta's file (``decode_head.*`` of a segmenter) or the same names without prefix.

    Raises:
        UserError: it is damaged, or names or shapes differ.
    """
    stored = open_weights(path)
    state = {name.removeprefix("decode_head."): value for name, value in stored.items()}
    with loading(path, "a linear head of this width and classes"):
        head.load_state_dict(state)
