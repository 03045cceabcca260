"""klt with two layouts, one for coarse steps and one for fine ones: which codes, bytes, and the fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_klt import check_hostile_arrays
from test_klt_lanes import toy_codec

from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import write_feature
from dtufc.klt import fit_klt, fit_tables
from dtufc.klt.codec import KltCodec
from dtufc.klt.fit_layouts import best_pair, grade_at
from dtufc.klt.model import HIGHEST, LOWEST, PER_OCTAVE, RUNGS, KltModel
from dtufc.streams import StreamDecoder

FIRST = round(1.3 * PER_OCTAVE)
"""The lowest quality of the second layout, in 128ths."""


def plain(model: KltModel, x: np.ndarray) -> KltModel:
    """A model of format 1 with the same transform, whose tables are of a feature."""
    coded = fit_tables.Coded.plain(model.transform, x[0, 0, :, :, None])
    (tables,) = fit_tables.fit_chain(model.transform, coded, [PER_OCTAVE])
    return replace(model, rungs=(tables,) * RUNGS)


@pytest.fixture(scope="module", params=[1, 2], ids=["format1", "format2"])
def pair(request):
    """A codec of two layouts, the codecs of each, and what draws features."""
    (coarse, draw), (fine, _) = toy_codec(clusters=3), toy_codec(quality=3.0, lead=9.0)
    models = [coarse.model, fine.model]
    if request.param == 1:
        models = [plain(model, draw(600)) for model in models]
    whole = replace(models[0], fine=models[1], fine_from=FIRST)
    return KltCodec(whole, 0.0), [KltCodec(model, 0.0) for model in models], draw


GRADES = [LOWEST * PER_OCTAVE, 0, FIRST - 1, FIRST, 2 * PER_OCTAVE, HIGHEST * PER_OCTAVE]


def test_each_quality_is_coded_by_its_layout(pair):
    """Parts are those of a codec of this layout alone, and a codec of any quality decodes them."""
    codec, alone, draw = pair
    x = draw(70)
    for grade in GRADES:
        quality = grade / PER_OCTAVE
        own = alone[grade >= FIRST].at_quality(quality)
        assert codec.at_quality(quality).encode_parts(x) == own.encode_parts(x)
        data = codec.at_quality(quality).encode(x)
        wanted = own.decode(own.encode(x))
        for reader in (codec, codec.at_quality(HIGHEST), codec.at_quality(quality)):
            assert np.array_equal(reader.decode(data), wanted)
    assert len({codec.id, alone[0].id, alone[1].id}) == 3


def test_rate_control_passes_from_layout_to_layout(pair):
    codec, _, draw = pair
    x = draw(300)
    sizes = []
    for target in (0.5, 0.1, 0.02, 0.004):
        data = codec.encode(x, target_nmse=target)
        assert np.square(codec.decode(data) - x).mean() <= target * x.var()
        sizes.append(len(data))
    assert sizes == sorted(sizes)


def test_sessions_change_layouts_between_frames(pair):
    """Both ways of decode_rows: a receiver follows whatever quality a frame has."""
    codec, _, draw = pair
    x = draw(8)
    for one, other in ((0.0, 3.0), (3.0, 0.0)):
        setting, payload = codec.at_quality(one).encode_rows(x)
        wanted = codec.at_quality(one).decode(codec.at_quality(one).encode(x))
        facts, reader = codec.facts, codec.at_quality(other)
        assert np.allclose(reader.decode_rows(setting, payload, facts, x.shape), wanted, atol=1e-4)
    encoder, decoder, errors = codec.stream("x"), StreamDecoder(codec), []
    for quality in (3.0, 0.0, 3.0):
        rows = decoder.feed(encoder.append({"x": x}, quality=quality))["x"]
        wanted = codec.decode(codec.at_quality(quality).encode(x))
        assert np.allclose(rows, wanted, atol=1e-4)
        errors.append(np.square(rows - x).mean())
    assert errors[0] == errors[2] < errors[1]


def test_a_folder_holds_both(pair, tmp_path):
    codec, alone, draw = pair
    codec.whole.save(tmp_path / "two", 0.5, {})
    alone[0].model.save(tmp_path / "one", 0.5, {})
    loaded, x = load_codec(tmp_path / "two"), draw(40)
    assert loaded.id == codec.id
    for quality in (0.0, 3.0):
        data = loaded.at_quality(quality).encode(x)
        assert data == codec.at_quality(quality).encode(x)
    values = json.loads((tmp_path / "two" / "config.json").read_text())
    assert values.pop("fine")["from"] == FIRST
    assert values == json.loads((tmp_path / "one" / "config.json").read_text())


def test_what_decides_is_in_the_id(pair):
    """Where the second layout begins, and each of its arrays."""
    whole = pair[0].whole
    fine = whole.fine
    turned = replace(fine.transform, unit=1.5 * fine.transform.unit)
    shifted = replace(fine.transform, mean=fine.transform.mean + np.float32(1))
    others = [
        replace(whole, fine_from=FIRST + 1),
        replace(whole, fine=replace(fine, transform=turned)),
        replace(whole, fine=replace(fine, transform=shifted)),
    ]
    assert len({model.digest for model in (whole, *others)}) == 4


@pytest.mark.parametrize("name", ["fine_mean", "fine_basis", "fine_chosen", "fine_freqs"])
def test_hostile_arrays_of_the_second_are_named(pair, tmp_path, name):
    pair[0].whole.save(tmp_path / "two", 0.5, {})
    check_hostile_arrays(tmp_path / "two", tmp_path, name)


@pytest.mark.parametrize(
    ("key", "values"),
    [("from", [None, "x", True, 1.5, LOWEST * PER_OCTAVE, HIGHEST * PER_OCTAVE + 1, 10**9]),
     ("unit", [None, -1, 0]), ("layout", [None, {}, {"rotate": True}])],
)  # fmt: skip
def test_hostile_configs_of_the_second_are_named(pair, tmp_path, key, values):
    pair[0].whole.save(tmp_path, 0.5, {})
    sound = json.loads((tmp_path / "config.json").read_text())
    for value in values:
        changed = sound | {"fine": sound["fine"] | {key: value}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f"{key}|rotate|block") as caught:
            load_codec(tmp_path)
        assert str(tmp_path) in str(caught.value)
    for value in ([], 3, {}):
        (tmp_path / "config.json").write_text(json.dumps(sound | {"fine": value}))
        with pytest.raises(UserError, match="not a sound klt codec"):
            load_codec(tmp_path)


def curve(*rates: float) -> list[tuple[float, float]]:
    """Bits of qualities 0, 1, 2 ..., whose errors fall by a factor of four each."""
    return [(rate, 4.0**-place) for place, rate in enumerate(rates)]


def test_curves_change_where_they_cross():
    qualities = [0, 1, 2, 3, 4]
    curves = {"one": curve(0.5, 1, 2, 4, 8), "low": curve(0.4, 0.8, 2, 8, 16)}
    curves["high"] = curve(1, 2, 2, 3.2, 6.4)
    found = best_pair(curves, qualities)
    assert found.pair == ("low", "high")
    assert found.at == pytest.approx(-4, abs=0.1)  # quality 2, error 4^-2
    assert max(found.gains) < np.log2(0.9)
    assert grade_at(curves["low"], qualities, found.at) == pytest.approx(2, abs=0.05)
    twin = best_pair({"one": curves["one"], "twin": curves["one"]}, qualities)
    assert twin.gains == (0, 0)
    assert best_pair({"one": curves["one"]}, qualities) is None
    assert best_pair({"one": curves["one"], "point": [(1.0, 1.0)] * 5}, qualities) is None


def half_sparse(seed: int, count: int = 200) -> np.ndarray:
    """(1, 1, n, C): eight large channels that two sums are behind, which serve coarse steps in a basis;
    and 24 small ones of few values that are not about 0, which count at fine steps and which a basis
    mixes."""
    world, rng = np.random.default_rng(5), np.random.default_rng(seed)
    large = rng.standard_normal((count, 2)) @ world.standard_normal((2, 8))
    large += 0.2 * rng.standard_normal(large.shape)
    small = rng.standard_normal((count, 24)) * np.where(rng.random((count, 24)) < 0.1, 0.15, 0.002)
    return np.concatenate([large, small], 1).astype(np.float32)[None, None]


def bits_at(folder, paths, errors) -> np.ndarray:
    """log2 of the bytes at some mean squared errors, over all qualities."""
    loaded, found = load_codec(folder), []
    for quality in np.arange(-2, 5.5, 0.5):
        codec, size, error = loaded.at_quality(quality), 0, 0.0
        for path in paths:
            x = np.load(path)
            data = codec.encode(x)
            size, error = size + len(data), error + np.square(codec.decode(data) - x).mean()
        found.append((error / len(paths), size))
    mse, size = np.log2(np.array(found)).T
    return np.interp(errors, mse[::-1], size[::-1])


@pytest.fixture(scope="module")
def half_sparse_codecs(tmp_path_factory):
    """Codecs of such tokens, with one layout and with two, and features to test them on."""
    root = tmp_path_factory.mktemp("sparse")
    for number in range(16):
        part = "test" if number > 12 else "train"
        write_feature(root / part / f"{number:02d}.npy", half_sparse(number))
    flags = {"two": ["--layouts", "two"], "low": ["--compared_at", "[-2.5,-1.5,-0.5]"],
             "high": ["--compared_at", "[2.5,3.5,4.5]"]}  # fmt: skip
    for name, more in flags.items():
        fit_klt.main(["--features", str(root / "train"), "--output", str(root / name),
                      "--clusters", "[1]", *more])  # fmt: skip
    return root, sorted((root / "test").iterdir())


def test_the_fit_keeps_two_layouts_where_both_pay(half_sparse_codecs):
    """On features that it has not seen it is as good as a codec for low rates and one for high ones."""
    root, paths = half_sparse_codecs
    model = load_codec(root / "two").whole
    layouts = [each.transform.layout for each in model.each]
    assert [layout.rotate for layout in layouts] == [True, False]
    about = json.loads((root / "two" / "config.json").read_text())["made_by"]["layouts"]
    assert about["kept"]
    assert about["from"] == model.fine_from / PER_OCTAVE
    variance = np.log2(np.mean([np.load(path).var() for path in paths]))
    errors = variance - np.array([1, 2, 3, 11, 11.5, 12])
    two, low, high = (bits_at(root / name, paths, errors) for name in ("two", "low", "high"))
    assert np.all(two < np.minimum(low, high) + np.log2(1.02))
    assert np.all((low - high)[:3] < -np.log2(1.05))  # or the test says nothing
    assert np.all((high - low)[3:] < -np.log2(1.05))


def test_errors_do_not_jump_where_layouts_change(half_sparse_codecs):
    root, paths = half_sparse_codecs
    codec, x = load_codec(root / "two"), np.concatenate([np.load(path) for path in paths], 2)
    sides, whole = [], codec.whole
    assert whole.fine is not None
    for grade in (whole.fine_from - 1, whole.fine_from):
        one = codec.at_quality(grade / PER_OCTAVE)
        data = one.encode(x)
        sides.append((len(data), np.square(one.decode(data) - x).mean()))
    (before, coarse), (after, fine) = sides
    assert fine == pytest.approx(coarse, rel=0.15)
    assert after == pytest.approx(before, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--memory", "true"], ["--format", "2", "--predict", "true"]], ids=str
)
def test_two_layouts_take_a_memory_or_a_prediction(half_sparse_codecs, tmp_path, flags):
    """Each layout is judged for itself, at its own qualities."""
    root, paths = half_sparse_codecs
    fit_klt.main(["--features", str(root / "train"), "--output", str(tmp_path), "--clusters", "[1]",
                  "--layouts", "two", *flags])  # fmt: skip
    codec, x = load_codec(tmp_path), np.load(paths[0])
    values = json.loads((tmp_path / "config.json").read_text())["made_by"]
    name = "memory" if flags[0] == "--memory" else "prediction"
    assert len(values[name]["bpfp_mse"]) == 3  # of the race for coarse steps
    assert values["fine"].get(name) is None  # channels as they are take none
    errors = []
    for quality in (0.0, 2.0, 4.0, 6.0):
        data = codec.at_quality(quality).encode(x)
        errors.append(np.square(codec.decode(data) - x).mean())
    assert errors == sorted(errors, reverse=True)
    assert codec.whole.fine is not None


def test_the_fit_keeps_one_layout_where_two_do_not_pay(tmp_path):
    for number in range(10):
        x = np.random.default_rng(number).standard_normal((1, 1, 100, 6)).astype(np.float32)
        write_feature(tmp_path / "train" / f"{number}.npy", x)
    fit_klt.main(["--features", str(tmp_path / "train"), "--output", str(tmp_path / "codec"),
                  "--clusters", "[1]", "--layouts", "two"])  # fmt: skip
    codec = load_codec(tmp_path / "codec")
    assert codec.whole is codec.model
    values = json.loads((tmp_path / "codec" / "config.json").read_text())
    assert "fine" not in values
    assert len(values["made_by"]["layouts"]["qualities"]) == 8


def test_two_layouts_take_four_qualities(capsys):
    with pytest.raises(SystemExit):
        fit_klt.main(["--features", "x", "--output", "y", "--layouts", "two",
                      "--compared_at", "[0, 1, 2]"])  # fmt: skip
    assert "compared_at: expected four" in capsys.readouterr().err
