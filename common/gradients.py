"""Gradients of a model by its inputs: for attacks on what it predicts and on what its training gave away."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from common.errors import InvalidUpdate
from common.models import parameters_of
from common.updates import Vector

Floats = NDArray[np.float64]


def input_gradients(model: nn.Module, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Floats:
    """The gradient of each record's cross-entropy by its own features: the shape of features (n, *inputs)."""
    was_training = model.training
    model.eval()
    try:
        inputs = torch.tensor(features, requires_grad=True)
        loss = F.cross_entropy(model(inputs), torch.tensor(labels), reduction="sum")
        return np.asarray(torch.autograd.grad(loss, inputs)[0].double().numpy())
    finally:
        model.train(was_training)


def update_mismatch(
    model: nn.Module, labels: NDArray[np.int64], update: Vector, learning_rate: float, steps: int = 1
) -> Callable[[Floats], tuple[float, Floats]]:
    """How far the update that records would have caused is from `update` (d,): what `inversion.by_optimising` asks.

    The answer's function takes features (n, *inputs) with the given labels (n,), plays `steps` steps of plain gradient
    descent on their mean loss, from the model's weights, and gives the squared distance over |update|^2, and its
    gradient. The model is left as it is. Reference: Geiping et al. 2020, arXiv:2003.14053, section 6.
    """
    size = float(update @ update)
    if len(update) != len(parameters_of(model)) or not size or not np.isfinite(size):
        raise InvalidUpdate(f"an update of {len(update)} values, or zero, or not finite, tells nothing of this model")
    start = {name: p.detach().double() for name, p in model.named_parameters() if p.requires_grad}
    seen, answers = torch.tensor(update), torch.tensor(labels)

    def mismatch(features: Floats) -> tuple[float, Floats]:
        inputs = torch.tensor(features, dtype=torch.float64, requires_grad=True)
        weights = {name: p.clone().requires_grad_() for name, p in start.items()}
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(model, weights, inputs), answers)
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {name: w - learning_rate * s for (name, w), s in zip(weights.items(), slopes, strict=True)}
        moved = torch.cat([(weights[name] - start[name]).reshape(-1) for name in start])
        distance = (moved - seen).square().sum() / size
        slope = torch.autograd.grad(distance, inputs)[0]
        return distance.item(), np.asarray(slope.numpy())

    return mismatch
