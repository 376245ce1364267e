"""One site's local training: from records and a model to an update. What it costs: `common/dp/cost.py`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from client.clipping import PROBES, clipped_sum_for
from client.clipping_modes import ClippedSum
from client.sampling import poisson_batch
from common.errors import ConfigError
from common.federation import PrivacySettings, TrainingSettings
from common.models import flat, trainable
from common.randomness import Randomness
from common.updates import Vector

_SPACINGS = 64  # noise must spread over at least so many steps of the numbers it is added to


@dataclass(frozen=True)
class Trained:
    """update: (num_parameters,) float64, new minus old; with noise in shares it has none yet. seconds: wall time."""

    update: Vector = field(repr=False)
    seconds: float


def train(
    model: nn.Module,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    training: TrainingSettings,
    privacy: PrivacySettings,
    noise_multiplier: float,
    randomness: Randomness,
) -> Trained:
    """Train `model` in place on features (n, *inputs) and labels (n,); its new weights and the update agree.

    With `privacy.mode` "local" each of `local_steps` steps releases no more than the sum of the gradients of a
    Poisson batch, each of L2 norm `max_grad_norm` at most, plus Gaussian noise of standard deviation
    noise_multiplier * max_grad_norm; all that follows is computed from that. The sum is divided by the public
    `lot_size`, so neither the batch's size nor n shows. With "distributed" the one step is taken without that noise,
    and with "site" all steps are plain: such an update must not leave before its share of noise is on it.
    Reference: Abadi et al. 2016, arXiv:1607.00133.
    """
    started = time.perf_counter()
    parameters = trainable(model)
    before = flat(parameters)
    if not model.training:
        model.train()
    if privacy.mode in ("none", "site") and training.sampling == "shuffle":
        _train_on_shuffled(model, parameters, features, labels, training, randomness)
        update = flat(parameters) - before
    elif privacy.mode in ("none", "site"):
        descent = Descent(model, training)
        _train_on_lots(partial(_gradient_sum, model), descent, features, labels, training, randomness)
        update = descent.weights - before
    else:
        noise_std = noise_multiplier * privacy.max_grad_norm
        refuse_swallowed_noise(noise_std, privacy.max_grad_norm, training, before)
        descent = Descent(model, training)
        probes = _batch(features, labels, np.arange(min(PROBES, len(labels))), descent.device)
        with clipped_sum_for(model, privacy.max_grad_norm, *probes) as clipped:
            local = privacy.mode == "local"
            gradient_sum = partial(noised_sum, clipped, noise_std, randomness) if local else clipped.of
            _train_on_lots(gradient_sum, descent, features, labels, training, randomness)
        update = descent.weights - before
    return Trained(update, time.perf_counter() - started)


class Descent:
    """Gradient descent with momentum on a model's weights, which are kept in float64 beside the model.

    Small steps on large float32 weights would be rounded away, and the noise with them.
    """

    def __init__(self, model: nn.Module, training: TrainingSettings) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._weights = torch.cat([p.detach().reshape(-1) for p in self._parameters]).double()
        pieces = self._weights.split([p.numel() for p in self._parameters])
        self._pieces = [piece.view(p.shape) for p, piece in zip(self._parameters, pieces, strict=True)]
        self._velocity, self._spare = torch.zeros_like(self._weights), torch.empty_like(self._weights)
        self._momentum, self._rate = training.momentum, training.learning_rate / training.lot_size

    @property
    def device(self) -> torch.device:
        return self._weights.device

    @property
    def weights(self) -> Vector:
        """(d,): the weights the model now holds, before their rounding to its own type."""
        return self._weights.cpu().numpy()

    def step(self, gradient_sum: Tensor) -> None:
        """Move against gradient_sum (d,), divided by the public lot size."""
        self._spare.copy_(gradient_sum)  # into memory that is there: adding float32 to float64 would allocate it anew
        if self._momentum:
            self._spare.add_(self._velocity, alpha=self._momentum)
        self._velocity, self._spare = self._spare, self._velocity
        self._weights.add_(self._velocity, alpha=-self._rate)
        with torch.no_grad():
            for parameter, piece in zip(self._parameters, self._pieces, strict=True):
                parameter.copy_(piece)


def noised_sum(
    clipped: ClippedSum, noise_std: float, randomness: Randomness, features: Tensor, labels: Tensor
) -> Tensor:
    """(d,): one step of the Gaussian mechanism; an empty batch is released as noise alone."""
    total = clipped.of(features, labels)
    noise = randomness.gaussian(len(total), noise_std, np.float64 if total.dtype == torch.float64 else np.float32)
    return total.add_(torch.from_numpy(noise).to(total.device))


def refuse_swallowed_noise(noise_std: float, max_grad_norm: float, training: TrainingSettings, weights: Vector) -> None:
    """Raise ConfigError when rounding, in the sums (float32) or in the weights (float64), could hide the noise.

    The noise must spread over at least 64 steps of the numbers it is added to, or neighbours' sums could round
    differently more often than the accountant is told. Looks at public numbers only.
    """
    in_sum = float(np.spacing(np.float32(min(max_grad_norm * training.lot_size, 1e38))))
    step_std = noise_std * training.learning_rate / training.lot_size
    in_weights = float(np.spacing(np.abs(weights).max()))
    for name, std, spacing in (("sum of gradients", noise_std, in_sum), ("weights", step_std, in_weights)):
        if not _SPACINGS * spacing <= std < 1e30:
            raise ConfigError(
                f"noise of standard deviation {std:.3g} would be lost to rounding in the {name} (step {spacing:.3g})",
                "raise privacy.noise_multiplier or training.learning_rate, or lower training.lot_size",
            )


Step = Callable[[Tensor, Tensor], Tensor]  # a batch's features and labels -> the sum to move against (d,)


def _train_on_lots(
    gradient_sum: Step,
    descent: Descent,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    training: TrainingSettings,
    randomness: Randomness,
) -> None:
    for _ in range(training.local_steps):
        batch = poisson_batch(len(labels), training.sample_rate, randomness)
        descent.step(gradient_sum(*_batch(features, labels, batch, descent.device)))


def _batch(
    features: NDArray[np.float32], labels: NDArray[np.int64], chosen: NDArray[np.int64], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Copies of the chosen records, so that read-only arrays will do."""
    return torch.from_numpy(features[chosen]).to(device), torch.from_numpy(labels[chosen]).to(device)


def _gradient_sum(model: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not len(labels):
        return torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    loss = F.cross_entropy(model(features), labels, reduction="sum")
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])


def _train_on_shuffled(
    model: nn.Module,
    parameters: list[nn.Parameter],
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    training: TrainingSettings,
    randomness: Randomness,
) -> None:
    """Plain SGD over every record once per epoch; nothing here is private."""
    velocity = None
    for _ in range(training.local_epochs):
        order = np.argsort(randomness.uniform(len(labels)))
        for start in range(0, len(order), training.batch_size):
            batch = order[start : start + training.batch_size]
            chosen, answers = _batch(features, labels, batch, parameters[0].device)
            loss = F.cross_entropy(model(chosen), answers)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                if velocity is not None:
                    gradients = torch._foreach_add(gradients, velocity, alpha=training.momentum)
                velocity = gradients
                torch._foreach_add_(parameters, velocity, alpha=-training.learning_rate)
