"""nonlinear_transform.py, generate_data.py and the benchmark, run in-process on made-up features."""

import importlib.util
import json
import os
import sys

import numpy as np
import pytest
import yaml

from dtufc.feature import load_facts, write_feature
from dtufc.paths import REPOSITORY
from dtufc.transform import generate_data, nonlinear_transform
from dtufc.transform.mapping import Mapping
from dtufc.transform.patches import crop, fold, folded_size, parse_patch_size


@pytest.fixture
def data(tmp_path):
    """A data root with 4 + 2 + 2 features (1, 6, 5, 4) of the kind made_up, and their YAML."""
    facts = {
        "model": "made",
        "task": "up",
        "shape": [1, 6, 5, 4],
        "axes": ["sample", "channel", "row", "column"],
    }
    (tmp_path / "made.yaml").write_text(yaml.safe_dump({"feature": facts}))
    rng = np.random.default_rng(0)
    for folder, count in (
        ("feature_train/train", 4),
        ("feature_train/test", 2),
        ("feature_test", 2),
    ):
        for i in range(count):
            x = (rng.standard_normal((1, 6, 5, 4)) ** 3).astype(np.float32)
            write_feature(tmp_path / "made" / "up" / folder / f"s{i}.npy", x)
    return tmp_path


def common(data) -> list[str]:
    return ["--machine", str(data / "made.yaml"), "--data_root", str(data)]


def transform_folder(data):
    return data / "made" / "up" / "transform"


@pytest.mark.parametrize("kind", ["kmeans", "density", "uniform"])
def test_fit_script(data, capsys, kind):
    config = REPOSITORY / "configs" / "transform" / f"{kind}.yaml"
    nonlinear_transform.main([*common(data), "--config", str(config), "--bit_depth", "4"])
    stem = f"transform_mapping_up_{kind}10_bitdepth4"
    names = sorted(path.name for path in transform_folder(data).glob("[!.]*"))
    assert names == [f"{stem}.json", f"{stem}.pdf", f"{stem}.png", f"{stem}_fit.json"]
    assert Mapping.load(transform_folder(data) / f"{stem}.json").levels == 16
    record = json.loads((transform_folder(data) / f"{stem}_fit.json").read_text())
    assert record["files"] == ["s0.npy", "s1.npy", "s2.npy", "s3.npy"]
    assert record["kind"] == "made_up"
    out = capsys.readouterr().out
    assert f"{record['mse']['left']:.6g} left" in out
    assert f"{stem}.json" in out


def test_fit_script_options(data, tmp_path):
    output = tmp_path / "own" / "map.json"
    argv = [*common(data), "--output", str(output), "--samples", "2", "--per_channel", "true"]
    argv += ["--trun_low", "[-1,-1,-1,-2,-2,-2]", "--trun_high", "3", "--bit_depth", "3"]
    argv += ["--rows", "3", "--features", str(data / "made" / "up" / "feature_test")]
    nonlinear_transform.main([*argv, "--assignment", "continuous"])
    assert Mapping.load(output).codebooks.shape == (6, 8)
    record = json.loads(output.with_name("map_fit.json").read_text())
    assert (record["min"], record["trun_high"], record["rows"]) == (-2, 3, 3)
    assert record["values"] == 2 * 6 * 3 * 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bit_depth", "13"], "bit_depth"),
        (["--samples", "-1"], "samples"),
        (["--output", "x.txt"], "output"),
        (["--transform_type", "cubic"], "transform_type"),
        (["--features", "EMPTY"], "holds no .npy"),
        (["--features", "MISSING"], "no such file or folder"),
        (["--features", "BAD"], "bad.npy"),
        (["--trun_low", "2", "--trun_high", "1"], "trun_low"),
    ],
)
def test_fit_script_refuses(data, capsys, argv, message):
    (data / "EMPTY").mkdir()
    (data / "BAD").mkdir()
    (data / "BAD" / "bad.npy").write_bytes(b"no array")
    argv = [str(data / word) if word in ("EMPTY", "MISSING", "BAD") else word for word in argv]
    with pytest.raises(SystemExit) as stopped:
        nonlinear_transform.main([*common(data), *argv])
    assert stopped.value.code not in (0, None)
    assert message in f"{stopped.value.code} {capsys.readouterr().err}"
    assert not transform_folder(data).exists()


def test_a_special_fit_replaces_no_plain_one(data):
    """Rows, truncation and per-channel codebooks are in the name of the mapping."""
    nonlinear_transform.main([*common(data), "--bit_depth", "3"])
    plain = transform_folder(data) / "transform_mapping_up_kmeans10_bitdepth3.json"
    before = plain.read_bytes()
    flags = ["--rows", "2", "--trun_low", "-1.5", "--trun_high", "2", "--per_channel"]
    nonlinear_transform.main([*common(data), "--bit_depth", "3", *flags])
    special = plain.with_name(f"{plain.stem}_rows2_trunl-1.5_trunh2_perchannel.json")
    assert Mapping.load(special).per_channel
    assert plain.read_bytes() == before


def test_fit_script_needs_features(tmp_path):
    facts = {"model": "none", "task": "such", "shape": [1, 1, None, 8]}
    facts["axes"] = ["sample", "layer", "token", "channel"]
    (tmp_path / "none.yaml").write_text(yaml.safe_dump({"feature": facts}))
    argv = ["--machine", str(tmp_path / "none.yaml"), "--data_root", str(tmp_path)]
    with pytest.raises(SystemExit, match="no features in"):
        nonlinear_transform.main(argv)


def test_patches(data):
    """Patches are crops of the packed plane, named, recorded, made once, and made anew if asked."""
    argv = [*common(data), "--bit_depth", "4", "--patch_size", "8-4", "--patches_per_file", "3"]
    generate_data.main(argv)
    folder = data / "made" / "up" / "patches" / "kmeans10_bitdepth4" / "crop_hgt8_wdt4"
    names = sorted(path.name for path in (folder / "train").iterdir())
    assert names == [f"s{i}_p{n:02d}.npy" for i in range(4) for n in range(3)]
    assert len(list((folder / "test").iterdir())) == 6
    assert sorted(p.name for p in folder.glob("[!.]*")) == [
        "mapping.json", "patches.json", "test", "train",
    ]  # fmt: skip
    mapping = Mapping.load(folder / "mapping.json")
    record = json.loads((folder / "patches.json").read_text())
    assert record["mapping_id"] == mapping.id.hex()
    assert (record["patch_size"], record["folded_size"]) == ([8, 4], [8, 4])
    assert (record["patches_per_file"], record["assignment"]) == (3, "nearest")
    facts = load_facts(data / "made.yaml")
    assert record["facts"]["model"] == "made"
    x = np.load(data / "made" / "up" / "feature_train" / "train" / "s2.npy")
    plane = facts.views.pack(mapping.forward(x))
    windows = np.lib.stride_tricks.sliding_window_view(plane, (8, 4))
    for n in range(3):
        patch = np.load(folder / "train" / f"s2_p{n:02d}.npy")
        assert patch.dtype == np.float16
        assert (windows == patch).all(axis=(2, 3)).any()

    before = (folder / "train" / "s0_p00.npy").stat().st_mtime_ns
    (folder / "train" / "s1_p00.npy").unlink()
    (folder / "patches.json").rename(folder / "patches_started.json")  # as a killed run leaves it
    generate_data.main(argv)
    assert (folder / "train" / "s0_p00.npy").stat().st_mtime_ns == before
    assert (folder / "train" / "s1_p00.npy").is_file()
    assert not (folder / "patches_started.json").exists()

    generate_data.main([*argv, "--patches_per_file", "1", "--seed", "5"])
    assert len(list((folder / "train").iterdir())) == 4
    assert json.loads((folder / "patches.json").read_text())["seed"] == 5


def test_patches_follow_their_sources(data):
    argv = [*common(data), "--bit_depth", "4", "--patch_size", "8-4"]
    generate_data.main(argv)
    train = data / "made" / "up" / "feature_train" / "train"
    folder = data / "made" / "up" / "patches" / "kmeans10_bitdepth4" / "crop_hgt8_wdt4"
    before = np.load(folder / "train" / "s0_p00.npy")
    write_feature(train / "s0.npy", np.zeros((1, 6, 5, 4), np.float32))
    later = (folder / "train" / "s0_p00.npy").stat().st_mtime + 10
    os.utime(train / "s0.npy", (later, later))
    (train / "s3.npy").unlink()
    generate_data.main(argv)
    assert not np.array_equal(np.load(folder / "train" / "s0_p00.npy"), before)
    assert not (folder / "train" / "s3_p00.npy").exists()


def test_patches_are_padded_with_what_zero_maps_to(data):
    """The default size: the plane of 15 x 8 in steps of 64."""
    generate_data.main([*common(data), "--bit_depth", "4"])
    folder = data / "made" / "up" / "patches" / "kmeans10_bitdepth4" / "crop_hgt64_wdt64"
    mapping = Mapping.load(folder / "mapping.json")
    patch = np.load(folder / "test" / "s0_p00.npy")
    x = np.load(data / "made" / "up" / "feature_train" / "test" / "s0.npy")
    plane = load_facts(data / "made.yaml").views.pack(mapping.forward(x))
    assert patch.shape == (64, 64)
    assert np.array_equal(patch[:15, :8], plane)
    assert mapping.zero > 0
    assert (patch[15:] == mapping.zero).all() and (patch[:, 8:] == mapping.zero).all()


@pytest.mark.parametrize("assignment", ["nearest", "left", "continuous"])
def test_transformed_and_inverse(data, tmp_path, assignment):
    argv = [*common(data), "--assignment", assignment, "--bit_depth", "6"]
    generate_data.main([*argv, "--kind", "transformed", "--output", str(tmp_path / "u")])
    generate_data.main([*argv, "--kind", "inverse", "--output", str(tmp_path / "x")])
    (path,) = transform_folder(data).glob("*_bitdepth6.json")
    mapping = Mapping.load(path, assignment)
    for name in ("s0", "s1"):
        x = np.load(data / "made" / "up" / "feature_test" / f"{name}.npy")
        u = np.load(tmp_path / "u" / f"{name}.npy")
        assert u.dtype == (np.float32 if assignment == "continuous" else np.float16)
        assert np.array_equal(u, mapping.forward(x))
        restored = np.load(tmp_path / "x" / f"{name}.npy")
        assert restored.dtype == x.dtype
        assert np.array_equal(restored, mapping.inverse(mapping.forward(x)))


def test_published_mapping_is_used(data, tmp_path):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(np.linspace(-3, 3, 8).tolist()))
    argv = [*common(data), "--mapping", str(path), "--assignment", "left", "--output"]
    generate_data.main([*argv, str(tmp_path / "patches"), "--patch_size", "8-8"])
    record = json.loads((tmp_path / "patches" / "patches.json").read_text())
    assert record["mapping_id"] == Mapping.load(path, "left").id.hex()
    assert not transform_folder(data).exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--patch_size", "256"], "patch_size"),
        (["--patch_size", "0-64"], "patch_size"),
        (["--patches_per_file", "0"], "patches_per_file"),
        (["--mapping", "none.json"], "none.json"),
        (["--kind", "inverse", "--output", "SELF"], "holds the features"),
        (["--features", "SELF"], "no such file or folder"),
    ],
)
def test_generate_script_refuses(data, capsys, argv, message):
    here = str(data / "made" / "up" / "feature_test")
    with pytest.raises(SystemExit) as stopped:
        generate_data.main([*common(data), *[here if word == "SELF" else word for word in argv]])
    assert stopped.value.code not in (0, None)
    assert message in f"{stopped.value.code} {capsys.readouterr().err}"
    assert len(list((data / "made" / "up" / "feature_test").glob("*.npy"))) == 2


def test_a_feature_of_another_kind_is_refused(data):
    bad = data / "made" / "up" / "feature_train" / "test" / "s1.npy"
    write_feature(bad, np.zeros((1, 3, 5, 4), np.float32))
    with pytest.raises(SystemExit, match=r"s1\.npy.*takes shape"):
        generate_data.main([*common(data), "--patch_size", "8-4"])
    assert not list((data / "made" / "up" / "patches").rglob("patches.json"))


def test_fold():
    assert parse_patch_size("64-1024") == (64, 1024)
    assert folded_size((64, 1024)) == (256, 256)
    assert folded_size((64, 256)) == (128, 128)
    for same in ((256, 256), (128, 64), (64, 128), (64, 512), (512, 512)):
        assert folded_size(same) == same
    patch = np.arange(2 * 8).reshape(2, 8)
    assert fold(patch).tolist() == [[0, 1, 2, 3], [8, 9, 10, 11], [4, 5, 6, 7], [12, 13, 14, 15]]


def test_crop_reaches_every_place():
    plane = np.arange(12.0).reshape(3, 4)
    rng = np.random.default_rng(0)
    corners = {crop(plane, (2, 2), 0, rng)[0, 0] for _ in range(200)}
    assert corners == {0, 1, 2, 4, 5, 6}


def test_benchmark(monkeypatch, capsys):
    path = REPOSITORY / "scripts" / "bench_transform.py"
    spec = importlib.util.spec_from_file_location("bench_transform", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(path.parent)  # scripts are no package
    monkeypatch.setitem(sys.modules, spec.name, module)  # where the config's help is looked up
    spec.loader.exec_module(module)
    module.main(["--small"])
    out = capsys.readouterr().out
    assert "sklearn KMeans" in out and "np.digitize" in out
