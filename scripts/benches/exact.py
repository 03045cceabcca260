"""The work of ``bench_exact.py``."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_exact import TrialConfig
from benches.codec import make_codec
from tqdm import tqdm

from dtufc.codec import BitstreamError, load_codec
from dtufc.CompressAI.codec import LearnedCodec
from dtufc.CompressAI.frozen import FloatNets
from dtufc.CompressAI.models import MODELS, PUBLISHED_NAMES
from dtufc.feature import FeatureFacts


@dataclass(frozen=True)
class TrialRow:
    """One codec and one way to the entropy parameters."""

    codec: str
    parameters: str
    settings: int
    decoded: int
    """Bitstreams times settings they were decoded under."""
    failed: int


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


SETTINGS = {
    "one thread": lambda: threads(1),
    "two threads": lambda: threads(2),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def trial(folder: Path, count: int) -> list[TrialRow]:
    """Encode and decode ``count`` features under all pairs of settings, with both kinds of networks."""
    places = {"cpu": load_codec(folder), "rows first": load_codec(folder)}
    places["rows first"].model.to(memory_format=torch.contiguous_format)
    if torch.cuda.is_available():
        places["cuda"] = load_codec(folder, device="cuda")
    frozen = {name: codec.nets for name, codec in places.items()}
    facts = next(iter(places["cpu"].kinds.values())).facts
    pairs = list(itertools.product(SETTINGS, places))
    rows = []
    for parameters in ("float", "exact"):
        for name, codec in places.items():
            codec.nets = frozen[name] if parameters == "exact" else FloatNets(codec.model)
        decoded = failed = 0
        for number in tqdm(range(count), desc=f"{folder.name}, {parameters}", mininterval=1):
            x = _feature(facts, number)
            setting, place = pairs[number % len(pairs)]
            with SETTINGS[setting]():
                data = places[place].encode(x, facts.kind)
            for other, there in pairs:
                decoded += 1
                failed += not _decodes(places[there], data, other)
        name = type(places["cpu"].model).__name__.lower()
        rows.append(TrialRow(name, parameters, len(pairs), decoded, failed))
    return rows


def _decodes(codec: LearnedCodec, data: bytes, setting: str) -> bool:
    try:
        with SETTINGS[setting]():
            codec.decode(data)
    except BitstreamError:
        return False
    return True


def _feature(facts: FeatureFacts, number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    free = iter((64 + 8 * (number % 9), 128))  # sizes that the kind leaves open
    shape = [next(free, 1) if size is None else size for size in facts.shape]
    return rng.standard_normal(shape).astype(facts.dtype)


def run(cfg: TrialConfig) -> list[TrialRow]:
    """The trial of one codec, or of both."""
    if cfg.codec:
        return trial(cfg.codec, cfg.features)
    rows = []
    for name in PUBLISHED_NAMES.values():
        with tempfile.TemporaryDirectory() as folder:
            make_codec(Path(folder), name, MODELS[name].arch_class())
            rows += trial(Path(folder), cfg.features)
    return rows
