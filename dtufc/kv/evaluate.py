"""The work of :mod:`dtufc.kv.evaluate_kv`."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dtufc import files, provenance
from dtufc.devices import check_device
from dtufc.errors import UserError
from dtufc.kv.caches import read_cache
from dtufc.kv.capture import Language, continue_from, fill_cache, open_language, read_windows
from dtufc.kv.codec import KvCodec
from dtufc.kv.evaluate_kv import KvEvalConfig
from dtufc.kv.rivals import BACKENDS, Rival, rivals, why_not
from dtufc.paths import RUN_JSON
from dtufc.records import write_rows

QUALITIES = [half / 2 for half in range(-2, 9)]
BROKEN = (ImportError, OSError, RuntimeError, ValueError)
"""What a library raises that is installed, and does not work here."""
RAW_BITS = 16
"""Per value of a cache in bfloat16, which ratios are to."""


@dataclass(frozen=True)
class KvRow:
    """One codec at one rate."""

    codec: str
    quality: float | None
    focus: float | None
    """How far steps follow tokens' importances."""
    bits: float
    """Per value of the cache; of ``kv``, all bytes counted."""
    ratio: float
    """16 bits over ``bits``."""
    kl: float
    """Divergence of the next-token distribution from that with the exact cache, nats per token."""
    kl_error: float | None
    """Standard error of ``kl`` over the windows."""
    perplexity: float
    agreement: float
    """Share of tokens whose likeliest next token is that with the exact cache."""
    tokens: int
    """Judged."""


@dataclass(frozen=True)
class KvRecord(KvRow):
    """A row with all that tells where it comes from: what ``--output`` writes."""

    machine: str
    windows: int
    """Of the text."""
    window: int
    """Tokens of each."""
    prompt: int
    """Those whose cache is coded."""
    dtype: str
    device: str
    threads: str
    cores: int | None
    processor: str
    revision: str
    """Of the code that judged."""
    fitted: str
    """Revision of the code that fitted the codec; empty where no codec is fitted, as below."""
    fit_windows: int | None
    """Windows of text that it was fitted to."""
    fit_probed: int | None
    """Those of them whose gradients were taken."""
    seed: int | None
    """Of the fit."""


@dataclass
class Sums:
    """What adds up over the windows."""

    bytes: int = 0
    points: int = 0
    tokens: int = 0
    nll: float = 0.0
    same: int = 0
    kls: list[float] = field(default_factory=list)
    """Of each window, mean over its tokens."""

    def add(self, coded: Tensor, exact: Tensor, targets: Tensor) -> None:
        """Log-probabilities (T, vocabulary) and the tokens (T,) that follow in the text."""
        self.tokens += len(targets)
        self.nll -= float(coded.gather(1, targets[:, None]).double().sum())
        self.same += int((coded.argmax(1) == exact.argmax(1)).sum())
        kl = torch.nn.functional.kl_div(coded, exact, reduction="none", log_target=True)
        self.kls.append(float(kl.double().sum()) / len(targets))

    def row(
        self,
        codec: str,
        quality: float | None = None,
        focus: float | None = None,
        bits: float | None = None,
    ) -> KvRow:
        """The table's row; bits per value are counted where they are not given."""
        bits = 8 * self.bytes / self.points if bits is None else bits
        kls = torch.tensor(self.kls, dtype=torch.float64)
        error = float(kls.std() / math.sqrt(len(kls))) if len(kls) > 1 else None
        perplexity = math.exp(min(self.nll / self.tokens, 700))
        return KvRow(
            codec, quality, focus, bits, RAW_BITS / bits, float(kls.mean()), error, perplexity,
            self.same / self.tokens, self.tokens,
        )  # fmt: skip


def evaluate(cfg: KvEvalConfig) -> tuple[list[KvRow], list[str]]:
    """All rows, which are written where the configuration says, and what is to be said beside them.

    Raises:
        FileNotFoundError, UserError: no such model, codec or text, or they do not fit each other.
    """
    check_device(cfg.device)
    codec = KvCodec.load(cfg.codec).at(**cfg.settings())
    language = open_language(cfg.machine, cfg.dtype, cfg.device)
    if language.layers != codec.model.layers:
        raise UserError(f"codec: {cfg.codec} was fitted to caches of another model")
    windows = read_windows(language, cfg.texts, cfg.window, cfg.windows)
    qualities = QUALITIES if cfg.qualities is None else cfg.qualities
    others = list(rivals(language.model.config)) if cfg.rivals else []
    focuses = [codec.settings.focus] if cfg.focus is None else cfg.focus
    uncoded, coded = Sums(), {(q, f): Sums() for f in focuses for q in qualities}
    beside = {rival.name: Sums() for rival in others}
    broken: dict[str, str] = {}
    for ids in tqdm(windows, desc="windows"):
        judge = Judge(language, ids, cfg.prompt)
        uncoded.add(judge.exact, judge.exact, judge.targets)
        for (quality, focus), sums in coded.items():
            data = codec.at(quality=quality, focus=focus).encode_cache(judge.cache)
            sums.bytes += len(data)
            sums.points += judge.points
            judge.score(codec.decode_cache(data, device=language.device), sums)
        for rival in [each for each in others if each.name not in broken]:
            try:
                cache = judge.rival(rival)
            except BROKEN as error:  # of its library, which may lack a compiler
                broken[rival.name] = " ".join(str(error).split())[:200]
            else:
                judge.score(cache, beside[rival.name])
    rows = [uncoded.row("exact", bits=RAW_BITS)]
    rows += [sums.row("kv", *settings) for settings, sums in coded.items()]
    said = _missing(language) if cfg.rivals else []
    said += [f"{name} is left out: it does not run here ({why})" for name, why in broken.items()]
    for rival in [each for each in others if each.name not in broken]:
        row = beside[rival.name].row(rival.name, bits=rival.bits)
        if math.isfinite(row.kl):
            rows.append(row)
        else:
            said.append(f"{rival.name} is left out: it gives distributions that are not finite")
    if cfg.output is not None:
        write_rows(cfg.output, _records(cfg, rows))
    return rows, said


def _records(cfg: KvEvalConfig, rows: Sequence[KvRow]) -> list[KvRecord]:
    """The rows with what they come from."""
    record = cfg.codec / RUN_JSON
    fit = files.read_json(record) if record.is_file() else {}
    made_by = fit.get("config", {})
    fitted = {
        "fitted": fit["processes"][-1].get("revision") or "" if fit else "",
        "fit_windows": made_by.get("windows"),
        "fit_probed": made_by.get("probed"),
        "seed": made_by.get("seed"),
    }
    none = {"fitted": "", "fit_windows": None, "fit_probed": None, "seed": None}
    shared = {
        "machine": Path(cfg.machine).name,
        **{name: getattr(cfg, name) for name in ("windows", "window", "prompt", "dtype", "device")},
        **provenance.computer(provenance.environment()),
    }
    return [
        KvRecord(**asdict(row), **shared, **(fitted if row.codec == "kv" else none)) for row in rows
    ]


def _missing(language: Language) -> list[str]:
    told = {
        name: why_not(language.model.config, {"backend": name, **axes})
        for name, axes in BACKENDS.items()
    }
    return [
        f"QuantizedCache with {name} is not among them: {why}" for name, why in told.items() if why
    ]


class Judge:
    """One window: its exact cache, and what the model says behind it."""

    def __init__(self, language: Language, ids: Sequence[int], prompt: int):
        self.language, self.prompt, self.rest = language, ids[:prompt], ids[prompt:]
        self.cache = fill_cache(language, self.prompt, config=True)
        self.points = read_cache(self.cache).points
        self.targets = torch.tensor(self.rest[1:], device=language.device)
        self.exact = continue_from(language, copy.deepcopy(self.cache), self.rest)

    def score(self, cache: Any, sums: Sums) -> None:
        """Read on from a cache, which is used up."""
        sums.add(continue_from(self.language, cache, self.rest), self.exact, self.targets)

    def rival(self, rival: Rival) -> Any:
        """The cache that a rival makes of the prompt."""
        return rival.make(read_cache(self.cache), self._filler())

    def _filler(self) -> Callable[[Any], Any]:
        @torch.inference_mode()
        def fill(cache: Any) -> Any:
            inputs = torch.tensor([self.prompt], device=self.language.device)
            self.language.model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return cache

        return fill
