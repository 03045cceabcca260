"""Freeze a codec: the integers by which its symbols are coded on every device alike.

    python freeze.py --checkpoint CODEC --output FOLDER
    python freeze.py --checkpoint CODEC --output FOLDER --features DIR

Training ends with it, so that codec folders are frozen already; this serves those written before, and
ranges that shall be found on features of one's own. With features it also codes them with the float
networks and with the integers, and prints what freezing costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dtufc import config
from dtufc.codec import load_codec
from dtufc.CompressAI.checkpoint import load_kinds, load_model, write_codec
from dtufc.CompressAI.codec import LearnedCodec
from dtufc.CompressAI.frozen import FloatNets
from dtufc.errors import UserError
from dtufc.feature import list_features, read_feature
from dtufc.memory import keep_memory
from dtufc.options import progress


@dataclass(frozen=True)
class FreezeConfig:
    """Freezing of one codec."""

    checkpoint: Path
    """Codec folder with the float model; it may be frozen already."""
    output: Path
    """Folder of the frozen codec."""
    features: Path | None = None
    """Folder of .npy features: the integers' ranges cover them, and the cost is measured on them."""
    kind: str | None = None
    """<model>_<task>, where the codec knows several kinds that the features fit."""

    def __post_init__(self):
        if self.output.resolve() == self.checkpoint.resolve():
            raise UserError("output: another folder than the checkpoint's")


def freeze_codec(cfg: FreezeConfig) -> dict[str, float]:
    """Write the frozen folder -> what :func:`cost` says; nothing where no features are given.

    Raises:
        FileNotFoundError, UserError: checkpoint or features are not sound; the message names the file.
    """
    model, values = load_model(cfg.checkpoint)
    kinds = load_kinds(cfg.checkpoint, values)
    paths = list_features(cfg.features) if cfg.features else []
    write = [cfg.output, model, values["codec"], kinds, values.get("made_by", {})]
    write_codec(*write)
    if not paths:
        return {}
    codec = load_codec(cfg.output)
    write_codec(*write, planes=(codec.network_input(read_feature(p), cfg.kind) for p in paths))
    return cost(load_codec(cfg.output), paths, cfg.kind)


def cost(codec: LearnedCodec, paths: Sequence[Path], kind: str | None = None) -> dict[str, float]:
    """Bytes, and MSE of u (which the networks minimise), with the integers over those with the float
    networks.

    Returns:
        ``bytes_ratio``, ``mse_ratio``, and ``bytes`` with the integers.
    """
    frozen, totals = codec.nets, np.zeros((2, 2))
    for path in progress(paths, "cost"):
        x = read_feature(path)
        u = codec.network_input(x, kind)
        for i, nets in enumerate((frozen, FloatNets(codec.model))):
            codec.nets = nets
            data = codec.encode(x, kind)
            u_hat = codec.network_input(codec.decode(data), kind)
            totals[i] += len(data), float((u - u_hat).square().sum(dtype=torch.float64))
    codec.nets = frozen
    size, error = totals[0] / totals[1]
    return {"bytes_ratio": float(size), "mse_ratio": float(error), "bytes": float(totals[0, 0])}


def main(argv: Sequence[str] | None = None) -> None:
    keep_memory()
    with config.report_errors():
        found = freeze_codec(config.parse(FreezeConfig, argv, __doc__))
        for key, value in found.items():
            print(f"{key:12s} {value:.6g}")


if __name__ == "__main__":
    main()
