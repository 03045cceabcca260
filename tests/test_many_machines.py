"""The machines of many tensors beside Qwen3: the cut changes nothing, every tensor is needed."""

import wave

import numpy as np
import pytest
import torch
import yaml
from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DynamicCache,
    FalconMambaConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from dtufc import files
from dtufc.errors import UserError
from dtufc.feature import find_machine_config
from dtufc.machines.command import parse_options
from dtufc.machines.controlnet import controlnet
from dtufc.machines.controlnet.controlnet import ControlOptions
from dtufc.machines.controlnet.halves import ControlMachine
from dtufc.machines.dinov3 import dinov3
from dtufc.machines.dinov3.dinov3 import BlocksOptions
from dtufc.machines.dinov3.halves import BlocksMachine
from dtufc.machines.machine import StateMachine
from dtufc.machines.mamba import mamba
from dtufc.machines.mamba.halves import MambaMachine
from dtufc.machines.qwen3.qwen3 import ContinuedOptions
from dtufc.machines.sources.speech import Speech, read_wave
from dtufc.machines.tiny import llama3_training, sd3_training, train_sd3
from dtufc.machines.whisper import whisper
from dtufc.machines.whisper.halves import WhisperMachine
from dtufc.machines.whisper.whisper import WhisperOptions
from dtufc.states import load_machine_facts, mismatch


def write_preset(folder, name, tensors, **machine):
    """The YAML of a preset with other shapes and options."""
    values = yaml.safe_load(find_machine_config(name).read_text())
    shared = values["feature"]["tensors"]
    values["feature"]["tensors"] = {
        tensor: shared.get(tensor, {}) | {"shape": shape} for tensor, shape in tensors.items()
    }
    values["machine"] |= machine
    (folder / "toy.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "toy.yaml"


def check_state(machine: StateMachine, preset, sample, least=1e-6):
    """The state is what the facts say, and each of its tensors moves the response."""
    state = machine.extract(sample)
    assert mismatch(load_machine_facts(preset), state) is None
    uncoded = machine.respond(sample, state)
    assert machine.divergence(uncoded, uncoded) == 0
    for name, x in state.items():
        noise = np.random.default_rng(0).normal(scale=x.std() / 2, size=x.shape)
        coded = machine.respond(sample, {**state, name: (x + noise).astype(x.dtype)})
        assert machine.divergence(uncoded, coded) > least, name
    return state, uncoded


def test_falcon_mamba(tmp_path):
    """As the uncut model with its own cache, at every layer."""
    tokenizer = llama3_training.build_tokenizer(
        [text for text, _ in llama3_training.draw(0, 300, 0)]
    )
    torch.manual_seed(1)
    known = FalconMambaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, state_size=4,
        num_hidden_layers=3, conv_kernel=4, time_step_rank=4, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    whole = AutoModelForCausalLM.from_config(known).eval()
    whole.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = tmp_path / "words.txt"
    words.write_text("".join(text for text, _ in llama3_training.draw(0, 60, 0)))
    for layer in range(3):
        tensors = {"hidden": [1, 1, None, 32]}
        for number in range(layer + 1):
            tensors |= {f"conv{number}": [1, 1, 48, 4], f"ssm{number}": [1, 1, 48, 4]}
        preset = write_preset(
            tmp_path, "falcon_mamba_state", tensors, checkpoint=str(tmp_path / "model"),
            layer=layer, dtype="float32", window=16, prefix=10,
            counts={"train": 4, "validation": 1, "test": 2},
            texts={name: str(words) for name in ("train", "validation", "test")},
        )  # fmt: skip
        flags = ["--machine", str(preset), "--data_root", str(tmp_path), "--device", "cpu"]
        machine = MambaMachine(parse_options(ContinuedOptions, mamba.PRESET, flags, None))
        sample = machine.samples("test")[0]
        state, found = check_state(machine, preset, sample)
        cache = DynamicCache(config=whole.config)
        ids = torch.tensor([sample.source])
        with torch.inference_mode():
            keep = {"cache_params": cache, "use_cache": True, "logits_to_keep": 1}
            rows = [whole(ids[:, :10], **keep).logits[0, -1]]
            for place in range(10, 16):
                token = ids[:, place : place + 1]
                rows.append(whole(token, **keep).logits[0, -1])
        assert torch.equal(found, torch.stack(rows).log_softmax(-1))
        assert machine.predict(sample, state)["kl"] == 0
        assert (
            machine.predict(sample, {**state, "hidden": np.zeros_like(state["hidden"])})["kl"] > 0
        )


@pytest.mark.parametrize(("name", "blocks"), [("dinov3", [0, 1, 3]), ("dinov3_2", [0, 2])])
def test_dinov3(name, blocks, tmp_path):
    """As the backbone of transformers gives the tokens of these blocks and the last, normalised."""
    torch.manual_seed(1)
    known = DINOv3ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=2, num_register_tokens=4, layerscale_value=0.5, initializer_range=0.3,
        out_indices=[block + 1 for block in blocks] + [4] * (blocks[-1] < 3), apply_layernorm=True,
        reshape_hidden_states=False,
    )  # fmt: skip
    whole = DINOv3ViTBackbone(known).eval()
    whole.save_pretrained(tmp_path / "model")
    tensors = {f"block{block}": [1, 1, 21, 32] for block in blocks}
    preset = write_preset(
        tmp_path, name, tensors, checkpoint=str(tmp_path / "model"), blocks=blocks,
        source="world", dtype="float32", resize=32, crop=32,
        counts={"train": 2, "validation": 1, "test": 2},
    )  # fmt: skip
    flags = ["--machine", str(preset), "--data_root", str(tmp_path), "--device", "cpu"]
    machine = BlocksMachine(parse_options(BlocksOptions, dinov3.PRESET, flags, None))
    sample = machine.samples("test")[0]
    state, found = check_state(machine, preset, sample)
    with torch.inference_mode():
        maps = whole(machine.pixels(sample)).feature_maps
    assert len(maps) == len(found)
    for ours, theirs in zip(found, maps, strict=True):
        assert torch.equal(ours[5:], theirs[0])
    assert machine.predict(sample, state) == pytest.approx({"cosine": 1, "class_cosine": 1})
    dinov3.main(flags)
    assert (tmp_path / "dinov3").is_dir()


def write_wave(path, seed, rate=16000):
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2), file.setsampwidth(2), file.setframerate(rate)
        file.writeframes((3000 * rng.standard_normal((rate // 2, 2))).astype("<i2").tobytes())


def make_whisper(folder):
    """A random Whisper with a tokenizer of single bytes."""
    torch.manual_seed(1)
    letters = {chr(code): code - 33 for code in range(33, 127)} | {"\u0120": 94}
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    vocabulary = letters | {token: 95 + number for number, token in enumerate(special)}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    known = WhisperConfig(
        vocab_size=len(vocabulary), d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_mel_bins=80, max_target_positions=32, init_std=0.5,
        pad_token_id=95, bos_token_id=95, eos_token_id=95, decoder_start_token_id=96,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(known).eval()
    model.generation_config.no_timestamps_token_id = 97
    model.generation_config.is_multilingual = False
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return model


def test_whisper(tmp_path):
    """The uncut model's text; the word error rate of it, from files to accuracy.json."""
    whole = make_whisper(tmp_path / "model")
    source = tmp_path / "whisper" / "asr" / "source"
    for split, count in (("train", 2), ("validation", 1), ("test", 2)):
        names = [f"clips/{split}{number}.wav" for number in range(count)]
        for seed, name in enumerate(names):
            write_wave(source / name, seed)
        (source / f"{split}.txt").write_text("".join(f"{name}\tHello, you.\n" for name in names))
    text = find_machine_config("whisper").read_text()
    for old, new in (("1280", "16"), ("whisper-large-v3", str(tmp_path / "model")),
                     ("  language: en\n", ""), ("float16", "float32")):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    preset = tmp_path / "toy.yaml"
    preset.write_text(text)
    flags = ["--machine", str(preset), "--data_root", str(tmp_path), "--device", "cpu"]
    options = parse_options(WhisperOptions, whisper.PRESET, [*flags, "--tokens", "8"], None)
    machine = WhisperMachine(options)
    sample = machine.samples("test")[0]
    assert (sample.name, sample.label) == ("test0", "Hello, you.")
    feature = machine.extract(sample)
    assert load_machine_facts(preset).mismatch(feature) is None
    made = whole.generate(machine.spectrum(sample), do_sample=False, num_beams=1, max_new_tokens=8)
    wanted = machine.processor.batch_decode(made, skip_special_tokens=True)[0].strip()
    assert machine.predict(sample, feature) == wanted
    with pytest.raises(UserError, match=r"test0: 1499 tokens, the decoder takes 1500"):
        machine.predict(sample, feature[:, :, :-1])
    score = machine.score([sample, sample], ["hello you", "hello me"])
    assert score.value == 0.25
    assert [row["wer"] for row in score.rows] == [0.0, 0.5]
    whisper.main([*flags, "--tokens", "4"])
    judged = files.read_json(source.parent / "accuracy.json")
    assert (judged["metric"], judged["samples"]) == ("wer", 2)


def test_speech_files(tmp_path):
    write_wave(tmp_path / "a.wav", 0, rate=8000)
    assert read_wave(tmp_path / "a.wav", 8000).shape == (4000,)
    with pytest.raises(UserError, match=r"a\.wav: 16 bits at 8000 Hz, expected 16 bits at 16000"):
        read_wave(tmp_path / "a.wav", 16000)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"b\.wav: not a readable WAV file"):
        read_wave(tmp_path / "b.wav", 16000)
    for line, why in (("a.wav", "expected a WAV file"), ("a.wav\tx\na.wav\ty", "a is there twice")):
        (tmp_path / "test.txt").write_text(line)
        with pytest.raises(UserError, match=why):
            Speech(tmp_path, {}, 0).utterances("test")
    with pytest.raises(UserError, match=r"1 lines, counts asks for 2"):
        (tmp_path / "test.txt").write_text("a.wav\tx")
        Speech(tmp_path, {"test": 2}, 0).utterances("test")


@pytest.mark.parametrize("front_steps", [0, 1])
def test_sd35_with_a_controlnet(front_steps, tmp_path, capsys):
    """The pixels of the uncut pipeline of diffusers, whichever half does the first step, of a VAE whose
    latents hardly vary: the pipeline draws the control latent twice, the machine once."""
    torch.manual_seed(0)
    cfg = train_sd3.TrainConfig(output=tmp_path / "model")
    pipeline = sd3_training.build_pipeline(cfg, sd3_training.build_vae())
    last = pipeline.vae.encoder.conv_out  # means, then logarithms of variances
    torch.nn.init.zeros_(last.weight[16:])
    torch.nn.init.constant_(last.bias[16:], -30)
    pipeline.save_pretrained(tmp_path / "model")
    control = SD3ControlNetModel.from_transformer(
        pipeline.transformer, num_layers=1, num_extra_conditioning_channels=0
    )
    torch.nn.init.normal_(control.pos_embed_input.proj.weight, std=0.3)
    for block in control.controlnet_blocks:  # new ones are zero, and do nothing
        torch.nn.init.normal_(block.weight, std=0.3)
    control.save_pretrained(tmp_path / "control")
    tensors = {
        "latent": [1, 16, 4, 4], "prompt": [2, 1, None, None], "pooled": [1, 1, 2, None],
        "control": [1, 16, 4, 4],
    }  # fmt: skip
    preset = write_preset(
        tmp_path, "sd35_controlnet", tensors, checkpoint=str(tmp_path / "model"),
        controlnet=str(tmp_path / "control"), source="world", dtype="float32", side=32, steps=2,
        front_steps=front_steps, guidance=4.0, noise_seed=7, t5_tokens=1, judge="resnet",
        judge_checkpoint="machines/tiny/resnet50", counts={"train": 1, "validation": 1, "test": 1},
    )  # fmt: skip
    preset.write_text(preset.read_text().replace("dtype: float16", "dtype: float32"))
    flags = ["--machine", str(preset), "--data_root", str(tmp_path), "--device", "cpu"]
    machine = ControlMachine(parse_options(ControlOptions, controlnet.PRESET, flags, None))
    folder = tmp_path / "sd35" / "control" / "source" / "control"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for sample in machine.samples(split):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{sample.name}.png")
    sample = machine.samples("test")[0]
    state, _ = check_state(
        machine, preset, sample, least=1e-12
    )  # random weights heed captions little
    whole = StableDiffusion3ControlNetPipeline.from_pretrained(
        tmp_path / "model", controlnet=control, text_encoder_3=None, tokenizer_3=None
    )
    image = whole(
        sample.source[0], negative_prompt="", control_image=machine.control_picture(sample),
        height=32, width=32, num_inference_steps=2, guidance_scale=4.0, max_sequence_length=1,
        generator=torch.Generator().manual_seed(7),
    ).images[0]  # fmt: skip
    found = machine.predict(sample, state).astype(int)
    assert np.abs(found - np.asarray(image)).max() <= 1
    assert found.std() > 5
    with pytest.raises(SystemExit):
        parse_options(ControlOptions, controlnet.PRESET, [*flags, "--front_steps", "2"], None)
    assert "front_steps: expected 0 .. 1, got 2" in capsys.readouterr().err
