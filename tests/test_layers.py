"""Features of several layers: views, and how klt tells the layers apart where validation says so."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import ARCHS
from safetensors.numpy import load, save

from dtufc.bitstream import BitstreamError, unpack
from dtufc.codec import load_codec
from dtufc.CompressAI.checkpoint import save_checkpoint
from dtufc.CompressAI.kinds import load_patch_kind
from dtufc.CompressAI.models import build_model
from dtufc.errors import UserError
from dtufc.experiments.driver import BatchConfig
from dtufc.feature import write_feature
from dtufc.klt import fit_klt
from dtufc.klt.model import WEIGHTS, Layout
from dtufc.klt.statistics import Statistics, spaced
from dtufc.transform import generate_data
from dtufc.transform.mapping import Mapping

LAYERS, TOKENS, WIDTH = 3, 30, 6
FACTS = {"model": "toy", "task": "layers", "shape": [2, LAYERS, None, WIDTH],
         "axes": ["crop", "layer", "token", "channel"]}  # fmt: skip


def mixer(rng) -> np.ndarray:
    """Turns independent channels into some that are much alike."""
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    return basis * np.geomspace(1, 0.02, WIDTH)


def make(sort: str, count: int) -> list[np.ndarray]:
    """Features (2, layers, tokens, channels) float32.

    joint: each layer is the one before and a little more, as in a residual stream. own: layers have
    nothing to do with each other and differ. shared: they do not differ either.
    """
    rng = np.random.default_rng(5)
    mixers = [mixer(rng) for _ in range(LAYERS)]
    out = []
    for _ in range(count):
        x = rng.standard_normal((2, LAYERS, TOKENS, WIDTH))
        if sort == "joint":
            x[:, 1:] *= 0.1
            x = np.cumsum(x, axis=1)
        for layer in range(LAYERS):
            x[:, layer] = x[:, layer] @ mixers[0 if sort == "shared" else layer].T
            x[:, layer] += layer * (sort != "shared")
        out.append(x.astype(np.float32))
    return out


@pytest.fixture(scope="module", params=["joint", "own", "shared"])
def coded(request, tmp_path_factory):
    """A fitted codec of each sort of layers, and features that it was not fitted on."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "toy.yaml").write_text(yaml.safe_dump({"feature": FACTS}))
    # few files where layers are alike, so that pooling them shows
    features = make(request.param, 3 if request.param == "shared" else 10)
    for i, x in enumerate(features):
        write_feature(root / "train" / f"{i}.npy", x[:, :, :4] if request.param == "shared" else x)
    fit_klt.main(
        ["--features", str(root / "train"), "--machine", str(root / "toy.yaml"),
         "--output", str(root / "codec"), "--clusters", "[1]", "--compared_at", "[1,2.5]"]
    )  # fmt: skip
    return request.param, root / "codec", make(request.param, 12)[10:]


def test_validation_chooses_how_layers_are_told_apart(coded):
    sort, folder, _ = coded
    layout = load_codec(folder).model.transform.layout
    assert layout.layers == sort
    assert layout.clusters == (LAYERS if sort == "own" else 1) and not layout.tells_cluster
    tried = json.loads((folder / "config.json").read_text())["made_by"]["tried"]
    said = " ".join(each["layout"] for each in tried)
    assert "per layer, 3" in said and "shared by layers" in said


def test_layered_features_are_coded_at_any_rate(coded):
    """Bytes as promised, less error with more quality, any number of tokens."""
    _, folder, features = coded
    codec, errors = load_codec(folder), []
    layout = codec.model.transform.layout
    x = features[0][:, :, : TOKENS - 3]
    for quality in (0, 2, 5):
        one = codec.at_quality(quality)
        data = one.encode(x)
        decoded = codec.decode(data)
        assert decoded.shape == x.shape
        errors.append(float(np.mean(np.square(decoded - x)) / x.var()))
        vectors, owners = one.model.to_vectors(x), layout.owners(x.shape)
        bits = one.model.quantise(vectors, one.grade, owners=owners)[2].sum()
        assert abs(8 * len(data) - bits) < 0.01 * bits + 8 * 60
        assert np.array_equal(one.model.from_vectors(vectors, x.shape), x)
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-2


def test_vectors_of_outliers_stay_with_their_layer(coded):
    _, folder, features = coded
    codec = load_codec(folder)
    x = features[0].copy()
    x[1, 2, 7, 3] = 1e9
    decoded = codec.decode(codec.encode(x))
    assert decoded[1, 2, 7, 3] == np.float32(1e9)
    assert np.abs(decoded - x)[0].max() < 3


def test_damaged_bytes_are_refused(coded):
    _, folder, features = coded
    codec = load_codec(folder)
    data = bytearray(codec.encode(features[0]))
    data[len(data) // 2] ^= 4
    with pytest.raises(BitstreamError):
        codec.decode(bytes(data))
    with pytest.raises(BitstreamError):  # the strings of a feature with a token less
        whole = unpack(codec.encode(features[0]))
        codec.decode_parts(whole.parts, (2, LAYERS, TOKENS - 1, WIDTH), whole.mode)


def test_folders_that_no_fit_gives_are_refused(coded, tmp_path):
    sort, folder, _ = coded
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    values = json.loads((bad / "config.json").read_text())
    values["layout"]["layers"] = "shared" if sort == "own" else "own"
    (bad / "config.json").write_text(json.dumps(values))
    if sort == "own":  # a mixture of three is sound, but a basis of all layers has another size
        arrays = load((bad / WEIGHTS).read_bytes())
        arrays["mean"] = arrays["mean"][:, :4]
        (bad / WEIGHTS).write_bytes(save(arrays))
    with pytest.raises(UserError, match=r"layout\.clusters is not sound|mean is not sound"):
        load_codec(bad)
    values["layout"]["layers"] = "twisted"
    (bad / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="layers"):
        load_codec(bad)


def test_statistics_of_layers_are_those_of_their_vectors():
    """Taken from the joint ones, and counted anew."""
    x = np.concatenate([f.transpose(0, 2, 1, 3).reshape(-1, LAYERS, WIDTH) for f in make("own", 4)])
    joint = x.reshape(len(x), -1, 1)
    centred = joint[:, :, 0].astype(np.float64) - joint.mean(0)[:, 0]
    known = Statistics(len(x), joint.mean(0), centred.T @ centred / len(x), joint)
    apart = known.apart(LAYERS)
    every = x.reshape(-1, WIDTH).astype(np.float64)
    assert apart.rows == len(every) and len(apart.layers) == LAYERS
    assert np.allclose(apart.mean[:, 0], every.mean(0), atol=1e-5)
    assert np.allclose(apart.covariance, np.cov(every.T, bias=True), atol=1e-4)
    assert np.allclose(apart.layers[1].covariance, np.cov(x[:, 1].T, bias=True), atol=1e-4)
    assert apart.square == pytest.approx(np.mean(np.square(every)), rel=1e-4)
    layout = Layout(True, 1, LAYERS, True, "own")
    sample, owners = apart.thinned(layout, 60 * WIDTH)
    assert len(sample) == len(owners) == 60 and set(owners) == {0, 1, 2}
    where = spaced(len(every), 60)
    told = [x[row % len(x), row // len(x)] for row in where]
    assert np.array_equal(sample[:, :, 0], told) and (owners == where // len(x)).all()
    shape = (2, LAYERS, 4, WIDTH)
    assert layout.seen(shape) == (6, 1, 4, WIDTH)
    assert layout.owners(shape).tolist() == ([0] * 4 + [1] * 4 + [2] * 4) * 2


def test_learned_codecs_take_a_mapping_per_layer(tmp_path):
    """Fit, patches of both layouts, and a bitstream; a suite asks for it by one key."""
    features = make("own", 4)
    for i, x in enumerate(features):
        x *= np.float32([1, 10, 100])[:, None, None]  # layers of unlike ranges
        for split in ("feature_train/train", "feature_train/test", "feature_test"):
            write_feature(tmp_path / "toy" / "layers" / split / f"{i}.npy", x)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({"feature": FACTS}))
    common = ["--machine", str(tmp_path / "toy.yaml"), "--data_root", str(tmp_path)]
    errors = []
    for flags, name in (([], ""), (["--per_channel", "true"], "_perchannel")):
        generate_data.main([*common, "--patch_size", "64-18", "--samples", "4", *flags])
        folder = tmp_path / "toy" / "layers" / "patches" / f"kmeans4_bitdepth8{name}"
        (folder,) = folder.glob("crop*")
        kind = load_patch_kind(folder)
        mapping = kind.mapping
        assert mapping.codebooks.shape == ((LAYERS, 256) if flags else (256,))
        x = features[0]
        rest = mapping.inverse(mapping.forward(x)) - x
        errors.append(np.square(rest).mean(axis=(0, 2, 3)) / x.var(axis=(0, 2, 3)))
    assert errors[1][0] < 0.1 * errors[0][0]  # the quietest layer gains most
    torch.manual_seed(0)
    model = build_model("hyperprior", ARCHS["hyperprior"])
    save_checkpoint(tmp_path / "codec", model, "hyperprior", [kind], {})
    codec = load_codec(tmp_path / "codec")
    decoded = codec.decode(codec.encode(features[0]))
    assert decoded.shape == features[0].shape and decoded.dtype == np.float32
    for layer, centres in enumerate(Mapping.load(folder / "mapping.json").codebooks):
        assert np.isin(decoded[:, layer], centres.astype(np.float32)).all()
    native = [*common, "--layout", "native", "--patch_size", "8-1", "--samples", "4"]
    generate_data.main([*native, "--per_channel", "true"])
    (folder,) = (tmp_path / "toy/layers/patches/kmeans4_bitdepth8_perchannel").glob("native*")
    assert np.load(next((folder / "train").glob("*.npy"))).shape == (LAYERS * WIDTH, 8, 1)

    suite = {"machines": [str(tmp_path / "toy.yaml")], "transform": {"per_channel": True},
             "rows": [{"codec": "hyperprior", "train_task": "toy_layers", "lambda_value": [0.1],
                       "epochs": 1, "batch_size": 1}],
             "fitted": [{"codec": "klt", "train_task": "toy_layers", "quality": [1]}]}  # fmt: skip
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    batch = BatchConfig(suite=str(tmp_path / "suite.yaml"), data_root=tmp_path).batch()
    (run,) = batch.runs
    assert batch.folder(run).parts[-3:-1] == ("trained_toy_layers", "kmeans10_bitdepth8_perchannel")
    (fit,) = batch.fits  # a kind may stand for a task that several machines share
    assert fit.trained_on == "toy_layers" and "trained_toy_layers" in str(
        batch.fit_config(fit).output
    )
    assert batch.mapping_config(str(tmp_path / "toy.yaml")).per_channel
