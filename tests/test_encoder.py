"""A sentence encoder cut in two: equal to the uncut model at every layer, and its paragraphs."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from dtufc import files
from dtufc.errors import UserError
from dtufc.feature import find_machine_config
from dtufc.machines.command import parse_options
from dtufc.machines.minilm import minilm
from dtufc.machines.minilm.halves import EncoderMachine
from dtufc.machines.minilm.minilm import EncoderOptions
from dtufc.paths import ACCURACY_JSON, DataRoot

WORDS = [f"word{k}" for k in range(40)]
LINES = ["= a heading =", *(" ".join(WORDS[k : k + 8 + 2 * k]) for k in range(9)), ""]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random BERT of 3 layers of width 32, and a tokenizer of words."""
    folder = tmp_path_factory.mktemp("bert")
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    table = {word: k for k, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    known = BertConfig(
        vocab_size=len(table), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3, pad_token_id=3,
    )  # fmt: skip
    BertModel(known, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture
def preset(checkpoint, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    text = find_machine_config(minilm.PRESET).read_text()
    for old, new in (("384", "32"), ("layer: 3", "layer: 1"), ("all-MiniLM-L6-v2\n", f"{checkpoint}\n"),
                     ("train: 200, validation: 40, test: 60",
                      "train: 3, validation: 1, test: 2")):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    return path


def flags_of(preset, *argv):
    texts = {name: str(preset.parent / "lines.txt") for name in ("train", "validation", "test")}
    return ["--machine", str(preset), "--data_root", str(preset.parent), "--texts", json.dumps(texts),
            "--shortest", "10", "--longest", "20", *argv]  # fmt: skip


def machine_of(preset, *argv):
    return EncoderMachine(
        parse_options(EncoderOptions, minilm.PRESET, flags_of(preset, *argv), None)
    )


@pytest.mark.parametrize("layer", [0, 1, 2, -1])
def test_uncoded_features_give_the_uncut_models_embedding(checkpoint, preset, layer):
    machine = machine_of(preset, "--layer", str(layer))
    whole = BertModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
    for sample in machine.samples("test"):
        feature = machine.extract(sample)
        assert (feature.shape, feature.dtype) == ((1, 1, len(sample.source), 32), np.float32)
        with torch.inference_mode():
            states = whole(input_ids=torch.tensor([sample.source])).last_hidden_state
            found = machine._back(torch.from_numpy(feature[0]))
        expected = torch.nn.functional.normalize(states.mean(1), dim=-1)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert machine.predict(sample, feature) == pytest.approx(1, abs=1e-6)
        assert machine.predict(sample, -feature) < 0.99


def test_paragraphs_are_cut_and_shared_out(preset):
    machine = machine_of(preset)
    named = [[machine.tokenizer.decode(s.source) for s in machine.samples(split)]
             for split in ("train", "validation", "test")]  # fmt: skip
    assert [len(each) for each in named] == [3, 1, 2]
    texts = [text for each in named for text in each]
    assert [text.split()[1] for text in texts] == WORDS[: len(texts)]
    lengths = [len(s.source) for split in ("train", "validation", "test")
               for s in machine.samples(split)]  # fmt: skip
    assert lengths == [min(20, 2 + 8 + 2 * k) for k in range(6)]
    with pytest.raises(UserError, match=r"lines\.txt: 5 paragraphs .* test wants 6"):
        machine_of(preset, "--counts", "{train: 3, validation: 1, test: 6}").samples("test")
    with pytest.raises(UserError, match="serves train and test"):
        machine_of(preset, "--counts", "{validation: 1, test: 6}").samples("test")


def test_the_command_extracts_and_judges(preset, capsys):
    minilm.main(flags_of(preset))
    root = DataRoot(preset.parent).feature("minilm", "text")
    told = files.read_json(root.accuracy)
    assert root.accuracy.name == ACCURACY_JSON
    assert (told["metric"], told["samples"]) == ("cosine", 2)
    assert told["value"] == pytest.approx(1, abs=1e-6)
    assert "cosine 1.0000, least_cosine 1.0000 over 2 features" in capsys.readouterr().out


def test_other_models_are_refused(checkpoint, preset, tmp_path):
    other = tmp_path / "gpt"
    other.mkdir()
    for path in checkpoint.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    told = files.read_json(other / "config.json") | {"model_type": "gpt2"}
    files.write_json(other / "config.json", told)
    with pytest.raises(UserError, match="gpt: expected a BERT, got a gpt2"):
        machine_of(preset, "--checkpoint", str(other)).extract(
            machine_of(preset).samples("test")[0]
        )
