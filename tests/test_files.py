"""Features, configs and atomic files: the ground that everything stands on."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dtufc import config, files
from dtufc.errors import UserError
from dtufc.feature import (
    FeatureError,
    find_machine_config,
    list_features,
    load_facts,
    read_feature,
    write_feature,
)
from dtufc.paths import CONFIGS
from dtufc.states import StateFacts, load_machine_facts


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_feature_round_trip(tmp_path, dtype):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(dtype)
    write_feature(tmp_path / "x.npy", x)
    back = read_feature(tmp_path / "x.npy")
    assert back.dtype == dtype
    assert np.array_equal(back, x)
    assert list_features(tmp_path) == [tmp_path / "x.npy"]


BAD_ARRAYS = {
    "4 axes": np.zeros((2, 3)),
    "float16 or float32": np.zeros((1, 1, 2, 2), np.int32),
    "empty": np.zeros((1, 0, 2, 2), np.float32),
    "NaN or infinity": np.full((1, 1, 1, 1), np.nan, np.float32),
    "not a readable": np.array([{"pickled": True}], dtype=object),
}


@pytest.mark.parametrize("text", BAD_ARRAYS)
def test_bad_features_are_named(tmp_path, text):
    path = tmp_path / "bad.npy"
    np.save(path, BAD_ARRAYS[text], allow_pickle=True)
    with pytest.raises(FeatureError, match=f"bad.npy.*{text}"):
        read_feature(path)


def test_damaged_feature_files_are_named(tmp_path):
    path = tmp_path / "x.npy"
    write_feature(path, np.ones((1, 1, 8, 8), np.float32))
    whole = path.read_bytes()
    for size in (0, 5, 60, 100, 130, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FeatureError, match=r"x\.npy"):
            read_feature(path)
    huge = whole.replace(b"(1, 1, 8, 8)", b"(1, 1, 8e9)"[:12].ljust(12))
    path.write_bytes(huge)
    with pytest.raises(FeatureError, match=r"x\.npy"):
        read_feature(path)
    with pytest.raises(FileNotFoundError):
        list_features(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureError, match="holds no"):
        list_features(tmp_path / "empty")


@pytest.mark.parametrize("header", ["(" * 9000, "[" * 4900 + "]" * 4900], ids=["open", "closed"])
def test_headers_of_brackets_are_named(tmp_path, header):
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(FeatureError, match=r"x\.npy: "):
        read_feature(path)


def test_json_of_brackets_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"x\.json: not valid JSON"):
        files.read_json(path)
    with pytest.raises(UserError, match=r"x\.json:1: not valid JSON"):
        files.read_json_lines(path)


@pytest.mark.parametrize(
    ("name", "why"), [(b"\xff.npy", "not UTF-8"), (b"x" * 237 + b".npy", "241 bytes, 240 at most")]
)
def test_names_that_results_cannot_have_are_refused(tmp_path, name, why):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"")
    for given in (tmp_path, path):
        with pytest.raises(FeatureError, match=why) as caught:
            list_features(given)
        str(caught.value).encode()  # can be printed
    path.unlink()
    kept = tmp_path / (236 * "x" + ".npy")
    kept.write_bytes(b"")
    assert list_features(tmp_path) == [kept]


def test_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "a" / "file"
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.write_atomic(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "machines").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_machine_config_loads(path):
    machine = load_machine_facts(path)
    assert load_machine_facts(path.stem) == machine
    if isinstance(machine, StateFacts):
        kinds = {f"{path.stem}@{name}": facts for name, facts in machine.tensors.items()}
    else:
        kinds = {path.stem: machine}
    for name, facts in kinds.items():
        assert load_facts(name) == facts
        shape = tuple(size or 3 for size in facts.shape)
        facts.views.plane(shape)
        assert facts.mismatch(np.zeros(shape, facts.dtype)) is None
        assert "takes shape" in facts.mismatch(np.zeros((9, 9, 9, 9), facts.dtype))


def test_bad_facts_name_the_key(tmp_path):
    path = tmp_path / "m.yaml"
    base = "feature: {model: m, task: t, shape: [1, 1, null, 4], axes: [%s]%s}\n"
    for text, match in (
        (base % ("sample, layer, token, channel", ", dtyp: float32"), "dtyp"),
        (base % ("spiral", ""), "axes"),
        (base % ("sample, channel, row, column", ", tiles: [2, 3]"), "tiles"),
        ("feature: [1]\n", "feature"),
        ("features: {}\n", "expected the key 'feature'"),
        ("- 1\n", "expected a mapping"),
        ("a: [\n", "not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=match) as caught:
            load_facts(path)
        assert "m.yaml" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="presets are"):
        find_machine_config("nothing")


def test_facts_are_those_of_the_file_as_it_is(tmp_path):
    """They are kept from call to call, until the file changes, and a caller may change his own."""
    path = tmp_path / "m.yaml"
    text = "feature: {model: m, task: t, shape: [1, 1, null, %d]}\n"
    text = text.replace("]}", "], axes: [sample, layer, token, channel]}")
    path.write_text(text % 4)
    facts = load_facts(path)
    facts.shape[3] = 9
    assert load_facts(path).shape == [1, 1, None, 4]
    path.write_text(text % 5)
    assert load_facts(path).shape == [1, 1, None, 5]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.yaml: no such"):
        load_facts(path)


@dataclass(frozen=True)
class _Config:
    """A config."""

    count: int = 3
    """How many."""
    paths: list[Path] | None = None
    """Where."""
    fast: bool = False
    """Whether."""

    def __post_init__(self):
        if self.count < 0:
            raise UserError("count: must not be negative")


def test_config_flags_over_yaml(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("count: 5\npaths: [a, b]\n")
    assert config.parse(_Config, ["--config", str(path)]) == _Config(5, [Path("a"), Path("b")])
    parsed = config.parse(_Config, ["--config", str(path), "--count", "6"])
    assert parsed.count == 6
    assert config.parse(_Config, config.to_argv(parsed)) == parsed
    for argv in (["--fast"], ["--fast", "true"], ["--fast=true"], ["--fast", "--count", "3"]):
        assert config.parse(_Config, argv) == _Config(fast=True)
    assert not config.parse(_Config, ["--fast", "false"]).fast
    two = _Config(paths=[Path("a"), Path("b")])
    for argv in (["--paths", "a", "b"], ["--paths", "[a, b]"], ["--paths=[a, b]"]):
        assert config.parse(_Config, argv) == two
    assert config.parse(_Config, ["--paths", "a", "--fast"]) == _Config(
        paths=[Path("a")], fast=True
    )
    assert config.parse(_Config, []) == _Config()
    for argv, message in (
        (["--count", "x"], "count"),
        (["--coun", "1"], "coun"),
        (["--count=-1"], "count: must not be negative"),
        (["--cuont", "1"], "cuont"),
    ):
        with pytest.raises(SystemExit):
            config.parse(_Config, argv)
        assert message in capsys.readouterr().err
    path.write_text("cuont: 5\n")
    with pytest.raises(SystemExit):
        config.parse(_Config, ["--config", str(path)])
    assert "cuont" in capsys.readouterr().err
