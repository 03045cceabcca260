"""Optimal k-means against all partitions, against scikit-learn, and on inputs that break sums."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from dtufc.transform import kmeans
from dtufc.transform.histogram import distinct
from dtufc.transform.kmeans import lloyd, optimal_centres, squared_error


def error_of_best_partition(values: np.ndarray, weights: np.ndarray, clusters: int) -> float:
    """The least error over all ways to cut the points into intervals."""
    best = np.inf
    for cuts in itertools.combinations(range(1, values.size), clusters - 1):
        edges = [0, *cuts, values.size]
        error = 0.0
        for a, b in itertools.pairwise(edges):
            mean = np.average(values[a:b], weights=weights[a:b])
            error += float(np.dot(weights[a:b], (values[a:b] - mean) ** 2))
        best = min(best, error)
    return best


def assert_optimal(values: np.ndarray, weights: np.ndarray, clusters: int) -> None:
    centres = optimal_centres(values, weights, clusters)
    assert centres.shape == (clusters,)
    assert (np.diff(centres) > 0).all()
    best = error_of_best_partition(values, weights, clusters)
    assert squared_error(values, weights, centres) <= best * (1 + 1e-9)


@given(
    values=st.lists(
        st.floats(-1e3, 1e3, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3),
        min_size=2, max_size=9, unique=True,
    ),
    data=st.data(),
)  # fmt: skip
def test_optimal_against_all_partitions(values, data):
    values = np.sort(np.array(values) + 0.0)
    weights = data.draw(st.lists(st.integers(1, 50), min_size=values.size, max_size=values.size))
    clusters = data.draw(st.integers(1, values.size - 1))
    assert_optimal(values, np.array(weights, float), clusters)


@pytest.mark.parametrize("clusters", range(1, 10))
@pytest.mark.parametrize("gap", [1, 1000])
def test_ties(clusters, gap):
    """Equal spacing and two equal groups: the error is linear in k in places, so paths are crossed."""
    values = np.concatenate([np.arange(5), gap + 4 + np.arange(5)]).astype(float)
    assert_optimal(values, np.ones(10), clusters)


def test_crossed_paths_have_the_count_asked_for():
    """Ten copies of one group: every penalty gives a multiple of ten clusters."""
    values = (1000.0 * np.arange(10)[:, None] + np.arange(6)).ravel()
    for clusters in range(1, 60):
        centres = optimal_centres(values, np.ones(60), clusters)
        assert centres.size == clusters
    pair = optimal_centres(values, np.ones(60), 15)
    # five groups whole (17.5 each), five as two threes (4 each)
    assert squared_error(values, np.ones(60), pair) == pytest.approx(5 * 17.5 + 5 * 4, rel=1e-12)


def test_as_many_clusters_as_points():
    values = np.array([1.0, 2.0, 5.0])
    assert np.array_equal(optimal_centres(values, np.ones(3), 8), values)


def odd_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal
    narrow = (1 + 1e-4 * rng.random(4000)).astype(np.float32)
    bf16 = (normal(20_000).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return {
        "peaky": (normal(20_000) ** 3).astype(np.float32),
        "narrow": narrow,
        "narrow and outlier": np.append(narrow, np.float32(1e6)),
        "two narrow": np.concatenate([narrow, 1000 * narrow]),
        "bf16": bf16,
        "fp16": normal(20_000).astype(np.float16).astype(np.float32),
        "atoms": np.where(rng.random(20_000) < 0.8, 0, normal(20_000)).astype(np.float32),
        "tiny": (1e-30 * normal(3000)).astype(np.float32),
        "few": rng.integers(0, 40, 5000).astype(np.float32),
        "constant channels": np.concatenate([normal(5000), np.full(500, -480)]).astype(np.float32),
    }


@pytest.mark.parametrize("clusters", [2, 16, 64])
@pytest.mark.parametrize("name", odd_inputs())
@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_never_worse_than_sklearn(name, clusters):
    x = odd_inputs()[name]
    points = distinct(x)
    clusters = min(clusters, points.values.size)
    centres = optimal_centres(points.values, points.weights, clusters)
    model = KMeans(clusters, n_init=1, random_state=0).fit(x.astype(np.float64)[:, None])
    theirs = np.sort(model.cluster_centers_[:, 0])
    error = squared_error(points.values, points.weights, centres)
    assert error <= squared_error(points.values, points.weights, theirs) * (1 + 1e-9)


def test_more_points_than_are_solved_directly(monkeypatch):
    """Merging and Lloyd's iteration come within rounding of the optimum they stand in for."""
    values = np.unique((np.random.default_rng(0).standard_normal(60_000) ** 3).astype(np.float32))
    values, weights = values.astype(float), np.ones(values.size)
    best = squared_error(values, weights, optimal_centres(values, weights, 64))
    monkeypatch.setattr(kmeans, "DIRECT_POINTS", 1 << 13)
    monkeypatch.setattr(kmeans, "GROUPS", 1 << 13)
    merged = optimal_centres(values, weights, 64)
    assert squared_error(values, weights, merged) <= best * (1 + 1e-5)
    again = lloyd(values, weights, merged)
    assert np.allclose(again, merged, rtol=0, atol=1e-12)


def test_pinned():
    """Decided by integers: 12 points, 4 clusters."""
    values = np.array([0, 1, 2, 10, 11, 20, 21, 22, 23, 40, 41, 60], float)
    centres = optimal_centres(values, np.ones(12), 4)
    assert np.allclose(centres, [4.8, 21.5, 40.5, 60], rtol=1e-14, atol=0)
    assert squared_error(values, np.ones(12), centres) == pytest.approx(116.3, rel=1e-14)
