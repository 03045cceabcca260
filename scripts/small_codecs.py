"""A small codec of every kind that is registered, on made-up features: what the fuzzer and the golden
files work on. No script of its own.

Codecs that are fitted are fitted by their own script; learned ones have tiny widths and random weights.
Two kinds of features: ``tokens`` (1, 1, T, 6) and ``maps`` (N, 2, 3, 3), both float32.
"""

import contextlib
import importlib
import io
from pathlib import Path

import numpy as np
import yaml

from dtufc.feature import FeatureFacts, load_facts, write_feature
from dtufc.registry import BUILT_IN, find_codec

FACTS = {
    "tokens": {"shape": [None, 1, None, 6], "axes": ["sample", "layer", "token", "channel"]},
    "maps": {
        "shape": [None, 2, 3, 3],
        "axes": ["sample", "channel", "row", "column"],
        "tiles": [1, 2],
    },
}
"""The facts of each kind of features."""
SHAPES = {"tokens": (1, 1, 20, 6), "maps": (6, 2, 3, 3)}
ARCHS = {
    "hyperprior": lambda kind: {"N": 2, "M": 3},
    "elic": lambda kind: {"N": 2, "M": 4, "groups": [1, 1, 2], "context": [[2, 2]] * 2},
    "native": lambda kind: {
        "inputs": 6 if kind == "tokens" else 2, "N": 2, "M": 3,
        "kernel": [3, 1 if kind == "tokens" else 3],
    },
}  # fmt: skip
CLUSTERS = {"tokens": "[2]", "maps": "[1]"}
"""That klt tries: with several, their indexes are coded too."""


def registered() -> list[str]:
    """The names of all codecs of this repository."""
    return sorted(entry.name for entry in BUILT_IN)


def made_up(kind: str, seed: int) -> np.ndarray:
    """A feature of SHAPES[kind]: tokens of two sorts whose channels go together, or smooth maps."""
    rng = np.random.default_rng(seed)
    shape = SHAPES[kind]
    x = rng.standard_normal(shape)
    if kind == "maps":
        x = np.cumsum(np.cumsum(x, axis=2), axis=3) + np.linspace(-1, 3, shape[1])[:, None, None]
    else:
        sorts = np.random.default_rng(0).standard_normal((2, shape[3], shape[3]))
        own = rng.integers(2, size=shape[2])
        x = np.einsum("nctd,tdw->nctw", x * 0.3 ** np.arange(shape[3]), sorts[own])
        x += 3 * sorts[own].sum(1)
    return x.astype(np.float32)


def write_machine(folder: Path, kind: str) -> Path:
    """The YAML with the facts of a kind of features."""
    path = folder / f"{kind}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"feature": {"model": "small", "task": kind, **FACTS[kind]}}))
    return path


def write_features(folder: Path, kind: str, count: int) -> Path:
    """A folder of ``count`` training features."""
    for seed in range(count):
        write_feature(folder / f"{seed:02d}.npy", made_up(kind, seed))
    return folder


def make(name: str, kind: str, folder: Path) -> Path:
    """Fit or build a codec -> ``folder/codec``, with its machine and features beside it."""
    machine = write_machine(folder, kind)
    features = write_features(folder / "features", kind, 12)
    output = folder / "codec"
    entry = find_codec(name)
    if entry.trained:
        write_learned(name, kind, load_facts(machine), output)
    else:
        argv = [part for key, value in entry.flags for part in (f"--{key}", str(value))]
        argv += ["--machine", str(machine), "--features", str(features)]
        argv += ["--clusters", CLUSTERS[kind]] if name == "klt" else []
        run_script(entry.script, [*argv, "--output", str(output)])
    return output


def run_script(script: str, argv: list[str]) -> None:
    """The ``main(argv)`` of a script's module in this process; its output is shown only if it fails."""
    module = importlib.import_module(script)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
            module.main(argv)
    except SystemExit as error:
        raise RuntimeError(f"{script} {argv}: {error}\n{shown.getvalue()}") from error


def write_learned(name: str, kind: str, facts: FeatureFacts, output: Path) -> None:
    """A learned codec with random weights that give spread-out latents."""
    import torch

    from dtufc.CompressAI.checkpoint import Kind, save_checkpoint
    from dtufc.CompressAI.models import MODELS, build_model
    from dtufc.transform.mapping import Mapping

    torch.manual_seed(0)
    model = build_model(name, MODELS[name].arch_class(**ARCHS[name](kind)))
    with torch.no_grad():
        for layer in model.g_a.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.mul_(4)
        inputs = getattr(model.arch, "inputs", 1)
        x = model.g_s(model.g_a(torch.rand(1, inputs, 64, 64)).round())
        last = [m for m in model.g_s.modules() if hasattr(m, "weight") and hasattr(m, "bias")][-1]
        gain = 0.2 / x.std()
        last.weight.mul_(gain)
        last.bias.mul_(gain).add_(0.5 - gain * x.mean())  # within the codebook, mostly
    values = np.sort(np.concatenate([made_up(kind, seed).ravel() for seed in range(12)]))
    levels = np.quantile(values.astype(np.float64), np.linspace(0, 1, 64))
    save_checkpoint(output, model, name, [Kind(facts, Mapping(levels))], {})
