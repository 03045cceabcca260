"""The work of ``bench_train.py``."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from bench_train import BenchConfig
from benches.codec import SMALL_ARCHS
from compressai.losses import RateDistortionLoss
from compressai.models import Elic2022Official, ScaleHyperprior
from torch import Tensor

from dtufc import files
from dtufc.CompressAI.models import MODELS, PUBLISHED_NAMES, build_model
from dtufc.CompressAI.train import TrainConfig
from dtufc.CompressAI.training import Training
from dtufc.feature import FeatureFacts
from dtufc.paths import MAPPING_JSON, PATCHES_JSON
from dtufc.transform.mapping import Mapping
from dtufc.views import TOKEN_AXES

STOCK = {"hyperprior": ScaleHyperprior, "elic": Elic2022Official}


@dataclass(frozen=True)
class StepRow:
    """Steps a second of one codec."""

    codec: str
    patch: int
    batch: int
    stock: float
    ours: float
    ratio: float


def bench(cfg: BenchConfig) -> list[StepRow]:
    """Time a step of every codec."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    rows = []
    side = 64 if cfg.small else 256
    for name in PUBLISHED_NAMES.values():
        arch = SMALL_ARCHS[name] if cfg.small else MODELS[name].arch_class()
        with tempfile.TemporaryDirectory() as folder:
            patches = _write_patches(Path(folder) / "patches", cfg.batch_size, side)
            training = Training(
                TrainConfig(
                    [patches], Path(folder) / "codec", name, asdict(arch),
                    batch_size=cfg.batch_size, device=cfg.device,
                )
            )  # fmt: skip
            x = next(training.batches("train"))
            training.wrapped.train()
            stock = _stock_step(name, arch, x)
            seconds = _medians(cfg.steps, [stock, lambda t=training, x=x: t.train_step(x)])
        stock_s, ours_s = seconds
        rows.append(StepRow(name, side, cfg.batch_size, 1 / stock_s, 1 / ours_s, stock_s / ours_s))
    return rows


def _stock_step(name: str, arch, x: Tensor) -> Callable[[], None]:
    """A step of the plain loop, as CompressAI's example trains."""
    torch.manual_seed(0)
    model = build_model(name, arch).to(x.device).train()
    x = x.contiguous(memory_format=torch.contiguous_format)
    forward = STOCK[name].forward
    criterion = RateDistortionLoss(lmbda=0.01)
    aux = [p for key, p in model.named_parameters() if key.endswith(".quantiles")]
    main = [p for key, p in model.named_parameters() if not key.endswith(".quantiles")]
    optimizer = torch.optim.Adam(main, lr=1e-4)
    aux_optimizer = torch.optim.Adam(aux, lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        aux_optimizer.zero_grad()
        criterion(forward(model, x), x)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.aux_loss().backward()
        aux_optimizer.step()

    return step


def _medians(steps: int, calls: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of each call, called in turn."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(steps + 1):
        for call, found in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
    return [statistics.median(found[1:]) for found in seconds]


def _write_patches(folder: Path, count: int, side: int) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(count):
            with files.write_atomic(folder / split / f"{i:03d}.npy") as file:
                np.save(file, rng.random((side, side), dtype=np.float32))
    Mapping(np.linspace(-3, 3, 256)).save(folder / MAPPING_JSON)
    facts = FeatureFacts("bench", "none", [1, 1, None, None], list(TOKEN_AXES))
    files.write_json(folder / PATCHES_JSON, {"facts": facts.record(), "assignment": "nearest"})
    return folder
