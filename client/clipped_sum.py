"""A batch's sum of clipped per-record gradients: what every way to it has in common, and what a layer is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Losses = Callable[[Tensor, Tensor], Tensor]  # (model output, labels) -> one loss per record (n,)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,): one loss per record from logits (n, classes)."""
    return F.cross_entropy(logits, labels, reduction="none")


def output_of(model: Callable[[Tensor], Tensor], features: Tensor, bfloat16: bool) -> Tensor:
    """(n, ...): what the model gives; with bfloat16 its products are of that type, parameters and output are not."""
    # No cache: it would outlive the parameters' values, which change in place, and the levels of torch.func.
    with torch.autocast(features.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False):
        output = model(features)
    return output.float() if bfloat16 else output


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


class GradientSum(AbstractContextManager["GradientSum"], Protocol):
    """The sum of a batch's gradients; used as a context, which leaves the model as it was."""

    bfloat16: bool  # of a model's products; norms and sums keep the parameters' own type

    def of(self, features: Tensor, labels: Tensor) -> Tensor:
        """(d,): on the model's device, wherever the records are. Overwritten by the next call."""
        ...


class BoundedSum(GradientSum, Protocol):
    """One record moves it by L2 norm `max_grad_norm` at most."""

    max_grad_norm: float

    @property
    def inside(self) -> int:
        """How many records of the last batch were within the bound, when there are no shares. Private: noise it."""
        ...


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
        self.bfloat16 = False
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
        features, labels = features.to(self._total.device), labels.to(self._total.device)
        self._total.zero_()
        self._inside.zero_()
        parts = -(-len(labels) // self.records_at_once)
        with all_digits():
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
def all_digits() -> Iterator[None]:
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
