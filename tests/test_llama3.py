"""LLaMA3 machine: the cut changes nothing, the prompt is the published one, files and errors."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from dtufc import files
from dtufc.feature import find_machine_config
from dtufc.machines.command import parse_options
from dtufc.machines.llama3 import halves, llama3
from dtufc.machines.llama3.generate import (
    BackHalf,
    FrontHalf,
    bytes_per_token,
    end_tokens,
    generate,
    greedy,
)
from dtufc.machines.llama3.halves import LlamaMachine
from dtufc.machines.llama3.llama3 import LlamaOptions
from dtufc.machines.llama3.tasks import prompt
from dtufc.machines.sources.source import Question
from dtufc.machines.sources.world import world_question
from dtufc.machines.tiny import llama3_training, train_llama3

KINDS = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "mistral": (MistralConfig, {"sliding_window": 8}),
}
LAYERS = 3


@pytest.fixture(scope="module")
def tokenizer():
    return llama3_training.build_tokenizer([text for text, _ in llama3_training.draw(0, 300, 0)])


@pytest.fixture(scope="module")
def checkpoints(tokenizer, tmp_path_factory):
    """A random model of each kind in transformers' format."""
    folders = {}
    for kind, (config_class, extra) in KINDS.items():
        torch.manual_seed(1)
        known = config_class(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64,
            num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=1,
            bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.3, **extra,
        )  # fmt: skip
        folders[kind] = tmp_path_factory.mktemp(kind)
        AutoModelForCausalLM.from_config(known).save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


def machine_of(folder, root, *argv):
    flags = ["--checkpoint", str(folder), "--data_root", str(root), "--device", "cpu", *argv]
    return LlamaMachine(parse_options(LlamaOptions, llama3.PRESET, flags, None))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cut_changes_nothing(checkpoints, kind, dtype, tmp_path):
    """The same token as the uncut model's generate, and the same logits, at every layer."""
    whole = AutoModelForCausalLM.from_pretrained(checkpoints[kind], dtype=getattr(torch, dtype))
    for layer in range(LAYERS):
        machine = machine_of(checkpoints[kind], tmp_path, "--layer", str(layer), "--dtype", dtype)
        assert len(machine.front.layers) == layer + 1
        assert len(machine.back.model.layers) == LAYERS - layer - 1
        for sample in machine.samples("test")[:4]:
            inputs = machine.tokenizer(prompt(sample.source), return_tensors="pt")
            made = whole.eval().generate(**inputs, max_new_tokens=1, do_sample=False)
            feature = machine.extract(sample)
            assert feature.dtype == np.float32
            assert feature.shape == (1, 1, inputs.input_ids.shape[1], 32)
            assert machine.predict(sample, feature) == machine.tokenizer.decode(made[0, -1]).strip()
            with torch.inference_mode():
                x = torch.from_numpy(feature[0]).to(machine.back.dtype)
                cut = machine.back(inputs_embeds=x, use_cache=False).logits
                assert torch.equal(cut, whole(**inputs).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_both_halves_generate_what_the_uncut_model_does(checkpoints, kind, tmp_path):
    """Token for token, with a cache on both sides, at every layer; several texts share the weights."""
    whole = AutoModelForCausalLM.from_pretrained(checkpoints[kind]).eval()
    for layer in range(LAYERS):
        machine = machine_of(checkpoints[kind], tmp_path, "--layer", str(layer))
        pairs, asked = [], []
        for sample in machine.samples("test")[:2]:
            ids = machine.tokenizer(prompt(sample.source)).input_ids[-30:]
            made = whole.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
            asked.append(made[0, len(ids) :].tolist())
            front, back = FrontHalf(machine), BackHalf(machine)
            pairs.append((generate(front, ids, greedy(back), 12, end_tokens(machine)), back))
        texts = [[], []]
        for _ in range(12):  # turn by turn: neither text sees the other's cache
            for text, (tokens, _) in zip(texts, pairs, strict=True):
                text += [token] if (token := next(tokens, None)) is not None else []
        assert texts == asked
        for _, back in pairs:
            assert back.cache_bytes == back.tokens * bytes_per_token(machine)
            assert (back.cache_bytes == 0) == (layer == LAYERS - 1)


def test_generation_ends_where_the_model_ends(checkpoints, tmp_path):
    machine = machine_of(checkpoints["llama"], tmp_path, "--layer", "0")
    assert end_tokens(machine) == {1}
    answers = iter([7, 1, 9])
    tokens = generate(FrontHalf(machine), [0, 5], lambda rows: next(answers), 20, {1})
    assert list(tokens) == [7, 1]
    for wrong in ([], [-1], [5, 10**6]):
        with pytest.raises(ValueError, match=r"expected at least 1 token of 0 \.\. \d+, got"):
            FrontHalf(machine).step(wrong)
    with pytest.raises(ValueError, match=r"expected rows of 32 channels, got \(3, 31\)"):
        BackHalf(machine).step(np.zeros((3, 31), np.float32))


def test_the_back_half_reads_only_its_weights(checkpoints, tmp_path):
    """Neither embedding nor front layers: a checkpoint without them will do."""
    folder = tmp_path / "back"
    shutil.copytree(checkpoints["llama"], folder)
    stored = dict(halves.open_weights(folder))
    kept = {k: v for k, v in stored.items() if "layers.0." not in k and "embed" not in k}
    assert len(kept) < len(stored)
    save_file(kept, folder / "model.safetensors")
    back = halves.load_back(folder, 1, torch.float32)
    assert {name for name, _ in back.named_parameters()} and back.model.embed_tokens is None
    with pytest.raises(
        ValueError, match=r"lack model\.layers\.0\.input_layernorm\.weight and 8 more"
    ):
        halves.load_back(folder, 0, torch.float32)


def test_prompt_is_the_published_one():
    question = Question("q", "Why?", ("a", "b", "c", "d", "e"), 0)
    assert prompt(question) == (
        "<|start_header_id|>user<|end_header_id|>\n\nGiven the following question and four candidate "
        "answers (A, B, C and D), choose the best answer.\nQuestion: Why?\nA: a\nB: b\nC: c\nD: d\n"
        'Your response should end with "The best answer is [the_answer_letter]" where the '
        "[the_answer_letter] is one of A, B, C or D.<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\nThe best answer is"
    )
    three = prompt(Question("q", "Why?", ("a", "b", "c"), 0))
    assert "A: a\nB: b\nC: c\nC: c\nYour response" in three


def test_tokenizer_is_of_llamas_kind(tokenizer):
    ids = tokenizer("<|start_header_id|>user<|end_header_id|>\n\nB: red 123456 über").input_ids
    assert ids[0] == tokenizer.bos_token_id == tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    assert ids[1] == tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    text = "red 123456 über\n\n  x"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    letters = [tokenizer(f" {key}", add_special_tokens=False).input_ids for key in "ABCD"]
    assert [len(ids) for ids in letters] == [1, 1, 1, 1]


def test_world_questions():
    for i in range(50):
        q = world_question(0, i, "test")
        assert len(set(q.choices)) == 4
        assert q == world_question(0, i, "test")
    answers = {world_question(0, i, "test").answer for i in range(50)}
    assert answers == {0, 1, 2, 3}


def test_tiny_checkpoint(tmp_path):
    """400 held-out questions through both halves."""
    flags = ["--counts", "{test: 400}", "--data_root", str(tmp_path), "--device", "cpu"]
    machine = LlamaMachine(parse_options(LlamaOptions, llama3.PRESET, flags, None))
    samples = machine.samples("test")
    predictions = [machine.predict(sample, machine.extract(sample)) for sample in samples]
    assert machine.score(samples, predictions).value >= 0.95
    assert sum(path.stat().st_size for path in machine.folder.iterdir()) < 2_500_000


def arc_row(name, key, labels="ABCD", stem="What falls?"):
    choices = [{"text": f"text {label}", "label": label} for label in labels]
    return {"id": name, "question": {"stem": stem, "choices": choices}, "answerKey": key}


def write_arc(source, splits):
    source.mkdir(parents=True)
    rows = [arc_row("Q_1", "B"), arc_row("Q_2", "3", "1234"), arc_row("Q_3", "A", "ABC")]
    for split in splits:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (source / f"arc_challenge_{split}.jsonl").write_text(text)
        (source / f"{split}.txt").write_text("Q_3\nQ_2\n")


def test_paper_preset_on_made_up_files(checkpoints, tmp_path, capsys):
    """The paper's preset: what is missing is named, features are as published, evaluation records."""
    facts = tmp_path / "llama3.yaml"
    facts.write_text(find_machine_config("llama3").read_text().replace("4096", "32"))
    root = tmp_path / "llama3" / "csr"
    argv = ["--machine", str(facts), "--data_root", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"train\.txt: missing.*scripts/prepare_arc\.py writes it"):
        llama3.main(argv)
    write_arc(root / "source", ["train", "validation", "test"])
    with pytest.raises(SystemExit, match=r"put it at .*/Meta-Llama-3-8B-Instruct\. It is a folder"):
        llama3.main(argv)
    shutil.copytree(checkpoints["llama"], root / "pretrained_head" / "Meta-Llama-3-8B-Instruct")
    llama3.main(argv)
    feature = np.load(root / "feature_test" / "Q_2.npy")
    assert feature.dtype == np.float32
    assert np.array_equal(torch.from_numpy(feature).bfloat16().float().numpy(), feature)
    rows = (root / "accuracy.csv").read_text().splitlines()
    assert rows[0] == "name,label,prediction,correct"
    assert [row.split(",")[:2] for row in rows[1:]] == [["Q_3", "A"], ["Q_2", "C"]]
    assert files.read_json(root / "accuracy.json")["metric"] == "accuracy"
    assert "accuracy 0." in capsys.readouterr().out
    origin = files.read_json(root / "origin.json")
    assert (origin["dtype"], origin["layer"]) == ("bfloat16", LAYERS - 1)
    with pytest.raises(SystemExit, match="made with layer 2, not 0"):
        llama3.main([*argv, "--layer", "0"])
    with pytest.raises(SystemExit, match="layer: 3 is none of the model's 3 layers"):
        llama3.main([*argv, "--layer", "3"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (arc_row("Q_1", "E"), r"question Q_1: expected id.*answerKey that is a label"),
        ({"id": "Q_1", "answerKey": "A"}, "question Q_1: expected id, question.stem"),
        (arc_row("Q_9", "A"), "question Q_1: not in the file"),
        (arc_row("Q_1", "A", "A"), "question Q_1: expected 2 to 5 choices, got 1"),
    ],
)
def test_unsound_questions_are_named(tmp_path, row, message):
    options = parse_options(
        LlamaOptions, llama3.PRESET, ["--source", "arc", "--data_root", str(tmp_path)], None
    )
    options.root.source.mkdir(parents=True)
    (options.root.source / "test.txt").write_text("Q_1\n")
    (options.root.source / "arc_challenge_test.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        options.open_source().questions("test")


def test_unsound_lists_are_named(tmp_path):
    options = parse_options(
        LlamaOptions, llama3.PRESET, ["--source", "arc", "--data_root", str(tmp_path)], None
    )
    options.root.source.mkdir(parents=True)
    (options.root.source / "test.txt").write_text("Q_1\n\nQ_1\n")
    with pytest.raises(ValueError, match=r"test\.txt:3: Q_1 is there twice"):
        options.open_source().questions("test")
    (options.root.source / "test.txt").write_text("Q_1\n")
    with pytest.raises(FileNotFoundError, match=r"arc_challenge_test\.jsonl: missing"):
        options.open_source().questions("test")
    (options.root.source / "arc_challenge_test.jsonl").write_text("{}\n{\n")
    with pytest.raises(ValueError, match=r"arc_challenge_test\.jsonl:2: not valid JSON"):
        options.open_source().questions("test")


def test_hub_model(checkpoints, tmp_path, monkeypatch):
    """A hub id is looked up in the hub's cache; here the cache is all there is."""
    cache = tmp_path / "hub" / "models--some--llama"
    shutil.copytree(checkpoints["llama"], cache / "snapshots" / "0123")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    local = machine_of(checkpoints["llama"], tmp_path)
    machine = machine_of("nowhere", tmp_path, "--hub", "some/llama")
    sample = machine.samples("test")[0]
    assert np.array_equal(machine.extract(sample), local.extract(sample))


@pytest.mark.gpu
def test_halves_on_two_devices(checkpoints, tmp_path):
    """Front on the GPU, back on the CPU: the same token."""
    front = machine_of(checkpoints["llama"], tmp_path, "--device", "cuda")
    back = machine_of(checkpoints["llama"], tmp_path)
    for sample in back.samples("test")[:4]:
        feature = front.extract(sample)
        assert back.predict(sample, feature) == back.predict(sample, back.extract(sample))


def test_training_rows():
    """Every answer stands at its place, of all kinds of rows."""
    rows = llama3_training.draw(0, 8, 2)
    assert [len(places) for _, places in rows] == [4, 16, 4, 1] * 2
    for index, (text, places) in enumerate(rows, start=16):
        asked = [world_question(0, 4 * index + n, "network") for n in range(4)]
        words = [f" {q.choices[q.answer]}" for q in asked]
        letters = [f" {'ABCD'[q.answer]}" for q in asked]
        marked = [f" {'yes' if n == q.answer else 'no'}" for q in asked for n in range(4)]
        answers = [text[start:end] for start, end in places]
        assert answers == [words, marked, letters, letters[:1]][index % 4]
        if index % 4 == 0:
            assert text.startswith(f"{asked[0].stem}{words[0]}\nA picture")
        assert text.count("The best answer is") == [0, 0, 4, 2][index % 4]
        if index % 4 == 3:
            assert text == f"{prompt(asked[0])}{letters[0]}"


def test_training_script(tmp_path, capsys):
    """A few steps of the training that made the tiny checkpoint."""
    flags = ["--steps", "3", "--batch_size", "4", "--held_out", "8"]
    train_llama3.main(["--output", str(tmp_path), *flags])
    assert "accuracy on 8 held-out questions" in capsys.readouterr().out
    assert files.read_json(tmp_path / "training.json")["steps"] == 3
    AutoModelForCausalLM.from_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path)
