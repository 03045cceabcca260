"""What a device is good at."""

import torch


def fast_bf16(device: str | torch.device) -> bool:
    """Whether bf16 convolutions are faster than float32 here: CUDA, or a CPU with AMX."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # torch has no public question for this; oneDNN's own dispatch asks the same
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()
