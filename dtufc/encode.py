"""Encode features: ``python encode.py --codec DIR --input FILE_OR_DIR --output DIR``.

Writes one bitstream ``<name>.ufc`` per feature ``<name>.npy``. What is already there is made again.

With a codec of states (:mod:`dtufc.many`), the input is a folder of states: a folder per tensor
(``k0/<sample>.npy``), a file per tensor (``k0.npy``), or an ``.npz`` per state; or one ``.npz``. Each
state becomes one stream file ``<sample>.ufs``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dtufc import config, files, locks, rate
from dtufc.bitstream import SUFFIX
from dtufc.errors import UserError
from dtufc.feature import list_features, points, read_feature
from dtufc.memory import keep_memory
from dtufc.options import RateOptions, progress
from dtufc.overlap import check_coders, overlap
from dtufc.states import is_state_codec


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(RateOptions):
    """Feature files to bitstreams."""

    input: Path
    """A feature .npy, or a folder of them; of states, an .npz or a folder."""
    output: Path
    """Folder of the bitstreams."""
    kind: str | None = None
    """<model>_<task>, where the codec knows several kinds that the features fit."""
    coders: int = 2
    """Features coded at once: the entropy coding of one overlaps the networks of the next."""

    def __post_init__(self):
        super().__post_init__()
        check_coders(self.coders)


def encode(cfg: EncodeConfig) -> None:
    """Encode every feature.

    Raises:
        FeatureError, FileNotFoundError, UserError: as the codec API; the message names the file.
    """
    if is_state_codec(cfg.codec):
        from dtufc.many.coding import encode_states

        encode_states(cfg)
        return
    paths = list_features(cfg.input)
    codec, each = cfg.load_for(paths, cfg.kind), cfg.each
    total_bytes = total_points = most = 0

    def code(path: Path, feature: np.ndarray) -> tuple[bytes, int]:
        try:
            return rate.encode(codec, feature, cfg.kind, each).data, points(feature.shape)
        except UserError as error:
            raise type(error)(f"{path}: {error}") from error

    with locks.hold(cfg.output):
        coded = overlap(paths, read_feature, code, cfg.coders)
        for path, (data, count) in progress(coded, "encode", len(paths)):
            files.write_bytes(cfg.output / f"{path.stem}{SUFFIX}", data)
            total_bytes, total_points = total_bytes + len(data), total_points + count
            most = max(most, 8 * len(data) / count)
    pooled = 8 * total_bytes / total_points
    print(f"{total_bytes} bytes, {pooled:.4f} bpfp, {most:.4f} at most in a file -> {cfg.output}")


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        encode(config.parse(EncodeConfig, argv, __doc__))


if __name__ == "__main__":
    main()
