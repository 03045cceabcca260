"""elic2022-official: He et al., *ELIC*, arXiv 2203.10886, sections 3 and 4."""

from dataclasses import dataclass, field

import torch
from compressai.models import Elic2022Official
from compressai.models.utils import conv, deconv
from torch import Tensor, nn

from dtufc.CompressAI.models.base import (
    PARAMS,
    EntropyNet,
    LatentCoder,
    Networks,
    check_widths,
)
from dtufc.errors import UserError

MAX_GROUPS = 64


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
        check_widths(N=self.N, M=self.M)
        if len(self.groups) > MAX_GROUPS:
            raise UserError(f"groups: {MAX_GROUPS} at most, got {len(self.groups)}")
        if sum(self.groups) != self.M or min(self.groups, default=0) < 1:
            raise UserError(f"groups: {self.groups} must be positive and sum to M = {self.M}")
        if len(self.context) != len(self.groups) - 1 or any(len(w) != 2 for w in self.context):
            raise UserError("context: two widths for every group but the first")
        for width in (width for widths in self.context for width in widths):
            check_widths(context=width)

    @property
    def least_weights(self) -> int:
        """No model of these widths has fewer weights, or ten times as many."""
        count = 25 * (4 * self.N**2 + self.N * self.M) + self.M**2
        count += sum(50 * group**2 for group in self.groups)
        before = self.groups[0]
        for group, (first, second) in zip(self.groups[1:], self.context, strict=True):
            count += 25 * (before * first + first * second + second * 2 * group)
            before += group
        return count


class Elic(Networks, Elic2022Official):
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
