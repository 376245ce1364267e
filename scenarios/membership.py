"""A membership attack on models that the real training made: targets, and shadows trained alike."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.evaluators.membership import Attacked, confidences, likelihood_ratios
from common.evaluators.utility import Predict

Fit = Callable[[NDArray[np.float32], NDArray[np.int64], int], Predict]  # records, and which model of them all this is


def attacked_models(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    fit: Fit,
    rng: np.random.Generator,
    models: int = 9,
    targets: int = 3,
) -> Attacked:
    """What LiRA says of these records for the first `targets` of `models`, joined.

    Every model is fitted to a random half of the records; each target is attacked with all other models as shadows.
    An attacker has as much where they have data like the target's and know how it is trained.
    """
    inside = rng.random((models, len(labels))) < 0.5
    told = [confidences(fit(features[half], labels[half], k)(features), labels) for k, half in enumerate(inside)]
    found = np.stack(told)
    others = [np.delete(np.arange(models), k) for k in range(targets)]
    scores = [likelihood_ratios(found[k], found[rest], inside[rest]) for k, rest in enumerate(others)]
    return Attacked(np.concatenate(scores), inside[:targets].reshape(-1))
