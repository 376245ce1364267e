"""The sum of clipped per-record gradients of one batch: the only thing DP-SGD ever takes from the records."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from client.clipping_layers import Layer, layer_for
from common.errors import ConfigError

Losses = Callable[[Tensor, Tensor], Tensor]  # (model output, labels) -> one loss per record (n,)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,): one loss per record from logits (n, classes)."""
    return F.cross_entropy(logits, labels, reduction="none")


class ClippedSum:
    """Book-keeping: one forward, one backward without weight gradients, then one clipped product per layer.

    Used as a context: inside it the model's trainable layers are watched by hooks, afterwards it is as it was.
    Reference: Bu et al. 2023, arXiv:2210.00038.
    """

    def __init__(self, model: nn.Module, max_grad_norm: float, losses: Losses = cross_entropy) -> None:
        self._model, self._max_grad_norm, self._losses = model, max_grad_norm, losses
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        sizes = [p.numel() for p in trainable.values()]
        self._total = torch.zeros(sum(sizes)).to(next(iter(trainable.values())))
        pieces = zip(trainable.items(), self._total.split(sizes), strict=True)
        sums = {id(p): piece.view(p.shape) for (_, p), piece in pieces}
        self._layers: list[tuple[nn.Module, Layer]] = []
        for path, module in model.named_modules():
            own = {name: sums[id(p)] for name, p in module.named_parameters(recurse=False) if id(p) in sums}
            if own:
                layer = layer_for(module, own)
                if layer is None:
                    kind = type(module).__name__
                    raise ConfigError(f"model: {path or 'the model'} ({kind}) cannot be clipped per record")
                self._layers.append((module, layer))
        self._seen: dict[nn.Module, list[tuple[Tensor, GradientEdge]]] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._hooks = [module.register_forward_hook(self._watch) for module, _ in self._layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seen = [], {}

    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # The edge stays right when the output is changed in place afterwards, as by ReLU(inplace=True).
        self._seen.setdefault(module, []).append((inputs[0].detach(), get_gradient_edge(output)))

    def of(self, features: Tensor, labels: Tensor) -> Tensor:
        """(d,): sum over the records of their gradients, each scaled down to L2 norm `max_grad_norm` if longer.

        The vector is overwritten by the next call. An empty batch gives zeros.
        """
        self._total.zero_()
        if len(labels):
            self._add(features, labels)
        return self._total

    def _add(self, features: Tensor, labels: Tensor) -> None:
        self._seen.clear()
        losses = self._losses(self._model(features), labels)
        edges = [edge for calls in self._seen.values() for _, edge in calls]
        # Only what leads to the edges is computed, so no weight gradient is.
        gradients = iter(torch.autograd.grad(losses.sum(), edges))
        with torch.no_grad():
            used = [
                (layer, [(inputs, next(gradients)) for inputs, _ in self._seen[module]])
                for module, layer in self._layers
                if module in self._seen
            ]
            norms = torch.stack([layer.squared_norms(calls) for layer, calls in used]).sum(0).sqrt_()
            factors = self._max_grad_norm / norms.clamp_(min=self._max_grad_norm)
            for layer, _ in used:
                layer.add_clipped(factors)
        self._seen.clear()
