"""Rate and distortion of a codec: ``python evaluate.py --codec DIR --features DIR --output DIR``.

Every feature is encoded to a bitstream file, and decoded from that file alone. The output holds
``bitstreams/*.ufc``, ``decoded/*.npy``, ``rate.csv`` (one row a feature), ``summary.json`` (pooled
figures and per-file means) and ``run.json``. A killed run goes on where it ended.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coding import config, files, records
from coding.bitstream import SUFFIX, unpack
from coding.codec import Codec
from coding.errors import UserError
from coding.feature import Moments, list_features, points, read_feature, write_feature
from coding.options import RateOptions, progress
from coding.overlap import overlap
from coding.paths import BITSTREAMS, DECODED, RATE_CSV, RUN_JSON, SUMMARY_JSON


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


def evaluate(cfg: EvaluateConfig) -> dict[str, float | int]:
    """Code every feature -> the summary, as in ``summary.json``.

    Raises:
        FeatureError, FileNotFoundError, UserError: as the codec API; the message names the file.
    """
    paths = list_features(cfg.features)
    codec = cfg.load_for(paths, cfg.kind, cfg.published)
    table = cfg.output / RATE_CSV
    done = _finished_rows(cfg, codec)
    if (
        not done
    ):  # before this run's record appears, so that no later run takes old rows for its own
        for stale in (table, cfg.output / SUMMARY_JSON):
            stale.unlink(missing_ok=True)
    run = records.Run(cfg.output, cfg, identity=codec.identity)
    rows = []
    moments = Moments()

    def code(path: Path, feature: np.ndarray) -> tuple[records.RateRow, np.ndarray | None]:
        moments.add(feature)
        row = done.get(path.stem)
        if row is None or row.points != points(feature.shape) or _is_newer(path, cfg):
            return _code(codec, path, feature, cfg)
        return row, None

    # one coder: seconds of a feature that is coded alone
    coded = overlap(paths, read_feature, code)
    for path, (row, decoded) in progress(coded, "evaluate", len(paths)):
        rows.append(row)
        if decoded is not None:
            write_feature(cfg.output / DECODED / f"{path.stem}.npy", decoded)
            records.write_rows(table, rows)
    records.write_rows(table, rows)
    summary = records.summarise(rows, moments.variance)
    files.write_json(cfg.output / SUMMARY_JSON, summary)
    run.finish(summary=summary)
    return summary


def _code(
    codec: Codec, path: Path, feature: np.ndarray, cfg: EvaluateConfig
) -> tuple[records.RateRow, np.ndarray]:
    """Encode one feature to its file, decode it from the file, measure -> row and decoded feature."""
    stream = cfg.output / BITSTREAMS / f"{path.stem}{SUFFIX}"
    start = time.perf_counter()
    try:
        data = codec.encode(feature, cfg.kind)
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
    row = records.RateRow(
        path.stem, count, size, 8 * size / count, float(np.mean(error**2)), encode_s, decode_s
    )
    return row, decoded


def _finished_rows(cfg: EvaluateConfig, codec: Codec) -> dict[str, records.RateRow]:
    """Rows of a run that was killed, of the same config and codec, whose files are there."""
    table, run = cfg.output / RATE_CSV, cfg.output / RUN_JSON
    if not table.is_file() or not run.is_file():
        return {}
    values = files.read_json(run)
    if values.get("identity") != codec.identity or values["config"] != records.config_values(cfg):
        return {}
    return {
        row.name: row
        for row in records.read_rate(table)
        if (cfg.output / BITSTREAMS / f"{row.name}{SUFFIX}").is_file()
        and (cfg.output / DECODED / f"{row.name}.npy").is_file()
    }


def _is_newer(path: Path, cfg: EvaluateConfig) -> bool:
    """Whether a feature was written after its bitstream."""
    stream = cfg.output / BITSTREAMS / f"{path.stem}{SUFFIX}"
    return path.stat().st_mtime > stream.stat().st_mtime


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(EvaluateConfig, argv, __doc__)
        summary = evaluate(cfg)
        for key, value in summary.items():
            print(f"{key:12s} {value:.6g}" if isinstance(value, float) else f"{key:12s} {value}")


if __name__ == "__main__":
    main()
