"""The work of ``bench_streams.py``."""

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_streams import BenchConfig

from dtufc.codec import Codec, ExtraKind, load_codec
from dtufc.feature import FeatureFacts, list_features, load_facts
from dtufc.handcrafted import fit_handcrafted
from dtufc.paths import DataRoot
from dtufc.registry import find_codec
from dtufc.shipped import codec_folder, describe_codec, pretrained
from dtufc.streams import StreamDecoder, Tensor, open_session
from dtufc.token_error import TokenErrors

HANDCRAFTED = ("int", "cast", "jpegxl", "hevc")
WARM = 3
"""First appends that are not timed."""


@dataclass(frozen=True)
class StreamRow:
    """One codec at one number of tokens per append."""

    codec: str
    quality: float | None
    tokens: int
    bytes_per_token: float
    """Of a session, checks and all."""
    beside: float
    """Bytes of a frame beside its payload."""
    version1: float
    """Bytes per token of a file of version 1 of the same tokens."""
    nmse: float
    token_error: float
    """Relative error per token."""
    encode_ms: float
    """Of processor time per append, median."""
    decode_ms: float


def bench(cfg: BenchConfig) -> list[StreamRow]:
    """Measure every codec."""
    torch.set_num_threads(1)
    for name in cfg.quality or {}:
        find_codec(name, "quality")
    facts = load_facts(cfg.machine)
    root = DataRoot(cfg.root).feature(facts.model, facts.task)
    paths = list_features(root.feature_test)
    counts = cfg.tokens or [1, 8, 64]
    features = [facts.read(path) for path in paths]
    errors = TokenErrors()
    for feature in features:
        errors.add(feature)
    x = np.concatenate(features, axis=2)
    wanted = max(counts) * cfg.appends
    x = np.tile(x, (1, 1, -(-wanted // x.shape[2]), 1))  # a short test set is read again
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, codec in _codecs(cfg, facts, root.feature_train / "train", Path(scratch)):
            rows += [_measure(name, codec, facts, x, errors, count, cfg) for count in counts]
    return rows


def _codecs(
    cfg: BenchConfig, facts: FeatureFacts, train: Path, scratch: Path
) -> Iterator[tuple[str, Codec]]:
    """(name, codec at the asked quality), those that ship first."""
    if cfg.codecs is not None:
        for name in cfg.codecs:
            yield Path(name).name, _load(cfg, facts, codec_folder(name))
        return
    for name, folder in pretrained().items():
        if facts.kind in describe_codec(folder).kinds:
            yield name, _load(cfg, facts, folder)
    for name in HANDCRAFTED:
        argv = ["--codec", name, "--machine", cfg.machine, "--features", str(train)]
        with contextlib.redirect_stdout(io.StringIO()):
            fit_handcrafted.main([*argv, "--output", str(scratch / name)])
        yield name, _load(cfg, facts, scratch / name)


def _load(cfg: BenchConfig, facts: FeatureFacts, folder: Path) -> Codec:
    about = describe_codec(folder)
    foreign = facts.kind not in about.kinds and cfg.mapping is not None
    codec = load_codec(folder, kinds=[ExtraKind(cfg.machine, cfg.mapping)] if foreign else [])
    asked = (cfg.quality or {}).get(about.codec)
    return codec if asked is None else codec.at_quality(float(asked))


def _measure(
    name: str,
    codec: Codec,
    facts: FeatureFacts,
    x: np.ndarray,
    errors: TokenErrors,
    tokens: int,
    cfg: BenchConfig,
) -> StreamRow:
    appends = cfg.appends
    encoder = open_session({"x": Tensor(codec, facts.kind)}, continued=cfg.continued)
    decoder = StreamDecoder(codec)
    decoder.feed(encoder.start())
    size = payload = old = 0
    seconds = []
    squares = relative = 0.0
    last = None
    for number in range(appends):
        part = x[:, :, number * tokens : (number + 1) * tokens]
        started = time.process_time()
        frame = encoder.append({"x": part})
        between = time.process_time()
        decoded = decoder.feed(frame)["x"]
        ended = time.process_time()
        behind, last = codec.after(last if cfg.continued else None), decoded[:, :, -1:]
        if number < WARM:
            continue
        size, old = size + len(frame), old + len(codec.encode(part, facts.kind))
        payload += len(behind.encode_rows(part, facts.kind)[1])
        seconds.append((between - started, ended - between))
        squares += float(np.square(decoded.astype(np.float64) - part).sum())
        relative += errors.error(part, decoded)
    count = appends - WARM
    encode_s, decode_s = np.median(seconds, axis=0)
    used = x[:, :, WARM * tokens : appends * tokens]
    return StreamRow(
        codec=name,
        quality=codec.quality,
        tokens=tokens,
        bytes_per_token=size / count / tokens,
        beside=(size - payload) / count,
        version1=old / count / tokens,
        nmse=squares / used.size / float(used.var(dtype=np.float64)),
        token_error=relative / count,
        encode_ms=1e3 * float(encode_s),
        decode_ms=1e3 * float(decode_s),
    )
