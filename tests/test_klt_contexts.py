"""Tables by context: the same symbols by every way through the lanes, what is saved, what is refused."""

import itertools

import numpy as np
import pytest
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from test_klt_lanes import TOYS, toy_codec
from test_klt_weighting import check_damage

from dtufc import files
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import write_feature
from dtufc.klt import coder, contexts, fit_klt
from dtufc.klt.gpu import GpuCoder
from dtufc.klt.lanes import CLASSES, DECAY, UNIT
from dtufc.streams import StreamDecoder

CHANNELS, TOKENS = 24, 80


def feature(seed: int) -> np.ndarray:
    """(1, 1, T, C) float32: tokens that are large or small as a whole."""
    rng = np.random.default_rng(seed)
    size = np.exp(0.8 * rng.standard_normal((TOKENS, 1)))
    x = size * rng.standard_normal((TOKENS, CHANNELS)) * np.geomspace(3, 0.5, CHANNELS)
    return x.astype(np.float32)[None, None]


@pytest.fixture(scope="module", params=TOYS, ids=lambda name: name.replace(" ", "_"))
def toy(request):
    return toy_codec(**TOYS[request.param], contexts=True)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Training features, and codecs with contexts and without."""
    root = tmp_path_factory.mktemp("contexts")
    for seed in range(24):
        write_feature(root / "train" / f"{seed:02d}.npy", feature(seed))
    fit(root, "plain")
    fit(root, "contexts", "--contexts", "true")
    return root


def fit(root, name: str, *flags: str) -> None:
    args = ["--features", str(root / "train"), "--output", str(root / name), "--clusters", "[1]"]
    fit_klt.main([*args, "--format", "2", *flags])


@pytest.mark.parametrize("count", [1, 3, 5, 40, 333])
def test_all_ways_through_the_lanes_give_the_symbols_back(toy, count):
    """Eight lanes at a time, one by one, and where symbols are asked for."""
    codec, draw = toy
    tables = codec.model.tables_at(codec.grade)
    found, _ = codec.model.search(codec.model.to_vectors(draw(count)), codec.grade)
    strings = coder.encode(tables, found, 7)
    modes, y, symbols = coder.decode(tables, *strings, count, 7, symbols=True)
    assert np.array_equal(modes, found.modes)
    assert np.array_equal(symbols, found.symbols)
    assert np.array_equal(coder.decode(tables, *strings, count, 7)[1], y)
    x = draw(count)
    assert np.array_equal(codec.decode(codec.encode(x)).shape, x.shape)


def test_classes_are_those_of_the_definition(toy):
    codec, draw = toy
    tables = codec.model.tables_at(codec.grade)
    found, _ = codec.model.search(codec.model.to_vectors(draw(30)), codec.grade)
    coded = tables.coded(found.code, found.modes)
    assert np.array_equal(coded & 255, found.code & 255)
    assert np.array_equal((coded >> 8) // CLASSES, found.code >> 8)
    limits = tables.limits.reshape(*tables.chosen.shape[::-1], CLASSES - 1)
    magnitudes = tables.magnitudes.reshape(-1, 256)
    for r, mode in enumerate(found.modes):
        activity = 0
        for i, place in enumerate(found.code[:, r]):
            table, symbol = place >> 8, place & 255
            second = int(table >= tables.first_size)
            reached = activity >= limits[i, mode, second]
            assert (coded[i, r] >> 8) % CLASSES == reached.sum()
            activity += (int(magnitudes[table, symbol]) << UNIT) - (activity >> DECAY)


def test_cuts_are_the_best():
    counts = np.random.default_rng(0).integers(0, 40, (9, 5)) * np.arange(1, 10)[:, None]

    def bits(ends) -> float:
        parts = [part.sum(0) for part in np.split(counts, ends)]
        return sum(-(p[p > 0] * np.log2(p[p > 0] / p.sum())).sum() for p in parts)

    best = min(itertools.combinations(range(1, 9), CLASSES - 1), key=bits)
    assert bits(contexts.cut(counts)) == pytest.approx(bits(best))


def test_energy_of_a_token_tells_its_symbols(room):
    """One basis knows nothing of a token's size."""
    x = [feature(100 + seed) for seed in range(6)]
    sizes, errors = {}, {}
    for name in ("plain", "contexts"):
        codec = load_codec(room / name).at_quality(1.0)
        streams = [codec.encode(each) for each in x]
        sizes[name] = sum(map(len, streams))
        decoded = [codec.decode(data) for data in streams]
        errors[name] = np.mean(np.square(np.array(decoded) - np.array(x)))
    assert sizes["contexts"] < 0.95 * sizes["plain"]
    assert errors["contexts"] == pytest.approx(errors["plain"], rel=0.02)


def test_promised_bits_are_those_of_the_string(room):
    codec = load_codec(room / "contexts").at_quality(1.0)
    x = np.concatenate([feature(200 + seed) for seed in range(8)], axis=2)
    vectors = codec.model.to_vectors(x)
    bits = codec.model.quantise(vectors, codec.grade)[2].sum()
    assert 8 * len(codec.encode(x)) == pytest.approx(bits, rel=0.02, abs=400)


def test_streams_and_damage(room):
    codec = load_codec(room / "contexts")
    x = feature(300)
    encoder, decoder = codec.stream("x"), StreamDecoder(codec)
    for part in (x[:, :, :1], x[:, :, 1:9], x[:, :, 9:]):
        found = decoder.feed(encoder.append({"x": part}))["x"]
        assert np.array_equal(found, codec.decode(codec.encode(part)))
    check_damage(codec, x, lambda parts: [], 97)


def test_folders_that_are_not_sound_are_refused(room, tmp_path):
    place = room / "contexts" / "model.safetensors"
    arrays = load_arrays(place.read_bytes())
    config = (room / "contexts" / "config.json").read_bytes()
    changes = {
        "context_freqs": [arrays["context_freqs"][:-1], arrays["context_freqs"] + np.uint16(1)],
        "context_bounds": [arrays["context_bounds"][:, :2], None],
    }
    for name, values in changes.items():
        for value in values:
            changed = {k: v for k, v in arrays.items() if k != name}
            changed |= {} if value is None else {name: np.ascontiguousarray(value)}
            folder = tmp_path / f"{name}{id(value)}"
            files.write_bytes(folder / "model.safetensors", save_arrays(changed))
            files.write_bytes(folder / "config.json", config)
            with pytest.raises(UserError, match=name):
                load_codec(folder)


def test_what_takes_no_contexts_says_so(room):
    with pytest.raises(UserError, match="contexts: expected --format 2"):
        fit_klt.FitConfig(features=room / "train", output=room / "none", contexts=True)
    with pytest.raises(UserError, match="contexts takes the CPU"):
        GpuCoder(load_codec(room / "contexts"), "cpu")
