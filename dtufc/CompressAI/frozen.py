"""The frozen form of a model: the integers by which its symbols are coded, on every device alike.

A codec folder holds them in ``exact.safetensors``: for every network that decides entropy parameters the
integers of ``exact.py``, and on their grids the medians of z and the edges between the scale tables.

The grids are powers of two. Those of activations hold eight times the largest magnitude seen in planes
of real features; where there are none, the largest in latents that the model itself draws, which reach
further than real ones. What lies beyond is clamped, by encoder and decoder alike, and can cost rate but
never correctness.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dtufc.CompressAI.exact import LARGEST, LARGEST_RESULT, ExactConv, ExactNet, conv_layers
from dtufc.CompressAI.models import PARAMS, Model
from dtufc.errors import UserError

FINE = 12
"""Scales and means are multiples of 2^-FINE, up to 2^(24 - FINE)."""
HEADROOM = 8.0
_WEIGHT_BITS = 30  # no weight is finer than 2^-30


class FrozenNets:
    """The exact form of all that decides how a model's latents are decoded.

    Args:
        model: gives the geometry.
        state: as :func:`freeze` makes it.

    Raises:
        UserError: the integers do not fit the model, or their sums would not be exact.
    """

    def __init__(self, model: Model, state: dict[str, Tensor]):
        nets = {name: ExactNet(net.module) for name, net in model.entropy_nets().items()}
        self.nets = nn.ModuleDict(nets)
        wanted = {f"nets.{key}": value for key, value in self.nets.state_dict().items()}
        wanted["medians"] = torch.empty(model.arch.N)
        wanted["scale_edges"] = torch.empty(model.conditional.scale_table.numel() - 1)
        for key in wanted.keys() | state.keys():
            found, want = (_describe(values.get(key)) for values in (state, wanted))
            if found != want:
                raise UserError(
                    f"the integers do not fit the model: {key} is {found}, expected {want}"
                )
        self.medians, self.edges = state["medians"], state["scale_edges"]
        if not (self.medians.isfinite().all() and (self.edges.diff() > 0).all()):
            raise UserError("medians, scale_edges: expected finite numbers, edges that increase")
        self.nets.load_state_dict(
            {key[5:]: value for key, value in state.items() if key.startswith("nets.")}
        )
        for net in nets.values():
            net.check()
        self._by_module = {id(net.module): nets[name] for name, net in model.entropy_nets().items()}
        self._model = model  # keeps the ids alive

    def to(self, device: torch.device) -> "FrozenNets":
        """Move everything to a device."""
        self.nets.to(device)
        self.medians, self.edges = self.medians.to(device), self.edges.to(device)
        return self

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        """What a network of the model gives, exactly."""
        return self._by_module[id(module)](x)

    def table_indexes(self, scales: Tensor) -> Tensor:
        """Scales -> number of the nearest table in the log domain, (same shape) int.

        CompressAI takes the next larger one, which costs four times the excess rate
        (up to 13% in scale, 1 to 2% in bits at low rates).
        """
        return torch.bucketize(scales.contiguous(), self.edges, out_int32=True)


class FloatNets:
    """The float networks in place of a :class:`FrozenNets`, to measure what freezing costs. What is
    coded with it decodes on the same machine at best."""

    def __init__(self, model: Model):
        self.medians = model.hyper_bottleneck._get_medians().detach().reshape(-1)
        self.edges = _scale_edges(model).to(self.medians.device)

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        return module(x).float()

    table_indexes = FrozenNets.table_indexes


def _describe(value: Tensor | None) -> str:
    return "missing" if value is None else f"{tuple(value.shape)} {value.dtype}"


@torch.no_grad()
def freeze(model: Model, planes: Iterable[Tensor] = (), seed: int = 0) -> dict[str, Tensor]:
    """The integers of a model that has its entropy tables.

    Args:
        model: float32 on the CPU; left as it is.
        planes: (B, K, P, Q) inputs of real features, to find the ranges on.
        seed: of the latents that are drawn where there are no planes.

    Returns:
        What ``exact.safetensors`` holds.

    Raises:
        UserError: a layer has no exact form, or weights are not finite.
    """
    if any(not torch.isfinite(value).all() for value in model.parameters()):
        raise UserError("freeze: the model holds weights that are not finite")
    nets = model.entropy_nets()
    ranges = _Ranges(model, seed)
    was_training = model.training
    model.eval()
    headroom = 1.0
    for plane in planes:
        headroom = HEADROOM
        ranges.real(plane)
    if headroom == 1:
        ranges.draw()
    model.train(was_training)
    exponents = {signal: _exponent(headroom * peak) for signal, peak in ranges.signals.items()}
    exponents[PARAMS] = FINE
    state = {}
    for name, net in nets.items():
        peaks = [headroom * peak for peak in ranges.layers[name]]
        for key, value in _freeze_net(
            net.module, exponents[net.reads], exponents[net.writes], net.writes == PARAMS, peaks
        ).items():
            state[f"nets.{name}.{key}"] = value
    medians = model.hyper_bottleneck._get_medians().detach().reshape(-1)
    grid = 2.0 ** exponents["z"]
    state["medians"] = (medians * grid).round() / grid
    state["scale_edges"] = (_scale_edges(model) * (1 << FINE)).round() / (1 << FINE)
    return state


def _scale_edges(model: Model) -> Tensor:
    """Where the nearest scale table changes, (tables - 1,) float32."""
    table = model.conditional.scale_table.double()
    return (table[:-1] * table[1:]).sqrt().float()


def _freeze_net(
    module: nn.Module, exponent_in: int, exponent_out: int, last: bool, peaks: Sequence[float]
) -> dict[str, Tensor]:
    """The buffers of the ExactNet of one network."""
    net = ExactNet(module)
    net.exponent_in.fill_(exponent_in)
    net.exponent_out.fill_(exponent_out)
    net.limit.fill_(LARGEST_RESULT if last else LARGEST)
    floats = [layer for layer, _ in conv_layers(module)]
    before = exponent_in
    for i, (layer, exact) in enumerate(zip(floats, net.layers, strict=True)):
        after = exponent_out if exact is net.layers[-1] else _exponent(peaks[i])
        _set_layer(exact, layer, before, after)
        before = after
    net.check()
    return net.state_dict()


def _set_layer(
    exact: ExactConv, layer: nn.Conv2d | nn.ConvTranspose2d, before: int, after: int
) -> None:
    """Put a layer's weights on the finest grid whose sums are provably exact, channel by channel."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.ConvTranspose2d):  # as a convolution: turned round, outputs first
        weight = weight.flip(2, 3).transpose(0, 1)
    elif hasattr(layer, "mask"):  # of the checkerboard
        weight = weight * layer.mask
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    largest = weight.abs().flatten(1).max(1).values
    grid = torch.floor(torch.log2(LARGEST / largest.clamp(min=1e-30))).clamp(max=_WEIGHT_BITS)
    while True:
        grid = torch.minimum(grid, torch.full_like(grid, 52 + after - before))
        shift = before + grid - after
        if (shift < 1).any():
            raise UserError("freeze: weights too large for the grid of their outputs")
        steps = torch.exp2(grid)
        exact.weight.copy_((weight * steps[:, None, None, None]).round().clamp(-LARGEST, LARGEST))
        exact.bias.copy_((bias.double() * steps * 2.0**before).round())
        exact.shift.copy_(shift)
        sums, limbs = exact.bounds()
        unproven = (sums >= 1 << 53) | (limbs >= 1 << 31)
        if not unproven.any():
            return
        grid = grid - unproven.double()  # half as fine


def _exponent(peak: float) -> int:
    """The finest grid on which the peak is still within LARGEST."""
    return int(np.clip(np.floor(np.log2(LARGEST / max(peak, 1e-3))), -16, FINE))


class _Ranges:
    """Largest magnitudes of all signals and inner layers; a latent coder that draws or rounds."""

    def __init__(self, model: Model, seed: int):
        self.model = model
        self.names = {id(net.module): name for name, net in model.entropy_nets().items()}
        self.signals = {
            signal: 0.0
            for net in model.entropy_nets().values()
            for signal in (net.reads, net.writes)
        }
        self.layers = {
            name: [0.0] * len(conv_layers(net.module)) for name, net in model.entropy_nets().items()
        }
        self.generator = torch.Generator().manual_seed(seed)
        self.drawing = True

    def draw(self) -> None:
        """Latents as the model believes they are: z from its tables, y from its Gaussians."""
        self.drawing = True
        self.model.walk(self)

    def real(self, plane: Tensor) -> None:
        """Latents of a real plane."""
        self.drawing = False
        y, z = self.model.analysis(plane)
        self.model.walk(self, y, z)

    def hyper(self, z: Tensor | None) -> Tensor:
        bottleneck = self.model.hyper_bottleneck
        medians = bottleneck._get_medians().reshape(1, -1, 1, 1)
        if not self.drawing:
            return torch.round(z - medians) + medians
        cdf = bottleneck._quantized_cdf
        draws = torch.randint(1 << 16, (len(cdf), 64), generator=self.generator)
        symbols = [
            torch.bucketize(draw, row[1 : int(size) - 1], right=True) + offset
            for draw, row, size, offset in zip(
                draws, cdf, bottleneck._cdf_length, bottleneck._offset, strict=True
            )
        ]
        return torch.stack(symbols).float().reshape(1, -1, 8, 8) + medians

    def run(self, module: nn.Module, x: Tensor, bf16: bool = False) -> Tensor:
        name = self.names[id(module)]
        net = self.model.entropy_nets()[name]
        self._see(net.reads, x)
        place = -1
        for layer in module if isinstance(module, nn.Sequential) else [module]:
            x = layer(x.clone())  # a ReLU may work in place
            place += not isinstance(layer, (nn.ReLU, nn.LeakyReLU))
            self.layers[name][place] = max(self.layers[name][place], float(x.abs().max()))
        self._see(net.writes, x)
        return x

    def latent(self, y, scales, means, mask) -> Tensor:
        scales = scales.clamp(0.11, 256)
        centre = torch.zeros_like(scales) if means is None else means
        if self.drawing:
            noise = torch.randn(scales.shape, generator=self.generator)
            return torch.round(scales * noise) + centre
        return torch.round(y - centre) + centre

    def _see(self, signal: str, x: Tensor) -> None:
        self.signals[signal] = max(self.signals[signal], float(x.abs().max()))
