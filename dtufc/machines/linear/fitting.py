"""Fit a linear head to training features and labels: multinomial logistic regression."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dtufc import files
from dtufc.errors import UserError
from dtufc.feature import list_features, read_feature
from dtufc.machines.linear.head import Head, Pooling, find_labels, pool, read_labels, save_head
from dtufc.paths import FeatureRoot
from dtufc.views import Views

MAX_STEPS = 2000


def fit_head(paths: Sequence[Path], labels: dict[str, str], views: Views, pooling: Pooling) -> Head:
    """The head of the greatest likelihood, with scikit-learn's default penalty, on pooled features of
    mean 0 and standard deviation 1.

    Args:
        paths: training features.
        labels: their classes by name.

    Raises:
        FeatureError, UserError: features of several widths, or of one class alone.
    """
    # scikit-learn takes a second to import, and only a fit needs it
    from sklearn.linear_model import LogisticRegression

    pooled = [pool(read_feature(path), views, pooling) for path in paths]
    if len({len(each) for each in pooled}) > 1:
        raise UserError(f"pooling: {pooling} needs features of one shape; take mean")
    classes = sorted({labels[path.stem] for path in paths})
    if len(classes) < 2:
        raise UserError(f"labels: all training features are of the class {classes[0]!r}")
    x = np.stack(pooled)  # (features, width)
    mean, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    y = [classes.index(labels[path.stem]) for path in paths]
    model = LogisticRegression(max_iter=MAX_STEPS).fit((x - mean) / scale, y)
    weight, bias = model.coef_ / scale, model.intercept_
    if len(classes) == 2:  # one row, for the second class
        weight, bias = np.vstack([-weight, weight]), np.concatenate([-bias, bias])
    return Head(weight, bias - weight @ mean, classes)


def training_paths(root: FeatureRoot) -> list[Path]:
    """All features that heads are fitted on: those that codecs are fitted and validated on.

    Raises:
        FileNotFoundError, FeatureError: there are none.
    """
    return [path for part in ("train", "test") for path in list_features(root.feature_train / part)]


def write_head(
    yaml: Path, labels: Path, root: FeatureRoot, views: Views, pooling: Pooling
) -> dict[str, Any]:
    """Fit a head to a data root's training features and put it beside a machine's YAML, with a copy of
    the labels -> the machine's block of that YAML.

    Raises:
        FileNotFoundError, UserError: labels are missing or wrong; the message names the file.
    """
    known = read_labels(labels)
    paths = training_paths(root)
    find_labels(known, [*paths, *list_features(root.feature_test)], labels)
    head = yaml.with_name(f"{yaml.stem}_head.safetensors")
    copy = yaml.with_name(f"{yaml.stem}_labels.csv")
    save_head(head, fit_head(paths, known, views, pooling))
    if labels.resolve() != copy.resolve():
        files.write_bytes(copy, labels.read_bytes())
    return {"head": head.name, "labels": copy.name, "pooling": pooling}
