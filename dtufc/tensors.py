"""Torch tensors at the edge of the codec API, where NumPy arrays are inside.

torch is imported only where a tensor is asked for: who has one has it already.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

from dtufc.errors import UserError
from dtufc.feature import FeatureError

if TYPE_CHECKING:
    import torch

Values: TypeAlias = Union[np.ndarray, "torch.Tensor"]
"""A NumPy array, or a torch tensor on any device."""


def is_tensor(x: Any) -> bool:
    """Whether ``x`` is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def to_array(x: Any) -> np.ndarray:
    """A tensor or an array -> an array of its values; bfloat16, which NumPy lacks, as float32, exactly.

    Raises:
        FeatureError: it is neither, or a tensor that no array can hold.
    """
    if isinstance(x, np.ndarray):
        return x
    if not is_tensor(x):
        kind = type(x).__name__
        raise FeatureError(f"feature: expected a NumPy array or a torch tensor, got {kind}")
    import torch

    try:
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    except (TypeError, RuntimeError) as error:
        raise FeatureError(f"feature: no dense tensor of numbers ({error})") from error


def check_like(device: Any, dtype: Any) -> None:
    """Refuse a device or dtype that no decoded tensor can have, before anything is decoded.

    Raises:
        UserError: no such device, or a dtype that is none of torch's of 16 bits or more.
    """
    import torch

    from dtufc.devices import check_device

    check_device(device or "cpu")
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise UserError(
            f"dtype: expected torch.float32, torch.bfloat16, torch.float16 or torch.float64, "
            f"got {dtype}"
        )


def to_tensor(x: np.ndarray, device: Any, dtype: Any) -> "torch.Tensor":
    """An array -> a tensor. What ``dtype`` cannot hold becomes its largest, never infinity.

    Args:
        device: ``None``: the CPU.
        dtype: ``None``: that of the array.
    """
    import torch

    tensor = torch.from_numpy(x).to(device or "cpu")
    if dtype is not None and torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        tensor = tensor.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return tensor.to(dtype or tensor.dtype)


def samples(features: "Values | Iterable[Any]") -> Iterable[Any]:
    """The features of a batch (B, ...), each (1, ...); what is no array or tensor is iterated as it is.

    Raises:
        FeatureError: an array of fewer than 3 axes, which is no batch.
    """
    if not isinstance(features, np.ndarray) and not is_tensor(features):
        return features
    if features.ndim < 3:
        raise FeatureError(
            f"batch: expected (B, C, H, W), or (B, tokens, channels), got {tuple(features.shape)}"
        )
    return [features[i : i + 1] for i in range(len(features))]


def stack(features: Sequence[Values]) -> Values:
    """Features (N, C, H, W) of one shape -> (B*N, C, H, W); the inverse of :func:`samples`.

    Raises:
        UserError: there are none, or their shapes differ.
    """
    shapes = sorted({tuple(x.shape[1:]) for x in features})
    if len(shapes) != 1:
        raise UserError(f"batch: expected features of one shape, got {shapes}")
    if isinstance(features[0], np.ndarray):
        return np.concatenate(features)
    import torch

    return torch.cat(list(features))
