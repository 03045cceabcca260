"""The training of the tiny Stable Diffusion 3: the work of :mod:`dtufc.machines.tiny.train_sd3`."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from dtufc import files
from dtufc.devices import fast_bf16
from dtufc.machines.command import parse_options
from dtufc.machines.sd3.halves import DiffusionMachine
from dtufc.machines.sd3.sd3 import PRESET, DiffusionOptions
from dtufc.machines.tiny import world
from dtufc.machines.tiny.train_sd3 import TrainConfig
from dtufc.machines.tiny.training import Descent, Teacher, draw_ahead, scenes

SIDE, CROP = 112, 56
TOKENS = 13  # the titles' 11 words, start and end
TEXT_WIDTH = 64
SHIFT = 2.0  # towards noisier times, where shapes are decided
BF16 = fast_bf16("cpu")


def clean(scene: world.Scene) -> world.Scene:
    """The scene under even light, without noise and blotches: what the pictures are to look like."""
    return replace(scene, noise=0.0, blotches=0.0, light=(0.0, 0.0))


def draw(cfg: TrainConfig, easier: Callable[[world.Scene], world.Scene], step: int) -> np.ndarray:
    """The pictures of a step of the VAE, made easier, (B, 112, 112, 3) uint8."""
    some = scenes(cfg.seed, step * cfg.vae_batch_size, cfg.vae_batch_size, "network")
    return np.stack([world.render(easier(s), SIDE, SIDE).rgb for s in some])


def draw_crops(cfg: TrainConfig, step: int) -> np.ndarray:
    """A random crop of each picture of a step, (B, 56, 56, 3) uint8."""
    rng = np.random.default_rng([cfg.seed, step])
    pictures = draw(cfg, clean, step)
    corners = rng.integers(0, SIDE - CROP + 1, size=(len(pictures), 2))
    windows = zip(pictures, corners, strict=True)
    return np.stack([picture[y : y + CROP, x : x + CROP] for picture, (y, x) in windows])


def to_input(pictures: np.ndarray) -> Tensor:
    """uint8 pictures (B, H, W, 3) -> (B, 3, H, W) float32 in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def build_vae() -> AutoencoderKL:
    """(B, 3, 112, 112) <-> (B, 16, 14, 14), randomly initialised."""
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(24, 32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=SIDE,
        scaling_factor=1.0,  # both are measured after the training
        shift_factor=0.0,
    )


def distance(teacher: Teacher, x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared distance of pictures (B, 3, H, W) in -1..1 in the stages of the tiny ResNet."""
    ours, theirs = (teacher(picture / 2 + 0.5) for picture in (x_hat, x))
    terms = [
        nn.functional.mse_loss(a.float(), b.float()) / b.float().var()
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(terms).mean()


def train_vae(cfg: TrainConfig) -> AutoencoderKL:
    """Train the VAE; its scaling and shift make the latents zero-mean, unit-variance."""
    torch.manual_seed(cfg.seed)
    vae = build_vae()
    teacher = Teacher()
    optimizer = torch.optim.AdamW(vae.parameters(), cfg.vae_learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, cfg.vae_learning_rate, total_steps=cfg.vae_steps, pct_start=0.1
    )
    for step, pictures, bar in draw_ahead(partial(draw_crops, cfg), cfg.vae_steps, cfg.workers):
        x = to_input(pictures)
        with torch.autocast("cpu", torch.bfloat16, BF16):
            posterior = vae.encode(x).latent_dist
            x_hat = vae.decode(posterior.sample()).sample
            look = distance(teacher, x, x_hat)
        l1 = nn.functional.l1_loss(x_hat.float(), x)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = l1 + 0.1 * look + 1e-3 * kl
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix_str(f"L1 {l1.item():.4f} ResNet {look.item():.4f} KL {kl.item():.2f}")
    vae = vae.eval().half().float()  # as it will be stored
    z = torch.cat([encode(vae, draw(cfg, clean, step)) for step in range(16)])
    vae.register_to_config(
        scaling_factor=round(1 / z.std().item(), 4), shift_factor=round(z.mean().item(), 4)
    )
    return vae


@torch.inference_mode()
def encode(vae: AutoencoderKL, pictures: np.ndarray) -> Tensor:
    """Pictures -> means of their latents as the VAE gives them, (B, 16, 14, 14) float32."""
    with torch.autocast("cpu", torch.bfloat16, BF16):
        return vae.encode(to_input(pictures)).latent_dist.mean.float()


def build_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's format, trained on captions."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=1024,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    with TemporaryDirectory() as folder:  # CLIPTokenizer's way in is a pair of files
        return CLIPTokenizer(*bpe.model.save(folder), model_max_length=TOKENS)


def tokens(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Captions as the pipeline gives them to a text encoder, (B, TOKENS)."""
    padding = {"padding": "max_length", "max_length": TOKENS}
    return tokenizer(list(captions), **padding, return_tensors="pt").input_ids


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A CLIP text encoder, randomly initialised."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_pipeline(cfg: TrainConfig, vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """The whole pipeline with a trained VAE, the rest randomly initialised."""
    captions = [world.title(s) for s in scenes(cfg.seed, 0, 4000, "network")]
    tokenizers = [build_tokenizer(captions) for _ in range(2)]
    torch.manual_seed(cfg.seed)
    first, second = (build_text_encoder(tokenizer) for tokenizer in tokenizers)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=SIDE // 16,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=first,
        tokenizer=tokenizers[0],
        text_encoder_2=second,
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )


class Denoiser(nn.Module):
    """What is trained together: captions and noisy latents -> velocity."""

    def __init__(self, pipeline: StableDiffusion3Pipeline):
        super().__init__()
        self.transformer = pipeline.transformer
        self.text_encoder, self.text_encoder_2 = pipeline.text_encoder, pipeline.text_encoder_2

    def forward(self, ids: Sequence[Tensor], z: Tensor, timestep: Tensor) -> Tensor:
        """The pipeline's own way from tokens to velocity, for both encoders' ids (B, TOKENS)."""
        hidden, pooled = [], []
        for encoder, some in zip((self.text_encoder, self.text_encoder_2), ids, strict=True):
            out = encoder(some, output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        text = torch.cat(hidden, dim=-1)  # (B, TOKENS, 2 TEXT_WIDTH)
        text = torch.cat([text, torch.zeros_like(text[:, :1])], dim=1)  # where T5 would stand
        return self.transformer(
            hidden_states=z,
            timestep=timestep,
            encoder_hidden_states=text,
            pooled_projections=torch.cat(pooled, dim=-1),
            return_dict=False,
        )[0]


def teach_words(
    encoder: CLIPTextModelWithProjection, ids: Tensor, facts: Tensor, steps: int
) -> None:
    """Train a text encoder so that its embedding tells the facts of the caption linearly.

    Args:
        ids: tokens of captions, (N, TOKENS).
        facts: what they say, (N, K), each column a number from 0.
    """
    counts = (1 + facts.amax(0)).tolist()
    readings = nn.ModuleList(nn.Linear(TEXT_WIDTH, count) for count in counts)
    learner = nn.ModuleList([encoder, readings]).train()
    optimizer = torch.optim.AdamW(learner.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        some = torch.arange(64 * step, 64 * (step + 1)) % len(ids)
        embedding = encoder(ids[some]).text_embeds
        loss = sum(
            nn.functional.cross_entropy(reading(embedding), facts[some, column])
            for column, reading in enumerate(readings)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def told(scene: world.Scene) -> tuple[int, ...]:
    """What a title says, in numbers."""
    colours = list(world.PALETTE)
    return (
        world.label(scene),
        world.PLACES.index(world.place(scene.main)),
        colours.index(scene.main.paint.colour),
        colours.index(scene.background.colour),
    )


def train_denoiser(cfg: TrainConfig, pipeline: StableDiffusion3Pipeline) -> None:
    """Train MMDiT and text encoders; the pipeline ends with the mean of the last weights."""
    scale, shift = pipeline.vae.config.scaling_factor, pipeline.vae.config.shift_factor
    batches = cfg.pictures // cfg.vae_batch_size
    latents = torch.cat(
        [
            (encode(pipeline.vae, pictures) - shift) * scale
            for _, pictures, _ in draw_ahead(partial(draw, cfg, world.plain), batches, cfg.workers)
        ]
    )
    known = scenes(cfg.seed, 0, len(latents), "network")
    facts = torch.tensor([told(scene) for scene in known])
    captions = ["", *map(world.title, known)]
    ids = [tokens(kind, captions) for kind in (pipeline.tokenizer, pipeline.tokenizer_2)]
    denoiser = Denoiser(pipeline).train()
    if cfg.start is None:
        teach_words(denoiser.text_encoder, ids[0][1:], facts, cfg.text_steps)
        teach_words(denoiser.text_encoder_2, ids[1][1:], facts, cfg.text_steps)
    mean = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    blocks = denoiser.transformer.transformer_blocks
    descent = Descent(denoiser, blocks, cfg.learning_rate, cfg.steps)
    draws = torch.Generator().manual_seed(cfg.seed)
    average = math.nan
    bar = tqdm(range(cfg.steps), desc="denoiser", unit="step", file=sys.stdout, mininterval=5)
    for step in bar:
        chosen = torch.randint(len(latents), (cfg.batch_size,), generator=draws)
        z = latents[chosen]
        empty = torch.rand(cfg.batch_size, generator=draws) < 0.1
        line = torch.where(empty, 0, chosen + 1)  # line 0 of ids is the empty caption
        sigma = torch.sigmoid(torch.randn(cfg.batch_size, generator=draws))
        sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)  # the times that the scheduler takes
        noise = torch.randn(z.shape, generator=draws)
        mixed = torch.lerp(z, noise, sigma[:, None, None, None])
        velocity = denoiser([each[line] for each in ids], mixed, 1000 * sigma)
        loss = nn.functional.mse_loss(velocity, noise - z)
        descent.step(loss)
        mean.update_parameters(denoiser)
        average = loss.item() if math.isnan(average) else 0.99 * average + 0.01 * loss.item()
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {average:.4f}")
    denoiser.load_state_dict(mean.module.state_dict())
    denoiser.eval()


def train(cfg: TrainConfig) -> float:
    """Both stages, written as float16 in diffusers' layout -> caption accuracy on held-out captions."""
    start = time.time()
    if cfg.start is not None:
        pipeline = StableDiffusion3Pipeline.from_pretrained(
            cfg.start, dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
        )
    else:
        folder = cfg.output / "vae"
        if cfg.vae_steps > 0:
            train_vae(cfg).half().save_pretrained(folder)
        vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32).eval()
        pipeline = build_pipeline(cfg, vae)
    train_denoiser(cfg, pipeline)
    pipeline.to(torch.float16)
    pipeline.save_pretrained(cfg.output)
    seconds = time.time() - start
    accuracy = evaluate(cfg)
    files.write_json(
        cfg.output / "training.json",
        {"vae_steps": 0 if cfg.start else cfg.vae_steps, "steps": cfg.steps,
         "batch_size": cfg.batch_size, "pictures": cfg.pictures, "seed": cfg.seed,
         "seconds": round(seconds), "held_out": cfg.held_out, "caption_accuracy": accuracy,
         "start": cfg.start and files.read_json(cfg.start / "training.json")},
    )  # fmt: skip
    return accuracy


def evaluate(cfg: TrainConfig) -> float:
    """Share of held-out captions whose picture shows the shape they name, through the machine."""
    argv = ["--checkpoint", str(cfg.output), "--counts", f"{{test: {cfg.held_out}}}"]
    argv += ["--seed", str(cfg.seed), "--device", "cpu", "--fid", "false"]
    machine = DiffusionMachine(parse_options(DiffusionOptions, PRESET, argv, None))
    samples, pictures = machine.samples("test"), []
    for first in range(0, len(samples), machine.batch_size):
        batch = samples[first : first + machine.batch_size]
        pictures += machine.predict_batch(batch, machine.extract_batch(batch))
    return machine.score(samples, pictures).value
