"""Whether a model's probabilities can be taken at their word, and the one number that often mends them. Pure."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from common.evaluators.utility import Estimate, Floats, bootstrap, checked_predictions

_BINS = 15  # as Guo et al. have it
_WIDEST = 5.0  # of the natural logarithm of a temperature


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, rng: np.random.Generator) -> Estimate:
    """Mean distance between confidence and accuracy over 15 bins of confidence, each by its share of the records (ECE).

    Confidence is the probability of the class that is named. Interval: `bootstrap`. Chance only raises an ECE, so a
    model that is perfectly calibrated shows one too, of about 1 / sqrt(n / bins).
    Reference: Guo et al. 2017, arXiv:1706.04599, eq. 3; for the bias, Kumar et al. 2019, arXiv:1909.10155, section 4.
    """
    rows, label = checked_predictions(probabilities, labels)
    confidence, right = rows.max(axis=1), rows.argmax(axis=1) == label
    place = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    surplus = confidence - right

    def error(chosen: NDArray[np.int64]) -> float:
        return float(np.abs(np.bincount(place[chosen], surplus[chosen], _BINS)).sum() / len(chosen))

    return bootstrap(error, len(label), rng)


def temperature(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The T at which `tempered` probabilities have the least log loss: above 1 for a model too sure of itself.

    Fitted to records with labels: under DP it costs what its records' release costs, or nothing where it is fitted to
    public records or to a released, noised histogram. Reference: Guo et al. 2017, arXiv:1706.04599, eq. 9.
    """
    rows, label = checked_predictions(probabilities, labels)

    def loss(logarithm: float) -> float:
        likelihoods = tempered(rows, float(np.exp(logarithm)))[np.arange(len(label)), label]
        return float(-np.log(np.maximum(likelihoods, np.finfo(np.float64).tiny)).mean())

    found = minimize_scalar(loss, bounds=(-_WIDEST, _WIDEST), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def tempered(probabilities: ArrayLike, heat: float) -> Floats:
    """(n, classes): softmax of the logits divided by the temperature `heat`; which class is named stays."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), np.finfo(np.float64).tiny)) / heat
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))
