"""Machines of many tensors: facts, cuts that change nothing, shares of bits, files to report."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, Qwen3Config

from dtufc import accuracy, evaluate, files, rate
from dtufc.codec import load_codec
from dtufc.errors import UserError
from dtufc.experiments import driver
from dtufc.feature import FeatureError, find_machine_config, load_facts
from dtufc.machines.command import parse_options
from dtufc.machines.qwen3 import qwen3
from dtufc.machines.qwen3.halves import ContinuedMachine
from dtufc.machines.qwen3.qwen3 import ContinuedOptions
from dtufc.machines.sensitivity import LIMIT, round_tensor
from dtufc.machines.tiny import llama3_training
from dtufc.many import fit_many
from dtufc.many.codec import load_state_codec, reach, state_codec_digest
from dtufc.many.evaluate import States, facts_of
from dtufc.many.sharing import share, unit_of
from dtufc.paths import REPOSITORY, DataRoot
from dtufc.report import page
from dtufc.states import StateFacts, list_states, load_machine_facts, read_sample

KINDS = {"llama": (LlamaConfig, {}), "qwen3": (Qwen3Config, {"head_dim": 16})}
LAYERS, LAYER, WINDOW, PREFIX = 3, 1, 20, 12
HEADER, END = 18, 8  # bytes of a stream that names its session, and of its end
TENSORS = ["hidden", "k0", "v0", "k1", "v1"]


@pytest.fixture(scope="module")
def tokenizer():
    return llama3_training.build_tokenizer([text for text, _ in llama3_training.draw(0, 300, 0)])


def make_machine(folder, kind, tokenizer, layer=LAYER):
    """A random model in transformers' format and the YAML of its machine."""
    torch.manual_seed(1)
    config_class, extra = KINDS[kind]
    known = config_class(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, **extra,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(known).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "words.txt").write_text("".join(text for text, _ in llama3_training.draw(0, 60, 0)))
    values = yaml.safe_load(find_machine_config("qwen3_kv").read_text())
    values["feature"]["model"] = "toy"
    cache = {"shape": [1, 1, None, 16]}
    hidden = values["feature"]["tensors"]["hidden"] | {"shape": [1, 1, None, 32]}
    tensors = {"hidden": hidden}
    for number in range(layer + 1):
        tensors |= {f"k{number}": cache, f"v{number}": cache}
    values["feature"]["tensors"] = tensors
    values["machine"] |= {
        "checkpoint": str(folder / "model"), "layer": layer, "dtype": "float32", "window": WINDOW,
        "prefix": PREFIX, "counts": {"train": 8, "validation": 2, "test": 3},
        "texts": {name: str(folder / "words.txt") for name in ("train", "validation", "test")},
    }  # fmt: skip
    (folder / "toy.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "toy.yaml"


def options_of(preset, root, *argv):
    flags = ["--machine", str(preset), "--data_root", str(root), "--device", "cpu", *argv]
    return parse_options(ContinuedOptions, qwen3.PRESET, flags, None)


@pytest.fixture(scope="module")
def toy(tokenizer, tmp_path_factory):
    """A data root with the extracted states of a toy Qwen3, and its YAML in it."""
    root = tmp_path_factory.mktemp("many")
    preset = make_machine(root, "qwen3", tokenizer)
    qwen3.main(["--machine", str(preset), "--data_root", str(root), "--device", "cpu"])
    return root


@pytest.fixture(scope="module")
def codec_folder(toy):
    fit_many.main(fit_argv(toy, toy / "codec"))
    return toy / "codec"


def fit_argv(root, output, *argv):
    train = root / "toy" / "kv" / "feature_train" / "train"
    flags = ["--flags", '{"clusters": [1], "tables": 4, "post_filter": false}']
    named = ["--machine", str(root / "toy.yaml"), "--features", str(train), "--output", str(output)]
    return [*named, *flags, *argv]


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_changes_nothing(kind, tokenizer, tmp_path):
    """Log-probabilities of the rest of the text, as the uncut model with its own cache gives them, at
    every layer."""
    for layer in range(LAYERS):
        folder = tmp_path / f"{kind}{layer}"
        folder.mkdir()
        preset = make_machine(folder, kind, tokenizer, layer)
        machine = ContinuedMachine(options_of(preset, folder))
        whole = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
        for sample in machine.samples("test"):
            state = machine.extract(sample)
            assert load_machine_facts(preset).tensors.keys() == state.keys()
            cache = DynamicCache()
            with torch.inference_mode():
                logits = [
                    whole(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0]
                    for ids in (sample.source[:PREFIX], sample.source[PREFIX:])
                ]
            expected = torch.cat([logits[0][-1:], logits[1]]).log_softmax(-1)
            assert torch.equal(machine.respond(sample, state), expected)
            assert machine.predict(sample, state)["kl"] == 0
            assert machine.divergence(expected, expected) == 0


def test_every_tensor_is_needed(toy):
    """An error in any tensor alone moves the response."""
    machine = ContinuedMachine(options_of(toy / "toy.yaml", toy))
    sample = machine.samples("test")[0]
    state = machine.extract(sample)
    uncoded = machine.respond(sample, state)
    for name in TENSORS:
        noise = np.random.default_rng(0).normal(scale=state[name].std() / 2, size=state[name].shape)
        coded = machine.respond(sample, {**state, name: state[name] + noise.astype(np.float32)})
        assert machine.divergence(uncoded, coded) > 1e-5, name
    with pytest.raises(UserError, match=r"window00000: 11 tokens, the sample has 12"):
        machine.respond(sample, {name: x[:, :, :-1] for name, x in state.items()})


def test_facts_of_a_state_and_of_its_tensors(toy, tmp_path):
    preset = toy / "toy.yaml"
    facts = load_machine_facts(preset)
    assert isinstance(facts, StateFacts)
    assert (facts.kind, list(facts.tensors), facts.dtype) == ("toy_kv", TENSORS, "float32")
    k0 = load_facts(f"{preset}@k0")
    assert k0 == facts.tensors["k0"]
    assert (k0.kind, k0.axes[1], k0.script) == ("toy_kv@k0", "head", None)
    assert load_facts("smollm2_kv@hidden").shape == [1, 1, None, 576]
    assert len(load_machine_facts("qwen3_kv").tensors) == 11
    root = DataRoot(toy)
    assert (
        root.feature("toy", k0.task).feature_test == root.feature("toy", "kv").feature_test / "k0"
    )
    with pytest.raises(UserError, match=r"several tensors; name one behind @: .*toy\.yaml@hidden"):
        load_facts(preset)
    with pytest.raises(UserError, match=r"has no tensor 'k7', its tensors are \['hidden', 'k0'"):
        load_facts(f"{preset}@k7")
    values = yaml.safe_load(preset.read_text())
    for change, why in (
        ({"tensors": {}}, r"tensors: expected a mapping of names to facts"),
        ({"tensors": {"a b": {}}}, r"tensors: a b: expected letters, digits"),
        ({"tensors": {"k": {"task": "x"}}}, r"tensors: k: \['task'\] stand once, beside tensors"),
        ({"tensors": {"k": {"shape": [1, 2]}}}, r"tensors: k: .*shape: expected four sizes"),
        ({"tensors": {"k": 3}}, r"tensors: k: expected a mapping of keys to values"),
    ):
        wrong = tmp_path / "wrong.yaml"
        wrong.write_text(yaml.safe_dump(values | {"feature": values["feature"] | change}))
        with pytest.raises(UserError, match=why):
            load_machine_facts(wrong)


def test_extraction_resumes_tensor_by_tensor(toy, capsys):
    root = toy / "toy" / "kv"
    facts = load_machine_facts(toy / "toy.yaml")
    assert files.read_json(root / "extracted.json") == {"train": 8, "validation": 2, "test": 3}
    assert list_states(facts, root / "feature_test") == [f"window{n:05d}" for n in range(3)]
    measured = (root / "sensitivity.json").stat().st_mtime_ns
    lost = root / "feature_test" / "v1" / "window00001.npy"
    whole = lost.read_bytes()
    lost.unlink()
    with pytest.raises(FeatureError, match=r"window00001\.npy is not there of both hidden and v1"):
        list_states(facts, root / "feature_test")
    with pytest.raises(SystemExit, match=r"1 of 15 test features are missing, .*v1/window00001"):
        qwen3.main(
            ["--machine", str(toy / "toy.yaml"), "--data_root", str(toy), "--mode", "evaluate"]
        )
    qwen3.main(["--machine", str(toy / "toy.yaml"), "--data_root", str(toy), "--mode", "extract"])
    assert lost.read_bytes() == whole
    assert (root / "sensitivity.json").stat().st_mtime_ns == measured


def test_sensitivity_is_a_finite_difference(toy):
    """Damage per squared error, measured where the damage is small; near it, it predicts damage."""
    found = files.read_json(toy / "toy" / "kv" / "sensitivity.json")
    assert found["about"]["samples"] == [f"window{n:05d}" for n in range(4)]
    machine = ContinuedMachine(options_of(toy / "toy.yaml", toy))
    facts = load_machine_facts(toy / "toy.yaml").tensors
    samples = machine.samples("train")[4:8]
    for name, each in found["tensors"].items():
        assert 0 < each["distance"] <= LIMIT
        assert each["sensitivity"] == each["distance"] / each["squared_error"]
        damage = error = 0.0
        for sample in samples:  # other samples, twice as fine a step
            state = machine.extract(sample)
            x = round_tensor(state[name], facts[name], each["quality"] + 1)
            coded = machine.respond(sample, {**state, name: x})
            damage += machine.divergence(machine.respond(sample, state), coded)
            error += float(((x - state[name]) ** 2).sum())
        assert damage / error == pytest.approx(each["sensitivity"], rel=1.0), name


def test_shares_are_the_lagrangians():
    """q_t = q + log2(u_t) + log2(a_t) / 2, less the mean over points; none without a sensitivity."""
    units, points = {"a": 4.0, "b": 1.0, "c": 1.0}, {"a": 1, "b": 1, "c": 2}
    shifts = share(units, {"a": 1.0, "b": 16.0, "c": 1.0}, points)
    assert shifts == {"a": 1.0, "b": 1.0, "c": -1.0}
    assert share(units, {}, points) == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert share(units, {"a": 1.0, "b": 0.0, "c": 1.0}, points)["b"] == -6.0


def test_fit_and_evaluate_a_state(toy, codec_folder, tmp_path, capsys):
    """Bits over all tensors meet the target, what is decoded is judged, results are current."""
    root = toy / "toy" / "kv"
    cfg = evaluate.EvaluateConfig(
        codec=codec_folder, features=root / "feature_test", output=tmp_path / "out", target_bpfp=3.0
    )
    summary = evaluate.evaluate(cfg)
    assert summary["files"] == 3
    assert summary["points"] == 3 * PREFIX * (32 + 4 * 16)
    sizes = [path.stat().st_size for path in (tmp_path / "out/bitstreams").glob("*.ufs")]
    assert len(sizes) == 3
    assert summary["bytes"] == sum(sizes)
    assert 2.5 < summary["bpfp_pooled"] <= 3.0
    with (tmp_path / "out" / "tensors.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert [*rows] == TENSORS
    beside = summary["bytes"] - sum(int(row["bytes"]) for row in rows.values())
    assert 0 < beside < 3 * (HEADER + END + 6 * len(TENSORS))
    shifts = files.read_json(codec_folder / "tensors.json")["shifts"]
    for name, row in rows.items():  # one quality of the state, shifted
        expected = float(rows["hidden"]["quality"]) - shifts["hidden"] + shifts[name]
        assert float(row["quality"]) == pytest.approx(expected, abs=0.02)
    weighted = sum(float(row["nmse"]) * int(row["points"]) for row in rows.values())
    assert summary["nmse_pooled"] == pytest.approx(weighted / summary["points"])

    assert cfg.why_not_made() is None
    streams = tmp_path / "out" / "bitstreams"
    (streams / "window00000.ufs").unlink()
    (tmp_path / "out" / "summary.json").unlink()
    kept = (streams / "window00001.ufs").stat().st_mtime_ns
    assert evaluate.evaluate(cfg)["bytes"] == summary["bytes"]
    assert (streams / "window00001.ufs").stat().st_mtime_ns == kept

    decoded = tmp_path / "out" / "decoded"
    flags = ["--machine", str(toy / "toy.yaml"), "--data_root", str(toy), "--mode", "evaluate"]
    qwen3.main([*flags, "--features", str(decoded)])
    judged = files.read_json(tmp_path / "out" / "accuracy.json")
    assert judged["samples"] == 3
    assert 0 < judged["others"]["kl"] < 1
    record = tmp_path / "out" / "accuracy.json"
    assert accuracy.why_not_judged(record, toy / "toy.yaml", decoded) is None
    x = np.load(decoded / "v1" / "window00000.npy")
    np.save(decoded / "v1" / "window00000.npy", x + 1)
    assert "v1/window00000.npy has changed" in accuracy.why_not_judged(
        record, toy / "toy.yaml", decoded
    )


def test_each_tensors_codec_stands_alone(toy, codec_folder):
    """A tensor decodes to what its own codec's bitstream decodes to."""
    codec = load_state_codec(codec_folder).at_quality(2)
    facts = load_machine_facts(toy / "toy.yaml")
    state = read_sample(facts, toy / "toy" / "kv" / "feature_test", "window00000")
    data = codec.encode(state)
    decoded = codec.decode(data)
    for name, x in state.items():
        alone = load_codec(codec_folder / name).at_quality(codec.codecs[name].quality)
        assert alone.known[0].kind == f"toy_kv@{name}"
        assert np.array_equal(alone.decode(alone.encode(x)), decoded[name])
        assert decoded[name].shape == x.shape
    whole = {name: len(codec.codecs[name].encode(x)) for name, x in state.items()}
    assert len(data) < sum(whole.values())  # one header in place of five
    assert codec.sizes(data).keys() == whole.keys()
    assert len(data) - HEADER - END - 6 * len(TENSORS) < sum(codec.sizes(data).values()) < len(data)
    with pytest.raises(
        FeatureError, match=r"expected the tensors \['hidden', 'k0', 'v0', 'k1', 'v1'\]"
    ):
        codec.encode({"hidden": state["hidden"]})
    with pytest.raises(FeatureError, match=r"k1: toy_kv@k1 takes shape"):
        codec.encode({**state, "k1": state["hidden"]})
    with pytest.raises(FeatureError, match=r"v1: the feature holds NaN or infinity"):
        codec.encode({**state, "v1": state["v1"] * np.float32(np.nan)})


def test_targets_of_a_state(toy, codec_folder):
    codec = load_state_codec(codec_folder)
    facts = facts_of(codec)
    folder = toy / "toy" / "kv" / "feature_test"
    states = States(facts, folder, list_states(facts, folder))
    found = reach(codec, states, rate.Target(target_nmse=0.1))
    assert (
        found.value_of(states, [found.encode(s) for s in states], rate.Target(target_nmse=0.1))
        <= 0.1
    )
    coded = codec.encode_within(states[0], rate.Target(max_bytes=900))
    assert len(coded.data) <= 900
    assert len(codec.at_quality(coded.quality + 1 / 128).encode(states[0])) > 900
    with pytest.raises(UserError, match=r"max_bytes: 10 is out of reach"):
        codec.encode_within(states[0], rate.Target(max_bytes=10))


def test_units_are_the_codecs_steps(toy, codec_folder):
    """What is measured is what klt calls its unit, to a fifth."""
    facts = load_machine_facts(toy / "toy.yaml")
    train = toy / "toy" / "kv" / "feature_train" / "train"
    for name, each in facts.tensors.items():
        codec = load_codec(codec_folder / name)
        assert unit_of(codec, each, train / name) == pytest.approx(
            codec.model.transform.unit, rel=0.2
        )


def test_a_fit_resumes_and_follows_its_inputs(toy, codec_folder, tmp_path, capsys):
    folder = tmp_path / "codec"
    shutil.copytree(codec_folder, folder)
    (folder / "tensors.json").unlink()
    shutil.rmtree(folder / "v1")
    fit_many.main(fit_argv(toy, folder))
    out = capsys.readouterr().out
    assert "v1: " in out
    assert "k0: " not in out
    assert state_codec_digest(folder) == state_codec_digest(codec_folder)
    fit_many.main(fit_argv(toy, folder, "--shares", "equal"))
    assert set(files.read_json(folder / "tensors.json")["shifts"].values()) == {0.0}
    assert state_codec_digest(folder) != state_codec_digest(codec_folder)
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"tensors": {"k0": {}}}))
    with pytest.raises(SystemExit, match=r"wrong\.json: expected the sensitivities of \['hidden'"):
        fit_many.main(fit_argv(toy, folder, "--sensitivity", str(wrong)))
    with pytest.raises(SystemExit):
        fit_many.main(fit_argv(toy, folder, "--codec", "elic"))
    assert "codec: expected one that is fitted and has any rate" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"resnet50_tiny has one tensor; fit klt to it alone"):
        fit_many.main(fit_argv(toy, folder, "--machine", "resnet50_tiny"))


def test_wrong_uses_are_refused(toy, codec_folder, tmp_path):
    root = toy / "toy" / "kv"
    argv = ["--codec", str(codec_folder), "--features", str(root / "feature_test")]
    with pytest.raises(SystemExit, match=r"tile: a codec of states does not take it"):
        evaluate.main([*argv, "--output", str(tmp_path / "out"), "--tile", "64"])
    shutil.copytree(root / "feature_test", tmp_path / "own" / "decoded")
    with pytest.raises(SystemExit, match=r"decoded holds features, but no run of evaluate\.py"):
        evaluate.main([*argv, "--output", str(tmp_path / "own")])
    with pytest.raises(SystemExit, match=r"feature_test/hidden: no such file or folder"):
        evaluate.main(
            ["--codec", str(codec_folder), "--features", str(tmp_path / "feature_test"), "--output",
             str(tmp_path / "out")]
        )  # fmt: skip
    damaged = tmp_path / "codec"
    shutil.copytree(codec_folder, damaged)
    values = files.read_json(damaged / "tensors.json")
    for change in ({"format": 2}, {"shifts": {}}, {"shifts": {"../k0": 1}}, {"quality": None}):
        files.write_json(damaged / "tensors.json", values | change)
        with pytest.raises(
            UserError, match=r"tensors\.json: not the description of a codec of states"
        ):
            load_state_codec(damaged)


PAGE = (REPOSITORY / "docs/guide/many-tensors.md").read_text()


def test_the_pages_snippet_runs(toy, codec_folder):
    facts = load_machine_facts(toy / "toy.yaml")
    state = read_sample(facts, toy / "toy" / "kv" / "feature_test", "window00000")
    names = {"folder": codec_folder, "state": dict(state)}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], names)
    assert names["state"].keys() == state.keys()
    assert not np.array_equal(names["state"]["hidden"], state["hidden"])


def test_the_pages_yaml_is_a_machine(tmp_path):
    (tmp_path / "my_model.py").write_text("")
    (tmp_path / "my_model.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.S)[1])
    facts = load_machine_facts(tmp_path / "my_model.yaml")
    assert [facts.tensors["k0"].kind, *facts.tensors] == ["mine_kv@k0", "hidden", "k0", "v0"]


def test_a_suite_trains_on_one_tensor_at_a_time(toy, tmp_path):
    """Trained codecs have one rate, which tensors could not share; the message names what may be."""
    row = {
        "codec": "hyperprior",
        "train_task": "kv",
        "lambda_value": [0.01],
        "epochs": 1,
        "batch_size": 4,
    }
    suite = {"machines": [str(toy / "toy.yaml")], "rows": [row]}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    argv = ["--suite", str(tmp_path / "suite.yaml"), "--data_root", str(toy)]
    with pytest.raises(SystemExit, match=r"hyperprior is trained on one .*toy\.yaml@hidden, "):
        driver.main(argv)


@pytest.mark.slow
def test_a_codec_that_is_trained_on_one_tensor(toy, tmp_path):
    """What the message names works, from mapping to coded tensors."""
    root = tmp_path / "root"
    shutil.copytree(toy / "toy", root / "toy")
    shutil.copy(toy / "toy.yaml", root / "toy.yaml")
    row = {
        "codec": "hyperprior", "train_task": "kv@k0", "arch": {"N": 8, "M": 12}, "epochs": 1,
        "lambda_value": [0.01], "batch_size": 4, "patch_size": "64-64",
    }  # fmt: skip
    (root / "suite.yaml").write_text(yaml.safe_dump({"machines": ["toy.yaml@k0"], "rows": [row]}))
    driver.main(["--suite", str(root / "suite.yaml"), "--data_root", str(root), "--device", "cpu"])
    (run,) = (root / "coded" / "hyperprior").rglob("summary.json")
    assert files.read_json(run)["files"] == 3
    assert files.read_json(run)["points"] == 3 * PREFIX * 16


def test_a_suite_says_how_tensors_share_bits(toy, tmp_path, capsys):
    fitted = [{"codec": "klt", "quality": [0], "name": name, "flags": {"shares": name, "clusters": [1]}}
              for name in ("sensitivity", "equal")]  # fmt: skip
    suite = tmp_path / "suite.yaml"

    def dry_run(machine):
        suite.write_text(yaml.safe_dump({"machines": [str(toy / machine)], "fitted": fitted}))
        driver.main(["--suite", str(suite), "--data_root", str(toy), "--dry_run", "true"])

    dry_run("toy.yaml")
    lines = [line for line in capsys.readouterr().out.splitlines() if "fit_many" in line]
    assert len(lines) == 2 and "--shares equal" in lines[1] and "--shares" not in lines[0]
    with pytest.raises(SystemExit, match="shares"):
        dry_run("toy.yaml@k0")


@pytest.mark.slow
def test_from_a_suite_to_the_report(toy, tmp_path):
    """The driver takes a state for one kind of feature, and a tensor alone for another."""
    root = tmp_path / "root"
    shutil.copytree(toy / "toy", root / "toy")
    shutil.copy(toy / "toy.yaml", root / "toy.yaml")
    fitted = {"codec": "klt", "quality": [0, 2], "flags": {"clusters": [1], "tables": 4}}
    suite = {"machines": ["toy.yaml", "toy.yaml@k0"], "fitted": [fitted]}
    (root / "suite.yaml").write_text(yaml.safe_dump(suite))
    driver.main(["--suite", str(root / "suite.yaml"), "--data_root", str(root)])
    runs = sorted((root / "coded").rglob("run.json"))
    assert len(runs) == 4
    assert {files.read_json(path)["labels"]["kind"] for path in runs} == {"toy_kv", "toy_kv@k0"}
    judged = sorted((root / "coded").rglob("accuracy.json"))
    assert len(judged) == 2
    assert all(path.parent.name == "toy_kv" for path in judged)
    states = [files.read_json(path) for path in judged]
    assert states[0]["others"]["kl"] > states[1]["others"]["kl"] > 0
    page.write_report(root, root / "report")
    text = (root / "report" / "report.html").read_text()
    assert "toy_kv@k0" in text
    before = {path: path.stat().st_mtime_ns for path in runs}
    driver.main(["--suite", str(root / "suite.yaml"), "--data_root", str(root)])
    assert before == {path: path.stat().st_mtime_ns for path in runs}  # all is current
