"""Fit the transform of a kind of feature: ``python nonlinear_transform.py --machine resnet50_tiny``.

Writes the mapping (a JSON list of 2^b centres), what is known of the fit beside it (``_fit.json``),
and plots of the values before and after (``.png``, ``.pdf``).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coding import config, files
from coding.errors import UserError
from coding.feature import FeatureFacts, list_features, load_facts
from coding.paths import DataRoot, default_data_root
from coding.prepare import ensure_features
from coding.transform.fit import MAX_BIT_DEPTH, TransformType, fit_mapping
from coding.transform.mapping import Assignment, Mapping, Normalise
from coding.transform.plots import plot_distributions
from coding.transform.samples import Samples


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The fit of a mapping."""

    machine: str = "resnet50_tiny"
    """Machine preset or YAML file: the facts of the features."""
    features: Path | None = None
    """Folder of .npy features; null takes the machine's training features, extracted if missing."""
    output: Path | None = None
    """Mapping file; null names it as published, in the data root (rows, truncation and per_channel
    are added to the name)."""
    transform_type: TransformType = "kmeans"
    """kmeans: least squared error. density: equal counts. uniform: even steps."""
    bit_depth: int = 8
    """log2 of the number of levels, 1 to 12."""
    samples: int = 10
    """Features to fit on, the first in the order of their names; 0 takes all."""
    rows: int | None = None
    """Random tokens (axis H) a feature; 0 takes all, null the machine's default."""
    seed: int = 0
    """Decides which tokens."""
    trun_low: float | list[float] | None = None
    """Values below are raised to it first; one number, or one a channel."""
    trun_high: float | list[float] | None = None
    """Values above are lowered to it first; one number, or one a channel."""
    per_channel: bool = False
    """A codebook for each channel (axis C)."""
    normalise: Normalise = "none"
    """Done to each channel (of tokens: column) first. none: as published. mean: its mean taken off.
    scale: that, and its standard deviation made 1."""
    assignment: Assignment = "nearest"
    """The assignment that is plotted; the mapping's file does not depend on it."""
    data_root: Path = field(default_factory=default_data_root)
    """Where features and mappings lie."""

    def __post_init__(self):
        if not 1 <= self.bit_depth <= MAX_BIT_DEPTH:
            raise UserError(f"bit_depth: expected 1 .. {MAX_BIT_DEPTH}, got {self.bit_depth}")
        if self.samples < 0:
            raise UserError(f"samples: expected 0 or more, got {self.samples}")
        if self.rows is not None and self.rows < 0:
            raise UserError(f"rows: expected 0 or more, got {self.rows}")
        if self.output is not None and self.output.suffix != ".json":
            raise UserError(f"output: expected a .json file, got {self.output}")

    @property
    def mapping_path(self) -> Path:
        """Where the mapping goes."""
        if self.output is not None:
            return self.output
        facts = load_facts(self.machine)
        root = DataRoot(self.data_root).feature(facts.model, facts.task)
        path = root.mapping(
            facts.task, self.transform_type, self.samples, self.bit_depth, self.normalise
        )
        return path.with_name(f"{path.stem}{self._variant(facts)}.json")

    def _variant(self, facts: FeatureFacts) -> str:
        """What the published name does not tell, so that a special fit replaces no plain one."""
        parts = []
        if self.rows not in (None, facts.rows):
            parts.append(f"rows{self.rows}")
        for name, bound in (("trunl", self.trun_low), ("trunh", self.trun_high)):
            if bound is not None:
                parts.append(name + (f"{bound:g}" if isinstance(bound, float | int) else "list"))
        if self.per_channel:
            parts.append("perchannel")
        return "".join(f"_{part}" for part in parts)


def fit(cfg: FitConfig) -> tuple[Mapping, dict[str, Any]]:
    """Fit the mapping and write it, its record and its plots -> the mapping and the record.

    Raises:
        FeatureError, FileNotFoundError, UserError: as :func:`coding.transform.fit.fit_mapping`.
    """
    facts = load_facts(cfg.machine)
    if cfg.features is None:
        folder = ensure_features(cfg.machine, cfg.data_root).feature_train / "train"
    else:
        folder = cfg.features
    paths = list_features(folder)[: cfg.samples or None]
    rows = facts.rows if cfg.rows is None else cfg.rows
    truncation = {"trun_low": cfg.trun_low, "trun_high": cfg.trun_high}
    mapping, record = fit_mapping(
        paths,
        cfg.transform_type,
        cfg.bit_depth,
        rows=rows,
        seed=cfg.seed,
        per_channel=cfg.per_channel,
        assignment=cfg.assignment,
        normalise=cfg.normalise,
        by_column=facts.packing.layout == "tokens",
        **truncation,
    )
    record |= {"kind": facts.kind, "features": str(folder), "facts": asdict(facts)}
    target = cfg.mapping_path
    plots = plot_distributions(
        Samples(paths, rows, cfg.seed, **truncation, offset=mapping.offset, scale=mapping.scale),
        mapping.plain,
        (record["min"], record["max"]),
        title=f"{facts.kind}, {cfg.transform_type}, {mapping.levels} levels, {cfg.assignment}",
        stem=target.with_suffix(""),
    )
    record_path = target.with_name(f"{target.stem}_fit.json")
    files.write_json(record_path, record)
    mapping.save(target)  # last: where a mapping is, the rest is too
    return mapping, record | {"paths": [target, record_path, *plots]}


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
