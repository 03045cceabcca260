"""What the models share: how they run their networks, and the latent coder of training."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from compressai.ops import quantize_ste
from torch import Tensor, nn

from dtufc.errors import UserError

MAX_WIDTH = 1 << 16
"""Channels of a layer, at most."""


class LatentCoder(Protocol):
    """What is done to the latents on their way through the model."""

    def hyper(self, z: Tensor | None) -> Tensor:
        """z, or ``None`` when decoding -> z_hat."""

    def run(self, module: nn.Module, x: Tensor, bf16: bool = False) -> Tensor:
        """What a network that decides entropy parameters makes of x.

        ``bf16``: training may run it in bf16.
        """

    def latent(
        self, y: Tensor | None, scales: Tensor, means: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """A piece of y, or ``None`` when decoding -> the same piece of y_hat, float32.

        ``scales``, ``means`` have the piece's shape; no means stands for zero. ``mask`` (1, 1, h, w)
        marks the positions that are coded; elsewhere y_hat is the mean.
        """


PARAMS = "params"
"""The signal that holds scales and means."""


@dataclass(frozen=True)
class EntropyNet:
    """A network that decides entropy parameters, so that encoder and decoder must agree on it."""

    module: nn.Module
    reads: str
    """The signal it takes: z, y or what another one writes. A signal is on one grid, see frozen.py."""
    writes: str
    """The signal it gives; PARAMS are scales, and means where there are any."""


def check_widths(**widths: int) -> None:
    """Refuse widths that are none.

    Raises:
        UserError: one is not 1 .. MAX_WIDTH; the message names it.
    """
    for name, width in widths.items():
        if not 1 <= width <= MAX_WIDTH:
            raise UserError(f"{name}: expected 1 .. {MAX_WIDTH}, got {width}")


class Networks:
    """How a model runs its networks: in float32, or in bf16 where the hardware gains.

    h_a and h_s always run in float32. They cost little, and oneDNN's bf16 convolutions read memory
    that was never written where the output is one column wide (seen with torch 2.11 on AMX: 5x5,
    stride 2, 4 x 2 -> 2 x 1), as z of a narrow plane is.
    """

    stride = (64, 64)
    """Inputs are padded to multiples of this: g_a divides by 16, h_a by 4."""
    latent_stride = (16, 16)
    """Rows and columns of the input that a latent stands for."""
    native = False
    """Whether the input is the feature in its own layout, rather than packed into a plane."""
    quantizer: Literal["noise", "ste"] = "ste"
    """What stands for rounding in training; see :class:`LikelihoodCoder`."""
    amp = False
    """Run g_a, g_s and, in training, ELIC's contexts in bf16 autocast; never the entropy models."""

    def net(self, module: nn.Module, x: Tensor) -> Tensor:
        """What a network makes of x, in bf16 where ``amp`` says so."""
        # no cache: it would keep the bf16 weights of before an optimiser step where there is no grad
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp, cache_enabled=False):
            return module(x).float()

    def forward(self, x: Tensor) -> dict[str, Any]:
        """x -> ``x_hat``, of its shape, and ``bits``, the estimated total as a scalar."""
        y, z = self.analysis(x)
        coder = LikelihoodCoder(self)
        x_hat = self.net(self.g_s, self.walk(coder, y, z))
        parts = [likelihoods for found in coder.likelihoods.values() for likelihoods in found]
        bits = sum(torch.log(part).sum() for part in parts) / -math.log(2)
        return {"x_hat": x_hat, "bits": bits}


class OneStep(Networks):
    """A model whose h_s alone decides the entropy parameters, so that y is coded in one step."""

    @property
    def hyper_bottleneck(self):
        return self.entropy_bottleneck

    @property
    def conditional(self):
        return self.gaussian_conditional

    def entropy_nets(self) -> dict[str, EntropyNet]:
        """By name, in the order they run."""
        return {"h_s": EntropyNet(self.h_s, "z", PARAMS)}


class LikelihoodCoder:
    """Training and validation: quantises and collects likelihoods, float32 throughout.

    ``noise``: additive uniform noise stands for rounding, in the rate and in y_hat alike (Ballé et
    al., section 2). ``ste``: noise in the rate, rounding with a straight-through gradient in y_hat
    (ELIC, section 3). In eval mode both round.
    """

    def __init__(self, model: Networks):
        self.model = model
        self.bottleneck, self.conditional = model.hyper_bottleneck, model.conditional
        self.ste = model.quantizer == "ste" and model.training
        self.likelihoods: dict[str, list[Tensor]] = {"y": [], "z": []}

    def hyper(self, z: Tensor) -> Tensor:
        z_hat, likelihoods = self.bottleneck(z)
        self.likelihoods["z"].append(likelihoods)
        if self.ste:
            medians = self.bottleneck._get_medians().detach()[:, :, 0, None]  # (N, 1, 1)
            z_hat = quantize_ste(z - medians) + medians
        return z_hat

    def run(self, module: nn.Module, x: Tensor, bf16: bool = False) -> Tensor:
        if bf16 and self.model.training:
            return self.model.net(module, x)
        return module(x)

    def latent(self, y, scales, means, mask) -> Tensor:
        y_hat, likelihoods = self.conditional(y, scales, means)
        self.likelihoods["y"].append(likelihoods)
        if self.ste:
            y_hat = quantize_ste(y - means) + means
        return y_hat
