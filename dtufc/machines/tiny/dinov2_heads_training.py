"""The training of the tiny DINOv2's further heads: the work of
:mod:`dtufc.machines.tiny.train_dinov2_heads`."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import trange

from dtufc import files
from dtufc.machines.command import parse_options
from dtufc.machines.dinov2 import cls, dpt
from dtufc.machines.dinov2.backbone import load_backbone
from dtufc.machines.dinov2.classification import ClsMachine, pool
from dtufc.machines.dinov2.depth import DepthHead, DptMachine
from dtufc.machines.dinov2.halves import DinoMachine, pad, patches
from dtufc.machines.sources.world import PlainWorld
from dtufc.machines.tiny import world
from dtufc.machines.tiny.train_dinov2_heads import TrainConfig

AT_ONCE = 32  # pictures whose tokens are computed together


def train(cfg: TrainConfig) -> dict[str, float]:
    """Train, write ``head.safetensors`` and ``training.json`` -> figures of held-out pictures."""
    torch.manual_seed(cfg.seed)
    start = time.time()
    head = (train_cls if cfg.task == "cls" else train_dpt)(cfg)
    seconds = time.time() - start
    cfg.folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in head.state_dict().items()}
    save_file(state, cfg.folder / "head.safetensors")
    found = evaluate(cfg)
    record = {"steps": cfg.steps, "batch_size": cfg.batch_size, "pictures": cfg.pictures,
              "seed": cfg.seed, "seconds": round(seconds), "held_out": cfg.held_out}  # fmt: skip
    files.write_json(cfg.folder / "training.json", record | found)
    return found


def machine_of(cfg: TrainConfig, *argv: str) -> DinoMachine:
    """The machine with the head that is trained."""
    told = ["--head", str(cfg.folder / "head.safetensors"), "--seed", str(cfg.seed)]
    told += ["--device", "cpu", *argv]
    if cfg.task == "cls":
        return ClsMachine(parse_options(cls.ClsOptions, cls.PRESET, told, None))
    return DptMachine(parse_options(dpt.DptOptions, dpt.PRESET, told, None))


def pictures(cfg: TrainConfig) -> PlainWorld:
    """The scenes that the backbone was trained on, too."""
    return PlainWorld(Path(), {"network": cfg.pictures}, cfg.seed)


def train_cls(cfg: TrainConfig) -> nn.Linear:
    """The classifier, on pooled tokens."""
    machine = machine_of(cfg)
    found = pictures(cfg).labelled_pictures("network")
    options, blocks = machine.options, machine.config.num_hidden_layers
    model = load_backbone(machine.path, machine.config, range(blocks))
    norm = model.layernorm.requires_grad_(False)
    pooled = []
    for first in trange(0, len(found), AT_ONCE, desc="tokens"):
        rgbs = [p.rgb(options.resize, options.crop) for p in found[first : first + AT_ONCE]]
        pooled.append(pool([norm(x) for x in tokens(machine, rgbs).unbind(1)]))
    x, labels = torch.cat(pooled), torch.tensor([picture.label for picture in found])
    head = nn.Linear(x.shape[1], len(world.CLASSES))

    def loss(chosen: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head(x[chosen]), labels[chosen], label_smoothing=0.05)

    descend(cfg, head, loss)
    return head


def train_dpt(cfg: TrainConfig) -> DepthHead:
    """The depth head, on tokens of pictures and, half of the time, mirror images."""
    machine = machine_of(cfg)
    found = pictures(cfg).depth_pictures("network")
    mirrored = np.random.default_rng(cfg.seed).random(len(found)) < 0.5
    held, depths = [], []
    for first in trange(0, len(found), AT_ONCE, desc="tokens"):
        part = range(first, min(first + AT_ONCE, len(found)))
        turns = [slice(None, None, -1 if mirrored[k] else 1) for k in part]
        rgbs = [found[k].rgb()[:, turn] for k, turn in zip(part, turns, strict=True)]
        depths += [found[k].depth()[:, turn].copy() for k, turn in zip(part, turns, strict=True)]
        held.append(tokens(machine, rgbs).half())  # a quarter of a GB otherwise
    x, true = torch.cat(held), torch.from_numpy(np.stack(depths))[:, None]
    options, size = machine.options, tuple(true.shape[2:])
    grid = patches(size)
    head = DepthHead(x.shape[3], x.shape[1], options.bins, options.nearest, options.farthest)

    def loss(chosen: Tensor) -> Tensor:
        small = head([each.float() for each in x[chosen].unbind(1)], grid)
        guess = nn.functional.interpolate(small, size, mode="bilinear")
        return ((guess - true[chosen]).abs() / true[chosen]).mean()

    descend(cfg, head, loss)
    return head


@torch.no_grad()
def tokens(machine: DinoMachine, rgbs: list[np.ndarray]) -> Tensor:
    """Pictures of one size (h, w, 3) uint8 -> what the machine sends of each, (B, layers, tokens, D)."""
    x = torch.cat([machine.normalise(np.ascontiguousarray(rgb)) for rgb in rgbs])
    return machine.front(pad(x))


def descend(cfg: TrainConfig, head: nn.Module, loss: Callable[[Tensor], Tensor]) -> None:
    """Train a head by AdamW with a one-cycle schedule.

    Args:
        loss: of the pictures of these numbers.
    """
    optimizer = torch.optim.AdamW(head.parameters(), cfg.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cfg.learning_rate, total_steps=cfg.steps, pct_start=0.1
    )
    for step in (bar := trange(cfg.steps, desc="train", mininterval=5)):
        found = loss(torch.randint(cfg.pictures, (cfg.batch_size,)))
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {found.item():.4f}")


def evaluate(cfg: TrainConfig) -> dict[str, float]:
    """Figures of the stored head on held-out pictures, through the machine."""
    machine = machine_of(cfg, "--counts", f"{{test: {cfg.held_out}}}")
    samples = machine.samples("test")
    predictions = (machine.predict(sample, machine.extract(sample)) for sample in samples)
    score = machine.score(samples, predictions)
    figures = {score.metric: score.value, **score.others}
    return {name: figures[name] for name in ("top1", "rmse", "abs_rel", "a1") if name in figures}
