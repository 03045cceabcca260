"""The work of ``bench_corpus.py``."""

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zstandard
from bench_corpus import BenchConfig
from torch.utils.data import DataLoader, Dataset

from dtufc.corpora import Corpus, pack
from dtufc.errors import UserError
from dtufc.token_error import TokenErrors

LARGEST = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True)
class CorpusRow:
    """One way to store the features."""

    stored_as: str
    quality: float | None
    bits: float
    """Per point, all files counted."""
    token_error: float
    """Mean over features."""
    write: float
    """Million points per second, from .npy to the disk's cache."""
    read: str
    """Million points per second of a loader, by the number of its workers."""


class Files(Dataset):
    """Windows of files of one form, read as a corpus is."""

    def __init__(
        self, folder: Path, read: Callable[[Path, int, int], np.ndarray], cfg: BenchConfig
    ):
        self.read, self.rows = read, cfg.rows
        self.windows = [
            (path, first)
            for path in sorted(folder.iterdir())
            for first in range(0, int(path.stem.split("_")[-1]) - cfg.rows + 1, cfg.rows)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        path, first = self.windows[item]
        return {"x": torch.from_numpy(self.read(path, first, first + self.rows)).float()}


def bench(cfg: BenchConfig) -> list[CorpusRow]:
    """Measure every form."""
    paths = sorted(cfg.features.rglob("*.npy"))
    features = [np.load(path) for path in paths]
    if not features or any(x.ndim != 4 or x.shape[:2] != (1, 1) for x in features):
        raise UserError(f"{cfg.features}: expected .npy features (1, 1, tokens, channels)")
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "npy"
        source.mkdir()
        features = [x for x in features for _ in range(cfg.repeat)]
        for n, x in enumerate(features):
            np.save(source / f"{n:06d}.npy", x)
        for number, (name, write, read) in enumerate(_forms(features[0].shape[3])):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            start = time.perf_counter()
            for n, x in enumerate(features):
                (folder / f"{n:06d}_{x.shape[2]}").write_bytes(write(x[0, 0]))
            seconds = time.perf_counter() - start
            back = [
                read(path, 0, x.shape[2])
                for path, x in zip(sorted(folder.iterdir()), features, strict=True)
            ]
            data = Files(folder, read, cfg)
            found.append(_row(cfg, name, None, folder, features, back, seconds, data))
        for quality in cfg.quality or [None]:
            folder = Path(scratch) / f"corpus{quality}"
            flags = {"codec": cfg.codec, "input": source, "output": folder}
            flags |= {"frame_rows": cfg.rows, "shard_samples": math.ceil(len(features) / 2)}
            flags |= {} if quality is None else {"quality": quality}
            argv = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
            start = time.perf_counter()
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                pack.main(argv)
            seconds = time.perf_counter() - start
            whole = Corpus(folder, [cfg.codec])
            (name,) = whole.tensors
            back = [whole[n][name].numpy() for n in range(len(features))]
            data = Corpus(folder, [cfg.codec], rows=cfg.rows)
            found.append(_row(cfg, "corpus", quality, folder, features, back, seconds, data))
    return found


def _forms(channels: int) -> Iterator[tuple[str, Callable, Callable]]:
    """Name, an array (T, C) -> bytes, and a file and rows -> array."""

    def half(path: Path, first: int, end: int) -> np.ndarray:
        with path.open("rb") as file:
            file.seek(2 * channels * first)
            data = file.read(2 * channels * (end - first))
        return np.frombuffer(data, np.float16).reshape(-1, channels).copy()

    def pressed(path: Path, first: int, end: int) -> np.ndarray:
        data = zstandard.ZstdDecompressor().decompress(path.read_bytes())
        return np.frombuffer(data, np.float16).reshape(-1, channels)[first:end].copy()

    def to_8(x: np.ndarray) -> bytes:
        values = torch.from_numpy(x.astype(np.float32))
        scale = values.abs().amax(1, keepdim=True).clamp(min=1e-12) / LARGEST
        coded = (values / scale).to(torch.float8_e4m3fn).view(torch.uint8)
        return torch.cat([scale.view(torch.uint8), coded], 1).numpy().tobytes()

    def from_8(path: Path, first: int, end: int) -> np.ndarray:
        with path.open("rb") as file:
            file.seek((channels + 4) * first)
            data = bytearray(file.read((channels + 4) * (end - first)))
        rows = torch.frombuffer(data, dtype=torch.uint8).view(-1, channels + 4)
        scale = rows[:, :4].contiguous().view(torch.float32)
        return (rows[:, 4:].contiguous().view(torch.float8_e4m3fn).float() * scale).numpy()

    yield "float16", lambda x: _half(x).tobytes(), half
    yield (
        "float16, zstd",
        lambda x: zstandard.ZstdCompressor().compress(_half(x).tobytes()),
        pressed,
    )
    yield "float8", to_8, from_8


def _half(x: np.ndarray) -> np.ndarray:
    limit = np.finfo(np.float16).max
    return np.clip(x, -limit, limit).astype(np.float16)


def _row(
    cfg: BenchConfig,
    name: str,
    quality: float | None,
    folder: Path,
    features: list[np.ndarray],
    back: list[np.ndarray],
    seconds: float,
    data: Dataset,
) -> CorpusRow:
    errors = TokenErrors()
    for x in features:
        errors.add(x)
    pairs = zip(features, back, strict=True)
    error = float(np.mean([errors.error(x, x_hat[None, None]) for x, x_hat in pairs]))
    points = sum(x.size for x in features)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".json")
    read = " ".join(f"{workers}: {_speed(cfg, data, workers):.3g}" for workers in cfg.workers)
    return CorpusRow(name, quality, 8 * size / points, error, points / seconds / 1e6, read)


def _speed(cfg: BenchConfig, data: Dataset, workers: int) -> float:
    """Million points per second of a loader's second pass, its workers running."""
    loader = DataLoader(
        data, cfg.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    for _ in range(2):
        start, points = time.perf_counter(), 0
        for batch in loader:
            points += sum(
                x.numel() for x in batch.values() if isinstance(x, torch.Tensor) and x.ndim > 1
            )
        seconds = time.perf_counter() - start
    return points / seconds / 1e6
