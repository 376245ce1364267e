"""Three ways to the same sum of clipped per-record gradients, from the fastest to the one that always works."""

from collections.abc import Callable, Iterator, Sequence
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


def owners(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, nn.Parameter]]]:
    """Path, module and trainable parameters of every module that owns some; an attention owns those of its parts."""
    parts: set[nn.Module] = set()
    for path, module in model.named_modules():
        attention = type(module) is nn.MultiheadAttention
        own = {name: p for name, p in module.named_parameters(recurse=attention) if p.requires_grad}
        if own and module not in parts:
            parts.update(module.modules() if attention else ())
            yield path, module, own


def layers_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """What per-layer clipping bounds, by path: an owner's parameters; a shared one counts where it is met first."""
    met: set[nn.Parameter] = set()
    layers = {}
    for path, _, own in owners(model):
        if fresh := [p for p in own.values() if p not in met]:
            met.update(fresh)
            layers[path] = fresh
    return layers


class ClippedSum:
    """Gives the sum of clipped gradients of a batch; used as a context, which leaves the model as it was.

    Whatever the shares, one record moves the sum by L2 norm `max_grad_norm` at most.
    """

    mode: str

    def __init__(
        self,
        model: nn.Module,
        max_grad_norm: float,
        losses: Losses = cross_entropy,
        shares: Sequence[float] = (),
    ) -> None:
        """shares: of `max_grad_norm`, one for each of `layers_of(model)`, their squares adding up to 1.

        Each layer's gradient is then clipped to its own share; without shares, the gradient as a whole.
        """
        self.model, self.max_grad_norm, self.losses = model, max_grad_norm, losses
        layers = layers_of(model)
        self.paths = list(layers)
        self._layer_of = {id(p): place for place, own in enumerate(layers.values()) for p in own}
        self._shares = torch.tensor(shares, dtype=torch.float64).unsqueeze(1)
        self.records_at_once = 1 << 30
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        sizes = [p.numel() for p in self.parameters.values()]
        self._total = torch.zeros(sum(sizes)).to(next(iter(self.parameters.values())))
        self._inside = torch.zeros((), dtype=torch.int64, device=self._total.device)
        pieces = zip(self.parameters.values(), self._total.split(sizes), strict=True)
        self.sums = [piece.view(p.shape) for p, piece in pieces]

    def of(self, features: Tensor, labels: Tensor) -> Tensor:
        """(d,): sum over the records of their gradients, each scaled down to L2 norm `max_grad_norm` if longer.

        With shares, each layer's gradient is scaled down to its share of it. A large batch is worked through in parts
        of at most `records_at_once`; an empty one gives zeros. The vector is overwritten by the next call.
        """
        self._total.zero_()
        self._inside.zero_()
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

    @property
    def inside(self) -> int:
        """How many records of the last batch were within the bound, when there are no shares. Private: noise it."""
        return int(self._inside)

    def _factors(self, squared_norms: list[Tensor], layers: list[int]) -> list[Tensor]:
        """What to scale each piece of the gradients by: (n,) for each of the pieces' squared norms (n,).

        layers: the place in `paths` that each piece belongs to.
        """
        pieces = torch.stack(squared_norms)
        if not len(self._shares):
            norms = pieces.sum(0).sqrt_()
            self._inside += (norms <= self.max_grad_norm).sum()
            return [self.max_grad_norm / norms.clamp_(min=self.max_grad_norm)] * len(layers)
        norms = pieces.new_zeros(len(self.paths), pieces.shape[1])
        norms.index_add_(0, torch.tensor(layers, device=pieces.device), pieces)
        bounds = (self.max_grad_norm * self._shares).to(pieces)
        by_layer = bounds / norms.sqrt_().clamp_(min=bounds)
        return [by_layer[place] for place in layers]

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
            used = [(layer, place, calls.pop(module)) for module, layer, place in self._layers if calls.get(module)]
            norms = [layer.squared_norms(each) for layer, _, each in used]
            factors = self._factors(norms, [place for _, place, _ in used])
            for (layer, _, _), own_factors in zip(used, factors, strict=True):
                layer.add_clipped(own_factors)


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
        output = functional_call(self.model, parameters, (record.unsqueeze(0),))
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
            loss = self.losses(self.model(record), label).sum()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            used = [each for each in zip(parameters, self.sums, found, strict=True) if each[2] is not None]
            norms = [gradient.square().sum().view(1) for _, _, gradient in used]
            factors = self._factors(norms, [self._layer_of[id(p)] for p, _, _ in used])
            for (_, total, gradient), factor in zip(used, factors, strict=True):
                total.add_(gradient * factor)
