"""The extras of the package, and what to say where one is missing.

Coding needs the package's own dependencies alone. What else is imported belongs to an extra, which
``pip install "dtufc[NAME]"`` brings.
"""

import importlib
from traceback import walk_tb
from types import ModuleType

from dtufc.errors import UserError

EXTRAS = {
    "handcrafted": ("av", "imagecodecs"),
    "train": ("accelerate", "matplotlib", "sklearn", "tensorboard"),
    "machines": (
        "accelerate", "cv2", "diffusers", "huggingface_hub", "mmcv", "mmengine", "pyarrow",
        "tokenizers", "torch_fidelity", "torchmetrics", "transformers",
    ),
    "live": ("fastapi", "prometheus_client", "starlette", "uvicorn", "websockets"),
    "ray": ("ray",),
    "report": ("bjontegaard", "matplotlib", "plotly"),
    "dev": ("threadpoolctl",),
}  # fmt: skip
"""Name of each extra -> the modules that it brings, for those that this project imports."""


ROOMS = {
    "dtufc.machines": "machines",
    "dtufc.live": "live",
    "dtufc.report": "report",
    "dtufc.CompressAI": "train",
}
"""Of the extras that bring a module, the one that belongs to the package that asked for it."""


def explain(error: ImportError) -> str | None:
    """The line for a module that could not be imported; ``None`` where no extra brings it."""
    module = (error.name or "").partition(".")[0]
    fits = [extra for extra, modules in EXTRAS.items() if module in modules]
    if not fits:
        return None
    asking = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    own = {ROOMS.get(".".join(name.split(".")[:2])) for name in asking}
    extra = next((extra for extra in fits if extra in own), fits[0])
    return f'{module} is not installed; pip install "dtufc[{extra}]" brings it'


def load(module: str) -> ModuleType:
    """Import a module that an extra brings.

    Raises:
        UserError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if line := explain(error):
            raise UserError(line) from error
        raise
