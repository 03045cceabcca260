"""Relative error per token: its definition, and that it is told wherever NMSE is."""

import numpy as np
import pytest

from dtufc import files, records
from dtufc.codec import load_codec
from dtufc.evaluate import main as evaluate
from dtufc.feature import write_feature
from dtufc.paths import RATE_CSV, SUMMARY_JSON
from dtufc.token_error import TokenErrors, count_tokens


def by_hand(features, decoded):
    """The definition, token by token, of features (N, L, T, C)."""
    layers = features[0].shape[1]
    centre = [
        np.mean([np.median(x[:, k].reshape(-1, x.shape[3]), axis=0) for x in features], axis=0)
        for k in range(layers)
    ]
    ratios = [
        ((x[n, k, t] - y[n, k, t]) ** 2).sum() / ((x[n, k, t] - centre[k]) ** 2).sum()
        for x, y in zip(features, decoded, strict=True)
        for n, k, t in np.ndindex(x.shape[:3])
    ]
    return np.mean(ratios)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    found = [rng.normal(size=(1, 2, tokens, 8)).astype(np.float32) for tokens in (3, 7, 5)]
    found[0][0, :, 0, 3] = 20000  # a giant first token
    return found


def test_it_is_the_mean_over_tokens(features):
    rng = np.random.default_rng(1)
    decoded = [x + rng.normal(0, 0.1, x.shape).astype(np.float32) for x in features]
    errors = TokenErrors()
    for x in features:
        errors.add(x)
    found = [errors.error(x, y) for x, y in zip(features, decoded, strict=True)]
    counts = [count_tokens(x.shape) for x in features]
    assert counts == [6, 14, 10]
    assert np.average(found, weights=counts) == pytest.approx(by_hand(features, decoded))
    assert [errors.error(x, x) for x in features] == [0, 0, 0]


def test_giant_values_do_not_hide_the_others(features):
    """Every token but the giant one is lost: NMSE says nothing of it."""
    kept = [np.where(np.abs(x).max(-1, keepdims=True) > 1000, x, 0) for x in features]
    errors = TokenErrors()
    for x in features:
        errors.add(x)
    squares = sum(((x - y) ** 2).sum() for x, y in zip(features, kept, strict=True))
    values = np.concatenate([x.ravel() for x in features])
    assert squares / values.size / values.var() < 1e-4
    found = [errors.error(x, y) for x, y in zip(features, kept, strict=True)]
    assert np.average(found, weights=[6, 14, 10]) > 0.8


def test_a_token_that_is_the_centre_counts_as_0():
    x = np.ones((1, 1, 4, 2), np.float32)
    errors = TokenErrors()
    errors.add(x)
    assert errors.error(x, x + 1) == 0


def test_evaluation_records_it(tmp_path, golden_folder):
    folder = golden_folder("int")
    (facts,) = load_codec(folder).known
    _, layers, _, width = facts.smallest
    rng = np.random.default_rng(0)
    features = [
        rng.normal(size=(1, layers, tokens, width)).astype(facts.dtype) for tokens in (3, 7, 5)
    ]
    for k, x in enumerate(features):
        write_feature(tmp_path / "features" / f"{k}.npy", x)
    flags = ["--codec", str(folder), "--features", str(tmp_path / "features"), "--quality", "4"]
    evaluate([*flags, "--output", str(tmp_path / "out")])
    decoded = [np.load(tmp_path / "out" / "decoded" / f"{k}.npy") for k in range(len(features))]
    summary = files.read_json(tmp_path / "out" / SUMMARY_JSON)
    assert summary["token_error"] == pytest.approx(by_hand(features, decoded))
    rows = records.read_rate(tmp_path / "out" / RATE_CSV)
    assert [row.tokens for row in rows] == [layers * tokens for tokens in (3, 7, 5)]
    # one feature more: the rows that are kept are told by the new mean
    features.append(1 + features[0][:, :, :2])
    write_feature(tmp_path / "features" / "3.npy", features[3])
    before = (tmp_path / "out" / "bitstreams" / "0.ufc").stat().st_mtime_ns
    evaluate([*flags, "--output", str(tmp_path / "out")])
    assert (tmp_path / "out" / "bitstreams" / "0.ufc").stat().st_mtime_ns == before
    decoded.append(np.load(tmp_path / "out" / "decoded" / "3.npy"))
    summary = files.read_json(tmp_path / "out" / SUMMARY_JSON)
    assert summary["token_error"] == pytest.approx(by_hand(features, decoded))
