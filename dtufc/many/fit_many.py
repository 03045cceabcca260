"""Fit a codec to each tensor of a machine: ``fit_many.py --machine M --features DIR --output DIR``.

The features lie in a folder per tensor: ``DIR/k0/*.npy``. Each tensor's codec is fitted by its own
script, and lies below the output in a folder of the tensor's name. A killed run goes on with the tensor
that it was at. Then the tensors share bits by their sensitivity, which the machine's script measured as
it extracted the features; ``tensors.json`` holds the shift of each tensor's quality.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dtufc import config, files, locks, provenance
from dtufc.errors import UserError
from dtufc.paths import SENSITIVITY_JSON, TENSOR_MARK, TENSORS_JSON
from dtufc.registry import find_codec
from dtufc.stamps import Stamp, digest_file, digest_files
from dtufc.states import StateFacts, list_states, load_machine_facts, sample_files


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Fitting of a codec of states."""

    machine: str
    """Machine preset or YAML with the facts of the tensors."""
    features: Path
    """Folder of training features, a folder per tensor in it."""
    output: Path
    """Codec folder."""
    codec: str = "klt"
    """Codec of every tensor, one that is fitted and has any rate."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Of the script that fits the codec: {clusters: [4]}."""
    shares: Literal["sensitivity", "equal"] = "sensitivity"
    """sensitivity: bits go where they matter. equal: all tensors are coded at the same quality."""
    sensitivity: Path | None = None
    """What the machine measured; null takes sensitivity.json of the data root of the features."""
    quality: float | None = None
    """What the codec takes where nothing is asked for; null takes that of the tensors' codecs."""

    def __post_init__(self):
        entry = find_codec(self.codec)
        if entry.trained or not entry.any_rate:
            raise UserError(
                f"codec: expected one that is fitted and has any rate, got {self.codec!r}; train that "
                f"on one tensor, {self.machine}{TENSOR_MARK}NAME"
            )
        known = entry.load_config().__dataclass_fields__.keys() - {"machine", "features", "output"}
        if wrong := self.flags.keys() - known:
            raise UserError(f"flags: {self.codec} takes no {sorted(wrong)}, but {sorted(known)}")

    @property
    def facts(self) -> StateFacts:
        """The facts of the tensors.

        Raises:
            FileNotFoundError, UserError: no such machine, or it has one tensor.
        """
        facts = load_machine_facts(self.machine)
        if not isinstance(facts, StateFacts):
            raise UserError(f"machine: {self.machine} has one tensor; fit {self.codec} to it alone")
        return facts

    @property
    def sensitivity_path(self) -> Path | None:
        """Where the sensitivities are; ``None`` where none are asked for.

        Raises:
            FileNotFoundError: they are not there.
        """
        if self.shares == "equal":
            return None
        # <data root>/<model>/<task>/feature_train/train
        path = self.sensitivity or self.features.resolve().parents[1] / SENSITIVITY_JSON
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing; the machine's script writes it as it extracts features. Name it by "
                "--sensitivity, or give --shares equal"
            )
        return path

    def tensor_config(self, tensor: str) -> Any:
        """The fit of one tensor's codec.

        Raises:
            UserError: a flag has a wrong value.
        """
        entry = find_codec(self.codec)
        values = {
            "machine": f"{self.machine}{TENSOR_MARK}{tensor}",
            "features": str(self.features / tensor),
            "output": str(self.output / tensor),
            **dict(entry.flags),
            **self.flags,
        }
        return config.build(entry.load_config(), values, f"flags of {self.codec}")

    def stamp(self) -> Stamp:
        """Of the codec that a fit would give now.

        Raises:
            FileNotFoundError, FeatureError: features or sensitivities are not there.
        """
        facts = self.facts
        values = {"codec": self.codec, "flags": self.flags, "shares": self.shares}
        values["quality"] = self.quality
        values["tensors"] = {name: each.decides() for name, each in facts.tensors.items()}
        names = list_states(facts, self.features)
        inputs = {
            f"{path.parent.name}/{path.name}": digest
            for name in names
            for path in sample_files(facts, self.features, name)
            for digest in digest_files([path]).values()
        }
        if path := self.sensitivity_path:
            inputs[SENSITIVITY_JSON] = digest_file(path)
        return Stamp(files.jsonable(values), inputs)

    def why_not_made(self) -> str | None:
        """Why the codec must be fitted, in words; ``None`` if it is there and current."""
        if not (self.output / TENSORS_JSON).is_file():
            return "not made yet"
        return provenance.why_not_made(self.output, self.stamp())


def fit(cfg: FitConfig) -> dict[str, float]:
    """Fit the codecs of all tensors -> the shift of each.

    Raises:
        FileNotFoundError, FeatureError, UserError: features or sensitivities are not there or not sound.
    """
    from dtufc.codec import load_codec
    from dtufc.many.codec import FORMAT
    from dtufc.many.sharing import share, unit_of

    facts, stamp, path = cfg.facts, cfg.stamp(), cfg.sensitivity_path
    with locks.hold(cfg.output):
        (cfg.output / TENSORS_JSON).unlink(missing_ok=True)
        run = provenance.Run(cfg.output, cfg, stamp)
        codecs, units = {}, {}
        for name, each in facts.tensors.items():
            _fit_tensor(cfg, name)
            codecs[name] = load_codec(cfg.output / name)
            units[name] = unit_of(codecs[name], each, cfg.features / name)
        measured = _read_sensitivity(path, facts) if path else {}
        points = {name: measured[name]["points"] for name in measured}
        damage = {name: measured[name]["sensitivity"] for name in measured}
        shifts = share(units, damage, points)
        first = next(iter(codecs.values()))
        files.write_json(
            cfg.output / TENSORS_JSON,
            {
                "format": FORMAT,
                "codec": find_codec(cfg.codec).name,
                "kind": facts.kind,
                "quality": first.quality if cfg.quality is None else cfg.quality,
                "shifts": shifts,
                "units": units,
                "sensitivity": damage,
            },
        )
        run.finish()
    return shifts


def _fit_tensor(cfg: FitConfig, name: str) -> None:
    """Fit one tensor's codec by its own script, unless that was done."""
    tensor = cfg.tensor_config(name)
    if tensor.why_not_made():
        print(f"{name}: ", end="", flush=True)
        script = importlib.import_module(find_codec(cfg.codec).script)
        script.main(config.to_argv(tensor))


def _read_sensitivity(path: Path, facts: StateFacts) -> dict[str, dict[str, float]]:
    """What the machine measured of each tensor.

    Raises:
        UserError: it is not of these tensors, or holds no numbers.
    """
    values = files.read_json(path)
    tensors = values.get("tensors") if isinstance(values, dict) else None
    if not isinstance(tensors, dict) or tensors.keys() != facts.tensors.keys():
        raise UserError(f"{path}: expected the sensitivities of {[*facts.tensors]}")
    for name, each in tensors.items():
        for key in ("sensitivity", "points"):
            value = each.get(key) if isinstance(each, dict) else None
            if type(value) not in (int, float) or not 0 <= value < float("inf"):
                raise UserError(
                    f"{path}: {name}: {key}: expected a number of 0 or more, got {value}"
                )
    return tensors


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(FitConfig, argv, __doc__)
        for name, shift in fit(cfg).items():
            print(f"{name:16s} quality {shift:+.2f}")


if __name__ == "__main__":
    main()
