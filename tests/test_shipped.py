"""Codecs that ship with the package, and those that are there already in a suite."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import toy_feature

from dtufc import files
from dtufc.codec import load_codec
from dtufc.CompressAI.checkpoint import load_model, narrow_tables, widen_tables
from dtufc.errors import UserError
from dtufc.experiments.driver import main as run_batch
from dtufc.experiments.suite import load_suite
from dtufc.feature import load_facts
from dtufc.paths import REPOSITORY
from dtufc.shipped import TRAINING_JSON, codec_folder, describe_codec, pretrained

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import demo
import quickstart
import ship_codecs

TINY = {f"{name}_tiny_{task}": f"{name}_tiny" for name, task in
        (("llama3", "csr"), ("dinov2", "seg"), ("sd3", "tti"), ("resnet50", "cls"))}  # fmt: skip
TINY |= {f"dinov2_tiny_{task}": f"dinov2_tiny_{task}" for task in ("cls", "dpt")}


def made_up(machine: str) -> np.ndarray:
    """A feature of a tiny machine's shape."""
    facts = load_facts(machine)
    shape = [2 if size is None else size for size in facts.shape]
    return np.random.default_rng(0).standard_normal(shape).astype(facts.dtype)


@pytest.mark.parametrize("name", pretrained())
def test_a_shipped_codec_works_by_its_name(name):
    codec, told = load_codec(name), describe_codec(codec_folder(name))
    assert told.kinds
    for kind in told.kinds:
        x = made_up(TINY[kind])
        decoded = codec.decode(codec.encode(x, kind))
        assert decoded.shape == x.shape and decoded.dtype == x.dtype


@pytest.mark.parametrize("name", pretrained())
def test_a_shipped_codec_has_its_training_record(name):
    record = files.read_json(pretrained()[name] / TRAINING_JSON)
    assert record["finished"] and record["stamp"]["inputs"]
    assert all(each["revision"] and each["machine"]["processor"] for each in record["processes"])
    assert record["labels"]["codec"] == describe_codec(pretrained()[name]).codec
    text = json.dumps(record) + (pretrained()[name] / "config.json").read_text()
    assert "Data_example" not in text and "/home" not in text and "/tmp" not in text


def test_shipped_codecs_are_small_and_all_used():
    every = [path for folder in pretrained().values() for path in folder.rglob("*")]
    assert sum(path.stat().st_size for path in every if path.is_file()) <= 25e6
    rows = [row for name in ("quickstart", "quickstart_dinov2") for row in load_suite(name).ready]
    used = {codec for row in rows for codec in row.codecs}
    assert used == set(pretrained())
    assert {name.split("_")[0] for name in used} == {"hyperprior", "elic", "native", "klt"}


def test_a_folder_goes_before_a_shipped_name(tmp_path, monkeypatch):
    name = next(iter(pretrained()))
    monkeypatch.chdir(tmp_path)
    assert codec_folder(name) == pretrained()[name]
    (tmp_path / name).mkdir()
    assert codec_folder(name).resolve() == tmp_path / name
    with pytest.raises(FileNotFoundError, match=r"no such codec/config.json: .*klt_llama3_tiny"):
        describe_codec(codec_folder("no such codec"))


def test_codecs_that_are_there_are_coded_and_judged_alone(toy, untrained, tmp_path, capsys):
    """Neither transform nor patches are made for them; results name the folder."""
    (tmp_path / "toy").symlink_to(toy / "toy")
    suite = tmp_path / "there.yaml"
    suite.write_text(
        yaml.safe_dump(
            {"machines": [str(toy / "toy.yaml")], "ready": [{"codecs": [str(untrained)]}]}
        )
    )
    argv = ["--suite", str(suite), "--data_root", str(tmp_path)]
    run_batch(argv)
    assert [path.name for path in (tmp_path / "coded").glob("*/*/*/*")] == [
        f"ready_{untrained.name}"
    ]
    with next((tmp_path / "coded").glob("*.csv")).open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["bpfp"]) > 0 and row["trained_on"] == "hidden"
    assert not (tmp_path / "codecs").exists()
    capsys.readouterr()
    run_batch([*argv, "--dry_run"])
    assert "dtufc.evaluate" not in capsys.readouterr().out  # all is current


def test_shipping_keeps_codec_and_record_but_no_places(untrained, tmp_path):
    """Networks halve; what they code stays nearly the same, and the tables stay the same."""
    made = {"config": {"output": "/home/me/x", "epochs": 3}, "finished": True,
            "processes": [{"revision": "abc", "machine": {"processor": "p"}}]}  # fmt: skip
    source = tmp_path / "run"
    source.mkdir()
    for path in untrained.rglob("*"):
        if path.is_file():
            files.write_bytes(source / path.relative_to(untrained), path.read_bytes())
    files.write_json(source / "run.json", made)
    codec = files.read_json(source / "config.json")["codec"]
    size = ship_codecs._copy(
        ship_codecs.Shipment("mine", source, {"codec": codec}), tmp_path / "mine"
    )
    assert size < sum(p.stat().st_size for p in source.rglob("*") if p.is_file())
    record = files.read_json(tmp_path / "mine" / TRAINING_JSON)
    assert record["config"] == {"epochs": 3} and record["processes"] == made["processes"]
    x = toy_feature(0, 60)
    before, after = (load_codec(folder) for folder in (source, tmp_path / "mine"))
    assert len(after.encode(x)) == pytest.approx(len(before.encode(x)), rel=0.02)
    assert after.decode(after.encode(x)).shape == x.shape


def test_tables_are_narrow_and_come_back(untrained):
    """Every table of a codec folder is the same after :func:`narrow_tables`; nothing else changes."""
    model, _ = load_model(untrained)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    narrow = narrow_tables(state)
    tables = [key for key in state if key.endswith("_quantized_cdf")]
    assert tables and all(narrow[key].dtype == torch.uint16 for key in tables if key in narrow)
    wide = widen_tables(model, narrow)
    assert wide.keys() == state.keys()
    assert all(torch.equal(wide[key], state[key]) for key in state)
    assert sum(v.nbytes for v in narrow.values()) < sum(v.nbytes for v in state.values())


def test_quickstart_names_what_ships():
    """Every step's script is there, and what ``--train`` makes anew is what ships."""
    for train in (False, True):
        for _, folder, command in quickstart.steps(train):
            assert (REPOSITORY / folder / command[0]).is_file()
    assert {each.name for each in ship_codecs.shipments(REPOSITORY)} == set(pretrained())


def test_demo(tmp_path, capsys):
    demo.main(["--machine", "resnet50_tiny", "--output", str(tmp_path), "--quality", "[-3, 0]"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("klt")]
    sizes = [int(line.split()[3]) for line in lines]
    assert len(lines) == 2 and sizes[0] < sizes[1] < 128 * 49 * 4
    assert (tmp_path / "demo_resnet50_tiny.png").read_bytes().startswith(b"\x89PNG")


def test_demo_says_which_samples_there_are():
    with pytest.raises(UserError, match=r"sample: expected 0 \.\. 199, got 200"):
        demo.demo(demo.DemoConfig(machine="resnet50_tiny", sample=200))
