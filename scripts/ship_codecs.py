"""Copy codecs of a data root to where shipped codecs lie, small: ``python ship_codecs.py --data_root
DIR``.

The data root holds the runs of the suites ``tiny``, ``native`` and ``dinov2_tiny``, as
``scripts/quickstart.sh --train`` makes them. Networks are stored as float16, half the size, and integer
tables as narrow as they are. Optimiser states and logs are left out. ``training.json`` keeps the record
of the training or the fit.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtufc import config, files, locks
from dtufc.errors import UserError
from dtufc.experiments.driver import BatchConfig
from dtufc.paths import RUN_JSON, default_data_root
from dtufc.registry import find_codec
from dtufc.shipped import HYBRID, PRETRAINED, TRAINING_JSON

CHOSEN = (
    {"suite": "tiny", "arch": "hyperprior", "train_task": "hybrid"},
    {"suite": "tiny", "arch": "elic", "train_task": "hybrid"},
    {"suite": "native", "train_task": "csr", "lambda_value": 0.005},
    {"suite": "native", "train_task": "tti", "lambda_value": 0.012},
    {"suite": "tiny", "arch": "klt"},
    {"suite": "dinov2_tiny", "arch": "klt"},
)
"""The parts of suites whose codecs ship, as flags of run_batch.py."""
NETWORKS = "model.safetensors"
"""The weights that are stored as float16; other arrays decide symbols."""
ENTROPY = ("entropy_bottleneck", "gaussian_conditional")
"""Parts of a network that are no layers: they stay as they are."""
PLACES = ("output", "patches", "features", "machine", "pretrained_model", "device")
"""Fields of a configuration that say where, which a record of a shipped codec leaves out."""


@dataclass(frozen=True)
class ShipConfig:
    """Where codecs are taken from, and where they go."""

    data_root: Path = field(default_factory=default_data_root)
    """Data root with the trained and fitted codecs."""
    output: Path = PRETRAINED
    """Folder of the shipped codecs."""


@dataclass(frozen=True)
class Shipment:
    """One codec that ships."""

    name: str
    folder: Path
    labels: dict[str, Any]


def shipments(data_root: Path) -> Iterator[Shipment]:
    """The codecs that ship, with their folders in a data root."""
    for flags in CHOSEN:
        batch = BatchConfig(**flags, data_root=data_root).batch()
        found = {coding.cfg.codec: coding for coding in batch.codings()}  # one per codec
        for folder, coding in found.items():
            told = {k: v for k, v in coding.cfg.labels.items() if k not in ("kind", "quality")}
            of = "tiny" if told["trained_on"] == HYBRID else coding.machine
            rate = f"_{told['lambda_value']:g}" if "lambda_value" in told else ""
            yield Shipment(f"{told['codec']}_{of}{rate}", folder, told)


def ship(cfg: ShipConfig) -> None:
    """Write every shipped codec anew; print its size.

    Raises:
        UserError, FileNotFoundError: one of them is not in the data root, or not finished.
    """
    found = list(shipments(cfg.data_root))
    for each in found:
        if not files.read_json(each.folder / RUN_JSON).get("finished"):
            raise UserError(f"{each.folder}: not finished")
    total = 0
    for each in found:
        target = cfg.output / each.name
        with locks.hold(cfg.output):
            size = _copy(each, target)
        total += size
        print(f"{size / 1e6:6.2f} MB  {each.name}")
    print(f"{total / 1e6:6.2f} MB in {cfg.output}")


def _copy(each: Shipment, target: Path) -> int:
    """Write one codec's folder -> its size in bytes."""
    if target.is_dir():
        shutil.rmtree(target)
    patterns = find_codec(each.labels["codec"]).files
    sources = sorted({path for pattern in patterns for path in each.folder.glob(pattern)})
    for source in sorted(sources, key=lambda path: path.suffix == ".json"):  # config.json last
        path = target / source.relative_to(each.folder)
        data = source.read_bytes()
        if source.name == NETWORKS and find_codec(each.labels["codec"]).trained:
            data = _halved(data)
        elif source.suffix == ".json" and source.parent == each.folder:
            data = files.dump_json(_without_places(files.read_json(source))).encode()
        files.write_bytes(path, data)
    record = _without_places(files.read_json(each.folder / RUN_JSON))
    files.write_json(target / TRAINING_JSON, {"labels": each.labels, **record})
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def _halved(data: bytes) -> bytes:
    """Safetensors with float32 networks -> the same as float16; integers stay."""
    import torch
    from safetensors.torch import load, save

    from dtufc.CompressAI.checkpoint import narrow_tables

    state = narrow_tables(load(data))
    halves = {
        key: value.is_floating_point() and not any(part in key for part in ENTROPY)
        for key, value in state.items()
    }
    return save({k: v.to(torch.float16) if halves[k] else v for k, v in state.items()})


def _without_places(value: Any) -> Any:
    """A record without the paths of the computer that it was made on."""
    if isinstance(value, dict):
        return {k: _without_places(v) for k, v in value.items() if k not in PLACES or _is_fact(v)}
    return [_without_places(item) for item in value] if isinstance(value, list) else value


def _is_fact(value: Any) -> bool:
    """Whether a field named like a place holds no path: the computer of a process, a stamp's input."""
    return isinstance(value, dict)


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        ship(config.parse(ShipConfig, argv, __doc__))


if __name__ == "__main__":
    main()
