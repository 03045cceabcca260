"""The learned codecs on the released CompressAI: the paper's two, same layers, one channel in and out,
and ``Native``, which sees a feature in its own layout.

``Hyperprior`` is *bmshj2018-hyperprior* (Ballé et al., *Variational image compression with a scale
hyperprior*, arXiv 1802.01436); ``Elic`` is *elic2022-official* (He et al., *ELIC*, arXiv 2203.10886,
sections 3 and 4). Parameter names are CompressAI's, so published checkpoints load.

Each model walks its latents once, through :meth:`walk`, with a *latent coder* that says what happens
to them: noise and likelihoods in training, symbols when encoding, decoded symbols when decoding.
Encoder and decoder thus run the very same code, and no pass is computed twice.

    x ─ g_a ─> y ─ h_a ─> z ─ coder.hyper ─> z_hat ─ h_s ─> scales, means
               └────────── coder.latent(y, scales, means) ─> y_hat ─ g_s ─> x_hat

Shapes: x (B, 1, P, Q), P and Q multiples of 64; y (B, M, P/16, Q/16); z (B, N, P/64, Q/64). Native: x
(B, inputs, P, Q), y (B, M, P, Q), z (B, N, P/4, Q/4).
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.models import CompressionModel, Elic2022Official, ScaleHyperprior
from compressai.models.utils import conv, deconv
from compressai.ops import quantize_ste
from torch import Tensor, nn

from coding.errors import UserError


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


@dataclass(frozen=True)
class HyperpriorArch:
    """Widths of the hyperprior codec; the defaults are the published ones."""

    N: int = 128
    """Channels of the inner layers and of z."""
    M: int = 192
    """Channels of the latent y."""


@dataclass(frozen=True)
class ElicArch:
    """Widths of ELIC; the defaults are the published ones."""

    N: int = 192
    """Channels of the inner layers and of z."""
    M: int = 320
    """Channels of the latent y."""
    groups: list[int] = field(default_factory=lambda: [16, 16, 32, 64, 192])
    """Channel groups of y, coded one after the other; they sum to M."""
    context: list[list[int]] = field(default_factory=lambda: [[224, 128]] * 4)
    """Inner widths of the channel context of every group but the first. CompressAI up to 1.2.6 used
    a linear ramp there instead; a checkpoint says which."""

    def __post_init__(self):
        if sum(self.groups) != self.M or min(self.groups) < 1:
            raise UserError(f"groups: {self.groups} must be positive and sum to M = {self.M}")
        if len(self.context) != len(self.groups) - 1 or any(len(w) != 2 for w in self.context):
            raise UserError("context: two widths for every group but the first")


@dataclass(frozen=True)
class NativeArch:
    """Widths of the codec that sees a feature in its own layout."""

    inputs: int = 0
    """Channels of the feature (tokens: all values of a token); 0 takes those of the patches."""
    kernel: list[int] = field(default_factory=lambda: [3, 3])
    """Of all convolutions, rows and columns; [k, 1] for tokens, which then have no columns."""
    N: int = 64
    """Channels of the inner layers and of z."""
    M: int = 0
    """Channels of the latent y; 0 takes as many as there are inputs."""

    def __post_init__(self):
        if len(self.kernel) != 2 or any(k < 1 or k % 2 == 0 for k in self.kernel):
            raise UserError(f"kernel: two odd numbers, got {self.kernel}")


class _Networks:
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
    amp = False
    """Run g_a, g_s and, in training, ELIC's contexts in bf16 autocast; never the entropy models."""

    def net(self, module: nn.Module, x: Tensor) -> Tensor:
        """What a network makes of x, in bf16 where ``amp`` says so."""
        # no cache: it would keep the bf16 weights of before an optimiser step where there is no grad
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp, cache_enabled=False):
            return module(x).float()


class Hyperprior(_Networks, ScaleHyperprior):
    """bmshj2018-hyperprior with one channel in and out."""

    arch_class = HyperpriorArch

    def __init__(self, arch: HyperpriorArch):
        super().__init__(arch.N, arch.M)
        self.arch = arch
        self.g_a[0] = conv(1, arch.N)
        self.g_s[-1] = deconv(arch.N, 1)

    @staticmethod
    def infer_arch(state: dict[str, Tensor]) -> HyperpriorArch:
        """Widths of a checkpoint, from its weights."""
        return HyperpriorArch(N=state["g_a.0.weight"].size(0), M=state["g_a.6.weight"].size(0))

    @property
    def hyper_bottleneck(self):
        return self.entropy_bottleneck

    @property
    def conditional(self):
        return self.gaussian_conditional

    def analysis(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> y, z."""
        y = self.net(self.g_a, x)
        return y, self.h_a(y.abs())

    def entropy_nets(self) -> dict[str, EntropyNet]:
        """By name, in the order they run."""
        return {"h_s": EntropyNet(self.h_s, "z", PARAMS)}

    def walk(
        self,
        coder: LatentCoder,
        y: Tensor | None = None,
        z: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Take y and z through the coder -> y_hat (B, M, P/16, Q/16)."""
        z_hat = coder.hyper(z)
        scales = coder.run(self.h_s, z_hat)
        return coder.latent(y, scales, None, mask)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return _forward(self, x, "noise")


class Elic(_Networks, Elic2022Official):
    """elic2022-official with one channel in and out.

    y is coded in channel groups; each group in two checkerboard halves (arXiv 2203.10886, figure 4):
    anchors from the hyperprior and the groups before, then the others with the anchors around them.
    """

    arch_class = ElicArch

    def __init__(self, arch: ElicArch):
        super().__init__(arch.N, arch.M, groups=arch.groups)
        self.arch = arch
        self.g_a[0] = conv(1, arch.N, kernel_size=5, stride=2)
        self.g_s[-1] = deconv(arch.N, 1, kernel_size=5, stride=2)
        for k, (first, second) in enumerate(arch.context, start=1):
            self.latent_codec["y"].channel_context[f"y{k}"] = nn.Sequential(
                conv(sum(arch.groups[:k]), first, kernel_size=5, stride=1),
                nn.ReLU(inplace=True),
                conv(first, second, kernel_size=5, stride=1),
                nn.ReLU(inplace=True),
                conv(second, arch.groups[k] * 2, kernel_size=5, stride=1),
            )

    @staticmethod
    def infer_arch(state: dict[str, Tensor]) -> ElicArch:
        """Widths of a checkpoint, from its weights; both generations of the channel context."""
        prefix = "latent_codec.y."
        groups = []
        while (key := f"{prefix}latent_codec.y{len(groups)}.context_prediction.weight") in state:
            groups.append(state[key].size(1))
        context = [
            [state[f"{prefix}channel_context.y{k}.{layer}.weight"].size(0) for layer in (0, 2)]
            for k in range(1, len(groups))
        ]
        return ElicArch(
            N=state["g_a.0.weight"].size(0), M=sum(groups), groups=groups, context=context
        )

    @property
    def hyper_bottleneck(self):
        return self.latent_codec["hyper"].entropy_bottleneck

    @property
    def conditional(self):
        """Any group's Gaussian conditional: their tables are all the same."""
        return self.latent_codec["y"]["y0"]["y"].gaussian_conditional

    def analysis(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> y, z."""
        y = self.net(self.g_a, x)
        return y, self.latent_codec["hyper"].h_a(y)

    def entropy_nets(self) -> dict[str, EntropyNet]:
        """By name, in the order they run."""
        nets = {"h_s": EntropyNet(self.latent_codec["hyper"].h_s, "z", "side")}
        for k in range(len(self.groups)):
            scctx = self.latent_codec["y"]
            group = scctx.latent_codec[f"y{k}"]
            if k > 0:
                nets[f"channel{k}"] = EntropyNet(scctx.channel_context[f"y{k}"], "y", "side")
            nets[f"around{k}"] = EntropyNet(group.context_prediction, "y", "side")
            nets[f"params{k}"] = EntropyNet(group.entropy_parameters, "side", PARAMS)
        return nets

    def walk(
        self,
        coder: LatentCoder,
        y: Tensor | None = None,
        z: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Take y and z through the coder -> y_hat (B, M, P/16, Q/16)."""
        z_hat = coder.hyper(z)
        side = coder.run(self.latent_codec["hyper"].h_s, z_hat)
        scctx = self.latent_codec["y"]
        pieces = y.split(self.groups, dim=1) if y is not None else [None] * len(self.groups)
        masks = checkerboard_split(mask) if mask is not None else (None, None)
        y_hat: list[Tensor] = []
        for k, piece in enumerate(pieces):
            params = side
            if k > 0:
                module = scctx.channel_context[f"y{k}"]
                channel = coder.run(module, torch.cat(y_hat, dim=1), bf16=True)
                params = torch.cat((channel, side), dim=1)
            group = scctx.latent_codec[f"y{k}"]
            halves = checkerboard_split(piece) if piece is not None else (None, None)
            params_anchor, params_other = checkerboard_split(params)
            context = params.new_zeros(
                params.size(0), 2 * self.groups[k], params.size(2), params.size(3) // 2
            )
            anchor = self._code(coder, group, halves[0], context, params_anchor, masks[0])
            around = checkerboard_merge(anchor, torch.zeros_like(anchor))
            context = coder.run(group.context_prediction, around, bf16=True)
            context = checkerboard_split(context)[1]
            other = self._code(coder, group, halves[1], context, params_other, masks[1])
            y_hat.append(checkerboard_merge(anchor, other))
        return torch.cat(y_hat, dim=1)

    def _code(self, coder, group, y, context, params, mask) -> Tensor:
        params = torch.cat((context, params), dim=1)
        params = coder.run(group.entropy_parameters, params, bf16=True)
        scales, means = params.chunk(2, dim=1)
        return coder.latent(y, scales, means, mask)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return _forward(self, x, "ste")


class LinearAndMore(nn.Module):
    """A linear map over channels plus a small convolutional network, which begins at zero."""

    def __init__(self, before: int, inner: int, after: int, kernel: tuple[int, int]):
        super().__init__()
        self.linear = nn.Conv2d(before, after, 1)
        self.more = nn.Sequential(
            _conv(before, inner, kernel), nn.GELU(), _conv(inner, inner, kernel), nn.GELU(),
            _conv(inner, after, kernel),
        )  # fmt: skip
        nn.init.zeros_(self.more[-1].weight)
        nn.init.zeros_(self.more[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.more(x)


class Native(_Networks, CompressionModel):
    """A mean-scale hyperprior (Minnen et al., *Joint autoregressive and hierarchical priors*, arXiv
    1809.02736, without the autoregressive part) in the feature's own layout.

    Maps come as (B, channels, H, W), tokens as (B, channels, tokens, 1): channels are inputs, which a
    packed plane hides from its convolutions. No latent stands for more than one position: where that
    pays, h_a and g_a find it. Training begins at the Karhunen-Loeve transform of the patches, see
    :meth:`initialise`.
    """

    arch_class = NativeArch
    native = True
    latent_stride = (1, 1)

    def __init__(self, arch: NativeArch):
        super().__init__()
        if arch.inputs < 1:
            raise UserError(f"inputs: expected 1 or more, got {arch.inputs}")
        self.arch = arch = replace(arch, M=arch.M or arch.inputs)
        kernel = tuple(arch.kernel)
        wide = tuple(k + 2 if k > 1 else 1 for k in kernel)
        half = tuple(2 if k > 1 else 1 for k in kernel)
        self.stride = tuple(4 if k > 1 else 1 for k in kernel)
        self.g_a = LinearAndMore(arch.inputs, arch.N, arch.M, kernel)
        self.g_s = LinearAndMore(arch.M, arch.N, arch.inputs, kernel)
        self.h_a = nn.Sequential(
            _conv(arch.M, arch.N, kernel), nn.ReLU(), _conv(arch.N, arch.N, wide, half), nn.ReLU(),
            _conv(arch.N, arch.N, wide, half),
        )  # fmt: skip
        self.h_s = nn.Sequential(
            _deconv(arch.N, arch.N, wide, half), nn.ReLU(), _deconv(arch.N, arch.N, wide, half),
            nn.ReLU(), _conv(arch.N, 2 * arch.M, kernel),
        )  # fmt: skip
        self.entropy_bottleneck = EntropyBottleneck(arch.N)
        self.gaussian_conditional = GaussianConditional(None)

    hyper_bottleneck = Hyperprior.hyper_bottleneck
    conditional = Hyperprior.conditional
    entropy_nets = Hyperprior.entropy_nets

    @torch.no_grad()
    def initialise(self, x: Tensor, lambda_value: float) -> None:
        """Begin at the linear codec that suits the inputs: g_a their Karhunen-Loeve transform, g_s its
        inverse, and scales those of its components.

        The step is what a Gaussian of high rate wants: D = step^2 / 12 = 1 / (2 ln 2 255^2 lambda).

        Args:
            x: (n, inputs, p, q) patches.
            lambda_value: weight of the distortion.
        """
        flat = x.transpose(0, 1).flatten(1).double()  # (inputs, n p q)
        mean = flat.mean(1)
        power, basis = torch.linalg.eigh(torch.cov(flat))
        # signs that do not depend on the library
        basis = basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)
        basis = basis.flip(1)[:, : self.arch.M]  # (inputs, M), strongest first
        gain = math.sqrt(2 * math.log(2) * 255**2 * lambda_value / 12)
        shape = (*self.g_a.linear.weight.shape[:2],)
        weight = torch.zeros(shape, dtype=torch.float64)
        weight[: basis.size(1)] = gain * basis.T
        self.g_a.linear.weight.copy_(weight[:, :, None, None])
        self.g_a.linear.bias.copy_(-weight @ mean)
        self.g_s.linear.weight.copy_((weight.T / gain**2)[:, :, None, None])
        self.g_s.linear.bias.copy_(mean)
        scales = torch.full((self.arch.M,), 0.11, dtype=torch.float64)
        scales[: basis.size(1)] = gain * power.flip(0)[: basis.size(1)].clamp(min=0).sqrt()
        self.h_s[-1].weight.mul_(0.1)
        self.h_s[-1].bias.copy_(torch.cat((scales.clamp(min=0.11), torch.zeros_like(scales))))

    def analysis(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> y, z."""
        y = self.net(self.g_a, x)
        return y, self.h_a(y)

    def walk(
        self,
        coder: LatentCoder,
        y: Tensor | None = None,
        z: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Take y and z through the coder -> y_hat (B, M, P, Q)."""
        z_hat = coder.hyper(z)
        scales, means = coder.run(self.h_s, z_hat).chunk(2, dim=1)
        return coder.latent(y, scales, means, mask)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return _forward(self, x, "ste")


def _conv(
    before: int, after: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)
) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, padding=[k // 2 for k in kernel])


def _deconv(
    before: int, after: int, kernel: tuple[int, int], stride: tuple[int, int]
) -> nn.ConvTranspose2d:
    padding, more = [k // 2 for k in kernel], [s - 1 for s in stride]
    return nn.ConvTranspose2d(before, after, kernel, stride, padding, more)


Model = Hyperprior | Elic | Native
MODELS: dict[str, type[Model]] = {"hyperprior": Hyperprior, "elic": Elic, "native": Native}
"""Codec name -> model class."""

PUBLISHED_NAMES = {"bmshj2018-hyperprior": "hyperprior", "elic2022-official": "elic"}
"""CompressAI's architecture names, as the published commands use them."""


def checkerboard_split(y: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) -> anchors and the others, (B, C, h, w/2) each; (0, 0) is an anchor."""
    b, c, h, w = y.shape
    rows = y.reshape(b, c, h // 2, 2, w // 2, 2)  # (B, C, h/2, row parity, w/2, column parity)
    anchor = torch.stack((rows[..., 0, :, 0], rows[..., 1, :, 1]), dim=3)  # (B, C, h/2, 2, w/2)
    other = torch.stack((rows[..., 0, :, 1], rows[..., 1, :, 0]), dim=3)
    return anchor.reshape(b, c, h, w // 2), other.reshape(b, c, h, w // 2)


def checkerboard_merge(anchor: Tensor, other: Tensor) -> Tensor:
    """The inverse of :func:`checkerboard_split`: two (B, C, h, w/2) -> (B, C, h, w)."""
    b, c, h, half = anchor.shape
    anchor, other = (t.reshape(b, c, h // 2, 2, half) for t in (anchor, other))
    even = torch.stack((anchor[..., 0, :], other[..., 0, :]), dim=-1)  # (B, C, h/2, w/2, 2)
    odd = torch.stack((other[..., 1, :], anchor[..., 1, :]), dim=-1)
    return torch.stack((even, odd), dim=3).reshape(b, c, h, 2 * half)


class LikelihoodCoder:
    """Training and validation: quantises and collects likelihoods, float32 throughout.

    ``noise``: additive uniform noise stands for rounding, in the rate and in y_hat alike (Ballé et
    al., section 2). ``ste``: noise in the rate, rounding with a straight-through gradient in y_hat
    (ELIC, section 3). In eval mode both round.
    """

    def __init__(self, model: "Model", quantizer: str):
        self.model = model
        self.bottleneck, self.conditional = model.hyper_bottleneck, model.conditional
        self.ste = quantizer == "ste" and model.training
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


def _forward(model: "Model", x: Tensor, quantizer: str) -> dict[str, Any]:
    """x -> ``x_hat`` (B, 1, P, Q) and ``bits``, the estimated total as a scalar."""
    y, z = model.analysis(x)
    coder = LikelihoodCoder(model, quantizer)
    y_hat = model.walk(coder, y, z)
    x_hat = model.net(model.g_s, y_hat)
    parts = [likelihoods for found in coder.likelihoods.values() for likelihoods in found]
    bits = sum(torch.log(part).sum() for part in parts) / -math.log(2)
    return {"x_hat": x_hat, "bits": bits}


def build_model(codec: str, arch: HyperpriorArch | ElicArch | NativeArch) -> Model:
    """A fresh model of a codec, by its name in :data:`MODELS`, randomly initialised."""
    return MODELS[codec](arch)
