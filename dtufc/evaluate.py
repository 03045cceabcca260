"""Rate and distortion of a codec: ``python evaluate.py --codec DIR --features DIR --output DIR``.

Every feature is encoded to a bitstream file, and decoded from that file alone. The output holds
``bitstreams/*.ufc``, ``decoded/*.npy``, ``rate.csv`` (one row per feature), ``summary.json`` (pooled
figures and per-file means) and ``run.json``. A killed run goes on where it ended, and after a change
only what depends on it is coded again.

With a codec of states (:mod:`dtufc.many`), the folder of features holds a folder per tensor, and so does
``decoded/``. ``bitstreams/*.ufs`` has one stream file per state, ``tensors.csv`` one row per tensor.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dtufc import config, files, kl_curve, locks, provenance, rate, records
from dtufc.bitstream import SUFFIX, unpack
from dtufc.codec import CONFIG_JSON, Codec, codec_digest
from dtufc.errors import UserError
from dtufc.feature import (
    Moments,
    list_features,
    load_facts,
    points,
    read_feature,
    write_feature,
)
from dtufc.memory import keep_memory
from dtufc.options import RateOptions, progress
from dtufc.overlap import overlap
from dtufc.paths import BITSTREAMS, DECODED, RATE_CSV, RUN_JSON, SUMMARY_JSON
from dtufc.shipped import codec_folder, describe_codec
from dtufc.stamps import Stamp, digest_file, digest_files, read_stamp
from dtufc.states import is_state_codec
from dtufc.token_error import TokenErrors, count_tokens

IDLE = ("codec", "features", "output", "mapping", "machine", "device", "labels")
"""Fields that do not decide results: places, devices, and what is in the stamp by its content."""
LATER = ("per_file", "max_bytes", "target_kl")
"""Fields that earlier versions lacked: in a stamp only where they are set, so that the results of
earlier versions stay current."""
ROWS_PERIOD = 1
"""Seconds between writes of the rows so far: what a kill loses at most, beside one feature."""
FEATURES = "features/"
"""In front of the names of features in a stamp."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(RateOptions):
    """Coding of a folder of features, measured."""

    features: Path
    """Folder of .npy features."""
    output: Path
    """Folder of the results."""
    kind: str | None = None
    """<model>_<task>, where the codec knows several kinds that the features fit."""
    published: bool = False
    """Code and count as the published evaluation does: zero padding on all sides, CompressAI's own
    strings, and no rate for headers. The assignment is the mapping's (published: left)."""
    labels: dict[str, Any] = field(default_factory=dict)
    """What tables and the report say of the codec: codec, trained_on, transform, lambda_value, quality,
    seed, options. What is left out comes from the codec folder."""

    def stamp(self) -> Stamp:
        """Of the results that coding would give now; its inputs are codec, mapping and features.

        Raises:
            FileNotFoundError, FeatureError: one of them is missing.
        """
        if is_state_codec(self.codec):
            from dtufc.many.evaluate import stamp_of

            return stamp_of(self)
        values = {k: v for k, v in provenance.config_values(self).items() if k not in IDLE}
        values = {k: v for k, v in values.items() if v or k not in LATER}
        inputs = {"codec": codec_digest(self.codec)}
        if self.target_kl is not None:
            curve = codec_folder(self.codec) / kl_curve.FILE
            inputs["kl_curve"] = digest_file(curve) if curve.is_file() else ""
        if self.mapping is not None and self.machine is not None:
            values["facts"] = load_facts(self.machine).decides()
            inputs["mapping"] = digest_file(self.mapping)
        return Stamp(values, inputs | digest_files(list_features(self.features), FEATURES))

    def why_not_made(self) -> str | None:
        """Why the features must be coded, in words; ``None`` if the results are there and current."""
        if why := provenance.why_not_made(self.output, self.stamp()):
            return why
        return None if (self.output / SUMMARY_JSON).is_file() else "not finished"


def evaluate(cfg: EvaluateConfig) -> dict[str, float | int]:
    """Code every feature -> the summary, as in ``summary.json``.

    Raises:
        FeatureError, FileNotFoundError, UserError: as the codec API; the message names the file. Or
            results would replace files that are not results.
    """
    if is_state_codec(cfg.codec):
        from dtufc.many.evaluate import evaluate_states

        return evaluate_states(cfg)
    paths = list_features(cfg.features)
    decoded = cfg.output / DECODED
    if paths[0].parent.resolve() == decoded.resolve():
        raise UserError(f"output: the results would replace the features in {paths[0].parent}")
    if any(decoded.glob("*.npy")) and not (cfg.output / RUN_JSON).is_file():
        raise UserError(f"output: {decoded} holds features, but no run of evaluate.py made them")
    codec = cfg.load_for(paths, cfg.kind, cfg.published)
    with locks.hold(cfg.output):
        return _evaluate(cfg, codec, paths)


def _evaluate(cfg: EvaluateConfig, codec: Codec, paths: Sequence[Path]) -> dict[str, float | int]:
    stamp, table = cfg.stamp(), cfg.output / RATE_CSV
    done = finished_rows(cfg.output, stamp)
    clear_stale(cfg.output, done)
    run = provenance.Run(cfg.output, cfg, stamp, labels=describe(cfg))
    rows, written = [], time.perf_counter()
    moments = Moments()
    tokens = TokenErrors() if _is_of_tokens(codec, cfg.kind) else None

    def code(path: Path, feature: np.ndarray) -> tuple[records.RateRow, np.ndarray | None]:
        moments.add(feature)
        if tokens:
            tokens.add(feature)
        if path.stem in done:
            return done[path.stem], None
        return _code(codec, path, feature, cfg)

    # one coder: seconds of a feature that is coded alone
    coded = overlap(paths, read_feature, code)
    try:
        for path, (row, decoded) in progress(coded, "evaluate", len(paths)):
            if decoded is not None:
                write_feature(cfg.output / DECODED / f"{path.stem}.npy", decoded)
            rows.append(row)
            if time.perf_counter() - written > ROWS_PERIOD:
                records.write_rows(table, rows)
                written = time.perf_counter()
            run.update()
    except BaseException:
        if rows:
            records.write_rows(table, rows)
        raise
    if tokens:
        rows = [
            _with_token_error(cfg, tokens, path, row) for path, row in zip(paths, rows, strict=True)
        ]
    records.write_rows(table, rows)
    summary = records.summarise(rows, moments.variance)
    files.write_json(cfg.output / SUMMARY_JSON, summary)
    run.finish(summary=summary)
    return summary


def _is_of_tokens(codec: Codec, kind: str | None) -> bool:
    """Whether what is coded has tokens, as far as the codec tells."""
    asked = [facts for facts in codec.known if kind in (None, facts.kind)]
    return bool(asked) and not any(facts.views.is_map for facts in asked)


def _with_token_error(
    cfg: EvaluateConfig, tokens: TokenErrors, path: Path, row: records.RateRow
) -> records.RateRow:
    """The row with the error that takes the mean of all features, and so comes last."""
    x, x_hat = read_feature(path), read_feature(cfg.output / DECODED / f"{path.stem}.npy")
    return replace(row, tokens=count_tokens(x.shape), token_error=tokens.error(x, x_hat))


def describe(cfg: EvaluateConfig) -> dict[str, Any]:
    """The labels of a run: those given, and for the others what the codec folder says."""
    folder = codec_folder(cfg.codec)
    told = describe_codec(folder)
    made_by = files.read_json(folder / CONFIG_JSON).get("made_by") or {}
    training = made_by.get("train") or {}
    one = told.kinds[0] if len(told.kinds) == 1 else None
    found = {
        "codec": told.codec,
        "kind": cfg.kind or one,
        "trained_on": told.trained_on,
        "transform": "",
        "lambda_value": training.get("lambda_value"),
        "quality": cfg.quality,
        "seed": training.get("seed", made_by.get("seed", 0)),
        "options": {},
    }
    return found | told.labels | cfg.labels


def _code(
    codec: Codec, path: Path, feature: np.ndarray, cfg: EvaluateConfig
) -> tuple[records.RateRow, np.ndarray]:
    """Encode one feature to its file, decode it from the file, measure -> row and decoded feature."""
    stream = cfg.output / BITSTREAMS / f"{path.stem}{SUFFIX}"
    start = time.perf_counter()
    try:
        data, quality = rate.encode(codec, feature, cfg.kind, cfg.each)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error
    encode_s = time.perf_counter() - start
    files.write_bytes(stream, data)
    data = stream.read_bytes()
    start = time.perf_counter()
    decoded = codec.decode(data)
    decode_s = time.perf_counter() - start
    size = unpack(data).payload_size if cfg.published else len(data)
    count = points(feature.shape)
    error = decoded.astype(np.float64) - feature
    mse = float(np.mean(error**2))
    row = records.RateRow(
        path.stem, count, size, 8 * size / count, mse, encode_s, decode_s, quality
    )
    return row, decoded


def finished_rows(
    output: Path, stamp: Stamp, tensors: Sequence[str] = ("",), suffix: str = SUFFIX
) -> dict[str, records.RateRow]:
    """Rows of an earlier run by the same config and codec, of features that are as they were.

    Args:
        tensors: names of the folders of each tensor. suffix: of the files of bytes.
    """
    table, known = output / RATE_CSV, read_stamp(output / RUN_JSON)
    if known is None or known.config != stamp.config or not table.is_file():
        return {}
    same = {name for name, digest in stamp.inputs.items() if known.inputs.get(name) == digest}
    if any(not name.startswith(FEATURES) for name in stamp.inputs.keys() - same):
        return {}

    def is_there(name: str) -> bool:
        return (output / BITSTREAMS / f"{name}{suffix}").is_file() and all(
            f"{FEATURES}{Path(tensor, name)}.npy" in same
            and (output / DECODED / tensor / f"{name}.npy").is_file()
            for tensor in tensors
        )

    return {row.name: row for row in records.read_rate(table) if is_there(row.name)}


def clear_stale(
    output: Path,
    done: dict[str, records.RateRow],
    tensors: Sequence[str] = ("",),
    suffix: str = SUFFIX,
) -> None:
    """Leave only what belongs to finished rows, before a new stamp vouches for it."""
    (output / SUMMARY_JSON).unlink(missing_ok=True)
    if done:
        records.write_rows(output / RATE_CSV, done.values())
    else:
        (output / RATE_CSV).unlink(missing_ok=True)
    patterns = [f"{BITSTREAMS}/*{suffix}"]
    patterns += [f"{DECODED}/{Path(tensor)}/*.npy" for tensor in tensors]
    for pattern in patterns:
        for path in output.glob(pattern):
            if path.stem not in done:
                path.unlink()


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        cfg = config.parse(EvaluateConfig, argv, __doc__)
        summary = evaluate(cfg)
        for key, value in summary.items():
            print(f"{key:12s} {value:.6g}" if isinstance(value, float) else f"{key:12s} {value}")


if __name__ == "__main__":
    main()
