"""bmshj2018-hyperprior: Ballé et al., *Variational image compression with a scale hyperprior*, arXiv
1802.01436."""

from dataclasses import dataclass

from compressai.models import ScaleHyperprior
from compressai.models.utils import conv, deconv
from torch import Tensor

from dtufc.CompressAI.models.base import LatentCoder, OneStep, check_widths


@dataclass(frozen=True)
class HyperpriorArch:
    """Widths of the hyperprior codec; the defaults are the published ones."""

    N: int = 128
    """Channels of the inner layers and of z."""
    M: int = 192
    """Channels of the latent y."""

    def __post_init__(self):
        check_widths(N=self.N, M=self.M)

    @property
    def least_weights(self) -> int:
        """No model of these widths has fewer weights, or ten times as many."""
        return 25 * (5 * self.N**2 + 2 * self.N * self.M)


class Hyperprior(OneStep, ScaleHyperprior):
    """bmshj2018-hyperprior with one channel in and out."""

    arch_class = HyperpriorArch
    quantizer = "noise"

    def __init__(self, arch: HyperpriorArch):
        super().__init__(arch.N, arch.M)
        self.arch = arch
        self.g_a[0] = conv(1, arch.N)
        self.g_s[-1] = deconv(arch.N, 1)

    @staticmethod
    def infer_arch(state: dict[str, Tensor]) -> HyperpriorArch:
        """Widths of a checkpoint, from its weights."""
        return HyperpriorArch(N=state["g_a.0.weight"].size(0), M=state["g_a.6.weight"].size(0))

    def analysis(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> y, z."""
        y = self.net(self.g_a, x)
        return y, self.h_a(y.abs())

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
