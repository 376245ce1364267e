"""What one private step gives away: the clipped sum of a lot with its noise, under a bound that is fixed or adapts."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.clipped_sum import BoundedSum
from common.federation import PrivacySettings, TrainingSettings
from common.randomness import Randomness

_FARTHEST = 100.0  # a bound that adapts stays within that factor of the plan's max_grad_norm


@dataclass(frozen=True)
class Released:
    """gradient_sum: (d,), its noise included. noise_std: of the Gaussian noise in every coordinate of it."""

    gradient_sum: Tensor
    noise_std: float = 0.0


def noised_sum(
    clipped: BoundedSum, noise_std: float, randomness: Randomness, features: Tensor, labels: Tensor
) -> Released:
    """One step of the Gaussian mechanism; an empty batch is released as noise alone."""
    total = clipped.of(features, labels)
    noise = randomness.gaussian(len(total), noise_std, np.float64 if total.dtype == torch.float64 else np.float32)
    return Released(total.add_(torch.from_numpy(noise).to(total.device)), noise_std)


@dataclass(frozen=True)
class NoiseSplit:
    """One step's noise, shared between the sum of gradients and the count of those within the bound.

    gradients: noise std over the bound. count: noise std of the sum over the lot of 1/2 for a gradient within the
    bound and -1/2 for a longer one. A record moves the two by at most the bound and by 1/2, so in units of their noise
    by 1 / noise_multiplier: together they are one step of PoissonGaussian(noise_multiplier), nothing more.
    Reference: Andrew et al. 2021, arXiv:1905.03871, Theorem 1.
    """

    gradients: float
    count: float

    @classmethod
    def of(cls, noise_multiplier: float, lot_size: float) -> "NoiseSplit":
        """The paper's choice for the count, a twentieth of the lot, but not so little that gradients pay over 15 %."""
        count = max(lot_size / 20, noise_multiplier)
        return cls((noise_multiplier**-2 - (2 * count) ** -2) ** -0.5, count)


class AdaptiveClipping:
    """The bound moves by exp(-rate * (share of gradients within it - quantile)) after every step.

    Both are released with noise and counted as one step, see `NoiseSplit`; the next bound follows from what was
    released. It starts at `max_grad_norm` in every round and is kept nowhere: a round that is trained again after a
    crash is then the same mechanism, and no state of a site outlives what its update shows.
    """

    def __init__(
        self,
        clipped: BoundedSum,
        noise_multiplier: float,
        training: TrainingSettings,
        privacy: PrivacySettings,
        randomness: Randomness,
    ) -> None:
        self.bound = privacy.max_grad_norm
        self._clipped, self._lot_size, self._privacy = clipped, training.lot_size, privacy
        self._split, self._randomness = NoiseSplit.of(noise_multiplier, training.lot_size), randomness

    def noised_sum(self, features: Tensor, labels: Tensor) -> Released:
        """One step; the bound has moved afterwards."""
        self._clipped.max_grad_norm = self.bound
        released = noised_sum(self._clipped, self._split.gradients * self.bound, self._randomness, features, labels)
        count = self._clipped.inside - len(labels) / 2
        noised_count = count + float(self._randomness.gaussian(1, self._split.count, np.float64)[0])
        self._move(0.5 + noised_count / self._lot_size)
        return released

    def _move(self, share_within: float) -> None:
        """share_within: as released, with the public lot size below the line; noise may take it out of [0, 1]."""
        privacy = self._privacy
        moved = self.bound * math.exp(-privacy.clip_learning_rate * (share_within - privacy.target_quantile))
        lowest, highest = bounds_of(privacy)
        self.bound = min(max(moved, lowest), highest)


def bounds_of(privacy: PrivacySettings) -> tuple[float, float]:
    """The smallest and the largest bound that a step may clip to."""
    far = _FARTHEST if privacy.clipping == "adaptive" else 1.0
    return privacy.max_grad_norm / far, privacy.max_grad_norm * far
