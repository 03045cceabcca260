"""Stable Diffusion 3 machine: the cut changes nothing, batches resume, judges, files and errors."""

import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.image_processor import VaeImageProcessor
from scipy.linalg import sqrtm
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from dtufc import files
from dtufc.feature import find_machine_config, load_facts
from dtufc.machines.command import parse_options
from dtufc.machines.machine import Sample
from dtufc.machines.sd3 import judges, sd3
from dtufc.machines.sd3.halves import FRONT_PARTS, DiffusionMachine
from dtufc.machines.sd3.sd3 import DiffusionOptions
from dtufc.machines.tiny import sd3_training, train_sd3, world
from dtufc.paths import PACKAGE

SIDE = 32


def random_pipeline(folder, t5: bool) -> StableDiffusion3Pipeline:
    """A random pipeline of the real classes, saved in diffusers' layout."""
    cfg = train_sd3.TrainConfig(output=folder)
    torch.manual_seed(0)
    pipeline = sd3_training.build_pipeline(cfg, sd3_training.build_vae())
    if t5:
        letters = {chr(c): i for i, c in enumerate(range(32, 127), start=2)} | {"</s>": 0, "?": 1}
        words = Tokenizer(models.WordLevel(letters, unk_token="?"))
        words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        pipeline.register_modules(
            text_encoder_3=T5EncoderModel(
                T5Config(vocab_size=100, d_model=2 * sd3_training.TEXT_WIDTH, d_kv=8, d_ff=32,
                         num_layers=1, num_heads=2)
            ),
            tokenizer_3=PreTrainedTokenizerFast(
                tokenizer_object=words, pad_token="</s>", eos_token="</s>", model_max_length=256
            ),
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    return pipeline


@pytest.fixture(scope="module", params=[False, True], ids=["without T5", "with T5"])
def pipeline_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    random_pipeline(folder, request.param)
    return folder


def options_of(folder, root, *argv):
    flags = ["--checkpoint", str(folder), "--data_root", str(root), "--device", "cpu"]
    flags += ["--side", str(SIDE), "--steps", "2", "--batch", "3", "--noise_seed", "7", *argv]
    return parse_options(DiffusionOptions, sd3.PRESET, flags, None)


def test_the_cut_changes_nothing(pipeline_folder, tmp_path):
    """The same pixels as the uncut pipeline of diffusers, at the same batch size."""
    has_t5 = (pipeline_folder / "text_encoder_3").is_dir()
    absent = {} if has_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    whole = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, dtype=torch.float32, **absent)
    machine = DiffusionMachine(options_of(pipeline_folder, tmp_path, "--t5_tokens", "19"))
    assert machine.front.vae is None
    assert (machine.front.text_encoder_3 is not None) == has_t5
    samples = machine.samples("test")[:3]
    features = machine.extract_batch(samples)
    assert {feature.shape for feature in features} == {(1, 16, SIDE // 8, SIDE // 8)}
    pictures = machine.predict_batch(samples, features)
    images = whole(
        [sample.source[0] for sample in samples], negative_prompt=[""] * 3,
        height=SIDE, width=SIDE, num_inference_steps=2, guidance_scale=4.0,
        max_sequence_length=19, generator=[torch.Generator().manual_seed(7 + i) for i in range(3)],
    ).images  # fmt: skip
    for picture, image in zip(pictures, images, strict=True):
        assert np.array_equal(picture, np.asarray(image))
    assert len({picture.tobytes() for picture in pictures}) == 3  # each has noise of its own


def test_the_back_half_needs_the_vae_alone(pipeline_folder, tmp_path):
    machine = DiffusionMachine(options_of(pipeline_folder, tmp_path))
    samples = machine.samples("test")[:3]
    features = machine.extract_batch(samples)
    alone = tmp_path / "alone"
    shutil.copytree(pipeline_folder / "vae", alone / "vae")
    receiver = DiffusionMachine(options_of(alone, tmp_path))
    for ours, theirs in zip(
        machine.predict_batch(samples, features),
        receiver.predict_batch(samples, features),
        strict=True,
    ):
        assert np.array_equal(ours, theirs)
    with pytest.raises(FileNotFoundError, match=r"model_index\.json: missing\. It is a folder"):
        receiver.extract_batch(samples)
    # what is not at hand is not told, and so does not contradict what made the features
    origin = receiver.origin()
    assert [origin[part] for part in FRONT_PARTS] == [None] * 4


def test_the_third_encoder_can_be_left_out(tmp_path):
    folder = tmp_path / "with"
    random_pipeline(folder, True)
    machine = DiffusionMachine(options_of(folder, tmp_path, "--t5", "false"))
    assert machine.front.text_encoder_3 is None
    assert machine.extract(machine.samples("test")[0]).shape == (1, 16, SIDE // 8, SIDE // 8)


def test_pictures_are_the_pipelines(tmp_path):
    """uint8 pictures are what the processor's PIL images hold, to the last level."""
    random_pipeline(tmp_path / "p", False)
    machine = DiffusionMachine(options_of(tmp_path / "p", tmp_path))
    z = np.random.default_rng(0).normal(size=(4, 16, 4, 4)).astype(np.float32)
    pictures = machine.pictures(list(z[:, None]))
    vae = machine.back
    with torch.inference_mode():
        latent = torch.from_numpy(z) / vae.config.scaling_factor + vae.config.shift_factor
        images = VaeImageProcessor(8).postprocess(vae.decode(latent).sample, output_type="pil")
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(pictures, images, strict=True))


def test_batches_resume(tmp_path):
    """Extraction mends one missing feature with the same bytes: its batch is computed as before."""
    preset = tmp_path / "mine.yaml"
    text = find_machine_config("sd3_tiny").read_text()
    preset.write_text(text.replace("[1, 16, 14, 14]", "[1, 16, 4, 4]"))
    random_pipeline(tmp_path / "p", False)
    argv = ["--machine", str(preset), "--checkpoint", str(tmp_path / "p"), "--batch", "3"]
    argv += ["--data_root", str(tmp_path), "--side", str(SIDE), "--steps", "1", "--device", "cpu"]
    argv += ["--counts", "{train: 4, validation: 1, test: 5}"]
    sd3.main([*argv, "--save_predictions", "true"])
    root = tmp_path / "sd3_tiny" / "tti"
    paths = sorted((root / "feature_test").glob("*.npy"))
    whole = [path.read_bytes() for path in paths]
    assert len(set(whole)) == 5
    paths[1].unlink()
    paths[4].unlink()
    sd3.main([*argv, "--mode", "extract"])
    assert [path.read_bytes() for path in paths] == whole
    accuracy = files.read_json(root / "accuracy.json")
    assert accuracy["metric"] == "caption_accuracy"
    assert accuracy["others"]["fid"] == pytest.approx(0, abs=1e-3)
    assert len(list((root / "predictions").glob("*.png"))) == 5
    coded = tmp_path / "coded" / "decoded"
    coded.mkdir(parents=True)
    for path in paths:
        np.save(coded / path.name, np.load(path) * 0.3)
    sd3.main([*argv, "--mode", "evaluate", "--features", str(coded), str(root / "feature_test")])
    assert files.read_json(tmp_path / "coded" / "accuracy.json")["others"]["fid"] > 0.01
    assert files.read_json(root / "accuracy.json")["others"]["fid"] == pytest.approx(0, abs=1e-3)
    paths[2].unlink()
    with pytest.raises(SystemExit, match=r"00002\.npy: missing; the FID compares with"):
        sd3.main([*argv, "--mode", "evaluate", "--features", str(coded)])
    sd3.main([*argv, "--mode", "evaluate", "--features", str(coded), "--fid", "false"])
    assert files.read_json(tmp_path / "coded" / "accuracy.json")["others"] == {}


def test_origin_tells_the_dtype_that_is_computed_in(tmp_path):
    """A CPU computes in float32 whatever is asked for, so its latents never mix with a GPU's."""
    preset = tmp_path / "mine.yaml"
    text = find_machine_config("sd3_tiny").read_text()
    preset.write_text(text.replace("[1, 16, 14, 14]", "[1, 16, 4, 4]"))
    random_pipeline(tmp_path / "p", False)
    argv = ["--machine", str(preset), "--checkpoint", str(tmp_path / "p"), "--batch", "1"]
    argv += ["--data_root", str(tmp_path), "--side", str(SIDE), "--steps", "1", "--device", "cpu"]
    argv += ["--counts", "{train: 1, validation: 1, test: 1}", "--fid", "false"]
    half = [*argv, "--dtype", "float16"]
    sd3.main([*half, "--mode", "extract"])
    path = tmp_path / "sd3_tiny" / "tti" / "origin.json"
    origin = files.read_json(path)
    assert origin["dtype"] == "float32"
    sd3.main(argv)  # asked for float32, which is what was computed in
    files.write_json(path, origin | {"dtype": "float16"})  # as a GPU writes it
    for mode in ("extract", "both"):
        with pytest.raises(SystemExit, match="made with dtype float16, not float32"):
            sd3.main([*half, "--mode", mode])
    sd3.main([*half, "--mode", "evaluate"])  # the VAE alone may run on another device
    with pytest.raises(SystemExit, match="made with dtype float16, not float32"):
        sd3.main([*argv, "--mode", "evaluate"])


def test_fid_is_the_frechet_distance(tmp_path):
    """Against its definition, in the features of the tiny ResNet."""
    options = parse_options(DiffusionOptions, sd3.PRESET, ["--device", "cpu"], None)
    network = judges.ResNetJudge(options).network
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (300, 112, 112, 3), dtype=np.uint8) // 2
    b = rng.integers(0, 256, (300, 112, 112, 3), dtype=np.uint8)
    distance = judges.Distance(network, options)
    distance.add_reference(a)
    stats = []
    for pictures in (a, b):
        with torch.inference_mode():
            x = network(torch.from_numpy(pictures).permute(0, 3, 1, 2)).double().numpy()
        stats.append((x.mean(0), np.cov(x.T)))
    (mean_a, cov_a), (mean_b, cov_b) = stats
    root = sqrtm(cov_a @ cov_b).real
    wanted = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    for pictures, value in ((b, wanted), (a, 0.0), (b, wanted)):  # the reference stays
        distance.add(pictures)
        assert distance.value() == pytest.approx(value, rel=1e-3, abs=1e-3 * wanted)


def test_clip_score(tmp_path):
    """100 times the cosine, of a random CLIP saved in transformers' format."""
    folder = tmp_path / "clip"
    tokenizer = sd3_training.build_tokenizer(["a red square", "a blue disk"])
    torch.manual_seed(2)
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2,
            "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 16}  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    size = {"shortest_edge": 32}
    images = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(images, tokenizer)
    processor.save_pretrained(folder)
    options = options_of("none", tmp_path, "--judge", "clip", "--judge_checkpoint", str(folder))
    judge = judges.ClipJudge(options)
    rng, scores = np.random.default_rng(0), []
    for caption in ("a red square", "a blue disk a red square " * 20, "blue", "square disk") * 2:
        picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        sample = Sample("x", (caption, 0), caption)
        scores.append(judge.row(sample, picture)["clip_score"])
        inputs = processor(text=[caption], images=[picture], return_tensors="pt", truncation=True)
        with torch.inference_mode():
            out = model.eval()(**inputs)
        wanted = 100 * (out.image_embeds * out.text_embeds).sum().item()
        assert scores[-1] == pytest.approx(max(0, wanted), abs=1e-3)
    assert len(set(scores) - {0.0}) > 1


@pytest.mark.slow
def test_tiny_checkpoint_follows_captions(tmp_path):
    """200 pictures show the shape and, at the edge, the background that their captions name."""
    flags = ["--counts", "{test: 200}", "--data_root", str(tmp_path), "--device", "cpu"]
    flags += ["--fid", "false"]
    machine = DiffusionMachine(parse_options(DiffusionOptions, sd3.PRESET, flags, None))
    samples, pictures = machine.samples("test"), []
    for first in range(0, len(samples), machine.batch_size):
        batch = samples[first : first + machine.batch_size]
        features = machine.extract_batch(batch)
        assert load_facts("sd3_tiny").mismatch(features[0]) is None
        pictures += machine.predict_batch(batch, features)
    recorded = files.read_json(machine.folder / "training.json")["caption_accuracy"]
    assert machine.score(samples, pictures).value == pytest.approx(recorded, abs=0.05)
    assert recorded >= 0.85
    colours = np.array(list(world.PALETTE.values()), float)
    right = 0
    for sample, picture in zip(samples, pictures, strict=True):
        edge = np.concatenate([picture[:6].reshape(-1, 3), picture[-6:].reshape(-1, 3)])
        nearest = np.abs(colours - np.median(edge, axis=0)).sum(1).argmin()
        ground = re.search(r"of a (\w+) picture", sample.source[0]).group(1)
        right += list(world.PALETTE)[nearest] == ground
    assert right >= 0.95 * len(samples)


def test_tiny_checkpoints_are_small():
    """At most 12 MiB, all four together."""
    stored = (PACKAGE / "machines" / "tiny").rglob("*")
    files_of = [path for path in stored if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert sum(path.stat().st_size for path in files_of) < 12 * 2**20


def test_paper_preset_names_what_is_missing(tmp_path):
    options = parse_options(DiffusionOptions, sd3.PRESET, ["--machine", "sd3"], None)
    assert (options.side, options.steps, options.guidance, options.noise_seed) == (
        1024,
        28,
        7,
        3407,
    )
    assert (options.batch, options.dtype, load_facts("sd3").dtype) == (16, "float16", "float16")
    argv = ["--machine", "sd3", "--data_root", str(tmp_path), "--device", "cpu"]
    root = tmp_path / "sd3" / "tti"
    with pytest.raises(SystemExit, match=r"train\.txt: missing.*scripts/prepare_coco\.py"):
        sd3.main(argv)
    (root / "source").mkdir(parents=True)
    for text, message in (
        ("000000000139\n", r"train\.txt:1: expected 'id caption'"),
        ("1 a\n1 b\n", r"train\.txt:2: expected 'id caption', each id once"),
    ):
        (root / "source" / "train.txt").write_text(text)
        with pytest.raises(SystemExit, match=message):
            sd3.main(argv)
    for split in ("train", "validation", "test"):
        (root / "source" / f"{split}.txt").write_text(
            "000000000139 A living room — with  a table.\n"
        )
    samples = DiffusionMachine(parse_options(DiffusionOptions, sd3.PRESET, argv, None)).samples(
        "test"
    )
    assert samples[0].source == ("A living room — with  a table.", 0)
    with pytest.raises(
        SystemExit, match=r"put it at .*pretrained_head/stable-diffusion-3-medium-di"
    ):
        sd3.main(argv)
    (root / "pretrained_head" / "stable-diffusion-3-medium-diffusers").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"model_index\.json: missing"):
        sd3.main(argv)
    random_pipeline(root / "pretrained_head" / "stable-diffusion-3-medium-diffusers", False)
    small = ["--side", "32", "--steps", "1", "--machine", str(tmp_path / "sd3.yaml")]
    text = find_machine_config("sd3").read_text().replace("128, 128", "4, 4")
    (tmp_path / "sd3.yaml").write_text(text)
    sd3.main([*argv[2:], *small, "--mode", "extract"])
    feature = np.load(root / "feature_test" / "000000000139.npy")
    assert (feature.dtype, feature.shape) == (np.float16, (1, 16, 4, 4))
    evaluate = [*argv[2:], *small, "--mode", "evaluate"]
    with pytest.raises(SystemExit, match=r"put it at .*clip-vit-base-patch16\. It is a folder"):
        sd3.main(evaluate)


def test_inception_file_is_named(tmp_path):
    options = options_of("none", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"pt_inception-2015-12-05-6726825d\.pth\. It is https"
    ):
        judges.inception_distance(options)


@pytest.mark.slow
def test_training_script(tmp_path, capsys):
    """A few steps of both stages of the training that made the tiny checkpoint."""
    flags = ["--vae_steps", "2", "--vae_batch_size", "2", "--pictures", "8", "--steps", "2"]
    flags += ["--text_steps", "2"]
    flags += ["--batch_size", "4", "--held_out", "2", "--output", str(tmp_path)]
    train_sd3.main(flags)
    assert "caption accuracy on 2 held-out captions" in capsys.readouterr().out
    record = files.read_json(tmp_path / "training.json")
    assert (record["vae_steps"], record["steps"]) == (2, 2)


def test_denoiser_is_the_pipelines_way(tmp_path):
    """What is trained sees captions as the pipeline does."""
    pipeline = random_pipeline(tmp_path, False)
    captions = ["a red square", "a striped blue disk"]
    kinds = (pipeline.tokenizer, pipeline.tokenizer_2)
    ids = [sd3_training.tokens(tokenizer, captions) for tokenizer in kinds]
    z, t = torch.randn(2, 16, 14, 14), torch.tensor([400.0, 700.0])
    with torch.inference_mode():
        ours = sd3_training.Denoiser(pipeline).eval()(ids, z, t)
        text, _, pooled, _ = pipeline.encode_prompt(
            captions, captions, captions, do_classifier_free_guidance=False,
            max_sequence_length=1,
        )  # fmt: skip
        theirs = pipeline.transformer(z, text, pooled, t, return_dict=False)[0]
    assert torch.equal(ours, theirs)
