"""Convolutions over integers: the same result on every device, library version and thread count.

What decides how symbols are decoded (h_s, ELIC's contexts) must be the same to the last bit where a
feature is encoded and where it is decoded. Float sums depend on their order, so here every number is an
integer: activations a and weights w on power-of-two grids,

    a = round(x 2^e_in)         |a| <= LARGEST
    v = sum w a + b             exact, in any order
    x' = floor(v 2^-s + 1/2)    the next layer's activation, clamped to |x'| <= LARGEST

and nothing is rounded but by the last line, element by element. Two ways to the sums give the same:

* ``float64``: a matrix product of unfolded patches (no Winograd, no FFT). All products and partial sums
  are integers below 2^53, which float64 holds exactly.
* ``int8``: activations and weights in two limbs of 8 bits, four integer products with 32-bit sums. On
  a CPU with AMX it is ten to twenty times as fast as float64.

Guarantee: :meth:`ExactNet.check` proves both bounds from the weights, for any input.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtufc.devices import fast_int8
from dtufc.errors import UserError
from dtufc.kernels import kernel

LARGEST = 127 * 256 + 127
"""Largest magnitude of an activation and of a weight: two limbs of -128 .. 127."""
LARGEST_RESULT = 1 << 24
"""Largest magnitude of what the last layer gives: float32 holds it."""
LEAK_BITS = 15
_CHUNK = 2048  # rows of a matrix product: what comes out stays in the processor's cache
_CHUNK_BYTES = 8 << 20  # of what goes into one on a CPU, at most: float64 takes 8 bytes per value


class ExactConv(nn.Module):
    """One convolution, its rounding and its ReLU over integers (B, H, W, C).

    A transposed convolution is one over the input with zeros set between its values.

    Args:
        layer: gives the geometry; the integers are loaded or set afterwards.
        slope: of a ReLU behind it for negative values; ``None`` without one.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, slope: float | None):
        super().__init__()
        kernel = layer.kernel_size
        if layer.groups != 1 or layer.dilation != (1, 1):
            raise UserError(f"exact: no groups and no dilation, got {layer}")
        if isinstance(layer, nn.ConvTranspose2d):
            self.up, self.stride = layer.stride, (1, 1)
            before = [k - 1 - p for k, p in zip(kernel, layer.padding, strict=True)]
            after = [p + more for p, more in zip(before, layer.output_padding, strict=True)]
        else:
            self.up, self.stride = (1, 1), layer.stride
            before = after = list(layer.padding)
        self.pad = (before[1], after[1], before[0], after[0])
        self.slope = slope
        shape = (layer.out_channels, layer.in_channels, *kernel)
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int16))
        self.register_buffer("bias", torch.zeros(shape[0], dtype=torch.int64))
        self.register_buffer("shift", torch.ones(shape[0], dtype=torch.int64))

    def check(self, limit: int) -> None:
        """Prove that no input can leave the exact range.

        Args:
            limit: largest magnitude of what comes out.

        Raises:
            UserError: the weights allow sums that float64 or the limbs' 32 bits do not hold.
        """
        if not ((self.shift >= 1) & (self.shift <= 52)).all():
            raise UserError("exact: a shift is not 1 .. 52")
        if (self.weight.int().abs() > LARGEST).any():
            raise UserError(f"exact: a weight is above {LARGEST}")
        sums, limbs = self.bounds()
        if (sums >= 1 << 53).any() or (limbs >= 1 << 31).any() or not 1 <= limit <= LARGEST_RESULT:
            raise UserError("exact: the weights allow sums that are not exact")

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Per output channel, (O,) float64: an upper bound of ``|sum w a + b + 2^(s-1)|``, and of
        every sum of products of limbs."""
        flat = self.weight.flatten(1).double()
        sums = flat.abs().sum(1) * LARGEST + self.bias.double().abs() + 2.0 ** (self.shift - 1)
        high, low = split_limbs(self.weight.flatten(1).int())
        # two of the four products are added up in 32 bits
        return sums, (high.double().abs() + low.double().abs()).sum(1) * 128

    def forward(self, a: Tensor, limit: int, how: str) -> Tensor:
        """(B, H, W, I) int16 -> (B, H', W', O) of magnitude up to ``limit``: int16, or int32 where that
        is above LARGEST."""
        if self.up != (1, 1):
            b, h, w, c = a.shape
            size = ((h - 1) * self.up[0] + 1, (w - 1) * self.up[1] + 1)
            spread = a.new_zeros(b, *size, c)
            spread[:, :: self.up[0], :: self.up[1]] = a
            a = spread
        if any(self.pad):
            a = F.pad(a, (0, 0, *self.pad))
        if how == "int8":
            limbs = torch.empty(2, *a.shape, dtype=torch.int8)
            _split(a.reshape(-1).numpy(), *limbs.flatten(1).numpy())
        else:
            limbs = a[None]
        multiply = self._multiply_int8 if how == "int8" else self._multiply_float64
        kh, kw = self.weight.shape[2:]
        height, width = (
            (a.size(1) - kh) // self.stride[0] + 1,
            (a.size(2) - kw) // self.stride[1] + 1,
        )
        dtype = torch.int16 if limit <= LARGEST else torch.int32
        out = torch.empty(len(a), height, width, len(self.bias), dtype=dtype, device=a.device)
        dtype = torch.int8 if how == "int8" else torch.float64
        chunk = _CHUNK
        if a.device.type == "cpu":
            chunk = min(chunk, _CHUNK_BYTES // (self.weight[0].numel() * dtype.itemsize))
        rows = max(1, chunk // width)
        for n in range(len(a)):
            for top in range(0, height, rows):
                place = out[n, top : top + rows]
                seen = [self._gather(limb[n], top, *place.shape[:2], dtype) for limb in limbs]
                multiply(seen, limit, place.view(-1, place.size(2)))
        return out

    def _gather(self, a: Tensor, top: int, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """What ``rows`` of outputs from ``top`` on see of a padded input (H, W, C) -> (n, kh kw C)."""
        kernel = tuple(self.weight.shape[2:])
        if kernel == (1, 1) and self.stride == (1, 1):
            return a[top : top + rows].reshape(rows * width, -1).to(dtype)
        if a.device.type == "cpu":
            out = a.new_empty(rows * width, kernel[0] * kernel[1] * a.size(2), dtype=dtype)
            _gather(a.flatten(1).numpy(), top, width, kernel, self.stride, out.numpy())
            return out
        windows = a.unfold(0, kernel[0], self.stride[0]).unfold(1, kernel[1], self.stride[1])
        # contiguous: where windows are one column wide, rows of a view overlap in memory
        return (
            windows[top : top + rows].permute(0, 1, 3, 4, 2).flatten(2).flatten(0, 1).contiguous()
        ).to(dtype)

    def _multiply_int8(self, limbs: Sequence[Tensor], limit: int, out: Tensor) -> None:
        """Inputs (n, K) in limbs -> outputs (n, O)."""
        matrix = self._matrix("int8")
        upper, lower = (torch._int_mm(limb, matrix) for limb in limbs)  # (n, 2 O) int32
        half = self.bias + (1 << (self.shift - 1))
        _round_int8(
            upper.numpy(), lower.numpy(), half.numpy(), self.shift.numpy(), self._leak(), limit,
            out.numpy(),
        )  # fmt: skip

    def _multiply_float64(self, inputs: Sequence[Tensor], limit: int, out: Tensor) -> None:
        """The same of inputs as they are, float64."""
        out.copy_(self._round(inputs[0] @ self._matrix("float64"), limit))

    def _leak(self) -> int:
        """Slope in units of 2^-LEAK_BITS; 2^LEAK_BITS without a ReLU."""
        return round((1.0 if self.slope is None else self.slope) * (1 << LEAK_BITS))

    def _matrix(self, how: str) -> Tensor:
        """The weights (kh kw I, O) float64, or (kh kw I, 2 O) int8 with the limbs side by side."""
        key = (how, self.weight.device)
        if getattr(self, "_cached", (None, None))[0] != key:
            matrix = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
            if how == "int8":
                matrix = torch.cat(split_limbs(matrix), dim=1).contiguous()
            else:
                matrix = matrix.double()
            self._cached = key, matrix
        return self._cached[1]

    def _round(self, sums: Tensor, limit: int) -> Tensor:
        """(rows, O) float64 integers, changed in place."""
        sums += self.bias.double()
        # 2^-shift put together from its bits: a compiler's exp2 may be off in the last one
        sums *= ((1023 - self.shift) << 52).view(torch.float64)
        sums = sums.add_(0.5).floor_().clamp_(-limit, limit)
        leak = self._leak() / (1 << LEAK_BITS)
        return torch.where(sums < 0, (sums * leak).add_(0.5).floor_(), sums)


class ExactNet(nn.Module):
    """Convolutions and ReLUs one after the other over integers, behind a float32 face.

    Args:
        net: the float network, one layer or an ``nn.Sequential``.

    Raises:
        UserError: a layer that has no exact form.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(ExactConv(layer, slope) for layer, slope in conv_layers(net))
        self.register_buffer("exponent_in", torch.zeros((), dtype=torch.int64))
        self.register_buffer("exponent_out", torch.zeros((), dtype=torch.int64))
        self.register_buffer("limit", torch.tensor(LARGEST))

    def check(self) -> None:
        """Prove that every sum is exact, whatever comes in.

        Raises:
            UserError: it is not; or the grids are out of range.
        """
        if abs(self.exponent_in) > 30 or abs(self.exponent_out) > 30:
            raise UserError("exact: an exponent is not within -30 .. 30")
        for layer in self.layers:
            layer.check(int(self.limit))

    @torch.no_grad()
    def forward(self, x: Tensor, how: Literal["auto", "int8", "float64"] = "auto") -> Tensor:
        """(B, I, H, W) float32 -> (B, O, H', W') float32, multiples of 2^-exponent_out."""
        if how == "auto":
            how = "int8" if x.device.type == "cpu" and use_int8() else "float64"
        a = quantise(x.permute(0, 2, 3, 1) * 2.0 ** int(self.exponent_in))
        for layer in self.layers:
            a = layer(a, int(self.limit) if layer is self.layers[-1] else LARGEST, how)
        return a.float().mul_(2.0 ** -int(self.exponent_out)).permute(0, 3, 1, 2)


def quantise(x: Tensor) -> Tensor:
    """Numbers on the grid, changed in place -> int16 activations, ties up."""
    return x.add_(0.5).floor_().clamp_(-LARGEST, LARGEST).to(torch.int16)


def conv_layers(net: nn.Module) -> list[tuple[nn.Module, float | None]]:
    """The convolutions of a network in order, each with the slope of the ReLU behind it.

    Raises:
        UserError: a layer that has no exact form.
    """
    found: list[tuple[nn.Module, float | None]] = []
    for layer in net if isinstance(net, nn.Sequential) else [net]:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            found.append((layer, None))
        elif isinstance(layer, (nn.ReLU, nn.LeakyReLU)) and found and found[-1][1] is None:
            found[-1] = (found[-1][0], getattr(layer, "negative_slope", 0.0))
        else:
            raise UserError(f"exact: {type(layer).__name__} has no exact form")
    return found


def split_limbs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of magnitude up to LARGEST -> high and low limbs, int8: value = 256 high + low."""
    high = (values.to(torch.int16) + 128) >> 8
    return high.to(torch.int8), (values - (high << 8)).to(torch.int8)


@kernel
def _split(values, high, low):
    """:func:`split_limbs` of (n,) int16, in one pass."""
    for i in range(len(values)):
        limb = (np.int32(values[i]) + 128) >> 8
        high[i] = limb
        low[i] = values[i] - (limb << 8)


@kernel
def _gather(a, top, width, kernel, stride, out):
    """What outputs see of a (H, W C), row ``top`` of them first, ``width`` in a row -> (n, kh kw C)."""
    span = out.shape[1] // kernel[0]
    step = stride[1] * span // kernel[1]
    for i in range(len(out)):
        y, x = (top + i // width) * stride[0], i % width * step
        for k in range(kernel[0]):
            # slices, so that the inner loop needs no check for indices below zero
            source, target = a[y + k, x : x + span], out[i, k * span : (k + 1) * span]
            for j in range(span):
                target[j] = source[j]


@kernel
def _round_int8(upper, lower, bias, shift, leak, limit, out):
    """Sums of products of limbs, (n, 2 O) int32 -> rounded, leaked and clamped, (n, O).

    ``bias`` holds the half that makes a shift a rounding; ``leak`` is in units of 2^-LEAK_BITS.
    """
    outputs = out.shape[1]
    for i in range(len(out)):
        for o in range(outputs):
            cross = np.int64(upper[i, outputs + o]) + np.int64(lower[i, o])
            value = (np.int64(upper[i, o]) << 16) + (cross << 8) + np.int64(lower[i, outputs + o])
            value = min(max((value + bias[o]) >> shift[o], -limit), limit)
            if value < 0:
                value = (value * leak + (1 << (LEAK_BITS - 1))) >> LEAK_BITS
            out[i, o] = value


def use_int8() -> bool:
    """Whether 8-bit integer products are the faster way to the sums on this CPU, and right."""
    return fast_int8() and int8_is_right()


@lru_cache(maxsize=1)
def int8_is_right() -> bool:
    """Whether integer products are right at their extremes: processors with neither AMX nor VNNI
    saturate."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-128, 128, (33, 515), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (515, 34), generator=generator, dtype=torch.int8)
    a[0], b[:, 0] = -128, -128
    return torch.equal(torch._int_mm(a, b).double(), a.double() @ b.double())
