"""What a device is good at."""

import ctypes

import torch

from dtufc.errors import UserError


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


def limit_threads(count: int) -> None:
    """Let what the calling thread asks of torch run on ``count`` threads; no other thread notices.

    ``torch.set_num_threads`` does the same and, beyond it, sets the count of every thread that begins
    afterwards. Where torch has another OpenMP than one that is found through it, nothing changes.
    """
    torch.get_num_threads()  # a thread's first call takes over what is global
    torch_library = ctypes.CDLL(torch._C.__file__)  # finds what it is linked to as well
    for name in ("omp_set_num_threads", "MKL_Set_Num_Threads_Local"):
        function = getattr(torch_library, name, None)
        if function is not None:
            function(count)


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
