"""Train the embedded DINOv2 and its head on the generated world: ``python train_dinov2.py``.

A ViT of 6 blocks and width 96 with patches of 14 pixels (transformers' classes) and a linear head,
trained together with the labels of every pixel. A step takes one sliding crop of each fresh picture,
prepared as the machine prepares it.

Seed 0, 5000 steps: about an hour with one thread beside two other trainings; mIoU 0.151 on 200 held-out
pictures: it tells shapes from the background, but not yet which shape.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mmcv
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from coding import config, files
from coding.paths import REPOSITORY
from machines.command import parse_options
from machines.dinov2.seg import (
    PATCH,
    PRESET,
    DinoMachine,
    DinoOptions,
    LinearHead,
    pad,
    sliding_boxes,
    world_picture,
)
from machines.tiny.training import draw_ahead

Crops = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TrainConfig:
    """Training of the embedded DINOv2."""

    output: Path = REPOSITORY / "machines" / "tiny" / "dinov2"
    """Folder of the checkpoint."""
    steps: int = 5000
    """Optimiser steps."""
    batch_size: int = 16
    """Crops of fresh pictures a step."""
    learning_rate: float = 1.5e-3
    """Peak of the one-cycle schedule."""
    seed: int = 0
    """Of weights and scenes."""
    workers: int = 1
    """Processes that draw pictures."""
    held_out: int = 200
    """Test pictures that are scored at the end."""


def preset() -> DinoOptions:
    return parse_options(DinoOptions, PRESET, [], None)


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
            layerscale_value=0.1,
            drop_path_rate=0.0,
        )
    )


def draw(options: DinoOptions, seed: int, batch_size: int, step: int) -> Crops:
    """A crop of each picture of a step: uint8 RGB (B, crop, crop, 3) and classes (B, crop, crop)."""
    rng = np.random.default_rng([seed, step])
    rgbs, masks = [], []
    for index in range(step * batch_size, (step + 1) * batch_size):
        picture = world_picture(seed, index, "network")
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
    side = math.ceil(options.crop / PATCH) * PATCH
    backbone = build(side).train()
    head = LinearHead(backbone.config.hidden_size, len(options.classes)).train()
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, cfg.learning_rate, betas=(0.9, 0.98), weight_decay=0.02
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cfg.learning_rate, total_steps=cfg.steps, pct_start=0.1
    )
    start, average = time.time(), math.nan
    crops = draw_ahead(partial(draw, options, cfg.seed, cfg.batch_size), cfg.steps, cfg.workers)
    for step, (rgbs, masks), bar in crops:
        x = pad(normalize(options, rgbs))
        tokens = backbone(x).last_hidden_state[:, 1:]  # (B, h * w, D)
        logits = head(tokens.transpose(1, 2).unflatten(2, (side // PATCH,) * 2))
        logits = nn.functional.interpolate(logits, masks.shape[1:], mode="bilinear")
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(masks).long())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {average:.4f}")
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


def normalize(options: DinoOptions, rgbs: np.ndarray) -> Tensor:
    """uint8 RGB (B, H, W, 3) -> (B, 3, H, W) float32 as the preset says."""
    x = (torch.from_numpy(rgbs).float() - torch.tensor(options.mean)) / torch.tensor(options.std)
    return x.permute(0, 3, 1, 2)


def evaluate(cfg: TrainConfig) -> float:
    """mIoU of the stored checkpoint on held-out pictures, through the machine."""
    argv = ["--checkpoint", str(cfg.output), "--head", str(cfg.output / "head.safetensors")]
    argv += ["--counts", f"{{test: {cfg.held_out}}}", "--seed", str(cfg.seed), "--device", "cpu"]
    machine = DinoMachine(parse_options(DinoOptions, PRESET, argv, None))
    samples = machine.samples("test")
    predictions = (machine.predict(sample, machine.extract(sample)) for sample in samples)
    return machine.score(samples, predictions).value


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(TrainConfig, argv, __doc__)
        print(f"mIoU on {cfg.held_out} held-out pictures: {train(cfg):.4f}")


if __name__ == "__main__":
    main()
