"""torch.nn.MultiheadAttention as four linear maps that can be watched; its own forward hides them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.clipping_layers import Layer, MatrixLayer, Sums


class WatchedAttention:
    """The same attention, computed so that each projection is a module call with the records first."""

    def __init__(self, module: nn.MultiheadAttention, sums: Sums) -> None:
        """sums: by names such as `in_proj_weight` and `out_proj.bias`, trainable parameters only."""
        self.module = module
        self._query, self._key, self._value, self._out = (_Projection() for _ in range(4))
        into = (self._query, self._key, self._value)
        packed = sums["in_proj_weight"].chunk(3) if "in_proj_weight" in sums else (None,) * 3
        separate = [sums.get(name) for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
        weights = packed if module.in_proj_weight is not None else separate
        biases = sums["in_proj_bias"].chunk(3) if "in_proj_bias" in sums else (None,) * 3
        rules = [MatrixLayer(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        rules.append(MatrixLayer(sums.get("out_proj.weight"), sums.get("out_proj.bias")))
        trainable = [*zip(weights, biases, strict=True), (sums.get("out_proj.weight"), sums.get("out_proj.bias"))]
        self.layers: list[tuple[nn.Module, Layer]] = [
            (projection, rule)
            for projection, rule, kept in zip((*into, self._out), rules, trainable, strict=True)
            if kept != (None, None)
        ]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What `MultiheadAttention.forward` gives for batched input; `is_causal` is only a hint beside `attn_mask`."""
        module = self.module
        if not module.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        packed = module.in_proj_weight is not None
        weights = module.in_proj_weight.chunk(3) if packed else self._separate_weights()
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        maps = zip((self._query, self._key, self._value), (query, key, value), weights, biases, strict=True)
        heads = [self._heads(project(t, weight, bias)) for project, t, weight, bias in maps]
        scores = heads[0] @ heads[1].transpose(2, 3) / math.sqrt(module.head_dim)
        if attn_mask is not None:
            scores = scores + _additive(attn_mask, scores).view(-1, *self._mask_shape(attn_mask, scores))
        if key_padding_mask is not None:
            scores = scores + _additive(key_padding_mask, scores)[:, None, None, :]
        chances = F.dropout(scores.softmax(3), module.dropout, module.training)
        mixed = (chances @ heads[2]).transpose(1, 2).flatten(2)
        output = self._out(mixed, module.out_proj.weight, module.out_proj.bias)
        shown = (chances.mean(1) if average_attn_weights else chances) if need_weights else None
        return output if module.batch_first else output.transpose(0, 1), shown

    def _separate_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.module.q_proj_weight, self.module.k_proj_weight, self.module.v_proj_weight

    def _heads(self, rows: Tensor) -> Tensor:
        """(n, rows, width) -> (n, heads, rows, width per head)."""
        return rows.unflatten(2, (self.module.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def _mask_shape(mask: Tensor, scores: Tensor) -> tuple[int, int, int]:
        """(rows, columns) masks are for all, (n * heads, rows, columns) for each head of each record."""
        return (1 if mask.dim() == 2 else scores.shape[1], *mask.shape[-2:])


class _Projection(nn.Module):
    """A linear map that owns nothing: its weights come with the call, so that hooks see its input and output."""

    def forward(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(rows, weight, bias)


def _additive(mask: Tensor, scores: Tensor) -> Tensor:
    """Zero where attention may look, -inf where a boolean mask is True; other masks are added as they are."""
    if mask.dtype != torch.bool:
        return mask.to(scores.dtype)
    return torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_fill(mask, -math.inf)
