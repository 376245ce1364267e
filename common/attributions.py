"""Attributions of a model's predictions to its inputs, by captum: an extra, asked for by name (`veilfed[explain]`)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.errors import ConfigError

Floats = NDArray[np.float64]
_STEPS = 256  # of the integral: a hundredth of the logit's rise is lost with 64


def integrated_gradients(
    model: nn.Module, features: NDArray[np.float32], classes: NDArray[np.int64], baseline: NDArray[np.float32]
) -> Floats:
    """How much of each record's logit of its class comes from each feature: the shape of features (n, *inputs).

    A record's sum over features is its logit minus that of `baseline` (*inputs). Sundararajan et al. 2017,
    arXiv:1703.01365.
    """
    method = _captum().IntegratedGradients(_still(model))
    return _attributed(method, features, classes, baseline, n_steps=_STEPS, internal_batch_size=4096)


def kernel_shap(
    model: nn.Module,
    features: NDArray[np.float32],
    classes: NDArray[np.int64],
    baseline: NDArray[np.float32],
    samples: int,
    seed: int,
) -> Floats:
    """Shapley values of each record's logit, estimated from `samples` coalitions: the shape of features (n, *inputs).

    Features left out of a coalition are the baseline's. Exact for a linear model with samples enough, else an estimate
    that `seed` fixes. Lundberg and Lee 2017, arXiv:1705.07874, theorem 2.
    """
    method = _captum().KernelShap(_still(model))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        rows = [
            _attributed(method, features[i : i + 1], classes[i : i + 1], baseline, n_samples=samples)
            for i in range(len(features))
        ]
    return np.concatenate(rows)


def _attributed(
    method: Any,
    features: NDArray[np.float32],
    classes: NDArray[np.int64],
    baseline: NDArray[np.float32],
    **options: int,
) -> Floats:
    found = method.attribute(
        torch.tensor(features), baselines=torch.tensor(baseline)[None], target=torch.tensor(classes), **options
    )
    return np.asarray(found.detach().double().numpy())


def _still(model: nn.Module) -> nn.Module:
    if model.training:
        raise ConfigError("attributions of a model in training mode would change with its dropout", "call model.eval()")
    return model


def _captum() -> Any:
    try:
        from captum import attr
    except ImportError as error:
        raise ConfigError(f"attributions need captum: {error}", "pip install 'veilfed[explain]'") from error
    return attr
