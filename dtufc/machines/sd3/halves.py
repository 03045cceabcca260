"""Stable Diffusion 3 in two halves: the machine of :mod:`dtufc.machines.sd3.sd3`."""

import contextlib
from collections.abc import Hashable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from diffusers.image_processor import VaeImageProcessor

from dtufc.feature import FeatureError, read_feature
from dtufc.machines.checkpoints import checkpoint_files, find_folder, loading, weights_digest
from dtufc.machines.machine import Machine, Sample, Score, Split
from dtufc.machines.sd3.judges import (
    ClipJudge,
    Distance,
    Judge,
    ResNetJudge,
    find_inception,
    inception_distance,
)
from dtufc.machines.sd3.sd3 import DiffusionOptions
from dtufc.machines.sources.source import Captions

HELP = (
    "It is a folder in diffusers' format of "
    "https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers; the back half needs its "
    "vae alone; --hub ID downloads one"
)
FRONT_PARTS = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


class DiffusionMachine(Machine):
    """A Stable Diffusion 3 in two halves; each loads its own parts when it is first used."""

    def __init__(self, options: DiffusionOptions):
        self.options = options

    @cached_property
    def source(self) -> Captions:
        return self.options.open_source()

    @property
    def batch_size(self) -> int:
        return self.options.batch

    @cached_property
    def folder(self) -> Path:
        if self.options.mode == "evaluate":
            return find_folder(self.options, HELP, "vae/*")
        return find_folder(self.options, HELP)

    @cached_property
    def front(self) -> StableDiffusion3Pipeline:
        """Captions -> latents: the pipeline without its VAE."""
        options = self.options
        absent: dict[str, None] = {"vae": None}
        if not options.t5 or not (self.folder / "text_encoder_3").is_dir():
            absent |= {"text_encoder_3": None, "tokenizer_3": None}
        if not (self.folder / "model_index.json").is_file():
            raise FileNotFoundError(f"{self.folder / 'model_index.json'}: missing. {HELP}")
        with loading(self.folder):
            pipeline = StableDiffusion3Pipeline.from_pretrained(
                self.folder, dtype=options.torch_dtype, local_files_only=True, **absent
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(options.torch_device)

    @cached_property
    def back(self) -> AutoencoderKL:
        """Latents -> pictures: the VAE."""
        folder = self.folder / "vae"
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: missing. {HELP}")
        with loading(folder):
            vae = AutoencoderKL.from_pretrained(
                folder, dtype=self.options.torch_dtype, local_files_only=True
            )
        return vae.eval().to(self.options.torch_device)

    def samples(self, split: Split) -> list[Sample]:
        """source is the caption and its place in the list; label is what the judge looks for."""
        captions = self.source.captions(split)
        return [Sample(c.name, (c.text, place), c.label) for place, c in enumerate(captions)]

    def origin(self) -> dict[str, Any]:
        keys = ("source", "seed", "side", "steps", "guidance", "noise_seed", "batch", "t5",
                "t5_tokens")  # fmt: skip
        known: dict[str, Any] = {key: getattr(self.options, key) for key in keys}
        known["dtype"] = self.options.origin_dtype
        for part in FRONT_PARTS:
            known[part] = weights_digest(self.folder / part) if self._has(part) else None
        return known

    def inputs(self) -> list[Path]:
        """The captions, the VAE, the judge, and what the FID compares with: the uncompressed latents
        and the network that sees them."""
        options = self.options
        found = [
            *self.source.inputs("test"),
            *checkpoint_files(lambda: self.folder / "vae"),
            *self.judge_class.inputs(options),
        ]
        if options.fid and options.judge == "clip":
            found += checkpoint_files(lambda: find_inception(options))
        if options.fid:
            with contextlib.suppress(FileNotFoundError):  # no list, so no test split either
                found += [path for path in self._references() if path.is_file()]
        return found

    def _references(self) -> list[Path]:
        """The uncompressed test latents, in the order of the samples."""
        folder = self.options.root.feature_test
        return [folder / f"{sample.name}.npy" for sample in self.samples("test")]

    def _has(self, part: str) -> bool:
        return any((self.folder / part).glob("*.safetensors"))

    def extract(self, sample: Sample) -> np.ndarray:
        return self.extract_batch([sample])[0]

    def extract_batch(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        options = self.options
        noise = [torch.Generator().manual_seed(options.noise_seed + s.source[1]) for s in samples]
        captions = [sample.source[0] for sample in samples]
        latents = self.front(
            prompt=captions,
            negative_prompt=[""] * len(captions),
            height=options.side,
            width=options.side,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            max_sequence_length=options.t5_tokens,
            generator=noise,
            output_type="latent",
        ).images  # (B, 16, side / 8, side / 8)
        x = latents.float().cpu().numpy().astype(options.facts.dtype)
        return [latent[None] for latent in x]

    def predict(self, sample: Sample, feature: np.ndarray) -> np.ndarray:
        return self.predict_batch([sample], [feature])[0]

    def fits(self, sample: Sample, feature: np.ndarray) -> Hashable:
        return feature.shape

    def predict_batch(
        self, samples: Sequence[Sample], features: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Pictures, (side, side, 3) uint8."""
        return list(self.pictures(features))

    @torch.inference_mode()
    def pictures(self, features: Sequence[np.ndarray]) -> np.ndarray:
        """Latents (1, 16, h, w) each -> pictures (B, 8 h, 8 w, 3) uint8: the pipeline's last steps."""
        vae = self.back
        z = torch.from_numpy(np.concatenate(features)).to(vae.device, vae.dtype)
        z = z / vae.config.scaling_factor + vae.config.shift_factor
        decoded = vae.decode(z, return_dict=False)[0]
        processor = VaeImageProcessor(2 ** (len(vae.config.block_out_channels) - 1))
        images = processor.postprocess(decoded, output_type="np")
        return (images * 255).round().astype(np.uint8)

    @property
    def judge_class(self) -> type[Judge]:
        return ClipJudge if self.options.judge == "clip" else ResNetJudge

    @cached_property
    def judge(self) -> Judge:
        return self.judge_class(self.options)

    @cached_property
    def distance(self) -> Distance:
        """The FID's distance, with the pictures of the uncompressed test latents as its reference."""
        options = self.options
        if isinstance(self.judge, ResNetJudge):
            distance = Distance(self.judge.network, options)
        else:
            distance = inception_distance(options)
        references = self._references()
        for first in range(0, len(references), self.batch_size):
            paths = references[first : first + self.batch_size]
            if missing := [path for path in paths if not path.is_file()]:
                raise FeatureError(
                    f"{missing[0]}: missing; the FID compares with the pictures of the uncompressed "
                    "latents (--fid false does without)"
                )
            distance.add_reference(self.pictures([read_feature(path) for path in paths]))
        return distance

    def score(self, samples: Sequence[Sample], predictions: Iterable[Any]) -> Score:
        """What the judge says of captions and pictures; the FID beside it, less is better."""
        distance = self.distance if self.options.fid else None
        rows: list[dict[str, Any]] = []
        for sample, picture in zip(samples, predictions, strict=True):
            rows.append({"name": sample.name, **self.judge.row(sample, picture)})
            if distance:
                distance.add(picture[None])
        value = float(np.mean([row[self.judge.metric] for row in rows]))
        return Score(self.judge.metric, value, rows, {"fid": distance.value()} if distance else {})
