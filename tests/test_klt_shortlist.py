"""The shortlist: which clusters of a mixture are tried."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dtufc.feature import FeatureFacts
from dtufc.klt import fit_ladder, fit_tables, shortlist
from dtufc.klt.codec import KltCodec
from dtufc.klt.fit_tables import WEIGHT, Coded
from dtufc.klt.model import HIGHEST, PER_OCTAVE, RUNGS, KltModel, Layout, Transform

WIDTH, CLUSTERS = 40, 6
QUALITY = 1.0


def mixture(version: int, clusters: int = CLUSTERS):
    """A codec of some clusters, made-up tokens (R, WIDTH, 1) of its kind, and the cluster of each."""
    rng = np.random.default_rng(0)
    bases = [np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] for _ in range(clusters)]
    basis = np.stack(bases).astype(np.float16).astype(np.float32)
    mean = 0.5 * rng.standard_normal((clusters, WIDTH, 1)).astype(np.float32)
    scale = np.geomspace(4, 0.1, WIDTH)
    own = rng.integers(clusters, size=900)
    z = rng.standard_normal((900, WIDTH)) * scale
    x = np.einsum("rd,rcd->rc", z, basis[own])[:, :, None].astype(np.float32) + mean[own]
    transform = Transform(Layout(True, 1, clusters, True), mean, basis, 1.0)
    coded, grades = Coded.plain(transform, x[:600]), [round(PER_OCTAVE * QUALITY)]
    grades.append(HIGHEST * PER_OCTAVE)
    if version == 2:
        coarse, fine = fit_ladder.fit(transform, coded, grades, WEIGHT)
    else:
        coarse, fine = fit_tables.fit_chain(transform, coded, grades)
    facts = FeatureFacts("toy", "t", [1, 1, None, WIDTH], ["sample", "layer", "token", "channel"])
    rungs = (*[coarse] * (RUNGS - 1), fine)
    return KltCodec(KltModel(facts, transform, rungs, WEIGHT), QUALITY), x[600:], own[600:]


@pytest.fixture(scope="module", params=[1, 2])
def mixed(request):
    return mixture(request.param)


def cost(codec: KltCodec, x: np.ndarray, most: int) -> float:
    """Squared error in steps and bits, weighed, of a token."""
    model, grade = codec.model, codec.grade
    clusters, symbols, bits, _, _ = model.quantise(x, grade, most=most)
    away = (model.restore(clusters, symbols, grade) - x) / model.transform.step(grade)
    return (np.square(away).sum() + WEIGHT * bits.sum()) / len(x)


def test_a_shortlist_is_short_and_holds_the_cheapest_cluster(mixed):
    codec, x, own = mixed
    every = codec.model.quantise(x, codec.grade, most=CLUSTERS)[0]
    assert (every == own).mean() > 0.95
    for most in (1, 2, shortlist.TRIED):
        tried = codec.model.shortlist(x, codec.grade, most)
        assert tried.shape == (len(x), CLUSTERS)
        assert tried.any(1).all() and tried.sum(1).max() <= most
        assert tried[np.arange(len(x)), every].mean() > (0.9 if most == 1 else 0.98)
    assert tried.sum(1).mean() < 3  # what is far off is not tried


def test_few_trials_cost_next_to_nothing(mixed):
    codec, x, _ = mixed
    least = cost(codec, x, CLUSTERS)
    assert least <= cost(codec, x, shortlist.TRIED) * 1.0001 < least * 1.003
    assert cost(codec, x, shortlist.TRIED) <= cost(codec, x, 1) < least * 1.05


def test_what_is_encoded_is_the_shortlist_s_choice(mixed):
    codec, x, _ = mixed
    clusters, symbols, _, _, _ = codec.model.quantise(x, codec.grade, len(x))
    decoded = codec.decode(codec.encode(x[None, None, :, :, 0]))[0, 0]
    stands = codec.model.restore(clusters, symbols, codec.grade, len(x))
    np.testing.assert_allclose(decoded, stands[:, :, 0], rtol=1e-5, atol=1e-5)


def test_a_row_s_choice_does_not_depend_on_its_neighbours():
    codec, x, _ = mixture(1)
    model = codec._rows_model
    whole = model.quantise(x, codec.grade)
    for part in (slice(0, 1), slice(7, 8), slice(3, 20), slice(100, 300)):
        found = model.quantise(np.ascontiguousarray(x[part]), codec.grade)
        assert np.array_equal(
            model.shortlist(x, codec.grade)[part], model.shortlist(x[part], codec.grade)
        )
        assert np.array_equal(found[0], whole[0][part])
        assert np.array_equal(found[1], whole[1][part])


def test_symbols_do_not_depend_on_threads(mixed):
    codec, x, _ = mixed
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(codec.encode(x[None, None, :, :, 0]))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("version", [1, 2])
def test_small_mixtures_try_all(version):
    codec, x, _ = mixture(version, shortlist.FEWEST - 1)
    assert codec.model.shortlist(x, codec.grade) is None
    assert len(np.unique(codec.model.quantise(x, codec.grade)[0])) == shortlist.FEWEST - 1


def test_known_clusters_have_no_shortlist():
    codec, x, own = mixture(1)
    transform = codec.model.transform
    layers = replace(transform, layout=replace(transform.layout, layers="own"))
    model = replace(codec.model, transform=layers)
    assert model.shortlist(x, codec.grade) is None
    owners = own.astype(np.int32)
    assert np.array_equal(model.quantise(x, codec.grade, owners=owners)[0], owners)
