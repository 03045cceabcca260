"""The training of the tiny ResNet: the work of :mod:`dtufc.machines.tiny.train_resnet50`."""

import time
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from dtufc import files
from dtufc.devices import fast_bf16
from dtufc.machines.tiny import world
from dtufc.machines.tiny.train_resnet50 import TrainConfig
from dtufc.machines.tiny.training import draw_ahead, scenes

SIDE = 112


def build() -> ResNetForImageClassification:
    """The network, randomly initialised."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=24,
            hidden_sizes=[32, 64, 128],
            depths=[1, 1, 1],
            layer_type="basic",
            num_labels=len(world.CLASSES),
            id2label=dict(enumerate(world.CLASSES)),
        )
    )


def draw(seed: int, first: int, count: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Scenes first .. first + count - 1 -> pictures (count, 112, 112, 3) uint8, labels (count,)."""
    drawn = scenes(seed, first, count, split)
    pictures = np.stack([world.render(s, SIDE, SIDE).rgb for s in drawn])
    return pictures, np.array([world.label(s) for s in drawn])


def draw_step(cfg: TrainConfig, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The pictures and labels of a step."""
    return draw(cfg.seed, step * cfg.batch_size, cfg.batch_size, "network")


def to_input(pictures: np.ndarray) -> Tensor:
    """uint8 pictures -> (B, 3, 112, 112) float32, (rgb - 0.5) / 0.25 as the machine's preset says."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return ((x - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)


def train(cfg: TrainConfig) -> float:
    """Train and write the checkpoint -> top-1 on held-out pictures."""
    torch.manual_seed(cfg.seed)
    network = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), cfg.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cfg.learning_rate, total_steps=cfg.steps, pct_start=0.15
    )
    start = time.time()
    drawn = draw_ahead(partial(draw_step, cfg), cfg.steps, cfg.workers)
    for step, (pictures, labels), bar in drawn:
        with torch.autocast("cpu", torch.bfloat16, fast_bf16("cpu")):
            logits = network(to_input(pictures)).logits.float()
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            right = (logits.argmax(1).numpy() == labels).mean()
            bar.set_postfix_str(f"loss {loss.item():.3f} batch top-1 {right:.2f}")
    seconds = time.time() - start
    network.eval().half().save_pretrained(cfg.output)
    top1 = evaluate(cfg)
    files.write_json(
        cfg.output / "training.json",
        {"steps": cfg.steps, "batch_size": cfg.batch_size, "seed": cfg.seed,
         "seconds": round(seconds), "held_out": cfg.held_out, "top1": top1},
    )  # fmt: skip
    return top1


@torch.inference_mode()
def evaluate(cfg: TrainConfig) -> float:
    """Top-1 of the stored checkpoint over held-out test pictures, in float32."""
    network = ResNetForImageClassification.from_pretrained(cfg.output, dtype=torch.float32).eval()
    right = 0
    for first in range(0, cfg.held_out, 50):
        count = min(50, cfg.held_out - first)
        pictures, labels = draw(cfg.seed, first, count, "test")
        right += int((network(to_input(pictures)).logits.argmax(1).numpy() == labels).sum())
    return right / cfg.held_out
