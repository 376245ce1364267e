"""What one layer adds to each record's gradient norm, and its part of the clipped sum of gradients.

All use two facts that one backward pass leaves behind: what went into the layer and the gradient at its output.
Reference: Bu et al. 2023, Differentially Private Optimization on Large Model at Small Cost, arXiv:2210.00038.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F

Call = tuple[Tensor, Tensor]  # a layer's input (n, ...) and the loss gradient at its output (n, ...)
Sums = dict[str, Tensor]  # by parameter name: where the clipped sum of that trainable parameter is gathered

_CACHED_BYTES = 1 << 21  # temporaries up to this size stay in the processor's cache
_DIRECT_BYTES = 1 << 26  # more than that is never held of one layer's per-record gradients
_DIRECT_PENALTY = 32  # multiplications that one number of a per-record gradient costs to write, read and sum


class Layer(Protocol):
    norm: str  # how the last norms were found: "direct", "ghost" (pairs of rows) or "product" (of two vectors' norms)

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

    def __init__(self, weight: Tensor | None, bias: Tensor | None, input_first: bool = False) -> None:
        """weight, bias: their sums; input_first: the weight is stored as (inputs, outputs), as in Conv1D."""
        self._weight, self._bias, self._input_first = weight, bias, input_first
        self._direct, self._turned, self.norm = _PerRecord(), False, "direct"

    def squared_norms(self, calls: list[Call]) -> Tensor:
        inputs, gradients = _joined_rows(calls)
        self._bias_rows = gradients if gradients.dim() == 2 else gradients.sum(1)
        bias_norms = _squares(self._bias_rows) if self._bias is not None or gradients.dim() == 2 else 0.0
        if self._weight is None:
            return bias_norms
        self._left, self._right = (inputs, gradients) if self._input_first else (gradients, inputs)
        if gradients.dim() == 2:
            self.norm = "product"
            return bias_norms * (_squares(inputs) + (self._bias is not None))
        return self._squared_norms_of_rows() + bias_norms

    def _squared_norms_of_rows(self) -> Tensor:
        left, right = self._left, self._right
        if _ghost_is_cheaper(len(left), left.shape[1], left.shape[2], right.shape[2], left.element_size()):
            self.norm = "ghost"
            return _ghost(left, right)
        self.norm = "direct"
        direct = self._direct.room_for(len(left), self._weight)
        # Products with the narrower side first are up to five times faster.
        self._turned = left.shape[2] > right.shape[2]
        narrow, wide = (right, left) if self._turned else (left, right)
        torch.bmm(narrow.transpose(1, 2), wide, out=direct.view(len(left), narrow.shape[2], wide.shape[2]))
        return _squares(direct)

    def add_clipped(self, factors: Tensor) -> None:
        if self._bias is not None:
            self._bias.addmv_(self._bias_rows.t(), factors)
        turned = self._weight.t() if self._weight is not None and self._turned else self._weight
        if self._weight is not None and not self._direct.add_clipped(factors, turned):
            left, right = self._left, self._right
            scale = factors.view(-1, *[1] * (left.dim() - 1))
            left, right = (left * scale, right) if left.shape[-1] <= right.shape[-1] else (left, right * scale)
            self._weight.addmm_(left.reshape(-1, left.shape[-1]).t(), right.reshape(-1, right.shape[-1]))
        self._left = self._right = self._bias_rows = None


class ConvLayer:
    """Conv1d and Conv2d: a linear layer whose rows are the windows under the kernel."""

    def __init__(self, module: nn.Conv1d | nn.Conv2d, sums: Sums) -> None:
        self._module, self._weight, self._bias = module, sums.get("weight"), sums.get("bias")
        one = (1,) if isinstance(module, nn.Conv1d) else ()  # a line is an image of height one
        self._is_line = bool(one)
        self._kernel = (*one, *module.kernel_size)
        self._stride = (*one, *module.stride)
        self._dilation = (*one, *module.dilation)
        self._direct, self.norm = _PerRecord(), "direct"

    def squared_norms(self, calls: list[Call]) -> Tensor:
        self._calls = [self._as_images(*call) for call in calls]
        self._bias_rows = sum(gradients.sum((2, 3)) for _, gradients in self._calls)
        bias_norms = 0.0 if self._bias is None else _squares(self._bias_rows)
        return bias_norms if self._weight is None else self._squared_norms_of_windows() + bias_norms

    def _as_images(self, inputs: Tensor, gradients: Tensor) -> Call:
        padding, mode = self._module._reversed_padding_repeated_twice, self._module.padding_mode
        if any(padding):
            inputs = F.pad(inputs, padding, "constant" if mode == "zeros" else mode)
        return (inputs.unsqueeze(2), gradients.unsqueeze(2)) if self._is_line else (inputs, gradients)

    def _squared_norms_of_windows(self) -> Tensor:
        n, groups, item = len(self._bias_rows), self._module.groups, self._weight.element_size()
        outputs, window = self._weight.shape[0] // groups, self._weight[0].numel()
        places = sum(gradients[0, 0].numel() for _, gradients in self._calls)
        ghost = _ghost_is_cheaper(n * groups, places, outputs, window, item)
        self.norm = "ghost" if ghost else "direct"
        direct = None if ghost else self._direct.room_for(n, self._weight).view(n * groups, outputs, window)
        norms = torch.empty(n * groups, dtype=self._weight.dtype, device=self._weight.device)
        at_once = max(1, _CACHED_BYTES // (window * groups * places * item))
        for start in range(0, n, at_once):
            windows, gradients = self._rows(slice(start, start + at_once))
            piece = slice(start * groups, (start + at_once) * groups)
            if direct is None:
                norms[piece] = _ghost(gradients.transpose(1, 2), windows.transpose(1, 2))
            else:
                torch.bmm(gradients, windows.transpose(1, 2), out=direct[piece])
                norms[piece] = _squares(direct[piece])
        return norms.view(n, groups).sum(1)

    def _rows(self, chosen: slice) -> Call:
        """(records * groups, window, places) and (records * groups, outputs / groups, places)."""
        pieces = [(self._windows(a[chosen], g.shape[2:]), g[chosen].flatten(2)) for a, g in self._calls]
        windows, gradients = (
            pieces[0] if len(pieces) == 1 else (torch.cat(each, 2) for each in zip(*pieces, strict=True))
        )
        rows = len(gradients) * self._module.groups
        return windows.reshape(rows, -1, windows.shape[2]), gradients.reshape(rows, -1, gradients.shape[2])

    def _windows(self, images: Tensor, places: torch.Size) -> Tensor:
        """(n, channels * kernel, places), copied row by row; F.unfold copies value by value."""
        record, channel, down, across = images.stride()
        within = (down * self._dilation[0], across * self._dilation[1])
        between = (down * self._stride[0], across * self._stride[1])
        shape = (*images.shape[:2], *self._kernel, *places)
        strides = (record, channel, *within, *between)
        return images.as_strided(shape, strides, images.storage_offset()).reshape(len(images), -1, places.numel())

    def add_clipped(self, factors: Tensor) -> None:
        if self._bias is not None:
            self._bias.addmv_(self._bias_rows.t(), factors)
        if self._weight is not None and not self._direct.add_clipped(factors, self._weight):
            shape = (*self._weight.shape[:2], *self._kernel)
            for inputs, gradients in self._calls:
                clipped = gradients * factors.view(-1, 1, 1, 1)
                rest = (self._stride, 0, self._dilation, self._module.groups)
                self._weight += torch.nn.grad.conv2d_weight(inputs, shape, clipped, *rest).view(self._weight.shape)
        self._calls = self._bias_rows = None


class EmbeddingLayer:
    """A record's gradient has one row per distinct token: rows of equal tokens meet, all others are orthogonal."""

    norm = "ghost"

    def __init__(self, module: nn.Embedding, sums: Sums) -> None:
        self._weight, self._padding_idx = sums["weight"], module.padding_idx

    def squared_norms(self, calls: list[Call]) -> Tensor:
        n, width = len(calls[0][0]), self._weight.shape[1]
        self._tokens = torch.cat([tokens.reshape(n, -1) for tokens, _ in calls], 1)
        self._gradients = torch.cat([gradients.reshape(n, -1, width) for _, gradients in calls], 1)
        if self._padding_idx is not None:
            self._gradients *= (self._tokens != self._padding_idx).unsqueeze(2)
        products = torch.bmm(self._gradients, self._gradients.transpose(1, 2))
        products *= self._tokens.unsqueeze(2) == self._tokens.unsqueeze(1)
        return _sum_of_pairs(products)

    def add_clipped(self, factors: Tensor) -> None:
        rows = (self._gradients * factors.view(-1, 1, 1)).flatten(0, 1)
        self._weight.index_add_(0, self._tokens.flatten(), rows)
        self._tokens = self._gradients = None


class NormLayer:
    """LayerNorm and GroupNorm: scale and shift act on each feature alone, so a record's gradient is a sum of rows."""

    norm = "direct"

    def __init__(self, module: nn.LayerNorm | nn.GroupNorm, sums: Sums) -> None:
        self._module, self._weight, self._bias = module, sums.get("weight"), sums.get("bias")

    def squared_norms(self, calls: list[Call]) -> Tensor:
        scales, shifts = zip(*(self._rows(*call) for call in calls), strict=True)
        kept = [(self._weight, sum(scales)), (self._bias, sum(shifts))]
        self._kept = [(total, rows) for total, rows in kept if total is not None]
        return sum(_squares(rows) for _, rows in self._kept)

    def _rows(self, inputs: Tensor, gradients: Tensor) -> Call:
        """(n, features) each: gradients of scale and shift."""
        module, n = self._module, len(inputs)
        if isinstance(module, nn.LayerNorm):
            normal = F.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
            shape, rows = (n, -1, math.prod(module.normalized_shape)), 1
        else:
            normal = F.group_norm(inputs, module.num_groups, None, None, module.eps)
            shape, rows = (n, module.num_channels, -1), 2
        normal *= gradients
        return normal.reshape(shape).sum(rows), gradients.reshape(shape).sum(rows)

    def add_clipped(self, factors: Tensor) -> None:
        for total, rows in self._kept:
            total.view(-1).addmv_(rows.t(), factors)
        self._kept = None


class AnyLayer:
    """Any other module without children that maps one tensor to one: its gradients record by record, vectorised."""

    norm = "direct"

    def __init__(self, module: nn.Module, sums: Sums) -> None:
        self._module, self._sums = module, sums

    def squared_norms(self, calls: list[Call]) -> Tensor:
        own = {name: p.detach() for name, p in self._module.named_parameters() if name in self._sums}

        def gradients_of(inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
            pull = vjp(lambda p: functional_call(self._module, p, (inputs.unsqueeze(0),)), own)[1]
            return pull(gradient.unsqueeze(0))[0]

        each = [vmap(gradients_of, randomness="different")(*call) for call in calls]
        self._direct = {name: sum(gradients[name] for gradients in each).flatten(1) for name in own}
        return sum(_squares(rows) for rows in self._direct.values())

    def add_clipped(self, factors: Tensor) -> None:
        for name, rows in self._direct.items():
            self._sums[name].view(-1).addmv_(rows.t(), factors)
        self._direct = None


def layer_for(module: nn.Module, sums: Sums) -> Layer | None:
    """The rule for a module that owns trainable parameters, or None when there is none.

    Exact types: a subclass may compute something else.
    """
    kind = type(module)
    if kind is nn.Linear:
        return MatrixLayer(sums.get("weight"), sums.get("bias"))
    if kind.__name__ == "Conv1D" and hasattr(module, "nf"):  # Hugging Face's, known by its looks
        return MatrixLayer(sums.get("weight"), sums.get("bias"), input_first=True)
    if kind in (nn.Conv1d, nn.Conv2d):
        return ConvLayer(module, sums)
    if kind in (nn.LayerNorm, nn.GroupNorm):
        return NormLayer(module, sums)
    if kind is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq:
        return EmbeddingLayer(module, sums)
    return None if kind is nn.Embedding or next(module.children(), None) is not None else AnyLayer(module, sums)


class _PerRecord:
    """One layer's per-record gradients (n, parameters), held in memory that is used again at the next step."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._held = 0

    def room_for(self, n: int, weight: Tensor) -> Tensor:
        if self._memory is None or len(self._memory) < n:
            self._memory = weight.new_empty(n, weight.numel())
        self._held = n
        return self._memory[:n]

    def add_clipped(self, factors: Tensor, total: Tensor) -> bool:
        """Whether anything was held; it is then summed into `total` and forgotten."""
        held, self._held = self._held, 0
        if held:
            total += torch.mv(self._memory[:held].t(), factors).view(total.shape)
        return held > 0


def _joined_rows(calls: list[Call]) -> Call:
    """(n, d) and (n, p) for one call with one row per record, otherwise (n, rows, d) and (n, rows, p)."""
    if len(calls) == 1 and calls[0][0].dim() == 2:
        return calls[0]
    rows = [[t.reshape(len(t), -1, t.shape[-1]) for t in each] for each in zip(*calls, strict=True)]
    inputs, gradients = (each[0] if len(each) == 1 else torch.cat(each, 1) for each in rows)
    return inputs, gradients


def _ghost_is_cheaper(n: int, rows: int, left: int, right: int, item: int) -> bool:
    return rows**2 * (left + right) <= _DIRECT_PENALTY * left * right or n * left * right * item > _DIRECT_BYTES


def _ghost(left: Tensor, right: Tensor) -> Tensor:
    """(n,): squared norms of left[i]' @ right[i] for left (n, rows, p) and right (n, rows, d), without the products."""
    products = torch.bmm(left, left.transpose(1, 2))
    products *= torch.bmm(right, right.transpose(1, 2))
    return _sum_of_pairs(products)


def _sum_of_pairs(products: Tensor) -> Tensor:
    """(n,): the sum over all pairs of rows, and what rounding may have taken from it.

    Rows that nearly cancel leave a small norm as the difference of large numbers. Rounded down, it would let a
    record pass with less than its clip; so it is rounded up, by the last digit of what would stand without cancelling.
    """
    without_cancelling = products.diagonal(dim1=1, dim2=2).sqrt().sum(1).square()
    return products.sum((1, 2)) + torch.finfo(products.dtype).eps * without_cancelling


def _squares(rows: Tensor) -> Tensor:
    """(n,): the squared L2 norm of each record's values."""
    return torch.linalg.vector_norm(rows.flatten(1), dim=1).square_()
