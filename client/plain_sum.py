"""The sum of a batch's gradients as they are, where nobody's record is bounded by itself."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from client.clipped_sum import cross_entropy, output_of
from common.models import trainable


class PlainSum(AbstractContextManager["PlainSum"]):
    """A `GradientSum`; an empty batch gives zeros."""

    def __init__(self, model: nn.Module) -> None:
        self.bfloat16 = False
        self._model, self._parameters = model, trainable(model)

    def of(self, features: Tensor, labels: Tensor) -> Tensor:
        device = self._parameters[0].device
        if not len(labels):
            return torch.zeros(sum(p.numel() for p in self._parameters), device=device)
        losses = cross_entropy(output_of(self._model, features.to(device), self.bfloat16), labels.to(device))
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(losses.sum(), self._parameters)])

    def __exit__(self, *_: object) -> None:
        """Nothing to undo."""
