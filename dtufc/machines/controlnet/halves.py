"""SD3 with a ControlNet in two halves: the machine of :mod:`dtufc.machines.controlnet.controlnet`."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3ControlNetModel, StableDiffusion3ControlNetPipeline
from PIL import Image
from torch import Tensor

from dtufc.machines.checkpoints import (
    checkpoint_files,
    find_checkpoint,
    loading,
    weights_digest,
)
from dtufc.machines.controlnet.controlnet import ControlOptions
from dtufc.machines.machine import Sample, StateMachine, relative_error
from dtufc.machines.sd3.halves import FRONT_PARTS, DiffusionMachine
from dtufc.machines.sources.lists import read_picture
from dtufc.states import State

CONTROL_HELP = (
    "It is a folder in diffusers' format of an SD3 ControlNet, for example "
    "https://huggingface.co/stabilityai/stable-diffusion-3.5-large-controlnet-canny"
)


class ControlMachine(DiffusionMachine, StateMachine):
    """Captions with control pictures -> what the denoising needs -> pictures."""

    options: ControlOptions

    @property
    def batch_size(self) -> int:
        return 1

    @cached_property
    def control_folder(self) -> Path:
        return find_checkpoint(self.options, self.options.controlnet, CONTROL_HELP)

    @cached_property
    def front(self) -> StableDiffusion3ControlNetPipeline:
        """The pipeline with all of its parts, of which both halves use theirs."""
        options = self.options
        absent: dict[str, None] = {}
        if not options.t5 or not (self.folder / "text_encoder_3").is_dir():
            absent |= {"text_encoder_3": None, "tokenizer_3": None}
        if options.mode == "evaluate":  # the back half needs no captions
            for place in ("", "_2", "_3"):
                absent |= {f"text_encoder{place}": None, f"tokenizer{place}": None}
        with loading(self.control_folder):
            controlnet = SD3ControlNetModel.from_pretrained(
                self.control_folder, torch_dtype=options.torch_dtype, local_files_only=True
            )
        with loading(self.folder):
            pipeline = StableDiffusion3ControlNetPipeline.from_pretrained(
                self.folder, controlnet=controlnet, torch_dtype=options.torch_dtype,
                local_files_only=True, **absent,
            )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(options.torch_device)

    @property
    def back(self) -> AutoencoderKL:
        """Latents -> pictures: the VAE."""
        return self.front.vae

    def origin(self) -> dict[str, Any]:
        keys = ("source", "seed", "side", "steps", "front_steps", "guidance", "scale", "noise_seed",
                "t5", "t5_tokens")  # fmt: skip
        known: dict[str, Any] = {key: getattr(self.options, key) for key in keys}
        known["dtype"] = self.options.origin_dtype
        for part in (*FRONT_PARTS, "vae"):
            known[part] = weights_digest(self.folder / part) if self._has(part) else None
        return known | {"controlnet": weights_digest(self.control_folder)}

    def inputs(self) -> list[Path]:
        return [
            *super().inputs(),
            *checkpoint_files(lambda: self.folder / "transformer"),
            *checkpoint_files(lambda: self.control_folder),
        ]

    def control_picture(self, sample: Sample) -> Image.Image:
        path = self.options.root.source / "control" / f"{sample.name}.png"
        return read_picture(path).convert("RGB")

    @torch.inference_mode()
    def extract(self, sample: Sample) -> dict[str, np.ndarray]:
        options, pipeline = self.options, self.front
        text, place = sample.source
        seed = options.noise_seed + place
        prompt, negative, pooled, negative_pooled = pipeline.encode_prompt(
            prompt=text, prompt_2=None, prompt_3=None, negative_prompt="",
            max_sequence_length=options.t5_tokens, device=options.torch_device,
        )  # fmt: skip
        latent = pipeline.prepare_latents(
            1, pipeline.transformer.config.in_channels, options.side, options.side, prompt.dtype,
            options.torch_device, torch.Generator().manual_seed(seed),
        )  # fmt: skip
        tensors = {
            "latent": latent,
            "prompt": torch.cat([negative, prompt])[:, None],
            "pooled": torch.cat([negative_pooled, pooled])[None, None],
            "control": self._control_latent(sample, seed),
        }
        if options.front_steps:
            tensors["latent"] = self._denoise(tensors, 0, options.front_steps)
        facts = options.facts.tensors
        return {
            name: x.float().cpu().numpy().astype(facts[name].dtype) for name, x in tensors.items()
        }

    def _control_latent(self, sample: Sample, seed: int) -> Tensor:
        """The control picture's latent, (1, 16, side / 8, side / 8), scaled for the ControlNet."""
        options, pipeline = self.options, self.front
        pixels = pipeline.image_processor.preprocess(
            self.control_picture(sample), height=options.side, width=options.side
        ).to(options.torch_device, pipeline.vae.dtype)
        noise = torch.Generator(options.torch_device).manual_seed(seed)
        z = pipeline.vae.encode(pixels).latent_dist.sample(noise)
        # as the pipeline does: ControlNets without pooled vectors take latents without shift
        plain = pipeline.controlnet.config.force_zeros_for_pooled_projection
        shift = 0 if plain else pipeline.vae.config.shift_factor
        return (z - shift) * pipeline.vae.config.scaling_factor

    def _denoise(self, tensors: dict[str, Tensor], first: int, last: int) -> Tensor:
        """The steps first .. last - 1 of the pipeline's loop on a latent -> (1, 16, h, w).

        Args:
            tensors: as :meth:`extract` gives them, on the device.
        """
        options, pipeline = self.options, self.front
        net, scheduler = pipeline.controlnet, pipeline.scheduler
        prompt, pooled = tensors["prompt"][:, 0], tensors["pooled"][0, 0]
        control = torch.cat([tensors["control"]] * 2)
        latent = tensors["latent"]
        plain = net.config.force_zeros_for_pooled_projection
        scheduler.set_timesteps(options.steps, device=options.torch_device)
        scheduler.set_begin_index(first)
        for t in scheduler.timesteps[first:last]:
            both = torch.cat([latent] * 2)
            place = t.expand(2)
            blocks = net(
                hidden_states=both, timestep=place, controlnet_cond=control,
                encoder_hidden_states=None if net.config.joint_attention_dim is None else prompt,
                pooled_projections=torch.zeros_like(pooled) if plain else pooled,
                conditioning_scale=options.scale, return_dict=False,
            )[0]  # fmt: skip
            noise = pipeline.transformer(
                hidden_states=both, timestep=place, encoder_hidden_states=prompt,
                pooled_projections=pooled, block_controlnet_hidden_states=blocks, return_dict=False,
            )[0]  # fmt: skip
            empty, real = noise.chunk(2)
            step = scheduler.step(
                empty + options.guidance * (real - empty), t, latent, return_dict=False
            )
            latent = step[0]
        return latent

    @torch.inference_mode()
    def respond(self, sample: Sample, state: State) -> Tensor:
        """The final latent, (1, 16, side / 8, side / 8)."""
        device, dtype = self.options.torch_device, self.front.transformer.dtype
        tensors = {name: torch.from_numpy(x).to(device, dtype) for name, x in state.items()}
        return self._denoise(tensors, self.options.front_steps, self.options.steps)

    def divergence(self, uncoded: Tensor, coded: Tensor) -> float:
        """Squared error over the power of the final latent."""
        return relative_error(uncoded, coded)

    def extract_batch(self, samples: Sequence[Sample]) -> list[dict[str, np.ndarray]]:
        return [self.extract(sample) for sample in samples]

    def predict_batch(
        self, samples: Sequence[Sample], features: Sequence[State]
    ) -> list[np.ndarray]:
        """Pictures, (side, side, 3) uint8."""
        found = []
        for sample, state in zip(samples, features, strict=True):
            found += list(self.pictures([self.respond(sample, state).float().cpu().numpy()]))
        return found
