"""The freezing of a codec folder: the work of :mod:`dtufc.CompressAI.freeze`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dtufc.codec import load_codec
from dtufc.CompressAI.checkpoint import load_kinds, load_model, write_codec
from dtufc.CompressAI.codec import LearnedCodec
from dtufc.CompressAI.freeze import FreezeConfig
from dtufc.CompressAI.frozen import FloatNets
from dtufc.feature import list_features, read_feature
from dtufc.options import progress


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
