"""Rate and distortion of a codec of states: what ``evaluate.py`` does where its codec is one.

Per sample there is one stream file, and one row in ``rate.csv``: the points and bytes of all tensors.
``tensors.csv`` has a row per tensor, over all samples. The pooled NMSE is the mean of the tensors' NMSE,
weighted by points.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtufc import files, locks, provenance, records
from dtufc.bitstream import STREAM_VERSION
from dtufc.errors import UserError
from dtufc.evaluate import FEATURES, ROWS_PERIOD, EvaluateConfig, clear_stale, finished_rows
from dtufc.feature import write_feature
from dtufc.many.codec import (
    StateCodec,
    TensorErrors,
    facts_of,
    load_state_codec,
    read_tensors_json,
    state_codec_digest,
)
from dtufc.many.options import TAKEN, at_rate, check_options
from dtufc.options import progress
from dtufc.paths import BITSTREAMS, DECODED, RATE_CSV, RUN_JSON, SUMMARY_JSON, TENSORS_CSV
from dtufc.records import RateRow
from dtufc.stamps import Stamp, digest_file
from dtufc.states import State, StateFacts, list_states, read_sample, sample_files, state_points
from dtufc.streams.writer import SUFFIX


@dataclass(frozen=True)
class TensorRow:
    """One tensor over all samples: a row of ``tensors.csv``."""

    name: str
    points: int
    bytes: int
    """Payloads and settings; what a file has beside them is in ``rate.csv`` alone."""
    bpfp: float
    """8 * bytes / points."""
    nmse: float
    """Squared error over the variance of the tensor's values."""
    quality: float | None
    """Of its codec; none where samples had qualities of their own."""


class States(Sequence):
    """The states of a folder, each read when it is asked for."""

    def __init__(self, facts: StateFacts, folder: Path, names: Sequence[str]):
        self.facts, self.folder, self.names = facts, folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> dict[str, np.ndarray]:
        return read_sample(self.facts, self.folder, self.names[place])


def stamp_of(cfg: EvaluateConfig) -> Stamp:
    """The stamp of the results that coding would give now.

    Raises:
        FileNotFoundError, FeatureError: codec or features are not there.
    """
    values = {key: getattr(cfg, key) for key in TAKEN if key not in ("codec", "device")}
    values["container"] = STREAM_VERSION
    tensors = list(read_tensors_json(Path(cfg.codec))["shifts"])
    facts = StateFacts("", "", dict.fromkeys(tensors))
    inputs = {"codec": state_codec_digest(cfg.codec)}
    for name in list_states(facts, cfg.features):
        for path in sample_files(facts, cfg.features, name):
            inputs[f"{FEATURES}{path.relative_to(cfg.features)}"] = digest_file(path)
    return Stamp(files.jsonable(values), inputs)


def evaluate_states(cfg: EvaluateConfig) -> dict[str, float | int]:
    """Code every state -> the summary, as in ``summary.json``.

    Raises:
        FeatureError, FileNotFoundError, UserError: as :func:`dtufc.evaluate.evaluate`.
    """
    check_options(cfg)
    _check_output(cfg)
    codec = load_state_codec(cfg.codec, cfg.device)
    facts = facts_of(codec)
    states = States(facts, cfg.features, list_states(facts, cfg.features))
    codec = at_rate(cfg, codec, states)
    with locks.hold(cfg.output):
        return _evaluate(cfg, codec, facts, states)


def _check_output(cfg: EvaluateConfig) -> None:
    """Refuse to replace features that are no results.

    Raises:
        UserError: the output holds such.
    """
    if cfg.features.resolve() == (cfg.output / DECODED).resolve():
        raise UserError(f"output: the results would replace the features in {cfg.features}")
    decoded = cfg.output / DECODED
    if any(decoded.glob("*/*.npy")) and not (cfg.output / RUN_JSON).is_file():
        raise UserError(f"output: {decoded} holds features, but no run of evaluate.py made them")


def _evaluate(
    cfg: EvaluateConfig, codec: StateCodec, facts: StateFacts, states: States
) -> dict[str, float | int]:
    stamp, tensors = cfg.stamp(), list(facts.tensors)
    done = finished_rows(cfg.output, stamp, tensors, SUFFIX)
    clear_stale(cfg.output, done, tensors, SUFFIX)
    run = provenance.Run(cfg.output, cfg, stamp, labels=_labels(cfg, facts))
    rows, written = [], time.perf_counter()
    errors = TensorErrors(facts.tensors)
    for place, name in progress(enumerate(states.names), "evaluate", len(states)):
        state = states[place]
        if name in done:
            rows.append(done[name])
        else:
            rows.append(_code(codec, name, state, cfg))
        errors.add(state, read_sample(facts, cfg.output / DECODED, name))
        if time.perf_counter() - written > ROWS_PERIOD:
            records.write_rows(cfg.output / RATE_CSV, rows)
            written = time.perf_counter()
        run.update()
    records.write_rows(cfg.output / RATE_CSV, rows)
    records.write_rows(cfg.output / TENSORS_CSV, _tensor_rows(cfg, codec, errors, states.names))
    summary = records.summarise(rows, 0.0) | {"nmse_pooled": errors.nmse}
    files.write_json(cfg.output / SUMMARY_JSON, summary)
    run.finish(summary=summary)
    return summary


def _code(codec: StateCodec, name: str, state: State, cfg: EvaluateConfig) -> RateRow:
    """Encode one state to its files, decode it from them, measure, write what was decoded."""
    start = time.perf_counter()
    try:
        coded = codec.encode_within(state, cfg.each)
    except UserError as error:
        raise type(error)(f"{name}: {error}") from error
    encode_s = time.perf_counter() - start
    path = cfg.output / BITSTREAMS / f"{name}{SUFFIX}"
    files.write_bytes(path, coded.data)
    data = path.read_bytes()
    start = time.perf_counter()
    decoded = codec.decode(data)
    decode_s = time.perf_counter() - start
    for tensor, x in decoded.items():
        write_feature(cfg.output / DECODED / tensor / f"{name}.npy", x)
    squares = sum(float(np.sum((decoded[t].astype(np.float64) - x) ** 2)) for t, x in state.items())
    count, size = state_points(state), len(data)
    return RateRow(
        name, count, size, 8 * size / count, squares / count, encode_s, decode_s, coded.quality
    )


def _tensor_rows(
    cfg: EvaluateConfig, codec: StateCodec, errors: TensorErrors, names: Sequence[str]
) -> list[TensorRow]:
    sizes = dict.fromkeys(codec.codecs, 0)
    for name in names:
        data = (cfg.output / BITSTREAMS / f"{name}{SUFFIX}").read_bytes()
        for tensor, size in codec.sizes(data).items():
            sizes[tensor] += size
    rows = []
    for tensor, size in sizes.items():
        count = errors.moments[tensor].count
        quality = codec.codecs[tensor].quality if cfg.each.is_none else None
        rows.append(
            TensorRow(tensor, count, size, 8 * size / count, errors.nmse_of(tensor), quality)
        )
    return rows


def _labels(cfg: EvaluateConfig, facts: StateFacts) -> dict[str, Any]:
    """What tables say of the run: those given, and for the others what the codec folder says."""
    found = {
        "codec": read_tensors_json(Path(cfg.codec)).get("codec"),
        "kind": facts.kind,
        "trained_on": facts.task,
        "transform": "",
        "lambda_value": None,
        "quality": cfg.quality,
        "seed": 0,
        "options": {},
    }
    return found | cfg.labels
