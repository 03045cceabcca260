"""Compare codecs on folders of your own features, to one page.

    python compare.py --features DIR [DIR ...] --codecs klt,int,native --output DIR

Each folder holds ``.npy`` files of one kind of feature: one file per feature, in the order of axes that
the model gave. Shape, dtype and axes are found and shown. Files are split into those that codecs are
fitted on and those that they are tested on. The output is a data root with the YAML files that state all
this, in ``configs/``, and the page ``report/report.html``. A killed run goes on where it ended.
"""

import itertools
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from dtufc import config, files, locks, provenance, records
from dtufc.axes import AmbiguousAxes, Axes, check_axes, feature_axes
from dtufc.errors import UserError
from dtufc.experiments.imports import SPLITS, Placed, Source, list_parts, place_source, read_source
from dtufc.feature import FeatureFacts, load_facts
from dtufc.paths import DataRoot
from dtufc.registry import CodecEntry, find_codec
from dtufc.shipped import HYBRID
from dtufc.stamps import Stamp, digest_file, read_stamp

if TYPE_CHECKING:
    from dtufc.experiments.tables import TableRow

MODEL = "own"
"""First folder of the features in the output; a folder's name is the second."""
LINEAR = "machines/linear/linear.py"
"""The script of the linear head."""
SUITE, NATIVE_SUITE = "compare", "compare_native"
RECORD = "compare.json"
LADDERS: dict[str, list[float]] = {
    "klt": [-2, -1, 0, 1, 2, 3.5, 5],
    "int": [2, 3, 4, 6, 8],
    "cast": [8, 11, 24],
    "jpegxl": [2, 4, 6, 8, 12],
    "hevc": [2, 3, 4, 6, 8],
}
"""Qualities of the codecs that are fitted, from coarse to fine."""
LAMBDAS = [0.001, 0.004, 0.016]
"""Of codecs that are trained on packed planes."""
NMSES = [0.3, 0.1, 0.03]
ERRORS = {"nmse": "NMSE", "token_error": "token error"}
"""Where the lambdas of codecs in a feature's own layout aim."""
ARCHS: dict[str, dict[str, Any]] = {
    "hyperprior": {"N": 64, "M": 96},
    "elic": {"N": 64, "M": 96, "groups": [8, 8, 16, 64], "context": [[64, 48] for _ in range(3)]},
    "native": {"N": 64},
}
"""Widths that train in minutes on a CPU."""
PATCHES, MOST_PATCHES = 512, 64
"""Patches to train on for each folder, about; patches per file at most."""
PLANE_PATCH = "64-64"
"""Of packed planes; smaller ones are filled up."""
BATCH_SIZE, LEARNING_RATE = 16, 0.001


@dataclass(frozen=True)
class CompareConfig:
    """A comparison of codecs on your own features."""

    features: list[Path]
    """Folders of .npy files, one kind of feature each; or with folders train and test inside."""
    output: Path
    """Folder of everything that is made: features, codecs, coded features, YAML files, the page."""
    codecs: list[str] = field(default_factory=lambda: ["klt", "int"])
    """Which codecs: klt, int, cast, jpegxl, hevc (fitted, seconds to minutes), native, hyperprior, elic
    (trained, minutes to hours)."""
    axes: list[str] = field(default_factory=list)
    """What the axes of the files are, where that is not to be guessed: sample,token,channel for all
    folders or NAME=channel,row,column for one."""
    rates: list[str] = field(default_factory=list)
    """Other rates than the codec's usual ones, klt=-1,0,1: qualities of a codec that is fitted, lambdas
    of one that is trained."""
    epochs: int = 30
    """Of codecs that are trained."""
    labels: list[str] = field(default_factory=list)
    """NAME=FILE.csv, a class for each file of a folder (name,label): a linear head is fitted to them,
    and the page shows its top-1 accuracy against rate."""
    pooling: Literal["mean", "cls", "max", "none"] = "mean"
    """What the linear head sees of a feature: mean or max over tokens or positions, the first token,
    all values."""
    jobs: int = field(default_factory=lambda: min(2, os.cpu_count() or 1))
    """Commands side by side; the cores are shared out."""

    def __post_init__(self):
        if not self.features:
            raise UserError("features: expected one folder at least")
        for name in ("epochs", "jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        chosen = {entry.name for entry in self.entries}
        rates = self.rates_of
        if unknown := rates.keys() - chosen:
            raise UserError(f"rates: {sorted(unknown)} are none of the codecs {sorted(chosen)}")
        for entry in self.entries:
            if not entry.trained and entry.name not in {*LADDERS, *rates}:
                raise UserError(f"rates: give the qualities of {entry.name}: {entry.name}=1,2,3")

    @property
    def entries(self) -> list[CodecEntry]:
        """The codecs, each once."""
        names = [name for text in self.codecs for name in text.split(",") if name]
        found = dict.fromkeys(find_codec(name, "codecs") for name in names)
        if not found:
            raise UserError("codecs: expected one at least")
        return [*found]

    @property
    def rates_of(self) -> dict[str, list[float]]:
        """The rates that are asked for, by codec."""
        found = {}
        for name, text in _named(self.rates, "rates", "klt=-1,0,1").items():
            try:
                found[find_codec(name, "rates").name] = [
                    float(number) for number in text.split(",")
                ]
            except ValueError as error:
                raise UserError(f"rates: expected klt=-1,0,1, got {name}={text}") from error
        return found

    def of_folder(self, given: Sequence[str], what: str, name: str) -> str | None:
        """What ``NAME=VALUE`` or ``VALUE`` says of a folder."""
        known = [each.partition("=") for each in given]
        own = [value for key, equals, value in known if equals and key == name]
        plain = [key for key, equals, _ in known if not equals]
        if len(own) > 1 or len(plain) > 1:
            raise UserError(f"{what}: given twice for {name}")
        return (own or plain or [None])[0]


def _named(given: Sequence[str], what: str, example: str) -> dict[str, str]:
    parts = [each.partition("=") for each in given]
    if wrong := [key for key, equals, value in parts if not (equals and value)]:
        raise UserError(f"{what}: expected {example}, got {wrong[0]!r}")
    return {key: value for key, _, value in parts}


@dataclass(frozen=True)
class FolderRow:
    """What is printed of a folder before the work."""

    name: str
    files: str
    """To fit, to validate and to test."""
    shape: str
    axes: str
    told_by: str
    """How the axes are known."""
    dtype: str
    points: str
    range: str


def compare(cfg: CompareConfig) -> Path:
    """Compare -> the page.

    Raises:
        FeatureError, FileNotFoundError, UserError: a folder or an option does not fit; the message says
            what is expected. Nothing is coded then.
        JobError: a command failed; the text ends with the tail of its log.
    """
    start = time.time()
    names = folder_names(cfg.features)
    _check_places(cfg)
    _check_names(cfg, [*names.values()])
    sources = read_sources(cfg, names)
    stamp = _stamp(sources)
    known = cfg.output / RECORD
    if known.exists() and (why := stamp.differs(read_stamp(known))):
        raise UserError(
            f"output: {cfg.output} holds a comparison of other features ({why}); take another folder"
        )
    with locks.hold(cfg.output):
        files.write_json(known, stamp.record() | provenance.environment())
        root = DataRoot(cfg.output)
        placed = [place_source(each, root.feature(MODEL, each.name)) for each in sources]
        print(records.format_table([_row(*each) for each in zip(sources, placed, strict=True)]))
        _tell(sources)
        machines = [_write_machine(cfg, *each) for each in zip(sources, placed, strict=True)]
        suites = _write_suites(cfg, sources, placed, machines)
        print(f"\n{_seconds(start)} to read; machines and suites are in {cfg.output / 'configs'}\n")
        rows = _run(cfg, suites)
    # the page needs much that a wrong option should not wait for
    from dtufc.report.page import write_report

    page = write_report(cfg.output, cfg.output / "report")
    print("\n".join(summarise(rows)))
    print(f"\n{_seconds(start)} in all\npage: {page}")
    return page


def folder_names(folders: Sequence[Path]) -> dict[Path, str]:
    """A name for each folder, of letters, digits, '.', '_' and '-': its own, with that of the folder
    above where two are alike.

    Raises:
        UserError: a folder comes twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if len({*resolved}) < len(resolved):
        raise UserError("features: a folder is there twice")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        names = [_clean("-".join(path.parts[-depth:])) for path in resolved]
        if len({name.lower() for name in names}) == len(names):
            return dict(zip(folders, names, strict=True))
    return {
        folder: f"{name}-{k}" for k, (folder, name) in enumerate(zip(folders, names, strict=True))
    }


def _clean(name: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name.removesuffix(".npy")).strip("._-") or "features"
    return f"{name}-features" if name == HYBRID else name[:80]


def _check_places(cfg: CompareConfig) -> None:
    """Refuse an output in which features of the user would lie, links resolved."""
    output = cfg.output.resolve()
    if output.exists() and not output.is_dir():
        raise UserError(f"output: {cfg.output} is a file, expected a folder")
    for folder in cfg.features:
        for paths in list_parts(folder).values():
            if paths[0].parent.resolve().is_relative_to(output):
                raise UserError(
                    f"output: {cfg.output} holds the features of {folder}; take a folder of its own"
                )


def _check_names(cfg: CompareConfig, names: Sequence[str]) -> None:
    """Refuse options about folders that are not there."""
    for what in ("axes", "labels"):
        keys = [each.partition("=")[0] for each in getattr(cfg, what) if "=" in each]
        if unknown := set(keys) - set(names):
            raise UserError(f"{what}: {sorted(unknown)} are none of the folders {sorted(names)}")


def read_sources(cfg: CompareConfig, names: dict[Path, str]) -> list[Source]:
    """Look at all folders.

    Raises:
        UserError: the axes of some are ambiguous; one line names all of them, and what to pass.
    """
    found, asked = [], []
    for folder, name in names.items():
        given = cfg.of_folder(cfg.axes, "axes", name)
        axes: Axes | None = None if given is None else check_axes(given.split(","))
        try:
            found.append(read_source(folder, name, axes))
        except AmbiguousAxes as error:
            shape = " x ".join(map(str, error.shape))
            choices = " or ".join(f"{name}={','.join(each)}" for each in error.candidates)
            asked.append(f"{name} ({shape}): --axes {choices}")
    if asked:
        raise UserError(f"axes: files do not tell what their axes are, say it: {'; '.join(asked)}")
    return found


def _stamp(sources: Sequence[Source]) -> Stamp:
    """Of the features: by content, with axes and split."""
    told = {
        each.name: {
            "axes": [*each.axes],
            "split": {name: [item.name for item in each.split[name]] for name in SPLITS},
        }
        for each in sources
    }
    paths = {f"{s.name}/{item.path.parent.name}/{item.path.name}": item.path
             for s in sources for item in s.items}  # fmt: skip
    return Stamp(told, {name: digest_file(path) for name, path in paths.items()})


def _row(source: Source, placed: Placed) -> FolderRow:
    counts = "+".join(str(len(source.split[name])) for name in SPLITS)
    stored = "" if source.dtypes == [source.dtype] else f" -> {source.dtype}"
    return FolderRow(
        name=source.name,
        files=counts,
        shape=" x ".join("*" if size is None else str(size) for size in source.own_shape),
        axes=",".join(source.axes),
        told_by=source.guess.why,
        dtype="/".join(source.dtypes) + stored,
        points=f"{source.points / 1e6:.3g} M",
        range="{:.4g} .. {:.4g}".format(*placed.range),
    )


def _tell(sources: Sequence[Source]) -> None:
    """What the table's columns mean, and what was left alone."""
    print(
        "\nfiles: to fit, to validate the training and to test; of the files in the order of their "
        "names every 4th\nis tested on, of the others every 8th validates. *: the files differ. Other "
        "axes: --axes NAME=..."
    )
    for source in sources:
        if source.ignored:
            endings = ", ".join(f"{count} {end}" for end, count in source.ignored.items())
            print(f"{source.name}: only .npy is taken, left alone: {endings}")


def _seconds(start: float) -> str:
    seconds = time.time() - start
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def _write_machine(cfg: CompareConfig, source: Source, placed: Placed) -> Path:
    """The YAML of a folder's features -> its path. One that is there and states the same of them is the
    user's and stays."""
    path = cfg.output / "configs" / f"{source.name}.yaml"
    facts: dict[str, Any] = {
        "model": MODEL,
        "task": source.name,
        "shape": source.shape,
        "axes": [*feature_axes(source.axes)],
        "dtype": source.dtype,
        "range": [float(f"{value:.6g}") for value in placed.range],
    }
    wanted = config.build(FeatureFacts, facts, "feature")
    labels = cfg.of_folder(cfg.labels, "labels", source.name)
    if path.is_file():
        there = load_facts(path)
        # a head that is fitted again goes with the YAML that says how
        if there.decides() == wanted.decides() and (
            labels is None or there.script not in (None, LINEAR)
        ):
            return path
    blocks: dict[str, Any] = {"feature": facts}
    if labels is not None:
        # safetensors comes with it
        from dtufc.machines.linear.fitting import write_head

        root = DataRoot(cfg.output).feature(MODEL, source.name)
        facts["script"] = LINEAR
        blocks["machine"] = write_head(path, Path(labels), root, wanted.views, cfg.pooling)
    _write_yaml(path, f"The features of {source.folder.resolve()}, converted.", blocks)
    return path


def _write_yaml(path: Path, comment: str, values: dict[str, Any]) -> None:
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)
    files.write_text(path, f"# {comment}\n{text}")


def _write_suites(
    cfg: CompareConfig,
    sources: Sequence[Source],
    placed: Sequence[Placed],
    machines: Sequence[Path],
) -> list[Path]:
    """The suites that the driver runs -> their paths: codecs in a feature's own layout have a transform
    of their own."""
    shared: dict[str, Any] = {"machines": [path.name for path in machines]}
    plane, native, fitted = [], [], []
    for entry in cfg.entries:
        rates = cfg.rates_of.get(entry.name)
        if not entry.trained:
            fitted.append({"codec": entry.name, "quality": rates or LADDERS[entry.name]})
        elif entry.layout == "plane":
            plane += _plane_rows(cfg, entry, sources, rates or LAMBDAS)
        else:
            pairs = zip(sources, placed, strict=True)
            native += [_native_row(cfg, entry, *each, rates) for each in pairs]
    suites = []
    folder = cfg.output / "configs"
    if plane or fitted:
        values = (
            shared | ({"rows": plane} if plane else {}) | ({"fitted": fitted} if fitted else {})
        )
        suites.append(folder / f"{SUITE}.yaml")
        _write_yaml(suites[-1], "What compare.py ran; run_batch.py --suite takes it.", values)
    if native:
        transform = {"transform_type": "uniform", "samples": 0, "assignment": "continuous"}
        values = shared | {"transform": transform, "rows": native}
        suites.append(folder / f"{NATIVE_SUITE}.yaml")
        _write_yaml(suites[-1], "Codecs in a feature's own layout, which compare.py ran.", values)
    return suites


def _training(cfg: CompareConfig, entry: CodecEntry, rates: Sequence[float]) -> dict[str, Any]:
    return {
        "arch": dict(ARCHS.get(entry.name, {})),
        "lambda_value": [*rates],
        "epochs": cfg.epochs,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "schedule": "cosine",
    }


def _crops(source: Source) -> int:
    """Patches of each file."""
    return min(MOST_PATCHES, math.ceil(PATCHES / len(source.split["fit"])))


def _facts(source: Source) -> FeatureFacts:
    return FeatureFacts(MODEL, source.name, source.shape, [*feature_axes(source.axes)])


def _plane_rows(
    cfg: CompareConfig, entry: CodecEntry, sources: Sequence[Source], rates: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """One codec for all folders where it can know several, else one each."""
    together = [sources] if entry.universal else [[source] for source in sources]
    for group in together:
        yield {
            "codec": entry.name,
            "train_task": HYBRID if entry.universal else group[0].name,
            "patch_size": PLANE_PATCH,
            "patches_per_file": {source.name: _crops(source) for source in group},
            **_training(cfg, entry, rates),
        }


def _native_row(
    cfg: CompareConfig,
    entry: CodecEntry,
    source: Source,
    placed: Placed,
    rates: Sequence[float] | None,
) -> dict[str, Any]:
    """Patches are as large as a typical file, up to a limit."""
    # numba comes with it
    from dtufc.transform.patches import STEP, default_size

    facts = _facts(source)
    shapes = sorted(source.feature_shapes, key=math.prod)
    typical = np.broadcast_to(np.float32(0), shapes[len(shapes) // 2])  # of no memory
    sides = (max(STEP["native"], side) for side in default_size(facts, typical, "native"))
    height, width = sides if facts.views.is_map else (next(sides), 1)
    row = {
        "codec": entry.name,
        "train_task": source.name,
        "patch_size": f"{height}-{width}",
        "patches_per_file": _crops(source),
        **_training(cfg, entry, rates or native_lambdas(placed)),
    }
    if not facts.views.is_map:
        row["arch"]["kernel"] = [3, 1]
    return row


def native_lambdas(placed: Placed) -> list[float]:
    """Lambdas at which the normalised MSE will be about NMSES.

    With u = (x - low) / (high - low), the loss is 255^2 lambda D + R with D the squared error of u and R
    in bits. A fine quantiser has dD/dR = -2 ln 2 D, so that lambda = 1 / (255^2 2 ln 2 D).
    """
    low, high = placed.fit_range
    spread = (high - low) ** 2 / max(placed.variance, 1e-30)
    found = [spread / (255**2 * 2 * math.log(2) * nmse) for nmse in NMSES]
    return [float(f"{value:.2g}") for value in found]


def _run(cfg: CompareConfig, suites: Sequence[Path]) -> "list[TableRow]":
    """Run the suites -> the rows of their tables."""
    from dtufc.experiments.driver import BatchConfig, run_batch

    rows = []
    for suite in suites:
        batch = BatchConfig(suite=str(suite), data_root=cfg.output, jobs=cfg.jobs)
        rows += [row for row in run_batch(batch) if row not in rows]
    return rows


def summarise(rows: "Sequence[TableRow]") -> list[str]:
    """Lines that say, for each kind of feature, the NMSE of each codec at some rates, and which codec
    has the lowest (alone: no other was measured there); the same of the relative error per token, where
    there are tokens. Interpolated between measured points, on logarithms of both."""
    lines = []
    kinds = dict.fromkeys(row.evaluated_on for row in rows)
    for kind, error in itertools.product(kinds, ERRORS):
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row.evaluated_on == kind and (value := getattr(row, error)):
                curves.setdefault(row.codec, []).append((math.log2(row.bpfp), math.log(value)))
        if not curves:
            continue
        found = {name: sorted(points) for name, points in curves.items()}
        powers = range(
            math.ceil(min((p[0][0] for p in found.values()), default=0)),
            math.floor(max((p[-1][0] for p in found.values()), default=-1)) + 1,
        )
        at = {name: [_between(points, power) for power in powers] for name, points in found.items()}
        lowest = []
        for k in range(len(powers)):
            measured = sorted((row[k], name) for name, row in at.items() if row[k] < math.inf)
            names = [name for _, name in measured] or ["-"]
            lowest.append(f"{names[0]} alone" if len(measured) == 1 < len(at) else names[0])
        cells = [
            [f"{kind}: {ERRORS[error]} at bits per point", *(f"{2.0**power:g}" for power in powers)]
        ]
        for name, row in at.items():
            cells.append([name, *("-" if math.isinf(value) else f"{value:.3g}" for value in row)])
        cells.append(["lowest", *lowest])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines.append("")
        for line in cells:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
    return lines


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """Error at a log2 rate; infinite where none is measured on both sides."""
    rates, errors = zip(*points, strict=True)
    if not rates[0] <= at <= rates[-1]:
        return math.inf
    return float(np.exp(np.interp(at, rates, errors)))


def main(argv: Sequence[str] | None = None) -> None:
    with config.report_errors():
        compare(config.parse(CompareConfig, argv, __doc__))


if __name__ == "__main__":
    main()
