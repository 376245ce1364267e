"""Predictions of many sites as one short vector of sums, fit to travel encrypted, and what it tells. Pure.

    records named wrong | named right | losses | for two classes: records by label and score, _BINS of the score each

Every record adds 1 to one number of each kind and at most 1 to the losses, so it moves the whole vector by
`sensitivity` in L2 norm at most, whatever it is. Nothing here adds noise; the sums may carry it.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError
from common.evaluators.utility import Estimate

LARGEST_LOSS = 5.0  # nats: one record's loss counts as this where it is higher, and is in these units
_BINS = 16  # of the probability given to class 1
_HEAD = 3
_MOST_TIED = 0.25
_Z = 1.959963984540054  # standard normal quantile at 0.975

Counts = NDArray[np.float64]


def size(classes: int) -> int:
    """How many numbers describe predictions for that many classes."""
    return _HEAD + (2 * _BINS if classes == 2 else 0)


def sensitivity(classes: int) -> float:
    """The L2 norm of what one record adds, at most."""
    return math.sqrt(3 if classes == 2 else 2)


def tally(probabilities: ArrayLike, labels: ArrayLike) -> Counts:
    """(size,): the counts of these predictions.

    probabilities: (n, classes); what is no number counts as 0, so that no record can stop a site by its predictions.
    labels: (n,), 0 to classes - 1; n may be 0.
    """
    rows, label = np.nan_to_num(np.asarray(probabilities, np.float64)), np.asarray(labels, np.int64)
    if rows.ndim != 2 or rows.shape[1] < 2 or label.shape != (len(rows),):
        raise ConfigError(f"needs probabilities (n, classes) and labels (n,), got {rows.shape} and {label.shape}")
    if not ((label >= 0) & (label < rows.shape[1])).all():
        raise ConfigError(f"labels must be whole numbers from 0 to {rows.shape[1] - 1}")
    named = np.bincount((rows.argmax(axis=1) == label).astype(np.int64), minlength=2)
    likelihood = np.clip(rows[np.arange(len(label)), label], math.exp(-LARGEST_LOSS), 1.0)
    head = np.append(named, -np.log(likelihood).sum() / LARGEST_LOSS)
    if rows.shape[1] > 2:
        return head
    scored = np.clip((rows[:, 1] * _BINS).astype(np.int64), 0, _BINS - 1)
    return np.append(head, np.bincount(label * _BINS + scored, minlength=2 * _BINS))


def estimates(sums: Counts, classes: int, noise_std: float) -> dict[str, Estimate]:
    """Records, accuracy, loss (each record's LARGEST_LOSS at most); for two classes AUROC and the mean score.

    sums: (size,) of all sites, with independent noise of standard deviation `noise_std` on each.
    Intervals: 95 %, for the choice of records and the noise together, normal by the delta method, cut at the possible
    values. The variance of a loss, which the sums do not tell, enters at its largest. For AUROC see DeLong et al. 1988.
    A score is the probability given to class 1; one counts as the middle of its bin. What the noise drowns is left out,
    and AUROC where a quarter of all pairs or more share a bin, so that the order within bins would decide.
    """
    if sums.shape != (size(classes),):
        raise ConfigError(f"{sums.size} sums for {classes} classes, expected {size(classes)}")
    (wrong, right, losses), noise = sums[:_HEAD].tolist(), noise_std**2
    n = wrong + right
    found = {"records": _estimate(n, 2 * noise, 0.0, math.inf)}
    if n <= max(1.0, 3 * math.sqrt(2 * noise)):
        return found
    share, loss = min(1.0, max(0.0, right / n)), min(LARGEST_LOSS, max(0.0, LARGEST_LOSS * losses / n))
    chance = n * share * (1 - share) + noise * (share**2 + (1 - share) ** 2)
    found["accuracy"] = _estimate(share, chance / n**2, 0.0, 1.0)
    chance = n * loss * (LARGEST_LOSS - loss) + noise * (LARGEST_LOSS**2 + 2 * loss**2)
    found["loss"] = _estimate(loss, chance / n**2, 0.0, LARGEST_LOSS)
    if classes == 2:
        negative, positive = sums[_HEAD:].reshape(2, _BINS)
        drowned = max(1.0, 3 * math.sqrt(_BINS * noise))
        if min(negative.sum(), positive.sum()) > drowned and _tied(negative, positive) < _MOST_TIED:
            found["auc"] = _auroc(negative, positive, noise)
        if n > 3 * math.sqrt(2 * _BINS * noise):
            found["mean_score"] = _mean_score(negative + positive, 2 * noise)
    return found


def _tied(negative: Counts, positive: Counts) -> float:
    """The share of pairs whose two scores are in one bin."""
    return float(np.maximum(negative, 0.0) @ np.maximum(positive, 0.0)) / float(negative.sum() * positive.sum())


def _auroc(negative: Counts, positive: Counts, noise: float) -> Estimate:
    """The chance that a random positive has the higher score; within one bin, half. (bins,) each, from low scores."""
    p, n = float(positive.sum()), float(negative.sum())
    below = (np.cumsum(negative) - negative / 2) / n  # the share of negatives under a positive of each bin
    above = 1 - (np.cumsum(positive) - positive / 2) / p
    area = min(1.0, max(0.0, float(positive @ below) / p))
    slopes = np.concatenate([(below - area) / p, (above - area) / n])
    drawn = np.maximum(np.concatenate([positive, negative]), 0.0)
    return _estimate(area, float((drawn + noise) @ slopes**2), 0.0, 1.0)


def _mean_score(scored: Counts, noise: float) -> Estimate:
    """scored: (bins,) records; noise: the variance of each."""
    n, middles = float(scored.sum()), (np.arange(_BINS) + 0.5) / _BINS
    mean = min(1.0, max(0.0, float(scored @ middles) / n))
    spread = (middles - mean) ** 2
    return _estimate(mean, float((np.maximum(scored, 0.0) + noise) @ spread) / n**2, 0.0, 1.0)


def _estimate(value: float, variance: float, least: float, most: float) -> Estimate:
    value, reach = max(value, least), _Z * math.sqrt(variance)
    return Estimate(value, max(least, value - reach), min(most, value + reach))
