"""Machines: the cut changes nothing, extraction resumes, evaluation records, errors say what to do."""

import os
import shutil

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from dtufc import files
from dtufc.feature import load_facts
from dtufc.machines.checkpoints import weights_digest
from dtufc.machines.command import parse_options
from dtufc.machines.dinov2 import seg
from dtufc.machines.dinov2.segmentation import SegMachine
from dtufc.machines.llama3 import llama3
from dtufc.machines.llama3.halves import LlamaMachine
from dtufc.machines.resnet50 import cls
from dtufc.machines.resnet50 import halves as resnet50
from dtufc.machines.sd3 import sd3
from dtufc.machines.sd3.halves import DiffusionMachine
from dtufc.machines.tiny import train_resnet50
from dtufc.paths import PACKAGE, REPOSITORY


def tiny_options(root, *argv):
    return parse_options(cls.ResNetOptions, cls.PRESET, ["--data_root", str(root), *argv], None)


def uncut(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = network(x)
    return out if torch.is_tensor(out) else out.logits


def make_networks():
    torch.manual_seed(0)
    small = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", num_labels=5
    )
    return [ResNetForImageClassification(small), torchvision.models.resnet50()]


@pytest.mark.parametrize("network", make_networks(), ids=["transformers", "torchvision"])
def test_the_cut_changes_nothing(network, monkeypatch, tmp_path):
    """predict(extract(x)) is the uncut network bit for bit, at every stage."""
    network.eval()
    monkeypatch.setattr(resnet50, "load_network", lambda options: network)
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        whole = uncut(network, x)
        for name, _ in resnet50.stages(network)[:-1]:
            machine = resnet50.ResNetMachine(tiny_options(tmp_path, "--split", name))
            feature = machine.front(x).numpy()
            assert feature.ndim == 4
            assert torch.equal(machine.back(torch.from_numpy(feature)), whole), name


def test_tiny_checkpoint_is_good(tmp_path):
    """The whole machine, from pictures to top-1: at least 95% on held-out pictures."""
    options = tiny_options(tmp_path, "--counts", "{test: 200}")
    machine = resnet50.ResNetMachine(options)
    facts = load_facts(options.machine)
    samples = machine.samples("test")
    features = [machine.extract(sample) for sample in samples]
    assert all(facts.mismatch(feature) is None for feature in features)
    network = resnet50.load_network(options)
    predictions = [machine.predict(s, f) for s, f in zip(samples, features, strict=True)]
    with torch.inference_mode():
        whole = [int(uncut(network, machine.picture(s)).argmax()) for s in samples[:20]]
    assert predictions[:20] == whole
    assert machine.score(samples, predictions).value >= 0.95
    size = sum(path.stat().st_size for path in (PACKAGE / "machines/tiny/resnet50").iterdir())
    assert size <= 1_000_000


SMALL = ["--counts", "{train: 3, validation: 2, test: 4}"]


def test_extract_and_evaluate(tmp_path, capsys):
    cls.main(["--data_root", str(tmp_path), *SMALL])
    root = tmp_path / "resnet50_tiny" / "cls"
    assert len(list((root / "feature_train" / "train").glob("*.npy"))) == 3
    assert len(list((root / "feature_train" / "test").glob("*.npy"))) == 2
    assert len(list((root / "feature_test").glob("*.npy"))) == 4
    accuracy = files.read_json(root / "accuracy.json")
    assert accuracy["metric"] == "top1"
    assert accuracy["samples"] == 4
    assert f"top1 {accuracy['value']:.4f} over 4 features" in capsys.readouterr().out
    assert (root / "accuracy.csv").read_text().startswith("name,label,prediction,correct\n00000,")

    assert files.read_json(root / "extracted.json") == {"train": 3, "validation": 2, "test": 4}

    # a second extraction keeps what is whole and mends what is not
    features = sorted((root / "feature_test").glob("*.npy"))
    whole = features[1].read_bytes()
    features[0].unlink()
    features[1].write_bytes(whole[:100])
    os.utime(features[2], (1, 1))
    cls.main(["--data_root", str(tmp_path), "--mode", "extract", *SMALL])
    assert features[0].is_file()
    assert features[1].read_bytes() == whole
    assert features[2].stat().st_mtime == 1

    # two folders of decoded features in one load of the network
    folders = []
    for name in ("a", "b"):
        folder = tmp_path / name / "decoded"
        folder.mkdir(parents=True)
        for path in features:
            np.save(folder / path.name, np.load(path) * (name == "a"))
        folders.append(str(folder))
    cls.main(["--data_root", str(tmp_path), "--mode", "evaluate", "--features", *folders, *SMALL])
    assert files.read_json(tmp_path / "a" / "accuracy.json")["value"] == accuracy["value"]
    assert (tmp_path / "b" / "accuracy.csv").is_file()
    assert files.read_json(root / "accuracy.json")["features"] == str(root / "feature_test")


def test_features_that_do_not_fit_are_named(tmp_path):
    common = ["--data_root", str(tmp_path), "--mode", "evaluate", *SMALL]
    folder = tmp_path / "decoded"
    folder.mkdir()
    with pytest.raises(SystemExit, match=r"4 of 4 test features are missing, the first is 00000"):
        cls.main([*common, "--features", str(folder)])
    for i in range(4):
        np.save(folder / f"{i:05d}.npy", np.zeros((1, 128, 7, 8), np.float32))
    with pytest.raises(SystemExit, match=r"00000\.npy: resnet50_tiny_cls takes shape"):
        cls.main([*common, "--features", str(folder)])
    assert not list(tmp_path.rglob("accuracy.json"))
    with pytest.raises(SystemExit, match="split: 'layer9' is none of"):
        cls.main(["--data_root", str(tmp_path), "--split", "layer9", *SMALL])
    with pytest.raises(SystemExit, match="the facts do not fit the split"):
        cls.main(["--data_root", str(tmp_path), "--split", "layer1", *SMALL])


def test_features_of_other_settings_are_refused(tmp_path):
    """A finished feature is kept on resuming, so it must be of the same seed, split and weights."""
    argv = ["--data_root", str(tmp_path), *SMALL]
    cls.main(argv)
    for mode in ("both", "evaluate"):
        with pytest.raises(SystemExit, match=r"origin\.json: .* made with seed 0, not 1; take"):
            cls.main([*argv, "--mode", mode, "--seed", "1"])
    cls.main(argv)


@pytest.mark.parametrize(
    "flags",
    [
        ["--counts", "{tset: 1}"],
        ["--counts", "{test: 0}"],
        ["--mean", "[0.5]"],
        ["--std", "[0, 0, 0]"],
        ["--crop", "0"],
    ],
)
def test_impossible_values_are_named(tmp_path, capsys, flags):
    with pytest.raises(SystemExit):
        cls.main(["--data_root", str(tmp_path), *flags])
    assert flags[0][2:] in capsys.readouterr().err


def test_full_size_preset(tmp_path):
    """The paper's machine on a made-up ImageNet and random weights in both file formats."""
    root = tmp_path / "resnet50" / "cls"
    argv = ["--machine", "resnet50", "--data_root", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"train\.txt: missing. It lists the train pictures"):
        cls.main(argv)
    (root / "source" / "val").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(2):
        picture = Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
        picture.save(root / "source" / "val" / f"p {i}.JPEG")
    for split in ("train", "validation", "test"):
        (root / "source" / f"{split}.txt").write_text("val/p 0.JPEG 7\nval/p 1.JPEG 8\n")
    with pytest.raises(SystemExit, match=r"put it at .*pretrained_head/resnet50-0676ba61\.pth"):
        cls.main(argv)
    (root / "pretrained_head").mkdir()
    checkpoint = root / "pretrained_head" / "resnet50-0676ba61.pth"
    checkpoint.write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="not a state dict of torchvision's resnet50"):
        cls.main(argv)
    torch.manual_seed(0)
    state = torchvision.models.resnet50().state_dict()
    torch.save(state, checkpoint)
    cls.main(argv)
    feature = np.load(root / "feature_test" / "p 0.npy")
    assert feature.shape == (1, 2048, 7, 7)
    first = (root / "accuracy.csv").read_text()
    save_file(state, root / "pretrained_head" / "r.safetensors")
    with pytest.raises(SystemExit, match=r"origin\.json: .* made with weights"):
        cls.main([*argv, "--checkpoint", "r.safetensors"])
    (root / "origin.json").unlink()  # the same weights, but only we know
    cls.main([*argv, "--mode", "evaluate", "--checkpoint", "r.safetensors"])
    assert (root / "accuracy.csv").read_text() == first
    (root / "source" / "test.txt").write_text("val/p 0.JPEG seven\n")
    with pytest.raises(SystemExit, match=r"test\.txt:1: expected 'path label'"):
        cls.main([*argv, "--mode", "evaluate"])
    (root / "source" / "test.txt").write_text("val/none.JPEG 7\n")
    with pytest.raises(SystemExit, match=r"No such file.*none\.JPEG"):
        cls.main(argv)
    (root / "source" / "test.txt").write_text("val/p 0.JPEG 7\nelse/p 0.JPEG 8\n")
    with pytest.raises(SystemExit, match=r"test\.txt:2: a second picture named p 0"):
        cls.main(argv)
    (root / "source" / "test.txt").write_text("val/p 0.JPEG 1000\n")
    with pytest.raises(SystemExit, match=r"p 0: label 1000, the network knows 0\.\.999"):
        cls.main([*argv, "--mode", "evaluate"])
    # the back half needs the features and the list, not the pictures
    (root / "source" / "test.txt").write_text("val/p 0.JPEG 7\n")
    (root / "source" / "val" / "p 0.JPEG").unlink()
    cls.main([*argv, "--mode", "evaluate"])


MACHINES = {
    "llama3": (llama3, llama3.LlamaOptions, LlamaMachine),
    "dinov2": (seg, seg.SegOptions, SegMachine),
    "resnet50": (cls, cls.ResNetOptions, resnet50.ResNetMachine),
    "sd3": (sd3, sd3.DiffusionOptions, DiffusionMachine),
}
INPUTS = {
    "llama3": ["llama3/config.json", "llama3/model.safetensors", "llama3/tokenizer.json",
               "llama3/tokenizer_config.json"],
    "dinov2": ["dinov2/config.json", "dinov2/head.safetensors", "dinov2/model.safetensors"],
    "resnet50": ["resnet50/config.json", "resnet50/model.safetensors"],
    "sd3": ["resnet50/config.json", "resnet50/model.safetensors", "sd3/vae/config.json",
            "sd3/vae/diffusion_pytorch_model.safetensors"],
}  # fmt: skip


def machine_of(name, *argv):
    module, options, machine = MACHINES[name]
    return machine(parse_options(options, module.PRESET, argv, None))


@pytest.mark.parametrize("name", MACHINES)
def test_inputs_of_the_tiny_machines(name, tmp_path):
    """What decides predictions and scores beside the features; the world has no files."""
    inputs = machine_of(name, "--data_root", str(tmp_path)).inputs()
    tiny = PACKAGE / "machines" / "tiny"
    assert sorted(str(path.relative_to(tiny)) for path in inputs) == INPUTS[name]


@pytest.mark.parametrize(
    ("preset", "listed"),
    [
        ("llama3", ["source/arc_challenge_test.jsonl", "source/test.txt",
                    "Meta-Llama-3-8B-Instruct/tokenizer.json",
                    "Meta-Llama-3-8B-Instruct/w.safetensors"]),
        ("dinov2", ["source/VOC2012/SegmentationClass/000000000139.png", "source/test.txt",
                    "dinov2_vitg14_pretrain.pth", "dinov2_vitg14_voc2012_linear_head.pth"]),
        ("resnet50", ["source/test.txt", "resnet50-0676ba61.pth"]),
        ("sd3", ["source/test.txt", "stable-diffusion-3-medium-diffusers/vae/w.safetensors",
                 "clip-vit-base-patch16/config.json", "clip-vit-base-patch16/pytorch_model.bin",
                 "pt_inception-2015-12-05-6726825d.pth", "feature_test/000000000139.npy"]),
    ],
)  # fmt: skip
def test_inputs_of_the_full_size_machines(preset, listed, tmp_path):
    """Only what is there is told: nothing at first, then each file that decides a score."""
    machine = machine_of(preset, "--machine", preset, "--data_root", str(tmp_path))
    root = machine.options.root
    assert machine.inputs() == []
    paths = [(root.folder if "source/" in name or "feature_test/" in name
              else root.pretrained_head) / name for name in listed]  # fmt: skip
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("000000000139 7\n" if preset != "dinov2" else "000000000139\n")
    (root.source / "train.txt").write_text("1 2\n")
    assert sorted(machine.inputs()) == sorted(paths)


def test_weights_digest_is_over_weights_and_config(tmp_path):
    for name, text in (("b.safetensors", "b"), ("a.safetensors", "a"), ("config.json", "{}"),
                       ("README.md", "")):  # fmt: skip
        (tmp_path / name).write_text(text)
    assert weights_digest(tmp_path) == files.digest(b"a", b"b", b"{}")
    assert weights_digest(tmp_path / "README.md") == files.digest(b"")


def test_weights_that_torchvision_downloads_are_no_files(tmp_path):
    argv = ["--machine", "resnet50", "--checkpoint", "null", "--data_root", str(tmp_path)]
    machine = machine_of("resnet50", *argv)
    assert machine.inputs() == []
    assert machine.origin()["weights"] == "IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("llama3", "model.safetensors"), ("llama3", "config.json"), ("llama3", "tokenizer.json"),
        ("dinov2", "model.safetensors"), ("dinov2", "config.json"), ("dinov2", "head.safetensors"),
        ("resnet50", "model.safetensors"), ("resnet50", "config.json"),
        ("sd3", "transformer/diffusion_pytorch_model.safetensors"),
        ("sd3", "vae/diffusion_pytorch_model.safetensors"), ("sd3", "tokenizer/tokenizer.json"),
        ("sd3", "judge"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["cut", "brackets"])
def test_damaged_checkpoints_end_with_one_line(name, damaged, how, tmp_path):
    folder = tmp_path / name
    shutil.copytree(PACKAGE / "machines" / "tiny" / name, folder)
    judge = tmp_path / "judge"
    shutil.copytree(PACKAGE / "machines" / "tiny" / "resnet50", judge)
    path = judge / "model.safetensors" if damaged == "judge" else folder / damaged
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if how == "cut" else b"[" * 100_000)
    flags = ["--checkpoint", str(folder), "--data_root", str(tmp_path), "--device", "cpu"]
    flags += ["--counts", "{train: 1, validation: 1, test: 1}"]
    flags += {"dinov2": ["--head", str(folder / "head.safetensors")],
              "sd3": ["--steps", "1", "--batch", "1", "--judge_checkpoint", str(judge)]
              }.get(name, [])  # fmt: skip
    with pytest.raises(
        SystemExit, match=r"error: .*: not a readable checkpoint \(\w+Error: "
    ) as end:
        MACHINES[name][0].main(flags)
    assert "\n" not in str(end.value)
    assert str(path.parent) in str(end.value) or str(folder) in str(end.value)


def test_presets_name_unknown_keys(tmp_path, capsys):
    text = (REPOSITORY / "configs/machines/resnet50.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("crop: 224", "corp: 224"))
    with pytest.raises(SystemExit, match="corp"):
        cls.main(["--machine", str(path)])
    path.write_text(text.replace("crop: 224", "crop: big"))
    with pytest.raises(SystemExit, match=r"mine\.yaml: machine: .*crop"):
        cls.main(["--machine", str(path)])
    path.write_text("machine: resnet50\n")
    with pytest.raises(SystemExit, match="machine: name resnet50 by --machine"):
        cls.main(["--config", str(path)])
    with pytest.raises(SystemExit, match="presets are"):
        cls.main(["--machine", "nothing"])
    with pytest.raises(SystemExit):
        cls.main(["--library", "keras"])
    assert "library" in capsys.readouterr().err


def test_training_script(tmp_path, capsys):
    """A few steps of the training that made the tiny checkpoint."""
    train_resnet50.main(
        ["--output", str(tmp_path), "--steps", "3", "--batch_size", "4", "--held_out", "8"]
    )
    assert "top-1 on 8 held-out pictures" in capsys.readouterr().out
    assert files.read_json(tmp_path / "training.json")["steps"] == 3
    ResNetForImageClassification.from_pretrained(tmp_path)


def test_facts_are_read_once_and_are_the_callers_own(tmp_path):
    preset = tmp_path / "mine.yaml"
    shutil.copy(PACKAGE / "configs" / "machines" / "resnet50_tiny.yaml", preset)
    options = parse_options(cls.ResNetOptions, str(preset), [], None)
    first = options.facts
    preset.unlink()  # whoever reads it again fails
    assert options.facts == first == load_facts("resnet50_tiny")
    first.shape[1] = 5
    first.axes.clear()
    assert options.facts == load_facts("resnet50_tiny") != first
