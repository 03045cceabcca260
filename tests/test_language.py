"""Language models on text and by likelihood: figures against the uncut model's own, windows, GGUF."""

import json
import math
import sys

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from dtufc import files
from dtufc.feature import find_machine_config
from dtufc.machines.command import parse_options
from dtufc.machines.llama3 import llama3
from dtufc.machines.llama3.halves import LlamaMachine
from dtufc.machines.llama3.llama3 import LlamaOptions
from dtufc.machines.llama3.tasks import join, split
from dtufc.machines.tiny import llama3_training
from dtufc.paths import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are no package

import convert_gguf

WORDS = "".join(text for text, _ in llama3_training.draw(0, 40, 0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random LLaMA of 3 layers of width 32, whose distributions are not flat, and its tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = llama3_training.build_tokenizer(
        [text for text, _ in llama3_training.draw(0, 300, 0)]
    )
    torch.manual_seed(1)
    known = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(known).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def preset(checkpoint, tmp_path):
    """A YAML of the toy model on a text of its own; train and test are of one file."""
    (tmp_path / "words.txt").write_text(WORDS)
    text = find_machine_config("smollm2").read_text()
    for old, new in (("576", "32"), ("layer: 19", "layer: 1"), ("window: 256", "window: 20"),
                     ("SmolLM2-135M-Instruct", str(checkpoint)), ("train: 120, validation: 20, test: 40",
                     "train: 6, validation: 2, test: 3")):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    return path


def machine_of(preset, *argv):
    words = preset.parent / "words.txt"
    texts = json.dumps({name: str(words) for name in ("train", "validation", "test")})
    flags = ["--machine", str(preset), "--data_root", str(preset.parent), "--texts", texts, *argv]
    return LlamaMachine(parse_options(LlamaOptions, llama3.PRESET, flags, None))


def test_uncoded_features_give_the_uncut_models_perplexity(checkpoint, preset):
    """Cross-entropy as transformers computes it, agreement 1 and KL 0."""
    machine = machine_of(preset)
    samples = machine.samples("test")
    found = machine.score(samples, [machine.predict(s, machine.extract(s)) for s in samples])
    whole = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    losses = []
    for sample in samples:
        ids = torch.tensor([sample.source])
        with torch.inference_mode():
            losses.append(float(whole(input_ids=ids, labels=ids).loss))
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert found.metric == "perplexity" and found.less_is_better
    assert found.others["agreement"] == 1 and abs(found.others["kl"]) < 1e-6
    assert found.others["uncut_perplexity"] == pytest.approx(found.value)


@torch.inference_mode()
def test_noise_tells(preset):
    """Figures by their definitions, from the logits of noisy features; rows pool to the whole."""
    machine = machine_of(preset)
    samples = machine.samples("test")
    rng = np.random.default_rng(0)
    features = [machine.extract(sample) for sample in samples]
    noisy = [x + rng.standard_normal(x.shape).astype(np.float32) * x.std() / 3 for x in features]
    found = machine.score(
        samples, [machine.predict(s, x) for s, x in zip(samples, noisy, strict=True)]
    )
    nll, kl, same = [], [], []
    for sample, clean, x in zip(samples, features, noisy, strict=True):
        p, q = (
            torch.log_softmax(
                machine.back(inputs_embeds=torch.from_numpy(each[0])).logits[0, :-1], -1
            )
            for each in (clean, x)
        )
        targets = torch.tensor(sample.source[1:])[:, None]
        nll += (-q.gather(1, targets)).flatten().tolist()
        kl += (p.exp() * (p - q)).sum(1).tolist()
        same += (p.argmax(1) == q.argmax(1)).tolist()
    assert found.value == pytest.approx(math.exp(np.mean(nll)), rel=1e-5)
    assert found.others["kl"] == pytest.approx(np.mean(kl), rel=1e-4) and np.mean(kl) > 0.01
    assert found.others["agreement"] == np.mean(same) < 1
    assert [row["name"] for row in found.rows] == [sample.name for sample in samples]
    pooled = math.exp(np.mean([math.log(row["perplexity"]) for row in found.rows]))
    assert pooled == pytest.approx(found.value)


def test_windows_follow_one_another(preset):
    """Splits of one text share no token but the first; each window begins with the token that begins."""
    machine = machine_of(preset)
    ids = machine.tokenizer(WORDS, add_special_tokens=False).input_ids
    windows = [s.source for name in ("train", "validation", "test") for s in machine.samples(name)]
    assert [len(window) for window in windows] == [20] * 11
    assert {window[0] for window in windows} == {machine.tokenizer.bos_token_id}
    assert [token for window in windows for token in window[1:]] == ids[: 11 * 19]


def test_the_command_records_what_is_less_and_better(preset):
    words = preset.parent / "words.txt"
    texts = json.dumps({name: str(words) for name in ("train", "validation", "test")})
    argv = ["--machine", str(preset), "--data_root", str(preset.parent), "--texts", texts]
    llama3.main(argv)
    record = files.read_json(preset.parent / "smollm2" / "lm" / "accuracy.json")
    assert record["metric"] == "perplexity" and record["less_is_better"] is True
    assert record["others"]["agreement"] == 1
    words.write_text(WORDS[5:])
    with pytest.raises(SystemExit, match="made with texts"):
        llama3.main(argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--counts", "{train: 6, validation: 2, test: 9999}"], "test wants 9999 after 8 of other"),
        (["--counts", "{test: 3}"], "serves train and test; give the first's"),
    ],
)
def test_too_little_text_is_told(preset, argv, message):
    with pytest.raises(ValueError, match=message):
        machine_of(preset, *argv).samples("test")


def test_unsound_texts_are_named(preset):
    words = preset.parent / "words.txt"
    for content, message in ((b"", "words.txt: the text is empty"), (b"\xff\xfe", "text in UTF-8")):
        words.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            machine_of(preset).samples("train")


def test_likelihood_is_that_of_the_whole_model(checkpoint, tmp_path):
    """Each choice's likelihood per byte, computed on whole sequences of the uncut model; the question's
    states are in the feature once."""
    flags = ["--checkpoint", str(checkpoint), "--data_root", str(tmp_path), "--layer", "0",
             "--answer", "likelihood", "--counts", "{train: 1, validation: 1, test: 6}"]  # fmt: skip
    machine = LlamaMachine(parse_options(LlamaOptions, llama3.PRESET, flags, None))
    whole = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    answers = []
    for sample in machine.samples("test"):
        context = machine.tokenizer(f"Question: {sample.source.stem}\nAnswer:").input_ids
        scores, tokens = [], len(context)
        for choice in sample.source.choices:
            ids = machine.tokenizer(f" {choice}", add_special_tokens=False).input_ids
            with torch.inference_mode():
                logits = whole(input_ids=torch.tensor([context + ids])).logits[0]
            places = torch.log_softmax(logits, -1)[len(context) - 1 : -1]
            chosen = places.gather(1, torch.tensor(ids)[:, None])
            scores.append(float(chosen.sum()) / len(choice.encode()))
            tokens += len(ids)
        feature = machine.extract(sample)
        assert feature.shape == (1, 1, tokens, 32)
        answers.append(machine.predict(sample, feature))
        assert answers[-1] == "ABCDE"[int(np.argmax(scores))]
    assert len(set(answers)) > 1
    assert machine.origin()["answer"] == "likelihood"


def test_join_and_split_are_inverse():
    states = [torch.randn(1, length, 3) for length in (7, 5, 6)]
    for each in states[1:]:
        each[:, :4] = states[0][:, :4]
    joined = join(states, 4)
    assert joined.shape == (1, 4 + 3 + 1 + 2, 3)
    again = split(joined, [7, 5, 6], 4)
    assert all(torch.equal(a, b) for a, b in zip(states, again, strict=True))


def write_gguf(path, checkpoint, architecture="llama"):
    """The checkpoint as a GGUF file, as llama.cpp's converter lays out LLaMA: q and k rows permuted."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    known, state = model.config, model.state_dict()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    told = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(known.hidden_size)
    writer.add_block_count(known.num_hidden_layers)
    writer.add_feed_forward_length(known.intermediate_size)
    writer.add_head_count(known.num_attention_heads)
    writer.add_head_count_kv(known.num_key_value_heads)
    writer.add_layer_norm_rms_eps(known.rms_norm_eps)
    writer.add_rope_dimension_count(known.head_dim)
    writer.add_rope_freq_base(known.rope_parameters["rope_theta"])
    writer.add_vocab_size(known.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in told["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, known.num_hidden_layers)
    for name, value in state.items():
        x = value.numpy()
        heads = {"q_proj": known.num_attention_heads, "k_proj": known.num_key_value_heads}
        for part, count in heads.items():
            if part in name:
                x = x.reshape(count, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_becomes_the_same_model(checkpoint, tmp_path, capsys):
    """Logits and tokens of the folder are those of the model that the GGUF file was written from."""
    write_gguf(tmp_path / "toy.gguf", checkpoint)
    folder = tmp_path / "out" / "toy"
    convert_gguf.main(["--gguf", str(tmp_path / "toy.gguf"), "--output", str(folder)])
    assert str(folder) in capsys.readouterr().out
    assert sorted(path.suffix for path in folder.glob("model*")) == [".safetensors"]
    ids = AutoTokenizer.from_pretrained(checkpoint)(WORDS[:300], return_tensors="pt").input_ids
    again = AutoTokenizer.from_pretrained(folder)(WORDS[:300], return_tensors="pt").input_ids
    assert again[0].tolist()[-20:] == ids[0].tolist()[-20:]
    with torch.inference_mode():
        one, other = (
            AutoModelForCausalLM.from_pretrained(each).eval()(ids).logits
            for each in (checkpoint, folder)
        )
    assert torch.allclose(one, other, atol=1e-4)
    with pytest.raises(SystemExit, match="is there already; take another folder"):
        convert_gguf.main(["--gguf", str(tmp_path / "toy.gguf"), "--output", str(folder)])


def test_files_that_cannot_be_read_are_named(checkpoint, tmp_path):
    write_gguf(tmp_path / "strange.gguf", checkpoint, architecture="notamodel")
    (tmp_path / "no.gguf").write_bytes(b"PK\x03\x04")
    output = tmp_path / "out"
    for name, message in (
        ("strange.gguf", r"strange\.gguf: transformers cannot read this GGUF file: .*notamodel"),
        ("no.gguf", r"no\.gguf: not a GGUF file"),
        ("missing.gguf", r"missing\.gguf: no such GGUF file"),
    ):
        with pytest.raises(SystemExit, match=message):
            convert_gguf.main(["--gguf", str(tmp_path / name), "--output", str(output)])
    assert not output.exists()
