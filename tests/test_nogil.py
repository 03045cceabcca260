"""Compiled kernels: none keeps the interpreter's lock, and all are kept on the disk."""

import importlib
import pkgutil

import dtufc


def kernels():
    """Name and compiled function of every kernel of the project."""
    for info in pkgutil.walk_packages(dtufc.__path__, "dtufc."):
        for name, value in vars(importlib.import_module(info.name)).items():
            if hasattr(value, "targetoptions") and value.__module__ == info.name:
                yield f"{info.name}.{name}", value


def test_no_kernel_keeps_the_lock():
    found = dict(kernels())
    assert {"dtufc.klt.entropy.choose", "dtufc.transform.lookup.restore_discrete"} <= found.keys()
    assert [name for name, kernel in found.items() if not kernel.targetoptions.get("nogil")] == []


def test_every_kernel_is_kept_on_the_disk():
    found = dict(kernels())
    assert [name for name, kernel in found.items() if kernel._cache is None] == []
    assert {type(kernel._cache).__name__ for kernel in found.values()} == {"FunctionCache"}
