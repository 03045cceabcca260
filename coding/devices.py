"""What a device is good at."""

import torch


def fast_bf16(device: str | torch.device) -> bool:
    """Whether bf16 convolutions are faster than float32 here: CUDA, or a CPU with AMX."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # torch has no public question for this; oneDNN's own dispatch asks the same
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def fast_int8() -> bool:
    """Whether 8-bit integer matrix products are fast on this CPU, as they are with AMX."""
    return torch.cpu._is_amx_tile_supported()


def check_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ValueError: there is none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name} is not to be had ({error})") from error
    return device
