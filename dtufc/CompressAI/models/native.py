"""The codec in a feature's own layout."""

import math
from dataclasses import dataclass, field, replace

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.models import CompressionModel
from torch import Tensor, nn

from dtufc.CompressAI.models.base import LatentCoder, OneStep, check_widths
from dtufc.errors import UserError

MAX_KERNEL = 63


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
        odd = [k for k in self.kernel if k % 2 and 1 <= k <= MAX_KERNEL]
        if len(self.kernel) != 2 or len(odd) != 2:
            raise UserError(f"kernel: two odd numbers up to {MAX_KERNEL}, got {self.kernel}")
        # 0 stands for what the patches have
        check_widths(N=self.N, inputs=self.inputs or 1, M=self.M or 1)

    @property
    def least_weights(self) -> int:
        """No model of these widths has fewer weights, or ten times as many."""
        latents, area = self.M or self.inputs, math.prod(self.kernel)
        inner = area * self.N * (6 * self.N + 2 * self.inputs + 5 * latents)
        return inner + 2 * self.inputs * latents


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


class Native(OneStep, CompressionModel):
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


def _conv(
    before: int, after: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)
) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, padding=[k // 2 for k in kernel])


def _deconv(
    before: int, after: int, kernel: tuple[int, int], stride: tuple[int, int]
) -> nn.ConvTranspose2d:
    padding, more = [k // 2 for k in kernel], [s - 1 for s in stride]
    return nn.ConvTranspose2d(before, after, kernel, stride, padding, more)
