"""Property inference on what a round shows: the sum of a few sites' updates, each by the real training."""

from collections.abc import Callable, Sequence

import numpy as np

from common.evaluators.membership import Attacked
from common.evaluators.property_inference import property_scores
from common.federation import ModelSettings, PrivacySettings, TrainingSettings
from common.randomness import Randomness
from common.updates import Vector, clip
from scenarios.inversion import Batch, update_of


def guessed(seen: Callable[[bool], Vector], rng: np.random.Generator, shadows: int = 40, targets: int = 40) -> Attacked:
    """What an attacker says of `targets` sums after training on `shadows` of their own; the truth is by fair coins.

    seen: what the round shows when the property holds of one site's records, or does not; other records each time.
    """
    holds = rng.random(shadows + targets) < 0.5
    sums = np.stack([seen(bool(held)) for held in holds])
    return Attacked(property_scores(sums[:shadows], holds[:shadows], sums[shadows:]), holds[shadows:])


def sum_of(
    settings: ModelSettings,
    sites: Sequence[Batch],
    training: TrainingSettings,
    privacy: PrivacySettings,
    noise_multiplier: float,
    randomness: Randomness,
) -> Vector:
    """(d,): the sites' clipped updates of the settings' initial model, added up: all that is opened of a round."""
    updates = (update_of(settings, batch, training, privacy, noise_multiplier, randomness) for batch in sites)
    return np.sum([clip(update, privacy.max_update_norm).values for update in updates], axis=0)
