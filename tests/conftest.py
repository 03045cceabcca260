"""Toy data that puts the whole pipeline through in seconds: peaky token features of 128 channels."""

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
import yaml

from dtufc.codec import Codec, load_codec
from dtufc.CompressAI.checkpoint import Kind, save_checkpoint
from dtufc.CompressAI.models import ElicArch, HyperpriorArch, build_model
from dtufc.CompressAI.train import TrainConfig, train
from dtufc.experiments import forked
from dtufc.feature import FeatureFacts, load_facts, write_feature
from dtufc.paths import REPOSITORY
from dtufc.transform.mapping import Mapping

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

forked.preload("dtufc.CompressAI.training")  # one server forks the commands of all batches here

hypothesis.settings.register_profile("project", deadline=None)  # the first call compiles kernels
hypothesis.settings.load_profile("project")


def pytest_addoption(parser):
    parser.addoption(
        "--regenerate_golden", action="store_true", help="write the pinned bitstreams again"
    )


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


CHANNELS = 128
ARCHS = {
    "hyperprior": HyperpriorArch(N=16, M=24),
    "elic": ElicArch(N=16, M=24, groups=[4, 4, 8, 8], context=[[12, 8]] * 3),
}


def toy_feature(seed: int, tokens: int) -> np.ndarray:
    """(1, 1, tokens, 128) float32: heavy tails, smooth over tokens and channels, one offset channel."""
    rng = np.random.default_rng(seed)
    rough = rng.standard_normal((tokens + 8, CHANNELS + 8))
    kernel = np.hanning(11)[1:-1] / np.linalg.norm(np.hanning(11)[1:-1])
    for axis in (0, 1):
        rough = np.apply_along_axis(np.convolve, axis, rough, kernel, "valid")
    x = np.sign(rough) * np.abs(rough) ** 2
    x[:, 7] += 30
    return x[None, None].astype(np.float32)


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """A data root with features of the kind toy_hidden, and ``toy.yaml`` with their facts."""
    root = tmp_path_factory.mktemp("toy")
    facts = {
        "model": "toy",
        "task": "hidden",
        "shape": [1, 1, None, CHANNELS],
        "axes": ["sample", "layer", "token", "channel"],
    }
    (root / "toy.yaml").write_text(yaml.safe_dump({"feature": facts}))
    for folder, count, seed in (("train", 8, 0), ("test", 2, 100)):
        for i in range(count):
            path = root / "toy" / "hidden" / "feature_train" / folder / f"f{i}.npy"
            write_feature(path, toy_feature(seed + i, 64 + 3 * i))
    for i in range(3):
        path = root / "toy" / "hidden" / "feature_test" / f"t{i}.npy"
        write_feature(path, toy_feature(200 + i, 50 + 20 * i))
    return root


@pytest.fixture(scope="session")
def toy_facts(toy) -> FeatureFacts:
    return load_facts(toy / "toy.yaml")


@pytest.fixture(scope="session")
def toy_mapping(toy) -> Mapping:
    """256 levels at equal counts over the training features."""
    folder = toy / "toy" / "hidden" / "feature_train" / "train"
    values = np.sort(np.concatenate([np.load(path).ravel() for path in folder.glob("*.npy")]))
    return Mapping(np.quantile(values.astype(np.float64), np.linspace(0, 1, 256)))


@pytest.fixture(scope="session")
def toy_patches(toy, toy_facts, toy_mapping) -> Path:
    """64 x 64 patches of the toy features."""
    folder = toy / "patches64"
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for path in sorted((toy / "toy" / "hidden" / "feature_train" / split).glob("*.npy")):
            plane = toy_facts.views.pack(toy_mapping.forward(np.load(path)))
            for k in range(4):
                row = rng.integers(0, plane.shape[0] - 63)
                col = rng.integers(0, CHANNELS - 63)
                np.save(
                    folder / split / f"{path.stem}_{k}.npy", plane[row : row + 64, col : col + 64]
                )
    toy_mapping.save(folder / "mapping.json")
    (folder / "patches.json").write_text(
        json.dumps({"facts": toy_facts.record(), "assignment": "nearest"})
    )
    return folder


def train_config(patches: Path, output: Path, codec: str = "hyperprior", **changes) -> TrainConfig:
    """A training of seconds."""
    values = {
        "patches": [patches],
        "output": output,
        "codec": codec,
        "arch": asdict(ARCHS[codec]) if codec in ARCHS else {},
        "lambda_value": 0.05,
        "epochs": 16,
        "batch_size": 8,
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "device": "cpu",
    }
    return TrainConfig(**{**values, **changes})


@pytest.fixture
def suite(toy, tmp_path):
    """Two lambdas of the hyperprior on the toy features, in a data root of its own."""
    root = tmp_path / "root"
    shutil.copytree(toy / "toy" / "hidden", root / "toy" / "hidden")
    row = {
        "codec": "hyperprior",
        "train_task": "hidden",
        "arch": vars(ARCHS["hyperprior"]),
        "lambda_value": [0.01, 0.05],
        "epochs": 3,
        "batch_size": 4,
        "patch_size": "64-64",
        "patches_per_file": 2,
        "learning_rate": 1e-3,
    }
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"machines": [str(toy / "toy.yaml")], "rows": [row]}))
    return ["--suite", str(path), "--data_root", str(root), "--device", "cpu"]


@pytest.fixture(scope="session", params=list(ARCHS))
def trained(request, toy, toy_patches) -> Path:
    """A codec folder of each kind of codec, trained for seconds."""
    folder = toy / f"trained_{request.param}"
    train(train_config(toy_patches, folder, request.param))
    return folder


@pytest.fixture(scope="session", params=list(ARCHS))
def untrained(request, toy, toy_facts, toy_mapping) -> Path:
    """A codec folder of each kind, with random weights that give spread-out latents."""
    folder = toy / f"untrained_{request.param}"
    torch.manual_seed(0)
    model = build_model(request.param, ARCHS[request.param])
    with torch.no_grad():
        for layer in model.g_a:
            if hasattr(layer, "weight"):
                layer.weight.mul_(4)
    save_checkpoint(folder, model, request.param, [Kind(toy_facts, toy_mapping)], {})
    return folder


@pytest.fixture(scope="session")
def golden_folder(tmp_path_factory) -> Callable[..., Path]:
    """Name of a registered codec, and "tokens" or "maps" -> its pinned codec folder; small_codecs.py has
    features for it. Learned ones are there for tokens alone."""
    root = tmp_path_factory.mktemp("golden")

    def unpack(name: str, kind: str = "tokens") -> Path:
        folder = root / f"{name}_{kind}"
        if not folder.exists():
            source = Path(__file__).parent / "golden" / folder.name / "codec.zip"
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
        return folder

    return unpack


@pytest.fixture(scope="session")
def golden_codec(golden_folder) -> Callable[..., Codec]:
    """The codec in such a folder."""
    return lambda name, kind="tokens": load_codec(golden_folder(name, kind))


@pytest.fixture
def corpus_codec(golden_folder) -> Path:
    """A folder of the codec ``cast``, which gives tokens back as they were."""
    return golden_folder("cast")


@pytest.fixture
def corpus_folder(tmp_path) -> Path:
    """Seven features in folders below each other, see test_corpora.py."""
    from test_corpora import SAMPLES, feature

    for seed in range(SAMPLES):
        write_feature(tmp_path / "x" / f"part{seed // 4}" / f"f{seed}.npy", feature(seed))
    return tmp_path / "x"
