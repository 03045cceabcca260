"""What a device is good at."""

import ctypes
import sys

import torch

from coding.errors import UserError

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # of malloc.h


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


def keep_memory() -> None:
    """Let the process keep freed memory, where the C library can: large tensors then come without a
    page fault for every 4 KiB, which takes up to half of an elementwise pass. Its peak stays as it is.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl has not
        if mallopt is not None:
            # an older glibc takes no more than 32 MiB
            mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 1 << 25)
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def check_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        UserError: there is none.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name} is not to be had ({error})") from error
    return device
