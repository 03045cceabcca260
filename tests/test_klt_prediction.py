"""Linear prediction of tokens: what it saves, that errors do not add up, and what is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from scipy.linalg import solve_discrete_lyapunov
from test_klt_weighting import check_damage

from dtufc import files
from dtufc.bitstream import BitstreamError
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import FeatureError, write_feature
from dtufc.klt import chain, fit_klt
from dtufc.klt.entropy import to_frequencies
from dtufc.klt.importance import MOST, Importance, count_features
from dtufc.klt.prediction import Prediction
from dtufc.klt.weighting import Predictor, Weighting
from dtufc.streams import StreamDecoder, open_stream, write_stream
from dtufc.streams.session import TensorSpec

CHANNELS, TOKENS = 16, 60
GIANT = 300.0
PULL = 0.9 * np.linalg.qr(np.random.default_rng(5).standard_normal((CHANNELS, CHANNELS)))[0]
"""What a token passes on to the next one: no channel to itself."""
SPREAD = np.geomspace(3, 0.3, CHANNELS)


def feature(seed: int, samples: int = 1, pull: np.ndarray = PULL) -> np.ndarray:
    """(N, 1, T, C) float32: a chain of tokens, of which the first is a giant."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, TOKENS, CHANNELS)) * SPREAD
    for t in range(2, TOKENS):
        x[:, t] = x[:, t - 1] @ pull + (1 - 0.81 * (pull is PULL)) ** 0.5 * x[:, t]
    x[:, 0, 1] = GIANT
    return (x + 2).astype(np.float32)[:, None]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Training features, a metric, and codecs with a prediction, without, and with both."""
    root = tmp_path_factory.mktemp("predicted")
    for seed in range(24):
        write_feature(root / "train" / f"{seed:02d}.npy", feature(seed))
    turn = np.diag(np.geomspace(4, 0.25, CHANNELS)).astype(np.float32)
    Weighting(turn, np.linalg.inv(turn).astype(np.float32)).save(root / "metric", {})
    fit(root, "plain")
    fit(root, "predicted", "--predict", "true")
    fit(root, "mixture", "--predict", "true", "--clusters", "[2]")
    fit(root, "weighed", "--predict", "true", "--metric", str(root / "metric"))
    return root


def fit(root, name: str, *flags: str) -> None:
    args = ["--features", str(root / "train"), "--output", str(root / name), "--clusters", "[1]"]
    fit_klt.main([*args, "--format", "2", "--compared_at", "[2, 3.5]", *flags])


def curve(codec, x: np.ndarray) -> tuple[list[float], list[float]]:
    """Bits per point and log2 of the error of usual tokens, by quality."""
    bits, errors = [], []
    for quality in np.arange(-1, 7.5, 0.5):
        data = codec.at_quality(quality).encode(x)
        bits.append(8 * len(data) / x.size)
        away = (codec.decode(data) - x)[:, :, 2:]
        errors.append(float(np.log2(np.mean(np.square(away, dtype=np.float64)))))
    return errors[::-1], bits[::-1]


def test_a_chain_of_tokens_takes_fewer_bits(room):
    x = feature(100, samples=20)
    plain, predicted = (curve(load_codec(room / name), x) for name in ("plain", "predicted"))
    at = np.log2(np.mean(SPREAD**2) / 400)
    new = 0.19 * np.diag(SPREAD**2)  # covariance of what a token does not have of the one before
    whole = solve_discrete_lyapunov(PULL.T, new)
    ideal = (np.linalg.slogdet(whole)[1] - np.linalg.slogdet(new)[1]) / np.log(4) / CHANNELS
    saved = np.interp(at, *plain) - np.interp(at, *predicted)
    assert 0.8 * ideal < saved < 1.02 * ideal
    told = files.read_json(room / "predicted" / "config.json")["made_by"]["prediction"]
    assert told["log2_rate"] < -0.1 and told["pairs"] > 500


def test_a_token_alone_takes_what_it_took(room):
    """It has no neighbour; there are modes without a forecast for it."""
    sizes = []
    for name in ("plain", "predicted"):
        codec = load_codec(room / name).at_quality(3)
        alone = [feature(seed)[:, :, 20:21] for seed in range(700, 800)]
        sizes.append(sum(len(codec.encode(x)) for x in alone))
    assert sizes[1] < 1.05 * sizes[0]


@pytest.mark.parametrize("name", ["predicted", "mixture", "weighed"])
@pytest.mark.parametrize("samples", [1, 3])
def test_errors_do_not_add_up(room, name, samples):
    codec, x = load_codec(room / name), feature(200, samples)
    assert codec.model.prediction is not None
    decoded = codec.decode(codec.at_quality(5).encode(x))
    assert decoded.shape == x.shape and decoded.dtype == x.dtype
    errors = np.mean(np.square(decoded - x, dtype=np.float64), axis=(0, 1, 3))
    assert errors[40:].mean() < 1.5 * errors[2:20].mean()
    assert errors[2:].mean() < np.mean(SPREAD**2) / 10


def test_the_chain_starts_anew_in_each_sample(room):
    codec, x = load_codec(room / "predicted"), feature(300, samples=2)
    both = codec.decode(codec.encode(x))
    apart = [codec.decode(codec.encode(each[None])) for each in x]
    assert np.allclose(both, np.concatenate(apart), rtol=1e-5, atol=1e-3)


def test_tokens_without_neighbours_get_no_prediction(room, tmp_path):
    for seed in range(12):
        x = (feature(seed, pull=0 * PULL) - 2) @ PULL.astype(np.float32)
        write_feature(tmp_path / "train" / f"{seed:02d}.npy", x)
    fit(tmp_path, "codec", "--predict", "true")
    codec = load_codec(tmp_path / "codec")
    assert codec.model.prediction is None
    told = files.read_json(tmp_path / "codec" / "config.json")["made_by"]["prediction"]
    assert told["log2_rate"] > -0.02
    for seed in range(4):
        lone = (feature(seed, samples=300)[:, :, 20:21] - 2) @ PULL.astype(np.float32)
        write_feature(tmp_path / "lone" / "train" / f"{seed}.npy", lone)
    fit(tmp_path / "lone", "codec", "--predict", "true")
    told = files.read_json(tmp_path / "lone" / "codec" / "config.json")["made_by"]["prediction"]
    assert told == {"pairs": 0}


def test_tokens_that_no_symbols_can_tell_come_back_as_they_are(room):
    codec, x = load_codec(room / "mixture"), feature(400)
    x[0, 0, 7] = 3e38
    x[0, 0, 9, 3] = -1e20
    decoded = codec.decode(codec.at_quality(5).encode(x))
    assert (decoded[0, 0, [7, 9]] == x[0, 0, [7, 9]]).all()
    others = np.delete(decoded - x, [0, 7, 9], 2)
    assert np.mean(np.square(others, dtype=np.float64)) < np.mean(SPREAD**2) / 10


def test_a_forecast_is_bounded_and_even():
    eye = np.eye(2, dtype=np.float32)[None]
    known = Prediction(1, np.zeros(2, np.float32), np.ones(2, np.float32), eye, reach=4.0)
    lengths = np.array([1, 4, 4.0001, 8, 1e6, 3e38], np.float32)
    found = known.forecast(np.stack([lengths, 0 * lengths], 1), mode=1)[:, 0]
    assert np.allclose(found, [1, 4, 4, 2, 1.6e-5, 0], rtol=1e-3, atol=1e-30)


def test_modes_without_a_forecast_and_raw_tokens_break_the_chain():
    double = 2 * np.eye(1, dtype=np.float32)[None]
    known = Prediction(1, np.zeros(1, np.float32), np.ones(1, np.float32), double, reach=100.0)
    x = np.ones((8, 1, 1), np.float32)
    modes = np.array([1, 1, 0, 1, 1, 1, 1, 1], np.int32)
    raw = np.array([0, 0, 0, 0, 0, 1, 0, 0], bool)
    known.restore(x, modes, 4, raw)
    assert x.ravel().tolist() == [1, 3, 1, 3, 1, 1, 3, 7]


def test_the_kernel_forecasts_as_whole_arrays_do():
    rng = np.random.default_rng(3)
    matrices = rng.standard_normal((2, 19, 19)).astype(np.float16).astype(np.float32)
    mean, scale = rng.standard_normal(19), rng.uniform(0.01, 100, 19)
    known = Prediction(3, mean.astype(np.float32), scale.astype(np.float32), matrices, reach=90.0)
    before = (rng.standard_normal((6, 19)) * scale * [[0], [1e-3], [0.3], [1], [10], [1e9]]).astype(
        np.float32
    )
    for mode in (3, 4):
        whole = known.forecast(before, mode)
        for x, want in zip(before, whole, strict=True):
            found = np.empty(19, np.float32)
            chain.forecast(x, mode, known.kernel, found)
            assert np.allclose(found, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_samples_take_the_symbols_that_they_take_alone(room):
    model = load_codec(room / "mixture").model
    vectors = model.to_vectors(feature(900, samples=11))
    together, raw = model.search(vectors, 384, TOKENS)
    first = model.prediction.first
    assert not raw.any() and together.modes.min() < first <= together.modes.max()
    same = []
    for start in range(0, len(vectors), TOKENS):
        part = slice(start, start + TOKENS)
        alone = model.search(vectors[part], 384, TOKENS)[0]
        same.append((alone.modes == together.modes[part]).all())
        same.append((alone.code == together.code[:, part]).all())
    assert np.mean(same) > 0.9  # products of other sizes differ in last bits


def test_damage_is_refused(room):
    check_damage(load_codec(room / "mixture"), feature(500), lambda parts: [], every=7)


def send(codec, x: np.ndarray, sizes: list[int], **session) -> tuple[np.ndarray, int]:
    """What frames of so many tokens are decoded to, and their bytes."""
    encoder, decoder = codec.stream("x", **session), StreamDecoder(codec)
    decoder.feed(encoder.start())
    found, total, first = [], 0, 0
    for size in sizes:
        data = encoder.append({"x": x[:, :, first : first + size]})
        rows = decoder.feed(data)["x"]
        found.append(rows.copy())
        rows[:] = 0  # a receiver's array is its own
        first, total = first + size, total + len(data)
    decoder.feed(encoder.close())
    decoder.finish()
    return np.concatenate(found, 2), total


@pytest.mark.parametrize("name", ["predicted", "weighed"])
@pytest.mark.parametrize("sizes", [[1] * TOKENS, [20, 1, 1, 8, 30]])
def test_frames_of_a_session_go_on_from_those_before(room, name, sizes):
    """Tokens are what one feature of all of them is decoded to, but for symbols on the edge."""
    codec, x = load_codec(room / name).at_quality(5), feature(600)
    found, _ = send(codec, x, sizes)
    at_once = codec.decode(codec.encode(x))
    assert np.mean(np.abs(found - at_once).max((0, 1, 3)) < 1e-2) > 0.9
    errors, ideal = (np.square(each - x).mean((0, 1, 3)) for each in (found, at_once))
    assert errors[40:].mean() < 1.5 * errors[2:20].mean()
    assert errors[2:].mean() < 1.05 * ideal[2:].mean()


def test_tokens_one_by_one_take_fewer_bytes_behind_each_other(room):
    """Fewer than in frames of their own, and than by a codec that knows no forecasts."""
    predicted, plain = (load_codec(room / name).at_quality(6) for name in ("predicted", "plain"))
    new = 0.19 * np.diag(SPREAD**2)
    whole = solve_discrete_lyapunov(PULL.T, new)
    ideal = (np.linalg.slogdet(whole)[1] - np.linalg.slogdet(new)[1]) / 2 / np.log(256)  # bytes
    saved = []
    for seed in range(610, 616):
        x, sizes = feature(seed), [1] * TOKENS
        behind = send(predicted, x, sizes)[1]
        saved.append([send(predicted, x, sizes, continued=False)[1] - behind])
        saved[-1].append(send(plain, x, sizes)[1] - behind)
    assert (np.mean(saved, 0) / TOKENS > 0.7 * ideal).all()


def test_frames_of_their_own_are_bitstreams_of_their_own(room):
    codec, x, sizes = load_codec(room / "weighed"), feature(600), [10, 1, 49]
    found, _ = send(codec, x, sizes, continued=False)
    again, _ = send(codec, x, sizes, restart_every=1)
    parts = np.split(x, np.cumsum(sizes)[:-1], 2)
    alone = np.concatenate([codec.decode(codec.encode(part)) for part in parts], 2)
    assert np.array_equal(found, alone) and np.array_equal(again, alone)


def test_a_receiver_joins_where_the_session_begins_anew(room):
    codec, x = load_codec(room / "mixture"), feature(620)
    encoder, decoder = codec.stream("x"), StreamDecoder(codec)
    decoder.feed(encoder.append({"x": x[:, :, :20]}))
    with pytest.raises(FeatureError):
        encoder.append({"x": np.full((1, 1, 1, CHANNELS), np.nan, np.float32)})  # nothing was sent
    again = encoder.restart() + encoder.append({"x": x[:, :, 20:30]})
    again += encoder.append({"x": x[:, :, 30:]}, quality=5)
    late = StreamDecoder(codec, join=True)
    late.feed(encoder.session.header())
    found = late.feed(again)["x"]
    assert np.array_equal(found, decoder.feed(again)["x"])
    assert np.square(found - x[:, :, 20:]).mean() < np.mean(SPREAD**2) / 5


def test_rows_of_a_file_do_not_need_those_before(room, tmp_path):
    codec, x = load_codec(room / "predicted"), feature(630)
    with write_stream(tmp_path / "file.ufs", {"x": codec}) as writer:
        for t in range(0, TOKENS, 4):
            writer.append({"x": x[:, :, t : t + 4]})
    with open_stream(tmp_path / "file.ufs", codec) as stream:
        assert np.array_equal(stream["x"][0, 22:30], stream["x"][0][:, :, 22:30])
    encoder = codec.stream("x")
    data = encoder.append({"x": x}) + encoder.append({"x": x})
    (tmp_path / "live.ufs").write_bytes(data)
    with pytest.raises(BitstreamError, match="tensor x: frames go on from those before"):
        open_stream(tmp_path / "live.ufs", codec)


def test_who_does_not_forecast_does_not_go_on(room):
    plain, known = load_codec(room / "plain"), load_codec(room / "predicted")
    row = feature(640)[:, :, 5:6]
    assert not plain.continues and plain.after(row) is plain
    assert "continued" not in plain.stream("x").session.tensors[0].record()
    assert known.stream("x").session.tensors[0].record()["continued"] is True
    record = json.loads(json.dumps(known.stream("x").session.tensors[0].record()))
    assert TensorSpec.of_record(record) == known.stream("x").session.tensors[0]
    for value in (1, "yes", None):
        with pytest.raises(UserError, match="continued"):
            TensorSpec.of_record(record | {"continued": value})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mean", lambda a: a[:-1]),
        ("scale", lambda a: 0 * a),
        ("scale", lambda a: a * np.float32(np.inf)),
        ("matrices", lambda a: a.astype(np.float32)),
        ("matrices", lambda a: a[:, 1:]),
        ("matrices", lambda a: np.repeat(a, 2, 0)),
        ("reach", lambda a: -a),
        ("reach", lambda a: a * np.nan),
    ],
)
def test_an_unsound_prediction_is_refused(room, tmp_path, name, change):
    arrays = load_arrays((room / "predicted" / "model.safetensors").read_bytes())
    arrays["prediction_" + name] = np.ascontiguousarray(change(arrays["prediction_" + name]))
    store(arrays, room / "predicted", tmp_path)
    with pytest.raises(UserError, match=f"prediction_{name} is not sound"):
        load_codec(tmp_path)


def test_a_prediction_is_refused_where_there_is_none_for(room, tmp_path):
    arrays = load_arrays((room / "predicted" / "model.safetensors").read_bytes())
    lacking = {name: each for name, each in arrays.items() if name != "prediction_reach"}
    store(lacking, room / "predicted", tmp_path / "lacking")
    with pytest.raises(UserError, match="prediction_reach is missing"):
        load_codec(tmp_path / "lacking")
    for key, value in (("layers", "shared"), ("rotate", False)):
        store(arrays, room / "predicted", tmp_path / key)
        values = files.read_json(tmp_path / key / "config.json")
        values["layout"][key] = value
        files.write_json(tmp_path / key / "config.json", values)
        with pytest.raises(UserError, match="a prediction is for tokens"):
            load_codec(tmp_path / key)


def store(arrays, source, folder) -> None:
    files.write_bytes(folder / "model.safetensors", save_arrays(arrays))
    files.write_bytes(folder / "config.json", (source / "config.json").read_bytes())


def test_what_does_not_go_together_is_said(room):
    places = {"features": room / "train", "output": room / "none", "predict": True}
    with pytest.raises(UserError, match="predict: expected --format 2"):
        fit_klt.FitConfig(**places)
    with pytest.raises(UserError, match="without --memory"):
        fit_klt.FitConfig(**places, format=2, memory=True)


def test_importances_leave_no_neighbour(room, tmp_path):
    half = np.eye(CHANNELS, dtype=np.float32)
    importance = Importance(
        np.ones(CHANNELS, np.float32), np.zeros(count_features(CHANNELS), np.float32), 0.0, 1,
        to_frequencies(np.ones(2 * MOST + 2)),
    )  # fmt: skip
    predictor = Predictor(np.zeros(CHANNELS, np.float32), half, importance)
    Weighting(half, half, predictor).save(tmp_path / "metric", {})
    with pytest.raises(SystemExit, match=r"predict: .*metric tells tokens apart"):
        fit(room, str(tmp_path / "out"), "--predict", "true", "--metric", str(tmp_path / "metric"))
    assert not (tmp_path / "out").exists()


def test_codecs_of_before_are_not_stale(room):
    def stamp(**values):
        return fit_klt.FitConfig(features=room / "train", output=room, format=2, **values).stamp()

    assert "predict" not in stamp().config and stamp(predict=True).config["predict"] is True
