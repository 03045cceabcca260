"""How much each tensor of a state matters: the model's response to an error in one tensor alone.

On some training samples, each tensor in turn is rounded to a step, the others are as they are, and the
machine says how far its response moved. The step is made finer or coarser by octaves until all tensors
do about the same damage, just below :data:`LIMIT`. So each is measured about where it will be coded, and
what is measured is small enough to grow with the squared error::

    sensitivity = distance of the responses / squared error of the tensor        (both sums over samples)

``sensitivity.json`` beside the features holds it. Codecs of states share their bits by it, see
:mod:`dtufc.many`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from dtufc import files
from dtufc.feature import FeatureFacts
from dtufc.machines.machine import Sample, StateMachine
from dtufc.machines.options import StateOptions
from dtufc.paths import SENSITIVITY_JSON

LIMIT = 0.05
"""Distance of a response at most; its meaning is the machine's, see
:meth:`dtufc.machines.machine.StateMachine.divergence`."""
START, COARSEST, FINEST = 2, -1, 14
"""log2 of a tensor's standard deviation over the step."""


def measure(machine: StateMachine, options: StateOptions) -> None:
    """Write ``sensitivity.json`` of a machine, unless it is there and current."""
    samples = machine.samples("train")[: options.sensitivity_samples]
    path = options.root.folder / SENSITIVITY_JSON
    about = files.jsonable(
        {"samples": [s.name for s in samples], "limit": LIMIT, "origin": machine.origin()}
    )
    if not samples or (path.is_file() and files.read_json(path).get("about") == about):
        return
    tensors = measure_tensors(machine, options.facts.tensors, samples)
    files.write_json(path, {"about": about, "tensors": tensors})


def measure_tensors(
    machine: StateMachine, facts: dict[str, FeatureFacts], samples: Sequence[Sample]
) -> dict[str, dict[str, Any]]:
    """What ``sensitivity.json`` says of each tensor: the quality that it was rounded at, the mean
    distance, squared error and points per sample, and the sensitivity."""
    states = [machine.extract(sample) for sample in samples]
    responses = [machine.respond(*pair) for pair in zip(samples, states, strict=True)]
    found = {}
    for name, each in tqdm(facts.items(), desc="sensitivity", unit="tensor"):

        def damage(quality: int, name: str = name, each: FeatureFacts = each) -> dict[str, Any]:
            distance = error = 0.0
            for sample, state, response in zip(samples, states, responses, strict=True):
                rounded = round_tensor(state[name], each, quality)
                coded = machine.respond(sample, {**state, name: rounded})
                distance += machine.divergence(response, coded)
                error += float(np.sum((rounded.astype(np.float64) - state[name]) ** 2))
            count = len(samples)
            return {
                "quality": quality,
                "distance": distance / count,
                "squared_error": error / count,
            }

        values = _at_limit(damage)
        values["points"] = float(np.mean([state[name].size for state in states]))
        distance, error = values["distance"], values["squared_error"]
        found[name] = values | {"sensitivity": distance / error if error > 0 else 0.0}
    return found


def _at_limit(damage: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """The coarsest step, by octaves, whose distance is within LIMIT."""
    values = damage(START)
    while values["distance"] > LIMIT and values["quality"] < FINEST:
        values = damage(values["quality"] + 1)
    while values["distance"] < LIMIT / 4 and COARSEST < values["quality"] <= START:
        coarser = damage(values["quality"] - 1)
        if coarser["distance"] > LIMIT:
            break
        values = coarser
    return values


def round_tensor(x: np.ndarray, facts: FeatureFacts, quality: float) -> np.ndarray:
    """``x`` rounded to whole steps around the mean of each channel, as a codec at that quality would.

    Args:
        x: (N, C, H, W).
        quality: log2 of the standard deviation of all values around their mean over the step.
    """
    matrix = facts.views.to_matrix(x).astype(np.float64)  # (positions, channels)
    step = matrix.std() * 2.0**-quality
    if step == 0:
        return x
    mean = matrix.mean(0)
    rounded = mean + step * np.rint((matrix - mean) / step)
    return facts.views.from_matrix(rounded.astype(x.dtype), x.shape)
