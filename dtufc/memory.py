"""What a script may ask of the process that it has to itself."""

import ctypes
import sys

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # of malloc.h


def keep_memory() -> None:
    """Let the process keep freed memory, where the C library can: large tensors then come without a
    page fault for every 4 KiB, which takes up to half of an elementwise pass. Its peak stays as it is.

    For a script's ``main`` alone: it changes the whole process, which is not the library's to do.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, musl has not
        if mallopt is not None:
            # an older glibc takes no more than 32 MiB
            mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 1 << 25)
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
