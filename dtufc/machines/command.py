"""The one command line of all machines: extract features, evaluate folders of features.

    python cls.py                                            extract and evaluate, tiny preset
    python cls.py --mode evaluate --features DIR [DIR ...]   task accuracy of decoded features
    python cls.py --machine resnet50 --mode extract          the full-size preset

Every key of the preset's ``machine:`` block is a flag too. What features were made with is kept beside
them; features of another seed, split or checkpoint are refused, never mixed or scored.
"""

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm

from dtufc import accuracy, config, files, locks, provenance
from dtufc.errors import UserError
from dtufc.feature import FeatureError, find_machine_config
from dtufc.machines.machine import Machine, Sample, Score, StateMachine
from dtufc.machines.options import MachineOptions
from dtufc.memory import keep_memory
from dtufc.paths import (
    ACCURACY_CSV,
    ACCURACY_JSON,
    DECODED,
    EXTRACTED_JSON,
    ORIGIN_JSON,
)
from dtufc.stamps import Stamp
from dtufc.states import Facts, is_whole, mismatch, read_sample, sample_files, write_sample

Options = TypeVar("Options", bound=MachineOptions)
IDLE = ("machine", "mode", "features", "save_predictions", "data_root", "device",
        "sensitivity_samples")  # fmt: skip
"""Options that do not decide predictions."""


def parse_options(
    options_class: type[Options], preset: str, argv: Sequence[str] | None, doc: str | None
) -> Options:
    """Read the preset that ``--machine`` names, then the flags over it.

    Raises:
        FileNotFoundError, UserError: the preset is missing or its block is wrong.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    name = preset
    for flag, following in zip(given, [*given[1:], ""], strict=False):
        if flag == "--machine" and following:
            name = following
        elif flag.startswith("--machine="):
            name = flag.removeprefix("--machine=")
    path = find_machine_config(name)
    block = accuracy.preset_block(path)
    known = options_class.__dataclass_fields__.keys() - MachineOptions.__dataclass_fields__.keys()
    if not isinstance(block, dict) or block.keys() - known:
        raise UserError(f"{path}: machine: expected keys of {sorted(known)}, got {list(block)}")
    config.build(options_class, {"machine": str(name), **block}, f"{path}: machine")
    options = config.parse(options_class, given, doc, machine=str(name), **block)
    if options.machine != str(name):  # its block was not the one that was read
        raise UserError(f"machine: name {options.machine} by --machine, after no --config")
    return options


def run(machine: Machine, options: MachineOptions) -> dict[str, float]:
    """Do what the options say -> the metric of each evaluated folder, by folder.

    Raises:
        FeatureError: an evaluated feature is missing, damaged or of the wrong kind.
        FileNotFoundError, UserError: the machine's inputs or weights are missing.
    """
    keep_memory()  # the script's process is its own
    _check_origin(machine, options)
    if options.mode in ("extract", "both"):
        with locks.hold(options.root.folder):
            extract(machine, options)
            if isinstance(machine, StateMachine):
                from dtufc.machines.sensitivity import measure

                measure(machine, options)
    if options.mode == "extract":
        return {}
    folders = options.features or [options.root.feature_test]
    return {str(folder): evaluate(machine, options, folder).value for folder in folders}


def _check_origin(machine: Machine, options: MachineOptions) -> None:
    """Refuse features that other settings or weights made.

    Raises:
        FeatureError: the data root's features were made otherwise; the message says in what.
    """
    path = options.root.folder / ORIGIN_JSON
    if not path.is_file():  # nothing extracted yet, or features that came from elsewhere
        return
    known, origin = files.read_json(path), machine.origin()
    here = {
        key for key, value in origin.items() if value is not None
    }  # None: not at hand, not told
    differ = [
        key for key in known.keys() - origin.keys() | here if known.get(key) != origin.get(key)
    ]
    if differ:
        what = ", ".join(f"{key} {known.get(key)}, not {origin.get(key)}" for key in sorted(differ))
        raise FeatureError(
            f"{path}: the features there were made with {what}; take another --data_root, or remove "
            "them and this file"
        )


def extract(machine: Machine, options: MachineOptions) -> None:
    """Write the features of all samples; those that are there and whole are kept. ``extracted.json``
    appears when all are there."""
    facts, root = options.facts, options.root
    origin = root.folder / ORIGIN_JSON
    splits = {
        "train": root.feature_train / "train",
        "validation": root.feature_train / "test",
        "test": root.feature_test,
    }
    counts = {}
    for split, folder in splits.items():
        samples = machine.samples(split)
        counts[split] = len(samples)
        bar = tqdm(total=len(samples), desc=f"extract {split}", unit="feature")
        for batch in _batches(samples, machine.batch_size):
            missing = [s for s in batch if not is_whole(facts, folder, s.name)]
            # a batch is computed as it always is, even where one feature of it is missing
            features = machine.extract_batch(batch) if missing else []
            for sample, feature in zip(batch, features, strict=bool(missing)):
                if why := mismatch(facts, feature):
                    raise FeatureError(f"{options.machine}: the facts do not fit the split: {why}")
                if not origin.is_file():
                    files.write_json(origin, machine.origin())
                if sample in missing:
                    write_sample(facts, folder, sample.name, feature)
            bar.update(len(batch))
        bar.close()
    files.write_json(root.folder / EXTRACTED_JSON, counts)


def _batches(samples: list[Sample], size: int) -> Iterator[list[Sample]]:
    for first in range(0, len(samples), size):
        yield samples[first : first + size]


def evaluate(machine: Machine, options: MachineOptions, folder: Path) -> Score:
    """Predict from every feature of a folder and score; writes ``accuracy.json`` and ``.csv``."""
    facts = options.facts
    samples = machine.samples("test")
    paths = [path for sample in samples for path in sample_files(facts, folder, sample.name)]
    missing = [path.relative_to(folder) for path in paths if not path.is_file()]
    if missing:
        raise FeatureError(
            f"{folder}: {len(missing)} of {len(paths)} test features are missing, "
            f"the first is {missing[0]}"
        )
    preset = find_machine_config(options.machine)
    flags = _flags(options, preset)
    stamp = accuracy.accuracy_stamp(preset, flags, paths, machine.inputs(), folder)
    bar = tqdm(total=len(samples), desc=f"evaluate {facts.kind}", unit="feature")
    target = _results(options, folder)
    predictions = _predict(machine, facts, samples, folder, bar)
    if options.save_predictions:
        predictions = _save(machine, predictions, samples, target / "predictions")
    score = machine.score(samples, predictions)
    bar.close()
    _record(score, options, folder, target, stamp)
    others = "".join(f", {name} {value:.4f}" for name, value in score.others.items())
    print(f"{score.metric} {score.value:.4f}{others} over {len(samples)} features of {folder}")
    return score


def _predict(
    machine: Machine, facts: Facts, samples: list[Sample], folder: Path, bar: tqdm
) -> Iterator[Any]:
    """The predictions one after the other, so that a machine need not hold them all."""
    for batch in _batches(samples, machine.batch_size):
        features = [read_sample(facts, folder, sample.name) for sample in batch]
        yield from machine.predict_batch(batch, features)
        bar.update(len(batch))


def _save(
    machine: Machine, predictions: Iterable[Any], samples: list[Sample], target: Path
) -> Iterator[Any]:
    """Pass predictions on; those that are pictures become PNG files."""
    for sample, prediction in zip(samples, predictions, strict=True):
        if (picture := machine.picture_of(prediction)) is not None:
            with files.write_atomic(target / f"{sample.name}.png") as file:
                Image.fromarray(picture).save(file, "PNG")
        yield prediction


def _results(options: MachineOptions, folder: Path) -> Path:
    """Beside ``decoded/`` in a folder of results; beside ``feature_test/`` in the data root."""
    inside = folder.name == DECODED or folder.resolve() == options.root.feature_test.resolve()
    return folder.parent if inside else folder


def _flags(options: MachineOptions, preset: Path) -> dict[str, Any]:
    """Options that differ from the preset and decide predictions."""
    values = {"machine": options.machine, **accuracy.preset_block(preset)}
    plain = provenance.config_values(config.build(type(options), values, f"{preset}: machine"))
    return {
        key: value
        for key, value in provenance.config_values(options).items()
        if key not in IDLE and value != plain[key]
    }


def _record(
    score: Score, options: MachineOptions, folder: Path, target: Path, stamp: Stamp
) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(score.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(score.rows)
    files.write_text(target / ACCURACY_CSV, out.getvalue())
    files.write_json(
        target / ACCURACY_JSON,
        {
            "metric": score.metric,
            "value": score.value,
            "less_is_better": score.less_is_better,
            "others": score.others,
            "samples": len(score.rows),
            "features": str(folder),
            "options": provenance.config_values(options),
            **stamp.record(),
            **provenance.environment(),
        },
    )
