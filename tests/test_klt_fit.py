"""The fit of the codec without a network: moments of one pass, mixtures, tables, the race of layouts."""

import json

import numpy as np
import pytest
import torch

from dtufc.codec import load_codec
from dtufc.feature import FeatureFacts, write_feature
from dtufc.klt import fit_klt, fit_ladder, fit_step, fit_tables, ladder, statistics, trellis
from dtufc.klt.bases import Bases, Candidate
from dtufc.klt.fit import fit
from dtufc.klt.fit_klt import FitConfig
from dtufc.klt.model import Layout, Transform
from dtufc.klt.race import SMALL, Race, candidates, compare, octaves_of_giants
from dtufc.klt.statistics import Statistics, read_folds
from dtufc.klt.tables import choose, in_units

TOKENS = FeatureFacts("toy", "t", [1, 1, None, 6], ["sample", "layer", "token", "channel"])
MAPS = FeatureFacts("toy", "m", [None, 3, 8, 8], ["sample", "channel", "row", "column"])
ODD = FeatureFacts("toy", "o", [None, 3, 7, 5], ["sample", "channel", "row", "column"])


def write(folder, shapes, offset=0.0):
    """Random features of these shapes -> their paths and values."""
    rng = np.random.default_rng(0)
    found = []
    for number, shape in enumerate(shapes):
        scales = np.geomspace(1, 50, shape[1]).reshape(-1, 1, 1) if shape[1] > 1 else 1
        x = (rng.standard_normal(shape) * scales + offset).astype(np.float32)
        write_feature(folder / f"{number:02d}.npy", x)
        found.append(x)
    return sorted(folder.glob("*.npy")), found


def direct(vectors: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean (C, S), and covariance of channels around it, in float64."""
    x = np.concatenate(vectors).astype(np.float64)
    centred = (x - x.mean(0)).transpose(0, 2, 1).reshape(-1, x.shape[1])
    return x.mean(0), centred.T @ centred / len(centred)


@pytest.mark.parametrize(
    ("facts", "shape", "count", "blocks"),
    [(TOKENS, (1, 1, 30, 6), 7, [1]), (MAPS, (2, 3, 8, 8), 6, [1, 4, 8]),
     (ODD, (2, 3, 7, 5), 6, [1, 4]), (TOKENS, (1, 1, 40, 6), 1, [1]), (ODD, (9, 3, 7, 5), 1, [1, 4])],
)  # fmt: skip
def test_one_pass_gives_the_moments_of_both_parts(
    tmp_path, monkeypatch, facts, shape, count, blocks
):
    """Around a mean of 1000 standard deviations, too; and each file is read once."""
    paths, features = write(tmp_path, [shape] * count, offset=1000.0)
    monkeypatch.setattr(statistics, "STRIPE", 4)  # of up to 6 channels
    reads = []
    read = FeatureFacts.read
    monkeypatch.setattr(FeatureFacts, "read", lambda self, p: reads.append(p) or read(self, p))
    folds = read_folds(paths, facts, blocks, 10**9, 10**6, 0, "cpu")
    assert reads == paths
    assert [*folds] == blocks
    for block, fold in folds.items():
        vectors = [facts.views.to_vectors(x, block) for x in features]
        held, rest = vectors[::5], [v for i, v in enumerate(vectors) if i % 5]
        if count == 1:
            at = round(0.8 * len(vectors[0]))
            rest, held = [vectors[0][:at]], [vectors[0][at:]]
        for known, wanted in ((fold.told, rest), (fold.everything(), rest + held)):
            mean, covariance = direct(wanted)
            assert known.rows == sum(map(len, wanted))
            np.testing.assert_allclose(known.mean, mean, rtol=1e-6)
            np.testing.assert_allclose(known.covariance, covariance, rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(known.covariance, known.covariance.T, rtol=1e-5, atol=1e-6)
        assert np.array_equal(fold.told.sample, np.concatenate(rest))
        assert np.array_equal(fold.unseen, np.concatenate(held))
        assert fold.share == sum(map(len, held)) / sum(map(len, vectors))


def test_samples_are_bounded_and_plenty_holds_out_less(tmp_path):
    paths, _ = write(tmp_path, [(1, 1, 30, 6)] * 40)
    fold = read_folds(paths, TOKENS, [1], 40 * 30 * 6 // 2, 300, 0, "cpu")[1]
    assert fold.share == 2 / 40  # one file of twenty
    kept = len(fold.told.sample) + len(fold.unseen)
    assert 0.4 * fold.rows < kept < 0.6 * fold.rows


def clouds(seed: int, count: int, channels: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (R, C, 1) of three kinds, each around a mean and flat in directions of its own, and their
    kinds."""
    world, rng = np.random.default_rng(5), np.random.default_rng(seed)
    kinds = rng.integers(3, size=count)
    bases = [np.linalg.qr(world.standard_normal((channels, channels)))[0] for _ in range(3)]
    means = 3 * world.standard_normal((3, channels))
    scales = np.geomspace(8, 0.05, channels)
    x = np.stack([(rng.standard_normal(channels) * scales) @ bases[k] + means[k] for k in kinds])
    return x.astype(np.float32)[:, :, None], kinds


def known_of(x: np.ndarray) -> Statistics:
    mean, covariance = direct([x])
    return Statistics(len(x), mean.astype(np.float32), covariance, x)


def test_a_mixture_finds_the_kinds_of_vectors():
    x, kinds = clouds(0, 3000)
    layout = Layout(rotate=True, block=1, clusters=3, centre=True)
    bases = Bases(known_of(x), 0, "cpu")
    own = bases._assign(layout, 1.0)
    table = np.stack([np.bincount(kinds[own == k], minlength=3) for k in range(3)])
    assert table.max(1).sum() > 0.97 * len(x)
    transform = bases.fit(Candidate(layout, 6.0))
    assert transform.mean.shape == (3, 24, 1)
    for basis in transform.basis:
        np.testing.assert_allclose(basis.T @ basis, np.eye(24), atol=5e-3)


def test_tables_do_not_depend_on_threads():
    x, _ = clouds(0, 1200)
    layout = Layout(rotate=True, block=1, clusters=3, centre=True)
    transform = Bases(known_of(x), 0, "cpu").fit(Candidate(layout, 6.0))
    coded, before = fit_tables.Coded.plain(transform, x), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(fit_tables.fit_ladder(transform, coded, range(0, 160, 16)))
    finally:
        torch.set_num_threads(before)
    assert len(found[0]) == 10
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one.chosen, other.chosen)
        assert np.array_equal(one.clusters, other.clusters)
        assert all(map(np.array_equal, one.bank.freqs, other.bank.freqs))
        np.testing.assert_array_equal(one.bank.centroid, other.bank.centroid)


def test_giants_are_told_from_usual_tokens():
    x = np.random.default_rng(0).standard_normal((1000, 8, 1)).astype(np.float32)
    assert octaves_of_giants(known_of(x)) == 0
    x[::250, 0] = 16 * 8**0.5 * 250**0.5  # their share of the power is that of a deviation of 16
    assert octaves_of_giants(known_of(x)) == 4


def test_tables_of_the_second_format_do_not_depend_on_threads_or_blocks(monkeypatch):
    x, _ = clouds(0, 1200)
    layout = Layout(rotate=True, block=1, clusters=3, centre=True)
    transform = Bases(known_of(x), 0, "cpu").fit(Candidate(layout, 6.0))
    coded, before = fit_tables.Coded.plain(transform, x), torch.get_num_threads()

    def tables() -> dict[str, np.ndarray]:
        """Of six steps, which are two chains."""
        return ladder.arrays(list(fit_ladder.fit(transform, coded, range(0, 96, 16), 0.12)))

    found = [tables()]
    try:
        torch.set_num_threads(3)
        found.append(tables())
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(fit_step, "COLUMNS", 24)
    found.append(tables())
    assert len(found[0]["clusters"]) == 6
    for other in found[1:]:
        for name, array in found[0].items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_tables_of_the_second_format_promise_the_entropy_of_what_they_are_made_of():
    """Of symbols of each quantiser and component, at the rate that the search has chosen."""
    rng = np.random.default_rng(0)
    y = (rng.laplace(size=(20_000, 16)) * np.geomspace(0.2, 30, 16)).astype(np.float32)
    sample = fit_step.Sample.of([y], np.zeros(len(y), np.int64))
    weight = 0.12 / trellis.FINE**2
    tables = fit_step.fit_tables(sample, 1.0, weight)
    units = in_units(np.ascontiguousarray(y.T), 1.0)
    code, symbols, _, escapes = choose(tables, tables.parameters(weight), 0, units, len(y))
    entropy = 0.0
    for own, k in zip(
        code >> 8 >= tables.first_size, symbols >> tables.shift[:, None], strict=True
    ):
        for second in (False, True):
            p = np.unique(k[own == second], return_counts=True)[1]
            entropy -= (p * np.log2(p / p.sum())).sum() / len(y)
    entropy += tables.shift.sum()
    spent = tables.promised(code, np.zeros(len(y), np.int32)).mean()
    assert escapes < 0.001 * y.size
    assert entropy < spent < 1.01 * entropy


def test_tables_promise_the_entropy_of_what_they_are_made_of():
    rng = np.random.default_rng(0)
    y = (rng.laplace(size=(20_000, 16)) * np.geomspace(0.2, 30, 16)).astype(np.float32)
    layout = Layout(rotate=False, block=1, clusters=1, centre=False)
    transform = Transform(layout, np.zeros((1, 16, 1), np.float32), None, 1.0)
    rung = fit_tables.fit_chain(transform, fit_tables.Coded([y]), [0])[0]
    symbols, _ = fit_tables.spend(y, rung, 0)
    entropy = spent = 0.0
    wide = rung.bits.shape[1] // 2
    for i, q in enumerate(symbols.T):
        p = np.unique(q, return_counts=True)[1] / len(q)
        entropy -= (p * np.log2(p)).sum()
        spent += rung.bits[rung.chosen[0, i], np.clip(q, -wide, wide) + wide].mean()
    assert entropy < spent < 1.01 * entropy


def test_the_guess_of_bits_is_a_sum_of_logarithms():
    y = np.random.default_rng(0).standard_normal((7, 900)).astype(np.float32)
    y[0, 0], y[1] = 3e38, 0
    wanted = np.log2(1 + np.minimum(np.abs(y.astype(np.float64)) / 1e-3, 1e30)).sum(1)
    np.testing.assert_allclose(fit_tables.measure(y, np.float32(1e-3)), wanted, rtol=1e-6)


def test_few_candidates_are_left_where_there_are_plenty_of_vectors(tmp_path):
    race, exhaustive = (
        FitConfig(features=tmp_path, output=tmp_path, search=search)
        for search in ("race", "exhaustive")
    )
    assert len(candidates(64, 10**4, 10**4, 1, race)) == 3 + 9
    assert len(candidates(64, 10**4, 10**4, 1, exhaustive)) == 4 + 9
    assert len(candidates(64, 100, 100, 1, race)) == 4 + 3  # too few for mixtures of 8
    assert len(candidates(4096, 10**5, 5000, 1, race)) == 3  # bases too large


def test_the_race_counts_bits_of_points_that_are_there(tmp_path, monkeypatch):
    """Blocks of 4 go beyond a map of 7 x 5: what they take is spread over its 35 points, not over 64."""
    paths, _ = write(tmp_path, [(1, 3, 7, 5)] * 10)
    cfg = FitConfig(features=tmp_path, output=tmp_path, compared_at=[0.0, 1.0])
    layout = Layout(rotate=True, block=4, clusters=1, centre=True)

    def bits() -> np.ndarray:
        race = Race(read_folds(paths, ODD, [1, 4], 10**6, 10**6, 0, "cpu"), ODD, cfg, "cpu")
        return np.array(race.validate(Candidate(layout, 0.0), SMALL))[:, 0]

    counted = bits()
    monkeypatch.setattr(Race, "excess", lambda self, block: 1.0)
    np.testing.assert_allclose(counted, bits() * 64 / 35)


def test_the_race_finds_what_the_exhaustive_search_finds(tmp_path):
    """At equal error on files that neither has seen, within 1%; with fewer candidates in the end."""
    for number in range(12):
        x = clouds(number, 250)[0][:, :, 0]
        part = "test" if number > 9 else "train"
        write_feature(tmp_path / part / f"{number:02d}.npy", x[None, None])
    curves, tried = [], []
    for search in ("race", "exhaustive"):
        folder = tmp_path / search
        fit_klt.main(["--features", str(tmp_path / "train"), "--output", str(folder),
                      "--search", search, "--clusters", "[1,2,3]"])  # fmt: skip
        tried.append(json.loads((folder / "config.json").read_text())["made_by"]["tried"])
        loaded, curve = load_codec(folder), []
        for quality in (0, 1, 2, 3):
            codec, size, error = loaded.at_quality(quality), 0, 0.0
            for path in (tmp_path / "test").iterdir():
                x = np.load(path)
                data = codec.encode(x)
                size, error = size + len(data), error + np.mean((codec.decode(data) - x) ** 2)
            curve.append((size, error))
        curves.append(curve)
        assert loaded.model.transform.layout.clusters == 3
    race, exhaustive = compare(curves)
    assert abs(race - exhaustive) < np.log2(1.01)
    values = [[row["values"] for row in rows] for rows in tried]
    assert len(set(values[1])) == 1
    assert sum(value == max(values[1]) for value in values[0]) <= 2
    assert all(min(row["log2_rate"] for row in rows) == 0 for rows in tried)


def test_search_and_device_are_checked(tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit_klt.main(["--features", "x", "--output", "y", "--search", "luck"])
    assert "search" in capsys.readouterr().err
    paths, _ = write(tmp_path / "train", [(1, 1, 30, 6)] * 3)
    with pytest.raises(SystemExit, match="device: cuda:77 is not to be had"):
        fit_klt.main(["--features", str(paths[0].parent), "--output", str(tmp_path / "codec"),
                      "--device", "cuda:77"])  # fmt: skip
    assert not (tmp_path / "codec" / "config.json").exists()


@pytest.mark.gpu
def test_a_gpu_fits_the_same_codec(tmp_path):
    """But for last bits of the bases."""
    for number in range(10):
        write_feature(
            tmp_path / "train" / f"{number}.npy", clouds(number, 250)[0][None, None, :, :, 0]
        )
    sizes = []
    for device in ("cpu", "cuda"):
        cfg = FitConfig(features=tmp_path / "train", output=tmp_path / device, device=device)
        fit(cfg)
        x = clouds(99, 200)[0][None, None, :, :, 0]
        sizes.append(len(load_codec(tmp_path / device).at_quality(2).encode(x)))
    assert abs(sizes[0] - sizes[1]) < 0.01 * sizes[0]
