"""The fit: weighted values in bounded memory, bins resolved where needed, every kind of codebook."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtufc.feature import FeatureError, write_feature
from dtufc.transform import fit
from dtufc.transform.fit import assignment_errors, fill_levels, fit_codebook, fit_mapping
from dtufc.transform.histogram import Histogram, bin_ends, distinct
from dtufc.transform.kmeans import optimal_centres, squared_error
from dtufc.transform.mapping import Mapping
from dtufc.transform.samples import Samples


def write_features(folder, arrays) -> list:
    paths = [folder / f"f{i}.npy" for i in range(len(arrays))]
    for path, x in zip(paths, arrays, strict=True):
        write_feature(path, x)
    return paths


def mean_error(x: np.ndarray, codebook: np.ndarray) -> float:
    points = distinct(x)
    return squared_error(points.values, points.weights, codebook) / x.size


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=60)
)
def test_histogram_keeps_all_errors_and_resolves_all_values(values):
    x = np.array(values, np.float32)
    x = np.where(np.abs(x) < 1e18, x, np.float32(1))  # squares stay within float64's digits
    histogram = Histogram()
    for part in np.array_split(x, 3):
        histogram.add(part)
    points, exact = histogram.points(), distinct(x)
    assert points.count == x.size
    assert (np.diff(points.values) > 0).all()
    for centre in (0.0, float(x[0])):
        error = np.sum((x.astype(np.float64) - centre) ** 2)
        kept = np.sum(points.weights * (points.values - centre) ** 2 + points.spread)
        assert kept == pytest.approx(error, rel=1e-9, abs=1e-60)
    inexact = points.bins[points.spread > 0]
    low, high = bin_ends(inexact)
    inside = points.values[points.spread > 0]
    assert ((low <= inside) & (inside <= high)).all()
    histogram.refine(np.array_split(x, 2), inexact)
    points = histogram.points()
    assert np.array_equal(points.values, exact.values)
    assert np.array_equal(points.weights, exact.weights)
    assert not points.spread.any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_histogram_is_exact_for_16_bit_floats(dtype):
    x = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    if dtype == "float16":
        x = x.astype(np.float16).astype(np.float32)
    else:
        x = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    histogram = Histogram()
    histogram.add(x)
    points, exact = histogram.points(), distinct(x)
    assert np.array_equal(points.values, exact.values)
    assert np.array_equal(points.weights, exact.weights)


def large_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    narrow = (1 + 1e-4 * rng.random(30_000)).astype(np.float32)
    return {
        "peaky": (rng.standard_normal(30_000) ** 3).astype(np.float32),
        "normal": rng.standard_normal(30_000).astype(np.float32),
        "narrow": narrow,
        "narrow and outlier": np.append(narrow, np.float32(1e5)),
        "relu": np.maximum(rng.standard_normal(30_000), 0).astype(np.float32),
    }


@pytest.mark.parametrize("levels", [2, 16, 256])
@pytest.mark.parametrize("name", large_inputs())
def test_histogram_fit_reaches_the_exact_fit(monkeypatch, name, levels):
    x = large_inputs()[name]
    exact, _ = fit_codebook([x], "kmeans", levels)
    monkeypatch.setattr(fit, "EXACT_VALUES", 1000)
    codebook, facts = fit_codebook(np.array_split(x, 4), "kmeans", levels)
    assert mean_error(x, codebook) <= mean_error(x, exact) * (1 + 1e-4)
    assert (facts["min"], facts["max"]) == (x.min(), x.max())
    assert facts["values"] == x.size


def test_borders_are_exact(monkeypatch):
    """Few levels: the border bins alone are resolved, and the centres are means of the values."""
    x = large_inputs()["normal"]
    monkeypatch.setattr(fit, "EXACT_VALUES", 1000)
    codebook, _ = fit_codebook([x], "kmeans", 4)
    level = np.searchsorted((codebook[:-1] + codebook[1:]) / 2, x.astype(np.float64))
    means = [x[level == i].mean(dtype=np.float64) for i in range(4)]
    assert np.allclose(codebook, means, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", large_inputs())
def test_density_is_the_published_formula(monkeypatch, name):
    x = large_inputs()[name]
    published = np.interp(
        np.linspace(0, 1, 64), np.linspace(0, 1, x.size), np.sort(x).astype(np.float64)
    )
    monkeypatch.setattr(fit, "EXACT_VALUES", 1000)
    codebook, _ = fit_codebook(np.array_split(x, 4), "density", 64)
    assert codebook.shape == (64,)
    if name == "relu":  # half the quantiles are 0 and become one centre
        distance = np.abs(np.unique(published)[:, None] - codebook).min(axis=1)
        assert (distance < 1e-12).all()
    else:
        assert np.allclose(codebook, published, rtol=1e-12, atol=1e-12)


def test_uniform():
    x = np.array([-1, 0, 0, 7], np.float32)
    codebook, _ = fit_codebook([x], "uniform", 4)
    assert np.allclose(codebook, [-1, 5 / 3, 13 / 3, 7], rtol=1e-15)


@given(
    values=st.lists(
        st.floats(-1e6, 1e6, width=32), min_size=1, max_size=16, unique_by=lambda v: v + 0.0
    ),
    bit_depth=st.integers(4, 8),
    kind=st.sampled_from(["kmeans", "density", "uniform"]),
)  # fmt: skip
def test_fewer_values_than_levels(values, bit_depth, kind):
    x = np.repeat(np.array(values, np.float32), 3)
    levels = 1 << bit_depth
    codebook, _ = fit_codebook([x], kind, levels)
    assert codebook.shape == (levels,)
    assert (np.diff(codebook) > 0).all()
    if kind == "kmeans":
        mapping = Mapping(codebook)
        assert np.array_equal(mapping.inverse(mapping.forward(x)), x + np.float32(0))


@pytest.mark.parametrize("value", [0.0, 1.0, -480.0, 1e-40, 1e30, 65504.0])
def test_a_constant_feature(value):
    x = np.full(10, value, np.float32)
    for kind in fit.TRANSFORM_TYPES:
        codebook, _ = fit_codebook([x], kind, 256)
        assert (np.diff(codebook.astype(np.float32)) > 0).all()
        mapping = Mapping(codebook)
        assert np.array_equal(mapping.inverse(mapping.forward(x)), x)


def test_fill_levels_pinned():
    assert fill_levels(np.array([0.0, 8.0]), 4).tolist() == pytest.approx([0, 8 / 3, 16 / 3, 8])
    assert fill_levels(np.array([0.0, 1.0, 3.0]), 4).tolist() == [0, 1, 2, 3]
    assert fill_levels(np.array([0.0, 1.0]), 2).tolist() == [0, 1]
    alone = fill_levels(np.array([2.0**20]), 4).tolist()
    assert alone == [2**20 - 2, 2**20 - 1, 2**20, 2**20 + 1]


def test_fit_mapping_record(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal((1, 2, 30, 8)) ** 3).astype(np.float16) for _ in range(3)]
    paths = write_features(tmp_path, arrays)
    mapping, record = fit_mapping(paths, "kmeans", 5, assignment="left")
    x = np.stack(arrays).astype(np.float32)
    points = distinct(x)
    assert np.array_equal(mapping.codebooks, optimal_centres(points.values, points.weights, 32))
    assert mapping.assignment == "left"
    assert record["files"] == ["f0.npy", "f1.npy", "f2.npy"]
    assert (record["values"], record["distinct_points"]) == (x.size, points.values.size)
    assert (record["min"], record["max"]) == (x.min(), x.max())
    assert record["mse"]["nearest"] == pytest.approx(mean_error(x, mapping.codebooks), rel=1e-4)
    assert record["mse"]["nearest"] < record["mse"]["left"]


def test_the_optimum_beats_its_neighbours(tmp_path):
    """The MSE in the record is that of the values, and moving any centre raises it."""
    x = (np.random.default_rng(2).standard_normal((1, 1, 40, 50)) ** 3).astype(np.float32)
    paths = write_features(tmp_path, [x])
    mapping, record = fit_mapping(paths, "kmeans", 3)
    for shift in (-1e-2, 1e-2):
        for i in range(8):
            moved = mapping.codebooks.copy()
            moved[i] += shift
            assert assignment_errors([x], moved)["nearest"] > record["mse"]["nearest"]


def test_rows_are_sampled_by_seed_and_name(tmp_path):
    x = np.arange(40, dtype=np.float32).reshape(1, 1, 20, 2)
    paths = write_features(tmp_path, [x, x])
    first, second = (part.copy() for part in Samples(paths, rows=5, seed=1))
    assert first.shape == (1, 1, 5, 2)
    assert not np.array_equal(first, second)  # another name, other rows
    again = next(iter(Samples(paths, rows=5, seed=1)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, next(iter(Samples(paths, rows=5, seed=2))))
    assert next(iter(Samples(paths, rows=50))).shape == x.shape
    assert set(first[0, 0, :, 0] + 1) == set(first[0, 0, :, 1])  # whole rows


def test_truncation(tmp_path):
    x = np.arange(-8, 8, dtype=np.float32).reshape(1, 2, 4, 2)
    paths = write_features(tmp_path, [x])
    _, record = fit_mapping(paths, "kmeans", 2, trun_low=-2, trun_high=3)
    assert (record["min"], record["max"]) == (-2, 3)
    part = next(iter(Samples(paths, trun_low=[-5.0, 2.0])))
    assert (part[0, 0].min(), part[0, 1].min()) == (-5, 2)
    with pytest.raises(FeatureError, match=r"f0\.npy.*2 channels"):
        fit_mapping(paths, "kmeans", 2, trun_high=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="trun_low"):
        fit_mapping(paths, "kmeans", 2, trun_low=1, trun_high=-1)


@pytest.mark.parametrize("budget", [1 << 24, 200, 100])
@pytest.mark.parametrize("kind", fit.TRANSFORM_TYPES)
def test_per_channel_is_each_channel_alone(monkeypatch, tmp_path, kind, budget):
    """Gathered all at once, one at a time, and streamed."""
    rng = np.random.default_rng(0)
    scale = np.array([1, 10, 0.1]).reshape(1, 3, 1, 1)
    arrays = [(scale * rng.standard_normal((1, 3, 15, 8))).astype(np.float32) for _ in range(2)]
    monkeypatch.setattr(fit, "CHANNEL_VALUES", budget)
    mapping, record = fit_mapping(write_features(tmp_path, arrays), kind, 4, per_channel=True)
    assert mapping.codebooks.shape == (3, 16)
    assert record["values"] == 720
    for c in range(3):
        alone, _ = fit_codebook([x[:, c] for x in arrays], kind, 16)
        assert np.array_equal(mapping.codebooks[c], alone)


def test_unsound_input_is_refused(tmp_path):
    paths = write_features(tmp_path, [np.zeros((1, 2, 3, 4), np.float32)])
    with pytest.raises(ValueError, match="bit_depth"):
        fit_mapping(paths, "kmeans", 13)
    with pytest.raises(ValueError, match="transform_type"):
        fit_mapping(paths, "cubic", 8)
    with pytest.raises(ValueError, match="rows"):
        fit_mapping(paths, "kmeans", 8, rows=-1)
    with pytest.raises(ValueError, match="no feature"):
        fit_mapping([], "kmeans", 8)
    write_feature(tmp_path / "g.npy", np.zeros((1, 3, 3, 4), np.float32))
    with pytest.raises(FeatureError, match=r"g\.npy.*3 channels"):
        fit_mapping([*paths, tmp_path / "g.npy"], "kmeans", 8, per_channel=True)
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(FeatureError, match=r"bad\.npy"):
        fit_mapping([tmp_path / "bad.npy"], "kmeans", 8)


@pytest.mark.parametrize("by_column", [True, False])
def test_normalisation_is_fitted_to_each_channel(tmp_path, by_column):
    """Offsets and scales are the channels' own; the codebook then serves all of them alike."""
    rng = np.random.default_rng(0)
    size = (1, 1, 5) if by_column else (1, 3, 1, 1)
    centre, spread = rng.normal(0, 100, size), rng.uniform(0.1, 30, size)
    paths = []
    for i in range(4):
        shape = (1, 1, 40 + i, 5) if by_column else (1, 3, 8, 9)
        x = (rng.standard_normal(shape) * spread + centre).astype(np.float32)
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], x)
    arrays = [np.load(path) for path in paths]
    joined = np.concatenate(arrays, axis=2)
    axes = (0, 2) if by_column else (0, 2, 3)
    errors = {}
    for normalise in ("none", "mean", "scale"):
        mapping, record = fit_mapping(
            paths, "kmeans", 5, normalise=normalise, channel_axes=(1, 3) if by_column else (1,)
        )
        both = [mapping.inverse(mapping.forward(x)) - x for x in arrays]
        flat = [
            error / spread.reshape(error.shape[1] if not by_column else 1, 1, -1) for error in both
        ]
        errors[normalise] = np.mean([np.mean(np.square(e, dtype=float)) for e in flat])
        assert record["normalise"] == normalise
        if normalise == "none":
            assert not mapping.normalised
            continue
        assert np.allclose(
            mapping.offset, joined.mean(axes, keepdims=True)[0], rtol=1e-4, atol=1e-4
        )
        if normalise == "scale":
            assert np.allclose(mapping.scale, joined.std(axes, keepdims=True)[0], rtol=1e-3)
    assert errors["scale"] < 0.5 * errors["none"]


def test_constant_channels_can_be_normalised(tmp_path):
    x = np.random.default_rng(0).standard_normal((1, 1, 50, 4)).astype(np.float32)
    x[..., 2] = -480
    np.save(tmp_path / "a.npy", x)
    mapping, _ = fit_mapping([tmp_path / "a.npy"], "kmeans", 6, normalise="scale")
    decoded = mapping.inverse(mapping.forward(x))
    assert np.allclose(decoded[..., 2], -480, atol=0.01)
    assert np.isfinite(decoded).all()
