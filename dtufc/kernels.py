"""Compiled kernels: compiled once per machine, kept on the disk, and run beside each other."""

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable | None = None, **options: Any) -> Callable:
    """``numba.njit`` that lets go of the interpreter's lock and keeps what it compiled on the disk.

    The code is kept in ``__pycache__`` beside the module. Where that folder is read-only, as an
    installation for all users is, it is kept in the user's cache folder, or in ``NUMBA_CACHE_DIR``.
    Where none of them can be written to, every process compiles for itself.

    Args:
        options: further ones of ``numba.njit``.
    """
    if function is None:
        return lambda function: kernel(function, **options)
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # numba's word for no folder to keep it in
        return njit(nogil=True, **options)(function)
