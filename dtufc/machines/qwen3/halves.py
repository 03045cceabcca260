"""A language model that hands over its cache: the machine of :mod:`dtufc.machines.qwen3.qwen3`."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from dtufc.errors import UserError
from dtufc.machines.llama3.halves import LlamaMachine
from dtufc.machines.llama3.tasks import ContinuationTask, log_probs
from dtufc.machines.machine import Sample, StateMachine
from dtufc.machines.qwen3.qwen3 import ContinuedOptions
from dtufc.machines.sources import open_source
from dtufc.states import State


class ContinuedMachine(LlamaMachine, StateMachine):
    """A text read up to some token by the front half, and on from there by the back half, which has the
    weights of all layers."""

    options: ContinuedOptions

    @cached_property
    def task(self) -> ContinuationTask:
        options = self.options
        source = open_source(
            options.source, options.root.source, options.counts, options.seed, options.texts
        )
        return ContinuationTask(self, source, options.window, options.counts, options.prefix)

    @torch.inference_mode()
    def extract(self, sample: Sample) -> dict[str, np.ndarray]:
        """hidden (1, 1, T, width); k and v of each layer (1, heads, T, head width), keys as they lie in
        the cache, turned by their places."""
        ids = self.task.sequences(sample)[0]
        cache = DynamicCache()
        hidden = self._read(self.front, ids, cache)
        state = {"hidden": hidden[None]}
        for number, layer in enumerate(cache.layers):
            state |= {f"k{number}": layer.keys, f"v{number}": layer.values}
        return {name: x.float().cpu().numpy() for name, x in state.items()}

    def _read(self, model: Any, ids: list[int], cache: DynamicCache) -> Tensor:
        """Hidden states (1, T, width) of the next tokens, which the cache then holds."""
        places = self._places(cache, len(ids))
        tokens = torch.tensor([ids], device=self.options.torch_device)
        out = model(input_ids=tokens, position_ids=places, past_key_values=cache, use_cache=True)
        return out.last_hidden_state

    def _places(self, cache: DynamicCache, count: int) -> Tensor:
        first = cache.get_seq_length()
        return torch.arange(first, first + count, device=self.options.torch_device)[None]

    @torch.inference_mode()
    def respond(self, sample: Sample, state: State) -> Tensor:
        """Log-probabilities behind the last token of the prefix and each token after it, (1 + tokens
        after it, vocabulary) float32."""
        device, dtype = self.options.torch_device, self.back.dtype
        tensors = {name: torch.from_numpy(x).to(device, dtype) for name, x in state.items()}
        if (got := tensors["hidden"].shape[2]) != self.options.prefix:
            raise UserError(f"{sample.name}: {got} tokens, the sample has {self.options.prefix}")
        front, back = DynamicCache(), DynamicCache()
        for layer in range(self.layer + 1):
            front.update(tensors[f"k{layer}"], tensors[f"v{layer}"], layer)
        logits = [self._logits_of(tensors["hidden"][0], back)[-1:]]
        hidden = self._read(self.front, self.task.rest(sample), front)
        logits.append(self._logits_of(hidden, back))
        return log_probs(torch.cat(logits))

    def _logits_of(self, hidden: Tensor, cache: DynamicCache) -> Tensor:
        """(1, T, width) -> (T, vocabulary) of the next T places."""
        # a back half without layers leaves its cache empty, and needs no places
        places = self._places(cache, hidden.shape[1])
        out = self.back(
            inputs_embeds=hidden, position_ids=places, past_key_values=cache, use_cache=True
        )
        return out.logits[0]

    def uncut(self, sample: Sample) -> Tensor:
        """As :meth:`respond`, of the model that is not cut: log-probabilities are logits too."""
        return self.respond(sample, self.extract(sample))

    def predict(self, sample: Sample, state: State) -> Any:
        return self.task.predict(sample, [self.respond(sample, state)])

    def divergence(self, uncoded: Tensor, coded: Tensor) -> float:
        """KL divergence per token, nats."""
        kl = torch.nn.functional.kl_div(coded, uncoded, reduction="none", log_target=True)
        return float(kl.double().sum() / len(uncoded))
