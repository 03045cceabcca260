"""Fit the transform of a kind of feature: ``python nonlinear_transform.py --machine resnet50_tiny``.

Writes the mapping (a JSON list of 2^b centres), what is known of the fit beside it (``_fit.json``),
and plots of the values before and after (``.png``, ``.pdf``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtufc import config, files, locks
from dtufc.errors import UserError
from dtufc.feature import list_features
from dtufc.prepare import ensure_features
from dtufc.stamps import Stamp, digest_files, read_stamp
from dtufc.transform.options import MachineTransform
from dtufc.transform.samples import Samples

if TYPE_CHECKING:
    from dtufc.transform.mapping import Mapping

DECIDING = (
    "transform_type", "samples", "bit_depth", "normalise", "seed", "trun_low", "trun_high",
    "per_channel",
)  # fmt: skip
"""Fields that decide a mapping, beside facts and features."""


@dataclass(frozen=True, kw_only=True)
class FitConfig(MachineTransform):
    """The fit of a mapping. The assignment is the one that is plotted."""

    features: Path | None = None
    """Folder of .npy features; null takes the machine's training features, extracted if missing."""
    output: Path | None = None
    """Mapping file; null names it as published, in the data root (rows, truncation and per_channel
    are added to the name)."""
    rows: int | None = None
    """Random tokens (axis H) a feature; 0 takes all, null the machine's default."""
    seed: int = 0
    """Decides which tokens."""
    trun_low: float | list[float] | None = None
    """Values below are raised to it first; one number, or one per channel."""
    trun_high: float | list[float] | None = None
    """Values above are lowered to it first; one number, or one per channel."""

    def __post_init__(self):
        super().__post_init__()
        if self.rows is not None and self.rows < 0:
            raise UserError(f"rows: expected 0 or more, got {self.rows}")
        if self.output is not None and self.output.suffix != ".json":
            raise UserError(f"output: expected a .json file, got {self.output}")

    @property
    def used_rows(self) -> int:
        """Random tokens of each feature; 0 takes all."""
        return self.facts.rows if self.rows is None else self.rows

    @property
    def mapping_path(self) -> Path:
        """Where the mapping goes."""
        if self.output is not None:
            return self.output
        path = self.root.mapping(self.facts.task, self.mapping_name)
        return path.with_name(f"{path.stem}{self._variant()}.json")

    @property
    def record_path(self) -> Path:
        """What is known of the fit, beside the mapping."""
        return self.mapping_path.with_name(f"{self.mapping_path.stem}_fit.json")

    def paths(self) -> list[Path]:
        """The features that the mapping is fitted on.

        Raises:
            FileNotFoundError, FeatureError: there are none.
        """
        folder = self.features or self.root.train_part("train")
        return list_features(folder)[: self.samples or None]

    def stamp(self) -> Stamp:
        """Of the mapping that a fit would give now.

        Raises:
            FileNotFoundError, FeatureError: there are no features.
        """
        config = {
            "facts": self.facts.decides(),
            "rows": self.used_rows,
            **{name: getattr(self, name) for name in DECIDING},
        }
        return Stamp(files.jsonable(config), digest_files(self.paths()))

    def why_not_made(self) -> str | None:
        """Why the mapping must be fitted, in words; ``None`` if it is there and current, or if it has no
        record: then it was put there by hand, and is taken as it is."""
        if not self.mapping_path.is_file():
            return "not made yet"
        if not self.record_path.is_file():
            return None
        return self.stamp().differs(read_stamp(self.record_path))

    def _variant(self) -> str:
        """What the published name does not tell, so that a special fit replaces no plain one."""
        parts = []
        if self.rows not in (None, self.facts.rows):
            parts.append(f"rows{self.rows}")
        for name, bound in (("trunl", self.trun_low), ("trunh", self.trun_high)):
            if bound is not None:
                parts.append(name + (f"{bound:g}" if isinstance(bound, float | int) else "list"))
        if self.per_channel:
            parts.append("perchannel")
        return "".join(f"_{part}" for part in parts)


def fit(cfg: FitConfig) -> "tuple[Mapping, dict[str, Any]]":
    """Fit the mapping and write it, its record and its plots -> the mapping and the record.

    Raises:
        FeatureError, FileNotFoundError, UserError: as :func:`dtufc.transform.fit.fit_mapping`.
    """
    from dtufc.transform.fit import fit_mapping
    from dtufc.transform.plots import plot_distributions

    if cfg.features is None:
        ensure_features(cfg.machine, cfg.data_root)
    paths, stamp, facts = cfg.paths(), cfg.stamp(), cfg.facts
    truncation = {"trun_low": cfg.trun_low, "trun_high": cfg.trun_high}
    mapping, record = fit_mapping(
        paths,
        cfg.transform_type,
        cfg.bit_depth,
        rows=cfg.used_rows,
        seed=cfg.seed,
        per_channel=cfg.per_channel,
        assignment=cfg.assignment,
        normalise=cfg.normalise,
        channel_axes=facts.views.channel_axes,
        **truncation,
    )
    record |= {"kind": facts.kind, "features": str(paths[0].parent), "facts": facts.record()}
    record |= stamp.record()
    target = cfg.mapping_path
    shown = {**truncation, "offset": mapping.offset, "scale": mapping.scale}
    with locks.hold(target.parent):
        plots = plot_distributions(
            Samples(paths, cfg.used_rows, cfg.seed, **shown),
            mapping.plain,
            (record["min"], record["max"]),
            title=f"{facts.kind}, {cfg.transform_type}, {mapping.levels} levels, {cfg.assignment}",
            stem=target.with_suffix(""),
        )
        mapping.save(target)
        files.write_json(cfg.record_path, record)  # last: its stamp says that the rest is there
    return mapping, record | {"paths": [target, cfg.record_path, *plots]}


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        cfg = config.parse(FitConfig, argv, __doc__)
        _, record = fit(cfg)
    print(f"kind      {record['kind']}, {cfg.transform_type}, {1 << cfg.bit_depth} levels")
    print(f"files     {len(record['files'])} of {record['features']}")
    print(f"values    {record['values']} ({record['distinct_points']} distinct points)")
    print(f"range     {record['min']:.6g} .. {record['max']:.6g}")
    for name, error in record["mse"].items():
        print(f"MSE       {error:.6g} {name}")
    print(f"fit       {record['fit_seconds']:.2f} s")
    for path in record["paths"]:
        print(f"written   {path}")


if __name__ == "__main__":
    main()
