"""The learned codecs on the released CompressAI, one file a model: the paper's two, same layers, one
channel in and out, and ``Native``, which sees a feature in its own layout.

Each model walks its latents once, through :meth:`walk`, with a *latent coder* that says what happens
to them: noise and likelihoods in training, symbols when encoding, decoded symbols when decoding.
Encoder and decoder thus run the very same code, and no pass is computed twice.

    x ─ g_a ─> y ─ h_a ─> z ─ coder.hyper ─> z_hat ─ h_s ─> scales, means
               └────────── coder.latent(y, scales, means) ─> y_hat ─ g_s ─> x_hat

Shapes: x (B, 1, P, Q), P and Q multiples of 64; y (B, M, P/16, Q/16); z (B, N, P/64, Q/64). Native: x
(B, inputs, P, Q), y (B, M, P, Q), z (B, N, P/4, Q/4).
"""

from dtufc.CompressAI.models.base import PARAMS, EntropyNet, LatentCoder, LikelihoodCoder
from dtufc.CompressAI.models.elic import Elic, ElicArch, checkerboard_merge, checkerboard_split
from dtufc.CompressAI.models.hyperprior import Hyperprior, HyperpriorArch
from dtufc.CompressAI.models.native import Native, NativeArch
from dtufc.registry import BUILT_IN

__all__ = [
    "MODELS",
    "PARAMS",
    "PUBLISHED_NAMES",
    "Arch",
    "Elic",
    "ElicArch",
    "EntropyNet",
    "Hyperprior",
    "HyperpriorArch",
    "LatentCoder",
    "LikelihoodCoder",
    "Model",
    "Native",
    "NativeArch",
    "build_model",
    "checkerboard_merge",
    "checkerboard_split",
]

Arch = HyperpriorArch | ElicArch | NativeArch
Model = Hyperprior | Elic | Native
MODELS: dict[str, type[Model]] = {"hyperprior": Hyperprior, "elic": Elic, "native": Native}
"""Codec name -> model class."""

PUBLISHED_NAMES = {e.published_name: e.name for e in BUILT_IN if e.published_name}
"""CompressAI's architecture names, as the published commands use them."""


def build_model(codec: str, arch: Arch) -> Model:
    """A fresh model of a codec, by its name in :data:`MODELS`, randomly initialised."""
    return MODELS[codec](arch)
