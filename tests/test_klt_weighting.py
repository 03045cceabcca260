"""Weighing: the Fisher information of answers, what it is worth, and codecs that go by it."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from test_language import checkpoint, preset  # noqa: F401  fixtures

from dtufc import files
from dtufc.bitstream import BitstreamError, pack, unpack
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.feature import write_feature
from dtufc.klt import fit_klt, fit_metric
from dtufc.klt.codec import KltCodec
from dtufc.klt.metric import (
    DIVERGENCES,
    SHRINKAGES,
    Measured,
    choose,
    costs,
    metric_of,
    weigh,
)
from dtufc.klt.model import PER_OCTAVE
from dtufc.klt.weighting import FAR_OFF, Weighting
from dtufc.machines.fisher import fisher_probe
from dtufc.machines.opening import open_machine
from dtufc.streams import StreamDecoder

CHANNELS, TOKENS = 16, 40
COST = np.geomspace(100, 0.01, CHANNELS)
"""Of errors along directions that are none of the channels."""
TURN = np.linalg.qr(np.random.default_rng(7).standard_normal((CHANNELS, CHANNELS)))[0]


def feature(seed: int, samples: int = 1) -> np.ndarray:
    """(N, 1, T, C) float32: tokens that matter have a large first channel."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, 1, TOKENS, CHANNELS)).astype(np.float32)
    x[..., 0] += 3 * rng.standard_normal((samples, 1, TOKENS))
    return x + np.float32(2)


def matters(x: np.ndarray) -> np.ndarray:
    """Importance of tokens (..., C)."""
    return 2.0 ** (x[..., 0] - 2)


def damage(x: np.ndarray, coded: np.ndarray) -> float:
    """What errors of a feature cost, all tokens together."""
    along = (coded.astype(np.float64) - x) @ TURN
    return float((matters(x) * (np.square(along) * COST).sum(-1)).sum())


def measured(count: int = 60) -> Measured:
    rng = np.random.default_rng(3)
    x = np.concatenate([feature(seed)[0] for seed in range(count)])
    noise = rng.standard_normal((count, 2, TOKENS, CHANNELS)) * np.sqrt(COST)
    slopes = np.sqrt(matters(x))[:, None, :, None] * (noise @ TURN.T)
    return Measured(x, slopes.astype(np.float32), np.arange(TOKENS))


def config(tmp_path, **values) -> fit_metric.MetricConfig:
    places = {"machine": "smollm2", "features": tmp_path, "output": tmp_path / "metric"}
    return fit_metric.MetricConfig(**(places | {"shrinkage": 1e-4, "importance": True} | values))


KINDS = {
    "full": {"importance": False},
    "diagonal": {"importance": False, "diagonal": True},
    "tokens": {},
}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """Training features, a metric of each kind, and codecs by them and by none."""
    root = tmp_path_factory.mktemp("weighed")
    for seed in range(24):
        write_feature(root / "train" / f"{seed:02d}.npy", feature(seed))
    for name, values in KINDS.items():
        weigh(measured(), config(root, **values)).save(root / f"{name}.metric", {"of": name})
    fit(root, "none")
    fit(root, "full", "--metric", str(root / "full.metric"))
    fit(root, "tokens", "--metric", str(root / "tokens.metric"))
    two = "--format", "2", "--memory", "true"
    fit(root, "both", "--metric", str(root / "tokens.metric"), *two)
    return root


def fit(root, name: str, *flags: str) -> None:
    args = ["--features", str(root / "train"), "--output", str(root / name), "--clusters", "[1]"]
    fit_klt.main([*args, *flags])


def test_a_probe_has_the_information_of_the_answers():
    logits = torch.tensor([[2.0, 0.0, -1.0, 0.5], [9.0, 0.0, 0.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([fisher_probe(logits, generator) for _ in range(20_000)])
    found = torch.einsum("nri,nrj->rij", draws, draws) / len(draws)
    p = logits.softmax(-1)
    wanted = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    assert torch.allclose(found, wanted, atol=0.02 * float(wanted.abs().max()))
    assert torch.allclose(found[1], wanted[1], atol=0.1 * float(wanted[1].abs().max()))


def test_the_metric_is_the_root_of_the_information(tmp_path):
    known = measured(400)
    over = matters(known.x)
    root, unroot = metric_of(known.slopes, over, config(tmp_path))
    wanted = (TURN * COST) @ TURN.T
    assert np.linalg.norm(root @ root - wanted) < 0.05 * np.linalg.norm(wanted)
    assert np.allclose(root @ unroot, np.eye(CHANNELS), atol=1e-6)
    line, inverse = metric_of(known.slopes, over, config(tmp_path, diagonal=True))
    assert line.shape == (CHANNELS,) and np.allclose(line * inverse, 1)
    assert np.allclose(line**2, np.diag(wanted), rtol=0.1)


def test_importances_are_told_from_tokens(tmp_path):
    known = measured()
    weighting = weigh(known, config(tmp_path))
    flat = known.x.reshape(-1, CHANNELS)
    classes = weighting.classes(weighting.forward(flat)[0], TOKENS)
    assert np.corrcoef(classes, np.log2(matters(flat)))[0, 1] > 0.8
    assert abs(costs(known.slopes, weighting).mean() / 2.0 ** classes.mean() - 1) < 20
    half = weigh(known, config(tmp_path, focus=0.5))
    followed = half.classes(half.forward(flat)[0], TOKENS)
    assert np.corrcoef(followed, classes)[0, 1] > 0.8
    assert 0.4 < np.std(followed) / np.std(classes) < 0.7
    with pytest.raises(UserError, match="focus"):
        config(tmp_path, focus=2.0)


def test_the_shrinkage_is_chosen_by_what_it_promises(tmp_path):
    known = measured()
    weighting, told = choose(known, config(tmp_path, shrinkage=None))
    assert told["shrinkage"] == min(SHRINKAGES)  # the information spans four orders of magnitude
    assert weighting.predictor is not None
    bits = {(each["weighed"], each["kl"]): each["bits"] for each in told["promises"]}
    for kl in DIVERGENCES:
        assert bits["none", kl] - 0.5 > bits["channels", kl] > bits["tokens", kl] + 0.3
    assert bits["none", 0.008] > bits["none", 0.04] + 1


@pytest.mark.parametrize("name", ["full", "tokens", "both"])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_weighed_feature_comes_back(room, name, samples):
    codec, x = load_codec(room / name), feature(100, samples)
    errors = []
    for quality in (1.0, 4.0, 7.0):
        data = codec.at_quality(quality).encode(x)
        decoded = codec.decode(data)
        assert decoded.shape == x.shape and decoded.dtype == x.dtype
        errors.append(damage(x, decoded))
    assert errors[2] < errors[1] / 20 < errors[0] / 400
    assert codec.id != load_codec(room / "none").id


def test_weighing_pays_where_it_is_judged(room):
    """At equal bytes; tokens apart pay once more."""
    tests = [feature(200, samples=40)]

    def curve(name: str) -> tuple[list[float], list[float]]:
        codec, bits, costs = load_codec(room / name), [], []
        for quality in np.arange(-1, 6, 0.5):
            streams = [codec.at_quality(quality).encode(x) for x in tests]
            bits.append(sum(map(len, streams)))
            pairs = zip(tests, streams, strict=True)
            costs.append(np.log2(sum(damage(x, codec.decode(data)) for x, data in pairs)))
        return bits, costs

    plain, full, tokens = (curve(name) for name in ("none", "full", "tokens"))
    at = 2 * tests[0].size / 8  # bytes: two bits per point
    damages = [np.interp(at, *each) for each in (plain, full, tokens)]
    assert damages[0] - 1 > damages[1] > damages[2] + 0.3


def test_the_rate_control_measures_true_errors(room):
    codec, x = load_codec(room / "full"), feature(300)
    decoded = codec.decode(codec.encode(x, target_nmse=0.2))
    nmse = np.mean((decoded.astype(np.float64) - x) ** 2) / x.var(dtype=np.float64)
    assert 0.16 < nmse <= 0.2


def test_tokens_that_are_far_off_come_back_as_they_are(room):
    codec, x = load_codec(room / "both"), feature(400)
    x[0, 0, 5] = 3e38
    x[0, 0, 9, 3] = -10 * FAR_OFF
    decoded = codec.decode(codec.encode(x))
    assert (decoded[0, 0, [5, 9]] == x[0, 0, [5, 9]]).all()
    assert np.isfinite(decoded).all()
    others = np.delete(x[0, 0], [5, 9], 0), np.delete(decoded[0, 0], [5, 9], 0)
    assert np.mean((others[0] - others[1]) ** 2) < others[0].var()


def check_damage(
    codec, x: np.ndarray, more: Callable[[list[bytes]], list[list[bytes]]], every: int
) -> None:
    """Parts that are wrong are refused: too few and too many, ``more``, and a bit of each byte, of the
    ``every``-th alone."""
    stream = unpack(codec.encode(x))
    parts = list(stream.parts)

    def decode(changed):
        return codec.decode(pack(replace(stream, parts=tuple(changed))))

    assert np.isfinite(decode(parts)).all()
    wrong = [parts[:1], parts[:-1], [*parts, b""], *more(parts)]
    for at in range(1, len(parts)):
        for place in range(0, len(parts[at]), every):
            changed = bytearray(parts[at])
            changed[place] ^= 16
            wrong.append([*parts[:at], bytes(changed), *parts[at + 1 :]])
    for each in wrong:
        with pytest.raises(BitstreamError):
            decode(each)


@pytest.mark.parametrize("name", ["full", "both"])
def test_two_layouts_share_a_weighting(room, tmp_path, name):
    """The quality of the bitstream picks the layout, for tokens of all classes; the folder holds the
    weighting once."""
    model = load_codec(room / name).model
    transform = replace(model.transform, mean=model.transform.mean + np.float32(0.5))
    fine = replace(model, transform=transform)
    replace(model, fine=fine, fine_from=PER_OCTAVE).save(tmp_path, 0.0, {})
    codec, x = load_codec(tmp_path), feature(99)
    for quality, own in ((0.5, model), (1.0, fine), (3.0, fine)):
        alone = KltCodec(own, quality)
        data = codec.at_quality(quality).encode(x)
        wanted = alone.decode(alone.encode(x))
        assert codec.at_quality(quality).encode_parts(x) == alone.encode_parts(x)
        assert all(np.array_equal(codec.at_quality(q).decode(data), wanted) for q in (0, 3))
    stored = load_arrays((tmp_path / "model.safetensors").read_bytes())
    assert not any(key.removeprefix("fine_") in model.weighting.arrays() for key in stored
                   if key.startswith("fine_"))  # fmt: skip


@pytest.mark.parametrize("name", ["tokens", "both"])
def test_damage_is_refused(room, name):
    codec = load_codec(room / name)

    def more(parts: list[bytes]) -> list[list[bytes]]:
        """No classes, another quality, other classes."""
        finer = (int.from_bytes(parts[0], "little") + 64).to_bytes(2, "little")
        flat = codec.model.weighting.write(np.zeros(TOKENS, np.int32))
        return [[*parts[:1], b"", *parts[2:]], [finer, *parts[1:]], [parts[0], flat, *parts[2:]]]

    check_damage(codec, feature(500), more, every=1)


def test_rows_of_a_stream_are_whole_bitstreams(room):
    codec, x = load_codec(room / "tokens"), feature(600)
    encoder, decoder = codec.stream("x"), StreamDecoder(codec)
    for part in (x[:, :, :10], x[:, :, 10:11], x[:, :, 11:]):
        found = decoder.feed(encoder.append({"x": part}))["x"]
        assert (found == codec.decode(codec.encode(part))).all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("root", lambda a: a[:-1]),
        ("unroot", lambda a: a * np.float32(np.nan)),
        ("root", lambda a: a.astype(np.float64)),
        ("sigma", lambda a: -a),
        ("freq", lambda a: a + 1),
        ("basis", lambda a: a[:, :-1]),
        ("theta", lambda a: a[1:]),
        ("line", lambda a: -a - 1e16),
    ],
)
def test_an_unsound_weighting_is_refused(room, tmp_path, name, change):
    arrays = load_arrays((room / "tokens" / "model.safetensors").read_bytes())
    arrays["weighting_" + name] = np.ascontiguousarray(change(arrays["weighting_" + name]))
    (tmp_path / "model.safetensors").write_bytes(save_arrays(arrays))
    (tmp_path / "config.json").write_bytes((room / "tokens" / "config.json").read_bytes())
    with pytest.raises(UserError, match=f"weighting_{name} is not sound"):
        load_codec(tmp_path)


def test_a_metric_file_says_what_is_wrong(room, tmp_path):
    found, made_by = Weighting.load(room / "diagonal.metric")
    assert found.root.ndim == 1 and found.predictor is None and made_by == {"of": "diagonal"}
    with pytest.raises(FileNotFoundError, match="fit_metric"):
        Weighting.load(tmp_path / "none")
    (tmp_path / "text").write_text("no metric")
    with pytest.raises(UserError, match="not a readable metric"):
        Weighting.load(tmp_path / "text")
    (tmp_path / "other").write_bytes(save_arrays({"a": np.zeros(3)}))
    with pytest.raises(UserError, match="not a metric"):
        Weighting.load(tmp_path / "other")
    x = np.zeros((1, 1, TOKENS, CHANNELS + 1), np.float32)
    write_feature(tmp_path / "train" / "x.npy", x)
    args = ["--features", str(tmp_path / "train"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="tokens of 16 channels"):
        fit_klt.main([*args, "--metric", str(room / "full.metric")])
    assert not (tmp_path / "out").exists()


def test_a_codec_is_stale_when_its_metric_changed(room, tmp_path):
    def cfg(metric):
        place = room / "full"
        return fit_klt.FitConfig(features=room / "train", output=place, clusters=[1], metric=metric)

    assert cfg(room / "full.metric").why_not_made() is None
    assert "metric" in cfg(room / "tokens.metric").why_not_made()
    assert "metric" in cfg(None).why_not_made()
    assert "metric" not in fit_klt.FitConfig(features=room / "train", output=room).stamp().config


def test_the_command_measures_a_machine(checkpoint, preset, tmp_path, capsys):  # noqa: F811
    """From the text of a toy language model to a codec that its metric serves."""
    texts = json.dumps({name: str(tmp_path / "words.txt") for name in ("train", "test")})
    options = [f"texts={texts}", f"data_root={tmp_path}"]
    machine = open_machine(preset, options)
    for sample in machine.samples("train"):
        write_feature(tmp_path / "train" / f"{sample.name}.npy", machine.extract(sample))
    args = ["--machine", str(preset), "--features", str(tmp_path / "train"), "--output",
            str(tmp_path / "metric"), "--options", json.dumps(options), "--draws", "2",
            "--importance", "true"]  # fmt: skip
    fit_metric.main(args)
    assert "32 channels, 6 samples" in capsys.readouterr().out
    weighting, made_by = Weighting.load(tmp_path / "metric")
    assert made_by["samples"] == 6 and weighting.channels == 32
    fit_klt.main(["--features", str(tmp_path / "train"), "--output", str(tmp_path / "codec"),
                  "--machine", str(preset), "--metric", str(tmp_path / "metric")])  # fmt: skip
    made = files.read_json(tmp_path / "codec" / "config.json")["made_by"]
    assert made["metric"]["draws"] == 2 and made["files"] == 6
    codec = load_codec(tmp_path / "codec")
    (sample,) = machine.samples("test")[:1]
    x = machine.extract(sample)
    coded = [codec.decode(codec.at_quality(q).encode(x)) for q in (1, 7)]
    kls = [machine.score([sample], [machine.predict(sample, each)]).others["kl"] for each in coded]
    assert 0 <= kls[1] < kls[0] / 10


def test_slopes_are_gradients_of_the_back_half(checkpoint, preset, tmp_path):  # noqa: F811
    """Half their squared products with a small error are the divergence that it makes."""
    texts = json.dumps({"train": str(tmp_path / "words.txt")})
    machine = open_machine(preset, [f"texts={texts}", f"data_root={tmp_path}"])
    (sample,) = machine.samples("train")[:1]
    x = machine.extract(sample)
    machine.predict(sample, x)  # the back half is loaded without gradients
    slopes = machine.slopes(sample, x, 400, torch.Generator().manual_seed(0))
    assert slopes.shape == (400, *x.shape) and slopes.dtype == np.float32
    error = np.random.default_rng(0).standard_normal(x.shape) * 0.003 * x.std()
    told = 0.5 * np.mean(np.sum(slopes * error, axis=(1, 2, 3, 4)) ** 2)
    found = machine.predict(sample, (x + error).astype(np.float32))
    assert found["kl"] == pytest.approx(told, rel=0.3)


def test_a_metric_is_refused_where_there_is_none(preset, tmp_path):  # noqa: F811
    write_feature(tmp_path / "train" / "strange.npy", np.zeros((1, 1, 20, 32), np.float32))
    texts = json.dumps({"train": str(tmp_path / "words.txt")})
    options = json.dumps([f"texts={texts}", f"data_root={tmp_path}"])
    with pytest.raises(SystemExit, match=r"strange\.npy"):
        fit_metric.main(["--machine", str(preset), "--features", str(tmp_path / "train"),
                         "--output", str(tmp_path / "metric"), "--options", options])  # fmt: skip
    assert not (tmp_path / "metric").exists()
