"""Fisher information of a model's answers, by draws whose outer products have it as their mean."""

import torch
from torch import Tensor


def fisher_probe(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A draw u of the logits' shape (..., V) with E[u u'] = diag(p) - p p', p = softmax(logits): the
    Fisher information of a categorical distribution by its logits.

    So has the gradient of the log-likelihood of a sampled answer. This draw is Gaussian; its squares
    scatter far less where one answer is nearly certain. Carried back through the model, it becomes a
    gradient by the features whose outer products have their Fisher information as the mean.

    Args:
        generator: of the CPU, whatever the logits' device.
    """
    p = logits.float().softmax(-1)
    noise = torch.randn(p.shape, generator=generator).to(p.device)
    r = p.sqrt() * noise
    return (r - p * r.sum(-1, keepdim=True)).to(logits.dtype)
