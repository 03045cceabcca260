"""A state-space language model in two halves: the machine of :mod:`dtufc.machines.mamba.mamba`."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

from dtufc.errors import UserError
from dtufc.machines.checkpoints import loading
from dtufc.machines.llama3.tasks import log_probs
from dtufc.machines.machine import Sample
from dtufc.machines.qwen3.halves import ContinuedMachine
from dtufc.states import State


class MambaMachine(ContinuedMachine):
    """A text read up to some token by the front half, and on from there by the back half, which has the
    weights of all layers."""

    @cached_property
    def front(self) -> nn.Module:
        """Token ids (1, T) -> ``last_hidden_state`` (1, T, width)."""
        with loading(self.folder):  # the layers behind the cut are reported as unexpected
            model = AutoModel.from_pretrained(
                self.folder,
                num_hidden_layers=self.layer + 1,
                dtype=self.options.torch_dtype,
                local_files_only=True,
            )
        model.norm_f = nn.Identity()
        return model.eval().to(self.options.torch_device)

    @cached_property
    def back(self) -> nn.Module:
        """Hidden states (1, T, width), as ``inputs_embeds`` -> logits."""
        with loading(self.folder):
            model = AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=self.options.torch_dtype, local_files_only=True
            )
        model.backbone.layers = model.backbone.layers[self.layer + 1 :]
        for place, block in enumerate(model.backbone.layers):
            block.mixer.layer_idx = place  # its place in a cache of this half
        return model.eval().to(self.options.torch_device)

    def _cache(self) -> DynamicCache:
        return DynamicCache(config=self.config)

    def _read(self, ids: list[int], cache: DynamicCache) -> Tensor:
        """Hidden states (1, T, width) of the next tokens, which the cache then holds."""
        tokens = torch.tensor([ids], device=self.options.torch_device)
        return self.front(input_ids=tokens, cache_params=cache, use_cache=True).last_hidden_state

    def _write(self, hidden: Tensor, cache: DynamicCache) -> Tensor:
        """(1, T, width) -> logits (vocabulary,) behind the last of them."""
        out = self.back(inputs_embeds=hidden, cache_params=cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1]

    @torch.inference_mode()
    def extract(self, sample: Sample) -> dict[str, np.ndarray]:
        cache = self._cache()
        hidden = self._read(self.task.sequences(sample)[0], cache)
        state = {"hidden": hidden[None]}
        for layer in range(self.layer + 1):
            state[f"conv{layer}"] = cache.get_conv_state(layer)[None]
            state[f"ssm{layer}"] = cache.get_recurrent_state(layer)[None]
        return {name: x.float().cpu().numpy() for name, x in state.items()}

    @torch.inference_mode()
    def respond(self, sample: Sample, state: State) -> Tensor:
        device, dtype = self.options.torch_device, self.back.dtype
        tensors = {name: torch.from_numpy(x).to(device) for name, x in state.items()}
        if (got := tensors["hidden"].shape[2]) != self.options.prefix:
            raise UserError(f"{sample.name}: {got} tokens, the sample has {self.options.prefix}")
        front, back = self._cache(), self._cache()
        for layer in range(self.layer + 1):
            conv = tensors[f"conv{layer}"][0].to(dtype)
            front.update_conv_state(conv, layer, conv_kernel_size=conv.shape[-1])
            front.update_recurrent_state(tensors[f"ssm{layer}"][0], layer)  # float32 in any dtype
        logits = [self._write(tensors["hidden"][0].to(dtype), back)]
        for token in self.task.rest(sample):
            logits.append(self._write(self._read([token], front), back))
        return log_probs(torch.stack(logits))
