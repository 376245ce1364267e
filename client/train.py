"""One site's local training: from records and a model to an update. What it costs: `common/dp/cost.py`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.clipped_sum import BoundedSum, GradientSum
from client.clipping import PROBES, clipped_sum_for, shares_of
from client.descent import Descent
from client.oversampling import smote
from client.plain_sum import PlainSum
from client.releases import AdaptiveClipping, Released, bounds_of, noised_sum
from client.replicas import Spread, SpreadClipped
from client.sampling import poisson_batch
from common.errors import ConfigError
from common.federation import PrivacySettings, TrainingSettings
from common.models import flat, trainable
from common.randomness import Randomness
from common.spans import span
from common.updates import Vector

_SPACINGS = 64  # noise must spread over at least so many steps of the numbers it is added to


@dataclass(frozen=True)
class Trained:
    """update: (num_parameters,) float64, new minus old; with noise in shares it has none yet. seconds: wall time."""

    update: Vector = field(repr=False)
    seconds: float


@span("train")
def train(
    model: nn.Module,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    training: TrainingSettings,
    privacy: PrivacySettings,
    noise_multiplier: float,
    randomness: Randomness,
    round_number: int = 1,
    rounds: int = 1,
    between_steps: Callable[[], None] = lambda: None,
    bfloat16: bool = False,
    also_on: Sequence[torch.device] = (),
) -> Trained:
    """Train `model` in place on features (n, *inputs) and labels (n,); its new weights and the update agree.

    With `privacy.mode` "local" each of `local_steps` steps releases no more than the sum of the gradients of a
    Poisson batch, each of L2 norm `max_grad_norm` at most, plus Gaussian noise of standard deviation
    noise_multiplier * max_grad_norm; all that follows is computed from that. The sum is divided by the public
    `lot_size`, so neither the batch's size nor n shows. With "distributed" the one step is taken without that noise,
    and with "site" all steps are plain: such an update must not leave before its share of noise is on it.
    With `privacy.clipping` "per-layer" the layers have shares of the same norm; with "adaptive" the norm moves with the
    steps, at the same cost (`AdaptiveClipping`). round_number, of rounds: public, for the learning rate's schedule.
    between_steps: may raise, to stop. bfloat16: the model's own products are of that type; gradients are not.
    All happens on the device that `model` is on but the noise, which the processor draws while a GPU is still summing;
    also_on: further devices that take their part of every sum of gradients, see `Spread`.
    Reference: Abadi et al. 2016, arXiv:1607.00133.
    """
    started = time.perf_counter()
    if training.oversampling == "smote":
        features, labels = smote(features, labels, randomness)
    parameters = trainable(model)
    before = flat(parameters)
    if not model.training:
        model.train()
    probes = _batch(features, labels, np.arange(min(PROBES, len(labels))))
    step: Step
    if privacy.mode in ("none", "site"):
        plain: GradientSum = Spread(model, also_on, PlainSum, *probes) if also_on else PlainSum(model)
        with plain:
            plain.bfloat16 = bfloat16
            if training.sampling == "shuffle":
                _train_on_shuffled(plain, parameters, features, labels, training, randomness, between_steps)
                update = flat(parameters) - before
            else:
                descent = Descent(model, training, round_number, rounds)
                step = partial(_noiseless, plain)
                _train_on_lots(step, descent, features, labels, training, randomness, between_steps)
                update = descent.weights - before
    else:
        for bound in bounds_of(privacy):
            refuse_swallowed_noise(noise_multiplier * bound, bound, training, before)
        descent = Descent(model, training, round_number, rounds)
        shares = shares_of(model, privacy.clipping, privacy.layer_weights)
        given = {"max_grad_norm": privacy.max_grad_norm, "features": probes[0], "labels": probes[1], "shares": shares}
        clipped_for = partial(clipped_sum_for, **given)
        clipped: BoundedSum = SpreadClipped(model, also_on, clipped_for, *probes) if also_on else clipped_for(model)
        with clipped:
            if bfloat16:
                _require_bfloat16(clipped, *probes)
            if privacy.mode == "distributed":
                step = partial(_noiseless, clipped)
            elif privacy.clipping == "adaptive":
                step = AdaptiveClipping(clipped, noise_multiplier, training, privacy, randomness).noised_sum
            else:
                step = partial(noised_sum, clipped, noise_multiplier * privacy.max_grad_norm, randomness)
            _train_on_lots(step, descent, features, labels, training, randomness, between_steps)
        update = descent.weights - before
    return Trained(update, time.perf_counter() - started)


def _require_bfloat16(clipped: BoundedSum, features: Tensor, labels: Tensor) -> None:
    """Compute in it from here on. Raises ConfigError where the model cannot: layers of one's own may mix types."""
    clipped.bfloat16 = True
    try:
        clipped.of(features, labels)
    except RuntimeError as error:
        raise ConfigError(
            f"this model cannot be trained in bfloat16: {error}", 'set precision = "float32" in site.toml'
        ) from None


def refuse_swallowed_noise(noise_std: float, max_grad_norm: float, training: TrainingSettings, weights: Vector) -> None:
    """Raise ConfigError when rounding, in the sums (float32) or in the weights (float64), could hide the noise.

    The noise must spread over at least 64 steps of the numbers it is added to, or neighbours' sums could round
    differently more often than the accountant is told. Looks at public numbers only.
    """
    in_sum = float(np.spacing(np.float32(min(max_grad_norm * training.lot_size, 1e38))))
    per_rate = noise_std / training.lot_size if training.optimizer == "sgd" else 1.0  # Adam's own scale
    step_std = training.learning_rate * per_rate
    in_weights = float(np.spacing(np.abs(weights).max()))
    for name, std, spacing in (("sum of gradients", noise_std, in_sum), ("weights", step_std, in_weights)):
        if not _SPACINGS * spacing <= std < 1e30:
            raise ConfigError(
                f"noise of standard deviation {std:.3g} would be lost to rounding in the {name} (step {spacing:.3g})",
                "raise privacy.noise_multiplier or training.learning_rate, or lower training.lot_size",
            )


Step = Callable[[Tensor, Tensor], Released]  # a batch's features and labels -> what to move against


def _train_on_lots(
    gradient_sum: Step,
    descent: Descent,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    training: TrainingSettings,
    randomness: Randomness,
    between_steps: Callable[[], None],
) -> None:
    for _ in range(training.local_steps):
        between_steps()
        batch = poisson_batch(len(labels), training.sample_rate, randomness)
        descent.step(gradient_sum(*_batch(features, labels, batch)))


def _batch(
    features: NDArray[np.float32], labels: NDArray[np.int64], chosen: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Copies of the chosen records, so that read-only arrays will do; whoever sums takes them to its device."""
    return torch.from_numpy(features[chosen]), torch.from_numpy(labels[chosen])


def _noiseless(gradients: GradientSum, features: Tensor, labels: Tensor) -> Released:
    """Only for an update that gets noise before it leaves, or that nobody protects."""
    return Released(gradients.of(features, labels))


def _train_on_shuffled(
    plain: GradientSum,
    parameters: list[nn.Parameter],
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    training: TrainingSettings,
    randomness: Randomness,
    between_steps: Callable[[], None],
) -> None:
    """Plain SGD over every record once per epoch; nothing here is private."""
    sizes = [p.numel() for p in parameters]
    velocity = torch.zeros(sum(sizes)).to(parameters[0])
    pieces = [piece.view(p.shape) for p, piece in zip(parameters, velocity.split(sizes), strict=True)]
    for _ in range(training.local_epochs):
        order = np.argsort(randomness.uniform(len(labels)))
        for start in range(0, len(order), training.batch_size):
            between_steps()
            batch = order[start : start + training.batch_size]
            gradients = plain.of(*_batch(features, labels, batch))
            velocity.mul_(training.momentum).add_(gradients, alpha=1 / len(batch))
            with torch.no_grad():
                torch._foreach_add_(parameters, pieces, alpha=-training.learning_rate)
