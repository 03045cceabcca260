"""The work of ``bench_machines.py``."""

import json
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from bench_machines import BenchConfig
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
)

from dtufc.feature import load_facts
from dtufc.machines.command import parse_options
from dtufc.machines.dinov2.backbone import JOINED, RENAMED
from dtufc.machines.dinov2.seg import SegOptions
from dtufc.machines.dinov2.segmentation import LinearHead, SegMachine
from dtufc.machines.llama3.halves import LlamaMachine
from dtufc.machines.llama3.llama3 import LlamaOptions
from dtufc.machines.machine import Machine
from dtufc.machines.sd3.halves import DiffusionMachine
from dtufc.machines.sd3.sd3 import DiffusionOptions
from dtufc.machines.tiny import llama3_training, sd3_training
from dtufc.paths import DataRoot


def randomise(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give a model without memory (device meta) small random weights."""
    model = model.to(dtype).to_empty(device="cpu")
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02, generator=rng)
            else:
                parameter.fill_(0.1)
        for buffer in model.buffers():
            buffer.zero_()
    return model


def build_llama3(root: Path) -> None:
    """LLaMA3-8B (Meta-Llama-3-8B's config.json), its tokenizer replaced by the embedded one's kind."""
    folder = root / "pretrained_head" / "Meta-Llama-3-8B-Instruct"
    known = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, rms_norm_eps=1e-5,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(known)
    randomise(model, torch.bfloat16).save_pretrained(folder)
    texts = [text for text, _ in llama3_training.draw(0, 300, 0)]
    llama3_training.build_tokenizer(texts).save_pretrained(folder)
    (root / "source").mkdir()
    choices = [{"text": f"a longer answer about number {i}", "label": str(i)} for i in range(1, 5)]
    row = {"id": "Q", "question": {"stem": "Why? " * 30, "choices": choices}, "answerKey": "2"}
    (root / "source" / "arc_challenge_test.jsonl").write_text(json.dumps(row))
    (root / "source" / "test.txt").write_text("Q\n")


def build_dinov2(root: Path) -> None:
    """ViT-g/14 under Meta's names and a linear head."""
    known = Dinov2Config(
        hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, mlp_ratio=4,
        use_swiglu_ffn=True, image_size=518, patch_size=14,
    )  # fmt: skip
    with torch.device("meta"):
        model = Dinov2Model(known)
    weights = randomise(model, torch.float32).state_dict()
    state: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        theirs = name
        for ours, meta in RENAMED:
            theirs = theirs.replace(ours, meta)
        parts = theirs.split(".")
        if len(parts) > 1 and parts[-2] in JOINED:
            joined, index, _ = JOINED[parts[-2]]
            theirs = ".".join([*parts[:2], joined, parts[-1]])
            value = value if index == 0 else torch.cat([state[theirs], value])
        state[theirs] = value
    (root / "pretrained_head").mkdir(parents=True)
    torch.save(state, root / "pretrained_head" / "dinov2_vitg14_pretrain.pth")
    head = {f"decode_head.{k}": v for k, v in LinearHead(1536, 21).state_dict().items()}
    path = root / "pretrained_head" / "dinov2_vitg14_voc2012_linear_head.pth"
    torch.save({"state_dict": head}, path)
    voc = root / "source" / "VOC2012"
    for folder, name, shape in (("JPEGImages", "x.jpg", (375, 500, 3)),
                                ("SegmentationClass", "x.png", (375, 500))):  # fmt: skip
        (voc / folder).mkdir(parents=True)
        Image.fromarray(np.zeros(shape, np.uint8)).save(voc / folder / name)
    (root / "source" / "test.txt").write_text("x\n")


def build_sd3(root: Path) -> None:
    """SD3-medium without its third text encoder (the configs of its folders)."""
    folder = root / "pretrained_head" / "stable-diffusion-3-medium-diffusers"
    tokenizers = [sd3_training.build_tokenizer(["a photo of a room"]) for _ in range(2)]
    for tokenizer in tokenizers:
        tokenizer.model_max_length = 77
    ids = {"vocab_size": 49408, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    with torch.device("meta"):
        parts = {
            "transformer": SD3Transformer2DModel(
                sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24,
                joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
                pos_embed_max_size=192, out_channels=16,
            ),
            "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                num_attention_heads=12, projection_dim=768, **ids,
            )),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(
                hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
                num_attention_heads=20, projection_dim=1280, hidden_act="gelu", **ids,
            )),
            "vae": AutoencoderKL(
                latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 4, sample_size=1024,
                up_block_types=("UpDecoderBlock2D",) * 4, use_quant_conv=False,
                use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609,
            ),
        }  # fmt: skip
    parts = {name: randomise(part, torch.float16) for name, part in parts.items()}
    StableDiffusion3Pipeline(
        **parts, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], text_encoder_3=None, tokenizer_3=None,
    ).save_pretrained(folder)  # fmt: skip
    (root / "source").mkdir()
    (root / "source" / "test.txt").write_text("1 A room with a table and two chairs by a window.\n")


BUILD = {
    "llama3": (build_llama3, LlamaMachine, LlamaOptions),
    "dinov2": (build_dinov2, SegMachine, SegOptions),
    "sd3": (build_sd3, DiffusionMachine, DiffusionOptions),
}


def peak_gib(device: torch.device) -> float:
    """The most memory taken so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def open_machine(cfg: BenchConfig, folder: str) -> Machine:
    _, machine_class, options_class = BUILD[cfg.machine]
    argv = ["--machine", cfg.machine, "--data_root", folder, "--device", cfg.device, *cfg.flags]
    return machine_class(parse_options(options_class, cfg.machine, argv, None))


def build(cfg: BenchConfig, folder: str) -> None:
    facts = load_facts(cfg.machine)
    BUILD[cfg.machine][0](DataRoot(Path(folder)).feature(facts.model, facts.task).folder)


def run_half(cfg: BenchConfig, folder: str, feature: np.ndarray | None) -> np.ndarray | None:
    """Load and run one half, the front where no feature is given; print what it took."""
    machine = open_machine(cfg, folder)
    sample = machine.samples("test")[0]
    start = time.time()
    half = machine.front if feature is None else machine.back
    loaded = time.time() - start
    start = time.time()
    made = machine.extract(sample) if feature is None else feature
    if feature is not None:
        machine.predict(sample, feature)
    device = machine.options.torch_device
    print(
        f"{cfg.machine} {'extract' if feature is None else 'predict'} ({type(half).__name__}) on "
        f"{device}: load {loaded:.1f} s, run {time.time() - start:.1f} s, "
        f"peak {peak_gib(device):.1f} GiB, feature {'x'.join(map(str, made.shape))}",
        flush=True,
    )
    return made


def bench(cfg: BenchConfig) -> None:
    """Each step in a process of its own, so that each peak is its own."""
    fresh = {"mp_context": get_context("spawn"), "max_tasks_per_child": 1}
    with (
        tempfile.TemporaryDirectory(dir=cfg.folder) as folder,
        ProcessPoolExecutor(1, **fresh) as pool,
    ):
        pool.submit(build, cfg, folder).result()
        feature = pool.submit(run_half, cfg, folder, None).result()
        pool.submit(run_half, cfg, folder, feature).result()
