"""Three ways to the same sum of clipped per-record gradients, from the fastest to the one that always works."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from client.clipping_attention import WatchedAttention
from client.clipping_layers import EmbeddingLayer, Layer, layer_for
from common.errors import ConfigError

Losses = Callable[[Tensor, Tensor], Tensor]  # (model output, labels) -> one loss per record (n,)


class NotThisWay(ConfigError):
    """This mode cannot take this model, another one may; the message says why."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,): one loss per record from logits (n, classes)."""
    return F.cross_entropy(logits, labels, reduction="none")


class ClippedSum:
    """Gives the sum of clipped gradients of a batch; used as a context, which leaves the model as it was."""

    mode: str

    def __init__(self, model: nn.Module, max_grad_norm: float, losses: Losses = cross_entropy) -> None:
        self.model, self.max_grad_norm, self.losses = model, max_grad_norm, losses
        self.records_at_once = 1 << 30
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        sizes = [p.numel() for p in self.parameters.values()]
        self._total = torch.zeros(sum(sizes)).to(next(iter(self.parameters.values())))
        pieces = zip(self.parameters.values(), self._total.split(sizes), strict=True)
        self.sums = [piece.view(p.shape) for p, piece in pieces]

    def of(self, features: Tensor, labels: Tensor) -> Tensor:
        """(d,): sum over the records of their gradients, each scaled down to L2 norm `max_grad_norm` if longer.

        A large batch is worked through in parts of at most `records_at_once`; an empty one gives zeros. The vector
        is overwritten by the next call.
        """
        self._total.zero_()
        parts = -(-len(labels) // self.records_at_once)
        with _all_digits():
            if parts == 1:
                self._add(features, labels)
            elif parts:
                for part in zip(features.tensor_split(parts), labels.tensor_split(parts), strict=True):
                    self._add(*part)
        return self._total

    def _add(self, features: Tensor, labels: Tensor) -> None:
        """Add the clipped gradients of this non-empty batch to `sums`."""
        raise NotImplementedError

    def _factors(self, squared_norms: Tensor) -> Tensor:
        return self.max_grad_norm / squared_norms.sqrt().clamp_(min=self.max_grad_norm)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo."""


@contextmanager
def _all_digits() -> Iterator[None]:
    """No TF32, which cuDNN rounds convolutions to unasked: norm and sum would differ by more than a clip may be off."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


class BookKeeping(ClippedSum):
    """One forward, one backward that computes no weight gradient, then one clipped product per layer.

    Hooks, set only inside the context, keep each layer's input and the place in the autograd graph where the
    gradient at its output will pass; the backward pass then computes what leads to those places and nothing else.
    Reference: Bu et al. 2023, arXiv:2210.00038.
    """

    mode = "book-keeping"

    def __init__(self, model: nn.Module, max_grad_norm: float, losses: Losses = cross_entropy) -> None:
        """Raises NotThisWay when a trainable parameter has no rule."""
        super().__init__(model, max_grad_norm, losses)
        self._layers: list[tuple[nn.Module, Layer]] = []
        self._attention: list[WatchedAttention] = []
        self._collect_layers()
        self._seen: dict[nn.Module, list[tuple[Tensor, GradientEdge]]] = {}
        self._hooks: list[RemovableHandle] = []
        self._records = 0  # of the batch now passing forward; 0: nothing is watched

    def _collect_layers(self) -> None:
        sums = {id(p): total for p, total in zip(self.parameters.values(), self.sums, strict=True)}
        done: set[nn.Module] = set()
        for path, module in self.model.named_modules():
            attention = type(module) is nn.MultiheadAttention
            trainable = {name: p for name, p in module.named_parameters(recurse=attention) if p.requires_grad}
            if not trainable or module in done:
                continue
            what = f"{path or 'the model'} ({type(module).__name__})"
            if not all(id(p) in sums for p in trainable.values()):
                raise NotThisWay(f"{what} shares a parameter with another module")
            own = {name: sums.pop(id(p)) for name, p in trainable.items()}
            if attention:
                if module.bias_k is not None or module.add_zero_attn:
                    raise NotThisWay(f"{what} attends to rows that no record brought")
                self._attention.append(WatchedAttention(module, own))
                self._layers += self._attention[-1].layers
                done.update(module.modules())
            else:
                layer = layer_for(module, own)
                if layer is None:
                    raise NotThisWay(f"{what} has no rule")
                self._layers.append((module, layer))

    def __enter__(self) -> Self:
        for module, layer in self._layers:
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
            raise NotThisWay(f"{type(module).__name__} is not called with the records first")
        if output.requires_grad:
            # The edge stays right when the output is changed in place afterwards, as by ReLU(inplace=True).
            self._seen.setdefault(module, []).append((inputs[0].detach(), get_gradient_edge(output)))

    def _add(self, features: Tensor, labels: Tensor) -> None:
        self._seen.clear()
        self._records = len(labels)
        losses = self.losses(self.model(features), labels)
        self._records = 0
        edges = [edge for calls in self._seen.values() for _, edge in calls]
        found = iter(torch.autograd.grad(losses.sum(), edges, allow_unused=True))
        calls = {
            module: [(inputs, gradient) for inputs, _ in seen if (gradient := next(found)) is not None]
            for module, seen in self._seen.items()
        }
        self._seen.clear()
        with torch.no_grad():
            used = [(layer, calls.pop(module)) for module, layer in self._layers if calls.get(module)]
            norms = torch.stack([layer.squared_norms(each) for layer, each in used]).sum(0)
            factors = self._factors(norms)
            for layer, _ in used:
                layer.add_clipped(factors)


class Vectorised(ClippedSum):
    """torch.func: all per-record gradients at once, whatever the layers; they must fit into memory."""

    mode = "vectorised"

    def __init__(self, model: nn.Module, max_grad_norm: float, losses: Losses = cross_entropy) -> None:
        super().__init__(model, max_grad_norm, losses)
        self._gradients = vmap(grad(self._loss), in_dims=(None, 0, 0), randomness="different")

    def _loss(self, parameters: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
        output = functional_call(self.model, parameters, (record.unsqueeze(0),))
        return self.losses(output, label.unsqueeze(0)).sum()

    def _add(self, features: Tensor, labels: Tensor) -> None:
        own = {name: p.detach() for name, p in self.parameters.items()}
        rows = [gradient.flatten(1) for gradient in self._gradients(own, features, labels).values()]
        factors = self._factors(torch.stack([each.square().sum(1) for each in rows]).sum(0))
        for total, each in zip(self.sums, rows, strict=True):
            total.view(-1).addmv_(each.t(), factors)


class OneByOne(ClippedSum):
    """The definition itself: one backward pass per record. Slow, and what the others are checked against."""

    mode = "one by one"

    def _add(self, features: Tensor, labels: Tensor) -> None:
        parameters = list(self.parameters.values())
        for record, label in zip(features.split(1), labels.split(1), strict=True):
            loss = self.losses(self.model(record), label).sum()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            used = [(total, g) for total, g in zip(self.sums, found, strict=True) if g is not None]
            factor = self._factors(torch.stack([g.square().sum() for _, g in used]).sum())
            for total, gradient in used:
                total.add_(gradient * factor)
