"""What one layer adds to each record's gradient norm, and its part of the clipped sum of gradients.

All use two facts that one backward pass leaves behind: what went into the layer and the gradient at its output.
Reference: Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost, arXiv:2210.00038.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Call = tuple[Tensor, Tensor]  # a layer's input (n, ...) and the loss gradient at its output (n, ...)
Sums = dict[str, Tensor]  # by parameter name: where the clipped sum of that trainable parameter is gathered

_CACHED_BYTES = 1 << 21  # temporaries up to this size stay in the processor's cache
_DIRECT_BYTES = 1 << 26  # above it, per-record gradients of one layer are never held


class Layer(Protocol):
    def squared_norms(self, calls: list[Call]) -> Tensor:
        """(n,): squared L2 norm of each record's gradient of this layer's trainable parameters.

        A layer used several times in one pass has several calls; their gradients add up before the norm is taken.
        """
        ...

    def add_clipped(self, factors: Tensor) -> None:
        """Add the sum over records of factors[i] * gradient[i], for the calls just measured, and forget them."""
        ...


class MatrixLayer:
    """Linear and Hugging Face's Conv1D: the gradient is a product of rows, so its norm may not need the gradient.

    One row per record: |g a'| = |g| |a|. Several rows: either all pairs of rows ("ghost") or the gradient itself
    ("direct"), whichever is less work within the memory allowed.
    """

    def __init__(self, sums: Sums, input_first: bool) -> None:
        """input_first: the weight is stored as (inputs, outputs), as in Conv1D."""
        self._weight, self._bias, self._input_first = sums.get("weight"), sums.get("bias"), input_first

    def squared_norms(self, calls: list[Call]) -> Tensor:
        inputs, gradients = _joined_rows(calls)
        self._left, self._right = (inputs, gradients) if self._input_first else (gradients, inputs)
        self._direct = None
        squares = _squares(gradients)
        self._bias_rows = gradients if gradients.dim() == 2 else gradients.sum(1)
        if self._weight is None:
            return _squares(self._bias_rows)
        if gradients.dim() == 2:
            inputs_squared = _squares(inputs)
            return squares * (inputs_squared if self._bias is None else inputs_squared + 1)
        norms = self._squared_norms_of_rows()
        return norms if self._bias is None else norms + _squares(self._bias_rows)

    def _squared_norms_of_rows(self) -> Tensor:
        left, right = self._left, self._right
        if _ghost_is_cheaper(len(left), left.shape[1], left.shape[2], right.shape[2], left.element_size()):
            return _ghost(left.transpose(1, 2), right.transpose(1, 2))
        self._direct = torch.bmm(left.transpose(1, 2), right).flatten(1)
        return _squares(self._direct)

    def add_clipped(self, factors: Tensor) -> None:
        if self._bias is not None:
            self._bias.addmv_(self._bias_rows.t(), factors)
        if self._weight is not None and self._direct is not None:
            self._weight.view(-1).addmv_(self._direct.t(), factors)
        elif self._weight is not None:
            left, right = self._left, self._right
            scale = factors.view(-1, *[1] * (left.dim() - 1))
            left, right = (left * scale, right) if left.shape[-1] <= right.shape[-1] else (left, right * scale)
            self._weight.addmm_(left.reshape(-1, left.shape[-1]).t(), right.reshape(-1, right.shape[-1]))
        del self._left, self._right, self._direct, self._bias_rows


class ConvLayer:
    """Conv1d and Conv2d: a linear layer whose rows are the patches under the kernel."""

    def __init__(self, module: nn.Conv1d | nn.Conv2d, sums: Sums) -> None:
        self._module, self._weight, self._bias = module, sums.get("weight"), sums.get("bias")
        flat = isinstance(module, nn.Conv1d)
        self._kernel = (1, *module.kernel_size) if flat else module.kernel_size
        self._stride = (1, *module.stride) if flat else module.stride
        self._dilation = (1, *module.dilation) if flat else module.dilation
        self._padding = list(module._reversed_padding_repeated_twice)
        self._flat = flat

    def squared_norms(self, calls: list[Call]) -> Tensor:
        self._calls = [self._as_images(*call) for call in calls]
        self._bias_rows = sum(gradients.sum((2, 3)) for _, gradients in self._calls)
        norms = torch.zeros(len(self._bias_rows), dtype=self._bias_rows.dtype, device=self._bias_rows.device)
        self._direct = None
        if self._bias is not None:
            norms += _squares(self._bias_rows)
        if self._weight is not None:
            norms += self._squared_norms_of_patches()
        return norms

    def _as_images(self, inputs: Tensor, gradients: Tensor) -> Call:
        if self._flat:
            inputs, gradients = inputs.unsqueeze(2), gradients.unsqueeze(2)
        if any(self._padding):
            mode = self._module.padding_mode
            padding = [*self._padding, 0, 0] if self._flat else self._padding
            inputs = F.pad(inputs, padding, "constant" if mode == "zeros" else mode)
        return inputs, gradients

    def _squared_norms_of_patches(self) -> Tensor:
        n, outputs, groups = len(self._bias_rows), self._bias_rows.shape[1], self._module.groups
        patch, places = self._weight[0].numel(), sum(g[0, 0].numel() for _, g in self._calls)
        ghost = _ghost_is_cheaper(n, places, patch, outputs // groups, self._weight.element_size())
        if not ghost:
            self._direct = self._weight.new_empty(n, self._weight.numel())
        at_once = max(1, _CACHED_BYTES // (patch * groups * places * self._weight.element_size()))
        norms = []
        for start in range(0, n, at_once):
            chosen = slice(start, start + at_once)
            patches, gradients = self._patches(chosen)
            if ghost:
                norms.append(_ghost(patches, gradients).view(-1, groups).sum(1))
            else:
                direct = self._direct[chosen]
                torch.bmm(gradients, patches.transpose(1, 2), out=direct.view(-1, outputs // groups, patch))
                norms.append(_squares(direct))
        return torch.cat(norms)

    def _patches(self, chosen: slice) -> Call:
        """Patches (records * groups, patch, places) and gradients (records * groups, outputs / groups, places)."""
        groups, patch = self._module.groups, self._weight[0].numel()
        patches = [F.unfold(a[chosen], self._kernel, self._dilation, 0, self._stride) for a, _ in self._calls]
        gradients = [g[chosen].flatten(2) for _, g in self._calls]
        rows = len(gradients[0]) * groups
        joined = [each[0] if len(each) == 1 else torch.cat(each, 2) for each in (patches, gradients)]
        return joined[0].reshape(rows, patch, -1), joined[1].reshape(rows, joined[1].shape[1] // groups, -1)

    def add_clipped(self, factors: Tensor) -> None:
        if self._bias is not None:
            self._bias.addmv_(self._bias_rows.t(), factors)
        if self._direct is not None:
            self._weight.view(-1).addmv_(self._direct.t(), factors)
        elif self._weight is not None:
            shape = (*self._weight.shape[:2], *self._kernel)
            for inputs, gradients in self._calls:
                clipped = torch.nn.grad.conv2d_weight(
                    inputs, shape, gradients * factors.view(-1, 1, 1, 1), self._stride, 0, self._dilation,
                    self._module.groups,
                )  # fmt: skip
                self._weight += clipped.view(self._weight.shape)
        del self._calls, self._direct, self._bias_rows


class EmbeddingLayer:
    """A record's gradient has one row per distinct token: rows of equal tokens meet, all others are orthogonal."""

    def __init__(self, module: nn.Embedding, sums: Sums) -> None:
        self._weight, self._padding_idx = sums["weight"], module.padding_idx

    def squared_norms(self, calls: list[Call]) -> Tensor:
        n, width = len(calls[0][0]), self._weight.shape[1]
        self._tokens = torch.cat([tokens.reshape(n, -1) for tokens, _ in calls], 1)
        self._gradients = torch.cat([gradients.reshape(n, -1, width) for _, gradients in calls], 1)
        if self._padding_idx is not None:
            self._gradients = self._gradients * (self._tokens != self._padding_idx).unsqueeze(2)
        same = self._tokens.unsqueeze(2) == self._tokens.unsqueeze(1)
        products = torch.bmm(self._gradients, self._gradients.transpose(1, 2))
        return (products * same).sum((1, 2)).clamp_(min=0)

    def add_clipped(self, factors: Tensor) -> None:
        rows = (self._gradients * factors.view(-1, 1, 1)).flatten(0, 1)
        self._weight.index_add_(0, self._tokens.flatten(), rows)
        del self._tokens, self._gradients


class NormLayer:
    """LayerNorm and GroupNorm: scale and shift act on each feature alone, so a record's gradient is a sum of rows."""

    def __init__(self, module: nn.LayerNorm | nn.GroupNorm, sums: Sums) -> None:
        self._module, self._weight, self._bias = module, sums.get("weight"), sums.get("bias")

    def squared_norms(self, calls: list[Call]) -> Tensor:
        scale_rows, shift_rows = zip(*(self._rows(*call) for call in calls), strict=True)
        self._scale_rows, self._shift_rows = sum(scale_rows), sum(shift_rows)
        kept = [(self._weight, self._scale_rows), (self._bias, self._shift_rows)]
        return sum(_squares(rows) for sums, rows in kept if sums is not None)

    def _rows(self, inputs: Tensor, gradients: Tensor) -> Call:
        """(n, features) each: gradients of scale and shift."""
        module, n = self._module, len(inputs)
        if isinstance(module, nn.LayerNorm):
            normal = F.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
            features = math.prod(module.normalized_shape)
            return (normal * gradients).reshape(n, -1, features).sum(1), gradients.reshape(n, -1, features).sum(1)
        normal = F.group_norm(inputs, module.num_groups, None, None, module.eps)
        channels = module.num_channels
        return (normal * gradients).reshape(n, channels, -1).sum(2), gradients.reshape(n, channels, -1).sum(2)

    def add_clipped(self, factors: Tensor) -> None:
        for sums, rows in ((self._weight, self._scale_rows), (self._bias, self._shift_rows)):
            if sums is not None:
                sums.view(-1).addmv_(rows.t(), factors)
        del self._scale_rows, self._shift_rows


def layer_for(module: nn.Module, sums: Sums) -> Layer | None:
    """The layer's rule, or None when there is none. Exact types: a subclass may compute something else."""
    kind = type(module)
    if kind is nn.Linear:
        return MatrixLayer(sums, input_first=False)
    if kind.__name__ == "Conv1D" and hasattr(module, "nf"):  # Hugging Face's, known by its looks
        return MatrixLayer(sums, input_first=True)
    if kind in (nn.Conv1d, nn.Conv2d):
        return ConvLayer(module, sums)
    if kind in (nn.LayerNorm, nn.GroupNorm):
        return NormLayer(module, sums)
    if kind is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq:
        return EmbeddingLayer(module, sums)
    return None


def _joined_rows(calls: list[Call]) -> Call:
    """(n, d) and (n, p) for one call with one row per record, otherwise (n, rows, d) and (n, rows, p)."""
    if len(calls) == 1 and calls[0][0].dim() == 2:
        return calls[0]
    n = len(calls[0][0])
    inputs, gradients = zip(*calls, strict=True)
    return tuple(torch.cat([t.reshape(n, -1, t.shape[-1]) for t in each], 1) for each in (inputs, gradients))


def _ghost_is_cheaper(n: int, rows: int, left: int, right: int, item: int) -> bool:
    return rows * (left + right) <= left * right or n * left * right * item > _DIRECT_BYTES


def _ghost(left: Tensor, right: Tensor) -> Tensor:
    """(n,): squared norms of left[i] @ right[i]' for left (n, p, rows) and right (n, d, rows), without the products."""
    products = torch.bmm(left.transpose(1, 2), left)
    products *= torch.bmm(right.transpose(1, 2), right)
    return products.sum((1, 2)).clamp_(min=0)


def _squares(rows: Tensor) -> Tensor:
    """(n,): the squared L2 norm of each record's values."""
    return torch.linalg.vector_norm(rows.flatten(1), dim=1).square_()
