"""The learned codec in a feature's own layout: layouts, the transform it begins with, the whole way."""

import json

import numpy as np
import pytest
import torch
import yaml
from conftest import CHANNELS, train_config

from dtufc.codec import BitstreamError, load_codec
from dtufc.CompressAI.models import NativeArch, build_model
from dtufc.CompressAI.train import train
from dtufc.experiments.driver import BatchConfig, run_batch
from dtufc.experiments.suite import load_suite
from dtufc.feature import FeatureError, write_feature
from dtufc.transform.generate_data import GenerateConfig, generate

MAPS = {"model": "maps", "task": "cut", "shape": [None, 8, None, None]}
MAPS |= {"axes": ["sample", "channel", "row", "column"], "tiles": [2, 4]}


def map_feature(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """(N, 8, H, W) float32: three smooth maps mixed into eight channels, and a little noise."""
    rng = np.random.default_rng(seed)
    n, c, h, w = shape
    waves = rng.uniform(0.1, 0.5, (n, 3, 2, 1, 1)), rng.uniform(0, 6, (n, 3, 1, 1))
    rows, cols = np.mgrid[:h, :w]
    maps = np.sin(waves[0][:, :, 0] * rows + waves[0][:, :, 1] * cols + waves[1])
    mixing = np.random.default_rng(5).standard_normal((c, 3))
    x = np.einsum("cm,nmhw->nchw", mixing, maps) + 0.02 * rng.standard_normal(shape)
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def data(toy, tmp_path_factory):
    """A data root with the toy tokens and maps of eight channels, the machines' files in it."""
    root = tmp_path_factory.mktemp("native")
    (root / "maps.yaml").write_text(yaml.safe_dump({"feature": MAPS}))
    (root / "toy.yaml").write_bytes((toy / "toy.yaml").read_bytes())
    (root / "toy").symlink_to(toy / "toy")
    for folder, count in (
        ("feature_train/train", 12),
        ("feature_train/test", 2),
        ("feature_test", 3),
    ):
        for i in range(count):
            x = map_feature(100 * len(folder) + i, (1 + i % 2, 8, 14, 10 + i % 3))
            write_feature(root / "maps" / "cut" / folder / f"f{i}.npy", x)
    return root


def suite_of(data, machine: str, **changes) -> dict:
    row = {
        "codec": "native",
        "train_task": {"maps": "cut", "toy": "hidden"}[machine],
        "arch": {"N": 16} if machine == "maps" else {"N": 16, "kernel": [3, 1]},
        "lambda_value": [0.1],
        "epochs": 15,
        "batch_size": 8,
        "patch_size": "12-8" if machine == "maps" else "32-1",
        "patches_per_file": 4,
        "learning_rate": 0.002,
        "schedule": "cosine",
    }
    return {"machines": [str(data / f"{machine}.yaml")], "rows": [{**row, **changes}]}


@pytest.fixture(scope="module", params=["maps", "toy"])
def batch(request, data):
    """The driver's whole way on one kind: its table, and the codec's folder."""
    path = data / f"native_{request.param}.yaml"
    path.write_text(yaml.safe_dump(suite_of(data, request.param)))
    cfg = BatchConfig(
        suite=str(path), data_root=data, transform_type="uniform", samples=0,
        assignment="continuous", device="cpu",
    )  # fmt: skip
    rows = run_batch(cfg)
    batch = cfg.batch()
    return request.param, rows, batch.folder(batch.runs[0])


def test_begins_at_the_klt_of_the_patches():
    torch.manual_seed(0)
    model = build_model("native", NativeArch(inputs=6, N=8))
    x = torch.randn(40, 6, 8, 8, dtype=torch.float64)
    x = torch.einsum("oc,nchw->nohw", torch.randn(6, 6, dtype=torch.float64), x).float() + 3
    model.initialise(x, lambda_value=0.01)
    with torch.no_grad():
        y = model.g_a(x)
        assert torch.allclose(model.g_s(y), x, atol=1e-4)
    covariance = torch.cov(y.transpose(0, 1).flatten(1).double())
    powers = covariance.diag()
    assert (covariance - torch.diag(powers)).abs().max() < 1e-3 * powers.max()
    assert (powers.diff() < 0).all()
    assert torch.allclose(model.h_s[-1].bias[:6].double() ** 2, powers, rtol=1e-3)


def test_the_driver_trains_and_codes_it(batch, data):
    """From features to a table, better than the linear codec that it began as."""
    name, rows, folder = batch
    rows = [row for row in rows if row.codec == "native"]
    assert len(rows) == 1
    assert rows[0].nmse < {"maps": 0.005, "toy": 0.05}[name]
    assert rows[0].bpfp < {"maps": 3.5, "toy": 2.0}[name]
    losses = [float(line.split(",")[1]) for line in (folder / "log.csv").read_text().split()[1:]]
    assert losses[-1] < losses[0]
    assert json.loads((folder / "config.json").read_text())["arch"]["inputs"] > 1


def test_any_size_under_any_setting(batch):
    name, _, folder = batch
    codec = load_codec(folder)
    shapes = {
        "maps": [(1, 8, 14, 11), (3, 8, 5, 1), (1, 8, 70, 130)],
        "toy": [(1, 1, 64, CHANNELS), (1, 1, 3, CHANNELS), (1, 1, 200, CHANNELS)],
    }[name]
    for i, shape in enumerate(shapes):
        x = (
            map_feature(i, shape)
            if name == "maps"
            else map_feature(i, (1, CHANNELS, *shape[2:3], 1))
        )
        x = x if name == "maps" else np.ascontiguousarray(x.transpose(0, 3, 2, 1))
        data = codec.encode(x)
        decoded = codec.decode(data)
        assert decoded.shape == x.shape
        assert decoded.dtype == x.dtype
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1 if threads > 1 else 2)
            with torch.backends.mkldnn.flags(enabled=False):
                again = codec.decode(
                    data
                )  # its latents have the encoder's checksum, or this raises
        finally:
            torch.set_num_threads(threads)
        assert np.abs(again - decoded).max() <= 0.05 * np.abs(decoded).max()
    tiled = codec.at_tile(64)
    data = tiled.encode(x)
    assert np.array_equal(codec.decode(data), tiled.decode(data))
    assert data != codec.encode(x)


def test_damage_is_refused(batch):
    name, _, folder = batch
    codec = load_codec(folder)
    x = np.load(next((folder.parents[4] / name).glob("*/feature_test/*.npy")))
    data = codec.encode(x)
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        with pytest.raises(BitstreamError):
            codec.decode(bytes(damaged))
    with pytest.raises(FeatureError):
        codec.encode(x[:, :, :, :-1] if name == "toy" else x[:, :-1])
    with pytest.raises(ValueError, match="no codec of the paper's"):
        load_codec(folder, published=True)


def test_patches_must_be_of_the_layout(batch, toy_patches, tmp_path):
    name, _, folder = batch
    patches = next((folder.parents[4] / name).glob("*/patches/*/native_*"))
    with pytest.raises(ValueError, match=r"hyperprior takes 1 channels.*--layout"):
        train(train_config(patches, tmp_path / "a"))
    arch = {"N": 8, "inputs": 3}
    with pytest.raises(ValueError, match="native takes 3 channels"):
        train(train_config(toy_patches, tmp_path / "b", codec="native", arch=arch))
    with pytest.raises(ValueError, match="kernel: two odd numbers"):
        train(train_config(patches, tmp_path / "c", "native", arch={"kernel": [2, 1]}))


def test_patches_of_the_layout(data):
    """Crops are pieces of the features, whichever sample they are from."""
    cfg = GenerateConfig(
        machine=str(data / "maps.yaml"), layout="native", patch_size="4-8", patches_per_file=3,
        transform_type="uniform", samples=0, assignment="continuous", data_root=data,
        output=data / "cut",
    )  # fmt: skip
    generate(cfg)
    paths = sorted((data / "cut" / "train").glob("*.npy"))
    assert len(paths) == 36
    whole = np.load(data / "maps/cut/feature_train/train/f1.npy")
    patch = np.load(data / "cut" / "train" / "f1_p00.npy")
    assert patch.shape == (8, 4, 8)
    span = (patch - patch.min()) / (patch.max() - patch.min())
    found = 0
    for n, i, j in np.ndindex(len(whole), whole.shape[2] - 3, whole.shape[3] - 7):
        piece = whole[n, :, i : i + 4, j : j + 8]
        piece = (piece - piece.min()) / (piece.max() - piece.min())
        found += np.abs(piece - span).max() < 0.01
    assert found == 1


def test_a_hybrid_row_is_refused(data, tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(suite_of(data, "maps", train_task="hybrid")))
    with pytest.raises(ValueError, match="hybrid"):
        load_suite(path)


def test_it_is_coded_where_its_channels_are(data, tmp_path):
    """Beside other machines, a native codec is evaluated on its own alone."""
    values = suite_of(data, "maps")
    values["machines"].append(str(data / "toy.yaml"))
    values["rows"].append({**values["rows"][0], "codec": "hyperprior", "arch": {"N": 8, "M": 8}})
    values["rows"][1]["patch_size"] = "64-64"
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(values))
    codings = BatchConfig(suite=str(path), data_root=tmp_path).batch().codings()
    assert [(each.cfg.labels["codec"], each.cfg.kind) for each in codings] == [
        ("native", "maps_cut"), ("hyperprior", "maps_cut"), ("hyperprior", "toy_hidden"),
    ]  # fmt: skip
