"""Three ways to the same sum of clipped per-record gradients, from the fastest to the one that always works."""

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.utils.hooks import RemovableHandle

from client.clipped_sum import ClippedSum, Losses, cross_entropy, output_of, owners
from client.clipping_attention import WatchedAttention
from client.clipping_layers import Call, EmbeddingLayer, Layer, layer_for
from common.errors import ConfigError


class NotThisWay(ConfigError):
    """This mode cannot take this model, another one may; the message says why."""


class BookKeeping(ClippedSum):
    """One forward, one backward that computes no weight gradient, then one clipped product per layer.

    Hooks, set only inside the context, keep each layer's input and the place in the autograd graph where the
    gradient at its output will pass; the backward pass then computes what leads to those places and nothing else.
    Reference: Bu et al. 2023, arXiv:2210.00038.
    """

    mode = "book-keeping"

    def __init__(
        self,
        model: nn.Module,
        max_grad_norm: float,
        losses: Losses = cross_entropy,
        shares: Sequence[float] = (),
    ) -> None:
        """Raises NotThisWay when a trainable parameter has no rule."""
        super().__init__(model, max_grad_norm, losses, shares)
        self._layers: list[tuple[nn.Module, Layer, int]] = []  # the last: its place in `paths`
        self._attention: list[WatchedAttention] = []
        self._collect_layers()
        self._seen: dict[nn.Module, list[tuple[Tensor, GradientEdge]]] = {}
        self._hooks: list[RemovableHandle] = []
        self._records = 0  # of the batch now passing forward; 0: nothing is watched

    def _collect_layers(self) -> None:
        sums = {id(p): total for p, total in zip(self.parameters.values(), self.sums, strict=True)}
        for path, module, trainable in owners(self.model):
            what = f"{path or 'the model'} ({type(module).__name__})"
            if not all(id(p) in sums for p in trainable.values()):
                raise NotThisWay(f"{what} shares a parameter with another module", "give each module its own")
            place = self.paths.index(path)
            own = {name: sums.pop(id(p)) for name, p in trainable.items()}
            if type(module) is nn.MultiheadAttention:
                if module.bias_k is not None or module.add_zero_attn:
                    raise NotThisWay(
                        f"{what} attends to rows that no record brought", "leave out add_bias_kv and add_zero_attn"
                    )
                self._attention.append(WatchedAttention(module, own))
                self._layers += [(*watched, place) for watched in self._attention[-1].layers]
            else:
                layer = layer_for(module, own)
                if layer is None:
                    raise NotThisWay(
                        f"{what} has no rule",
                        "move its own parameters into modules without children, such as torch.nn.Linear",
                    )
                self._layers.append((module, layer, place))

    @property
    def norms(self) -> dict[str, str]:
        """By path, how the norms of the last batch were found: `Layer.norm`."""
        found: dict[str, set[str]] = {}
        for _, layer, place in self._layers:
            found.setdefault(self.paths[place], set()).add(layer.norm)
        return {path: ", ".join(sorted(ways)) for path, ways in found.items()}

    def __enter__(self) -> Self:
        for module, layer, _ in self._layers:
            self._hooks.append(module.register_forward_hook(self._watch))
            if isinstance(layer, EmbeddingLayer):
                self._hooks.append(module.register_forward_pre_hook(self._expand))
        for attention in self._attention:
            attention.module.forward = attention.forward
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for attention in self._attention:
            del attention.module.forward
        self._hooks, self._seen = [], {}

    def _expand(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Tokens given once for all records, as positions are, are looked up once for each."""
        shared = self._records and len(inputs) == 1 and inputs[0].dim() > 1 and len(inputs[0]) == 1
        return (inputs[0].expand(self._records, *inputs[0].shape[1:]),) if shared else None

    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not self._records:
            return
        if not isinstance(output, Tensor) or not inputs or len(inputs[0]) != self._records:
            raise NotThisWay(
                f"{type(module).__name__} does not map one tensor to one, records first",
                "write it with modules that do, such as torch.nn.Linear",
            )
        if output.requires_grad:
            # The edge stays right when the output is changed in place afterwards, as by ReLU(inplace=True).
            self._seen.setdefault(module, []).append((inputs[0].detach(), get_gradient_edge(output)))

    def _add(self, features: Tensor, labels: Tensor) -> None:
        self._seen.clear()
        self._records = len(labels)
        losses = self.losses(output_of(self.model, features, self.bfloat16), labels)
        self._records = 0
        edges = [edge for calls in self._seen.values() for _, edge in calls]
        found = iter(torch.autograd.grad(losses.sum(), edges, allow_unused=True))
        calls = {
            module: [self._call(inputs, gradient) for inputs, _ in seen if (gradient := next(found)) is not None]
            for module, seen in self._seen.items()
        }
        self._seen.clear()
        with torch.no_grad():
            used = [(layer, place, calls.pop(module)) for module, layer, place in self._layers if calls.get(module)]
            norms = [layer.squared_norms(each) for layer, _, each in used]
            factors = self._factors(norms, [place for _, place, _ in used])
            for (layer, _, _), own_factors in zip(used, factors, strict=True):
                layer.add_clipped(own_factors)

    def _call(self, inputs: Tensor, gradient: Tensor) -> Call:
        """In the sums' type: what is clipped is the product of just these, so its norm is right to the last digit."""
        kind = self._total.dtype
        return inputs.to(kind) if inputs.is_floating_point() else inputs, gradient.to(kind)


class Vectorised(ClippedSum):
    """torch.func: all per-record gradients at once, whatever the layers; they must fit into memory."""

    mode = "vectorised"

    def __init__(
        self,
        model: nn.Module,
        max_grad_norm: float,
        losses: Losses = cross_entropy,
        shares: Sequence[float] = (),
    ) -> None:
        super().__init__(model, max_grad_norm, losses, shares)
        self._gradients = vmap(grad(self._loss), in_dims=(None, 0, 0), randomness="different")

    def _loss(self, parameters: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
        model = partial(functional_call, self.model, parameters)
        output = output_of(model, record.unsqueeze(0), self.bfloat16)
        return self.losses(output, label.unsqueeze(0)).sum()

    def _add(self, features: Tensor, labels: Tensor) -> None:
        own = {name: p.detach() for name, p in self.parameters.items()}
        rows = [gradient.flatten(1) for gradient in self._gradients(own, features, labels).values()]
        layers = [self._layer_of[id(p)] for p in self.parameters.values()]
        factors = self._factors([each.square().sum(1) for each in rows], layers)
        for total, each, own_factors in zip(self.sums, rows, factors, strict=True):
            total.view(-1).addmv_(each.t(), own_factors)


class OneByOne(ClippedSum):
    """The definition itself: one backward pass per record. Slow, and what the others are checked against."""

    mode = "one by one"

    def _add(self, features: Tensor, labels: Tensor) -> None:
        parameters = list(self.parameters.values())
        for record, label in zip(features.split(1), labels.split(1), strict=True):
            loss = self.losses(output_of(self.model, record, self.bfloat16), label).sum()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            used = [each for each in zip(parameters, self.sums, found, strict=True) if each[2] is not None]
            norms = [gradient.square().sum().view(1) for _, _, gradient in used]
            factors = self._factors(norms, [self._layer_of[id(p)] for p, _, _ in used])
            for (_, total, gradient), factor in zip(used, factors, strict=True):
                total.add_(gradient * factor)
