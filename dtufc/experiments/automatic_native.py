"""The learned codec of :mod:`dtufc.experiments.automatic`: trained for one error, while time allows.

The driver makes it from a suite, in a data root of its own: first for a few epochs, whose time tells
how many more fit into the minutes, then for those.
"""

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import yaml

from dtufc import files
from dtufc.experiments.compare import ARCHS, BATCH_SIZE, LEARNING_RATE, MOST_PATCHES, PATCHES
from dtufc.feature import FeatureFacts, Moments, list_features
from dtufc.paths import CONFIG_JSON, RUN_JSON, DataRoot

TRIAL, FEWEST, MOST = 2, 15, 300
"""Epochs that are timed; fewest that are worth while, and most."""
RESERVE = 0.8  # of the time that is left may be spent on epochs
VALIDATED = 8  # every so many files validate the training


def train_native(
    told: Path, facts: FeatureFacts, nmse: float, seconds: float, folder: Path, seed: int
) -> Path | str:
    """Train -> the codec folder, or why there is none.

    Args:
        told: folder of features to train on. nmse: the error that is aimed at.
        seconds: what training may take. folder: where everything is made.
    """
    from dtufc.experiments.driver import BatchConfig, run_batch

    root, paths = DataRoot(folder / "native"), list_features(told)
    if len(paths) < 2:
        return "takes two files or more"
    place, moments, span = root.feature(facts.model, facts.task), Moments(), [math.inf, -math.inf]
    for number, path in enumerate(paths):
        x = facts.read(path)
        moments.add(x)
        span = [min(span[0], float(x.min())), max(span[1], float(x.max()))]
        part = "test" if number % VALIDATED == 0 else "train"
        _link(place.feature_train / part / path.name, path)
    _link(place.feature_test / paths[0].name, paths[0])
    machine = folder / "native.yaml"
    machine.write_text(
        yaml.safe_dump({"feature": files.jsonable(asdict(replace(facts, script=None)))})
    )
    typical = np.broadcast_to(np.float32(0), facts.read(paths[len(paths) // 2]).shape)
    row = _row(facts, typical, len(paths)) | {"lambda_value": [_lambda(span, moments, nmse)]}
    suite = folder / "native_suite.yaml"
    timed = 0.0
    for epochs in (TRIAL, MOST):
        if epochs == MOST:
            epochs = min(MOST, int(RESERVE * (seconds - timed) / (timed / TRIAL)))
            if epochs < FEWEST:
                return f"would train for {max(epochs, 0)} epochs; {FEWEST} are the fewest"
        values = {
            "machines": [str(machine)],
            "transform": {"transform_type": "uniform", "samples": 0, "assignment": "continuous"},
            "rows": [row | {"epochs": epochs, "seeds": [seed]}],
        }
        suite.write_text(yaml.safe_dump(values))
        run_batch(BatchConfig(suite=str(suite), data_root=root.folder, pipeline_config="train"))
        made = [path.parent for path in (root.folder / "codecs").rglob(f"*/{CONFIG_JSON}")]
        made = [path for path in made if path.name != "last"]
        last = max(made, key=lambda path: (path / CONFIG_JSON).stat().st_mtime_ns)
        timed = float(files.read_json(last / RUN_JSON)["wall_s"])
    return last


def _link(link: Path, path: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(path.resolve())


def _row(facts: FeatureFacts, typical: np.ndarray, count: int) -> dict:
    """The suite's row, but for what the minutes and the error decide."""
    # numba comes with it
    from dtufc.transform.patches import STEP, default_size

    height, width = (max(STEP["native"], side) for side in default_size(facts, typical, "native"))
    arch = dict(ARCHS["native"])
    if not facts.views.is_map:
        width, arch["kernel"] = 1, [3, 1]
    return {
        "codec": "native",
        "train_task": facts.task,
        "patch_size": f"{height}-{width}",
        "patches_per_file": min(MOST_PATCHES, math.ceil(PATCHES / count)),
        "arch": arch,
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "schedule": "cosine",
    }


def _lambda(span: list[float], moments: Moments, nmse: float) -> float:
    """As :func:`dtufc.experiments.compare.native_lambdas`, for an error a quarter below the wanted one,
    since a short training misses it."""
    spread = (span[1] - span[0]) ** 2 / max(moments.variance, 1e-30)
    return float(f"{spread / (255**2 * 2 * math.log(2) * 0.75 * nmse):.2g}")
