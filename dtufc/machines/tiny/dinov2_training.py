"""The training of the tiny DINOv2 and its head: the work of :mod:`dtufc.machines.tiny.train_dinov2`."""

import math
import time
from functools import partial

import mmcv
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from dtufc import files
from dtufc.devices import fast_bf16
from dtufc.machines.command import parse_options
from dtufc.machines.dinov2.halves import pad
from dtufc.machines.dinov2.options import PATCH
from dtufc.machines.dinov2.seg import PRESET, SegOptions
from dtufc.machines.dinov2.segmentation import LinearHead, SegMachine, sliding_boxes
from dtufc.machines.sources.world import plain_picture
from dtufc.machines.tiny.train_dinov2 import TrainConfig
from dtufc.machines.tiny.training import Descent, Teacher, draw_ahead

BF16 = fast_bf16("cpu")
Crops = tuple[np.ndarray, np.ndarray]


def preset() -> SegOptions:
    return parse_options(SegOptions, PRESET, [], None)


def build(side: int) -> Dinov2Model:
    """The backbone for crops padded to ``side`` pixels, randomly initialised."""
    return Dinov2Model(
        Dinov2Config(
            hidden_size=96,
            num_hidden_layers=6,
            num_attention_heads=3,
            mlp_ratio=4,
            image_size=side,
            patch_size=PATCH,
            layerscale_value=1.0,
            drop_path_rate=0.0,
            initializer_range=0.08,  # near 1 / sqrt(width)
        )
    )


def waves(side: int, width: int) -> Tensor:
    """Sines and cosines of a grid's columns and rows, (side^2, width): where positions start from."""
    rates = 100.0 ** -torch.linspace(0, 1, width // 4 + 1)[:-1]
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [places.reshape(-1, 1) * rates for places in (x, y)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


class Student(nn.Module):
    """Backbone and head, and linear readings of the tokens that are to give the ResNet's stages."""

    def __init__(self, side: int, classes: int):
        super().__init__()
        self.grid = (side // PATCH,) * 2
        self.backbone = build(side)
        width = self.backbone.config.hidden_size
        with torch.no_grad():
            places = self.backbone.embeddings.position_embeddings
            places[0, 1:] = 0.5 * waves(self.grid[0], width)
        self.head = LinearHead(width, classes)
        self.teacher = Teacher()
        self.readings = nn.ModuleList(nn.Linear(width, wide) for wide in Teacher.widths[1:])

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
        """Padded crops (B, 3, side, side) -> logits ``(B, classes, *size)`` and readings
        ``(B, wide, *grid)``."""
        out = self.backbone(x, output_hidden_states=True)
        middle = out.hidden_states[len(self.backbone.encoder.layer) // 2]
        readings = [
            reading(tokens[:, 1:]).transpose(1, 2).unflatten(2, self.grid)
            for reading, tokens in zip(self.readings, (middle, out.last_hidden_state), strict=True)
        ]
        logits = self.head([out.last_hidden_state], self.grid)
        return nn.functional.interpolate(logits, size, mode="bilinear"), readings

    @torch.no_grad()
    def lesson(self, rgb: Tensor) -> list[Tensor]:
        """Padded crops in 0..1 -> the ResNet's last two stages on the tokens' grid, normalised."""
        size = [length * Teacher.strides[-1] for length in self.grid]
        with torch.autocast("cpu", torch.bfloat16, BF16):
            enlarged = nn.functional.interpolate(rgb, size, mode="bilinear")
            stages = self.teacher(enlarged.contiguous(memory_format=torch.channels_last))[1:]
        stages = [nn.functional.adaptive_avg_pool2d(stage.float(), self.grid) for stage in stages]
        return [
            (stage - stage.mean((0, 2, 3), keepdim=True))
            / (stage.std((0, 2, 3), keepdim=True) + 1e-3)
            for stage in stages
        ]


def draw(options: SegOptions, seed: int, batch_size: int, step: int) -> Crops:
    """A crop of each picture of a step: uint8 RGB (B, crop, crop, 3) and classes (B, crop, crop)."""
    rng = np.random.default_rng([seed, step])
    rgbs, masks = [], []
    for index in range(step * batch_size, (step + 1) * batch_size):
        picture = plain_picture(seed, index, "network")
        rgb = mmcv.imrescale(picture.rgb, tuple(options.resize))
        mask = mmcv.imrescale(picture.mask, tuple(options.resize), interpolation="nearest")
        boxes = list(sliding_boxes(*mask.shape, options.crop, options.stride))
        top, left, bottom, right = boxes[rng.integers(len(boxes))]
        rgbs.append(rgb[top:bottom, left:right])
        masks.append(mask[top:bottom, left:right])
    return np.stack(rgbs), np.stack(masks)


def train(cfg: TrainConfig) -> float:
    """Train and write the checkpoint -> mIoU on held-out pictures."""
    options = preset()
    torch.manual_seed(cfg.seed)
    student = Student(math.ceil(options.crop / PATCH) * PATCH, len(options.classes)).train()
    student.teacher.eval()
    backbone, head = student.backbone, student.head
    descent = Descent(student, backbone.encoder, cfg.learning_rate, cfg.steps)
    start, average = time.time(), np.zeros(3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (options.mean, options.std))
    crops = draw_ahead(partial(draw, options, cfg.seed, cfg.batch_size), cfg.steps, cfg.workers)
    for step, (rgbs, masks), bar in crops:
        x = pad((torch.from_numpy(rgbs).permute(0, 3, 1, 2).float() - mean) / std)
        labels = torch.from_numpy(masks).long()
        logits, readings = student(x, labels.shape[1:])
        # what helps early would blur the end: shapes above the background, the ResNet's maps
        weight = torch.ones(len(options.classes))
        weight[0] = 1 - 0.8 * descent.level
        loss = nn.functional.cross_entropy(logits, labels, weight)
        lesson = student.lesson((x * std + mean) / 255)
        distance = sum(map(nn.functional.mse_loss, readings, lesson))
        descent.step(loss + descent.level * distance)
        with torch.no_grad():
            found = labels > 0
            right = (logits.argmax(1) == labels)[found].float().mean()
        average += (0.02 if step else 1) * (
            np.array([loss.item(), distance.item(), right]) - average
        )
        if step % 50 == 0:
            bar.set_postfix_str("loss {:.4f} ResNet {:.4f} shapes right {:.4f}".format(*average))
    seconds = time.time() - start
    backbone.eval().half().save_pretrained(cfg.output)
    state = {name: value.half() for name, value in head.state_dict().items()
             if value.is_floating_point()}  # fmt: skip
    save_file(state, cfg.output / "head.safetensors")
    miou = evaluate(cfg)
    files.write_json(
        cfg.output / "training.json",
        {"steps": cfg.steps, "batch_size": cfg.batch_size, "seed": cfg.seed,
         "seconds": round(seconds), "held_out": cfg.held_out, "miou": miou},
    )  # fmt: skip
    return miou


def evaluate(cfg: TrainConfig) -> float:
    """mIoU of the stored checkpoint on held-out pictures, through the machine."""
    argv = ["--checkpoint", str(cfg.output), "--head", str(cfg.output / "head.safetensors")]
    argv += ["--counts", f"{{test: {cfg.held_out}}}", "--seed", str(cfg.seed), "--device", "cpu"]
    machine = SegMachine(parse_options(SegOptions, PRESET, argv, None))
    samples = machine.samples("test")
    predictions = (machine.predict(sample, machine.extract(sample)) for sample in samples)
    return machine.score(samples, predictions).value
