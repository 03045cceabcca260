"""The training of a learned codec: the work of :mod:`dtufc.CompressAI.train`."""

import io
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dtufc import config, files, provenance, records
from dtufc.CompressAI.checkpoint import load_model, load_state, save_checkpoint
from dtufc.CompressAI.curves import plot_curves
from dtufc.CompressAI.kinds import load_patch_kind
from dtufc.CompressAI.models import MODELS, Model, Native, build_model
from dtufc.CompressAI.patches import PatchDataset
from dtufc.CompressAI.published import read_published
from dtufc.CompressAI.train import TrainConfig, TrainingError
from dtufc.devices import check_device, fast_bf16
from dtufc.errors import UserError
from dtufc.paths import LOG_CSV
from dtufc.stamps import Stamp

STATE = "state.pt"
INITIAL_PATCHES = 1000
"""So many, at most, give the codec native the transform that it begins with."""


class Training:
    """The state of a run between epochs."""

    def __init__(self, cfg: TrainConfig):
        self.cfg = cfg
        self.accelerator = Accelerator(
            cpu=cfg.device == "cpu" or not torch.cuda.is_available(),
            # the quantiles get no gradient from the loss, which DDP would wait for
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.device = check_device(cfg.device) if cfg.device else self.accelerator.device
        self.processes = self.accelerator.num_processes
        if cfg.batch_size % self.processes:
            raise UserError(f"batch_size: {cfg.batch_size} does not divide by {self.processes}")
        self.main = self.accelerator.is_main_process
        if self.main and not cfg.resume and (cfg.output / STATE).exists():
            raise UserError(f"output: {cfg.output} holds a run; pass --resume or another folder")
        self.kinds = [load_patch_kind(folder) for folder in cfg.patches]
        self.stamp = cfg.stamp()
        self.data = {split: PatchDataset(cfg.patches, split) for split in ("train", "test")}
        self._build()

    def _build(self) -> None:
        cfg = self.cfg
        torch.manual_seed(cfg.seed)
        channels = self.data["train"].size[0]
        model_class = MODELS[cfg.codec]
        arch = config.build(model_class.arch_class, cfg.arch, "arch")
        if model_class.native and not arch.inputs:
            arch = replace(arch, inputs=channels)
        model = build_model(cfg.codec, arch)
        for data in self.data.values():
            _check_patches(cfg, data.size, model)
        if cfg.pretrained_model:
            _load_pretrained(model, cfg.pretrained_model)
        elif isinstance(model, Native):
            patches = self.data["train"]
            some = range(0, len(patches), -(-len(patches) // INITIAL_PATCHES))
            model.initialise(torch.stack([patches[i] for i in some]), cfg.lambda_value)
        auto = cfg.precision == "auto" and fast_bf16(self.device)
        model.amp = auto or cfg.precision == "bf16"
        self.model = model.to(self.device, memory_format=torch.channels_last)
        quantiles = [p for name, p in model.named_parameters() if name.endswith(".quantiles")]
        weights = [p for name, p in model.named_parameters() if not name.endswith(".quantiles")]
        self.weights = weights
        self.optimizer = torch.optim.Adam(weights, lr=cfg.learning_rate)
        self.aux_optimizer = torch.optim.Adam(quantiles, lr=cfg.aux_learning_rate)
        if cfg.schedule == "plateau":
            self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimizer, "min", factor=0.1, patience=cfg.patience
            )
        else:
            self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, cfg.epochs)
        self.wrapped = self.accelerator.prepare_model(self.model)
        self.epoch, self.best_loss, self.stale = 0, math.inf, 0
        self.best_state: dict[str, Tensor] = {}
        self.history: list[EpochRow] = []

    def run(self) -> dict[str, float]:
        cfg = self.cfg
        if cfg.resume and (cfg.output / STATE).exists():
            self._load_state()
            if self.main and self.history:  # a kill may have come between state and log
                records.write_rows(cfg.output / LOG_CSV, self.history)
        run = provenance.Run(cfg.output, cfg, self.stamp) if self.main else None
        writer = (
            SummaryWriter(cfg.output / "tensorboard", purge_step=self.epoch) if self.main else None
        )
        bar = tqdm(
            total=cfg.epochs, initial=self.epoch, desc="train", unit="epoch",
            disable=not self.main, file=sys.stdout, mininterval=1,
        )  # fmt: skip
        while self.epoch < cfg.epochs and not (cfg.early_stop and self.stale >= cfg.early_stop):
            row = self._epoch()
            if self.main:
                self._save_state()
                self._log(writer, row)
                run.update()
                if self.epoch % cfg.save_period == 0:
                    self._save_codecs()
                bar.set_postfix_str(f"loss {row.loss:.4f} bpp {row.bpp:.4f} mse {row.mse:.2e}")
            bar.update()
        bar.close()
        best = asdict(min(self.history, key=lambda row: row.loss))
        if self.main:
            writer.close()
            self._save_codecs()
            run.finish(best=best, epochs=self.epoch)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return best

    def _epoch(self) -> "EpochRow":
        """One pass over the training patches and one over the test patches."""
        rank = self.accelerator.process_index
        # every epoch has its own noise, whatever ran before: that makes resuming exact
        torch.manual_seed(_derive_seed(self.cfg.seed, self.epoch, 1 + rank))
        rate = self.optimizer.param_groups[0]["lr"]
        self.wrapped.train()
        train = self._sums(self.train_step(x) for x in self.batches("train"))
        self.wrapped.eval()
        with torch.no_grad():
            test = self._sums(self._losses(x) for x in self.batches("test"))
        aux = self.model.aux_loss().item()
        loss = test["loss"]
        self._require_finite(torch.tensor(loss), "validation loss")
        if self.cfg.schedule == "plateau":
            self.scheduler.step(loss)
        else:
            self.scheduler.step()
        self.stale += 1
        if loss < self.best_loss:
            self.best_loss, self.stale = loss, 0
            self.best_state = {
                k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()
            }
        row = EpochRow(
            self.epoch, loss, test["mse"], test["bpp"], aux, train["loss"], train["mse"],
            train["bpp"], rate,
        )  # fmt: skip
        self.history.append(row)
        self.epoch += 1
        return row

    def batches(self, split: str) -> Iterator[Tensor]:
        """This process's share of the batches, (b, K, h, w); training is shuffled by epoch."""
        data, world, rank = self.data[split], self.processes, self.accelerator.process_index
        if split == "train":
            generator = torch.Generator().manual_seed(_derive_seed(self.cfg.seed, self.epoch, 0))
            order = torch.randperm(len(data), generator=generator).tolist()
            order += order[: -len(order) % world]  # every process takes as many steps
        else:
            order = list(range(len(data)))
        order = order[rank::world]
        size = self.cfg.batch_size // world
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        loader = DataLoader(
            data, batch_sampler=batches, num_workers=self.cfg.num_workers,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        for x in loader:
            x = x.to(self.device, non_blocking=True)
            yield x.contiguous(memory_format=torch.channels_last)

    def _losses(self, x: Tensor) -> dict[str, Tensor]:
        out = self.wrapped(x)
        mse = nn.functional.mse_loss(out["x_hat"], x)
        bpp = out["bits"] / x.numel()
        loss = 255**2 * self.cfg.lambda_value * mse + bpp
        return {"loss": loss, "mse": mse, "bpp": bpp, "count": torch.tensor(float(len(x)))}

    def train_step(self, x: Tensor) -> dict[str, Tensor]:
        self.optimizer.zero_grad()
        self.aux_optimizer.zero_grad()
        losses = self._losses(x)
        self._require_finite(losses["loss"], "loss")
        self.accelerator.backward(losses["loss"])
        if self.cfg.clip_max_norm:
            norm = nn.utils.clip_grad_norm_(self.weights, self.cfg.clip_max_norm)
            self._require_finite(norm, "gradient")
        self.optimizer.step()
        # depends on no data, so it is the same in every process and needs no reduction
        self.model.aux_loss().backward()
        self.aux_optimizer.step()
        return losses

    def _require_finite(self, value: Tensor, what: str) -> None:
        if not torch.isfinite(value):
            kept = f"the state after epoch {self.epoch - 1} is in {self.cfg.output / STATE}. "
            raise TrainingError(
                f"the {what} is {value.item()} in epoch {self.epoch}; "
                f"{kept if self.epoch else ''}Try a smaller learning_rate."
            )

    def _sums(self, steps: Iterator[dict[str, Tensor]]) -> dict[str, float]:
        """Means over all patches of all processes."""
        totals = torch.zeros(4, dtype=torch.float64)
        for step in steps:
            means = torch.stack(
                [step[key].detach().double().cpu() for key in ("loss", "mse", "bpp")]
            )
            count = step["count"].double()
            totals += torch.cat((means * count, count[None]))
        if self.processes > 1:
            totals = self.accelerator.reduce(totals.to(self.device), "sum").cpu()
        return dict(zip(("loss", "mse", "bpp"), (totals[:3] / totals[3]).tolist(), strict=True))

    def _save_state(self) -> None:
        state = {
            **self.stamp.record(),
            "epoch": self.epoch,
            "best_loss": self.best_loss,
            "stale": self.stale,
            "history": [asdict(row) for row in self.history],
            "model": self.model.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "aux_optimizer": self.aux_optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        buffer = io.BytesIO()  # torch tells of a full disk in its own way
        torch.save(state, buffer)
        files.write_bytes(self.cfg.output / STATE, buffer.getbuffer())

    def _load_state(self) -> None:
        """Go on from the last state, unless it is of other settings or patches."""
        path = self.cfg.output / STATE
        state = torch.load(path, map_location=self.device, weights_only=True)
        if why := self.stamp.differs(Stamp.of_record(state)):
            if self.cfg.restart:
                return
            raise UserError(f"resume: {path} was made with other settings or patches: {why}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.aux_optimizer.load_state_dict(state["aux_optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.best_state = {key: value.cpu() for key, value in state["best"].items()}
        self.epoch, self.best_loss, self.stale = state["epoch"], state["best_loss"], state["stale"]
        self.history = [EpochRow(**row) for row in state["history"]]

    def _log(self, writer: SummaryWriter, row: "EpochRow") -> None:
        records.write_rows(self.cfg.output / LOG_CSV, self.history)
        for key, value in asdict(row).items():
            if key != "epoch":
                writer.add_scalar(key, value, row.epoch)
        writer.flush()

    def _save_codecs(self) -> None:
        """The best model as the codec, the last one beside it, and the curves."""
        last = {key: value.clone() for key, value in self.model.state_dict().items()}
        for folder, state in ((self.cfg.output / "last", last), (self.cfg.output, self.best_state)):
            model = build_model(self.cfg.codec, self.model.arch)
            model.load_state_dict(state)
            made_by = {"train": self.cfg.science, "epoch": self.epoch, "best_loss": self.best_loss}
            planes = [next(self.batches("test")).cpu()]
            save_checkpoint(folder, model, self.cfg.codec, self.kinds, made_by, planes)
        plot_curves(self.cfg.output / LOG_CSV, self.cfg.output / "curves")


@dataclass(frozen=True)
class EpochRow:
    """A row of ``log.csv``. Validation losses first; mse is of u, bpp in bits per point."""

    epoch: int
    loss: float
    mse: float
    bpp: float
    aux_loss: float
    train_loss: float
    train_mse: float
    train_bpp: float
    learning_rate: float


def _derive_seed(*numbers: int) -> int:
    """One seed of several non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _check_patches(cfg: TrainConfig, size: tuple[int, ...], model: Model) -> None:
    """Refuse patches that the model does not take."""
    inputs = model.arch.inputs if isinstance(model, Native) else 1
    if size[0] != inputs:
        raise UserError(
            f"patches: {cfg.codec} takes {inputs} channels, {cfg.patches[0]} has {size[0]}; "
            f"generate_data.py --layout makes patches for hyperprior and elic (plane) or native"
        )
    if any(length % step for length, step in zip(size[1:], model.stride, strict=True)):
        (p, q), (rows, cols) = size[1:], model.stride
        raise UserError(f"patches: {p} x {q} must divide by {rows} x {cols}")


def _load_pretrained(model: Model, path: str) -> None:
    folder = Path(path).is_dir()
    state = load_model(path)[0].state_dict() if folder else read_published(Path(path))
    load_state(model, state, path)
