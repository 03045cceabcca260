"""What the training scripts of the tiny models share: scenes drawn ahead, a teacher, the descent."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn, optim
from tqdm import tqdm
from transformers import ResNetForImageClassification

from dtufc.machines.tiny import world
from dtufc.paths import PACKAGE

T = TypeVar("T")
AHEAD = 4  # steps that are drawn before they are needed


def draw_ahead(draw: Callable[[int], T], steps: int, workers: int) -> Iterator[tuple[int, T, tqdm]]:
    """Every step, ``draw(step)``, made by other processes, and the progress bar.

    Args:
        draw: a function that pickles; it depends on the step alone, so that a run repeats.
        workers: processes.
    """
    with ProcessPoolExecutor(workers) as pool:
        waiting = [pool.submit(draw, step) for step in range(min(AHEAD * workers, steps))]
        bar = tqdm(range(steps), desc="train", unit="step", file=sys.stdout, mininterval=5)
        for step in bar:
            drawn = waiting.pop(0).result()
            if (later := step + AHEAD * workers) < steps:
                waiting.append(pool.submit(draw, later))
            yield step, drawn, bar


def scenes(seed: int, first: int, count: int, split: str) -> list[world.Scene]:
    """Scenes first .. first + count - 1 of a split."""
    return [world.scene(seed, index, split) for index in range(first, first + count)]


class Teacher(nn.Module):
    """Stages of the tiny ResNet, which learns the world in minutes: what others may learn from."""

    widths = (32, 64, 128)
    strides = (4, 8, 16)

    def __init__(self):
        super().__init__()
        network = ResNetForImageClassification.from_pretrained(
            PACKAGE / "machines" / "tiny" / "resnet50", dtype=torch.float32
        )
        self.body = network.resnet.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, 3, H, W) in 0..1 -> the output of each stage, (B, widths, H / strides, ..)."""
        return self.body((x - 0.5) / 0.25, output_hidden_states=True).hidden_states[1:]


class Descent:
    """Muon for the matrices of a transformer's blocks, AdamW for all else; one rate for both.

    Muon (Jordan et al. 2024; its steps as large as AdamW's, Liu et al., arXiv 2502.16982) learns these
    small transformers in about two thirds of AdamW's steps. The rate rises within 200 steps, stays, and
    falls linearly to nought from the middle of the run on.

    Args:
        network: all that is trained.
        blocks: the part of it whose matrices Muon takes.
        learning_rate: the highest rate.
        steps: length of the run.
    """

    def __init__(self, network: nn.Module, blocks: nn.Module, learning_rate: float, steps: int):
        self._parameters = list(network.parameters())
        matrices = [weight for weight in blocks.parameters() if weight.ndim == 2]
        taken = set(map(id, matrices))
        others = [weight for weight in self._parameters if id(weight) not in taken]
        self._optimizers = [
            optim.Muon(matrices, learning_rate, 0.02, adjust_lr_fn="match_rms_adamw"),
            optim.AdamW(others, learning_rate, betas=(0.9, 0.98), weight_decay=0.02),
        ]
        self._peak, self._steps, self._done = learning_rate, steps, 0

    @property
    def level(self) -> float:
        """The next step's share of the highest rate, above 0 and at most 1."""
        rising = (self._done + 1) / min(200, self._steps)
        return min(1.0, rising, 2 * (self._steps - self._done) / self._steps)

    def step(self, loss: Tensor) -> None:
        """Change the weights so that the loss falls."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = self._peak * self.level
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self._done += 1
