"""Compiled kernels run beside each other: none keeps the interpreter's lock."""

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
