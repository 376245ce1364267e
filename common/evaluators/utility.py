"""How well a model predicts: AUROC, accuracy, log loss, precision, recall, F1, each with a 95 % interval. Pure.

The intervals say how far chance in choosing the evaluation records may have moved a number. They say nothing
about another choice of training records, noise or hospitals; `cross_site` shows those. Nothing here adds noise.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError

_Z = 1.959963984540054  # standard normal quantile at 0.975
_MISSED = 0.025  # chance on either side that a 95 % interval gives away
_RESAMPLES = 1000

Floats = NDArray[np.float64]
Predict = Callable[[NDArray[np.float32]], Floats]  # features (n, *inputs) -> probabilities (n, classes)
Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]  # features and labels of the same records


@dataclass(frozen=True)
class Estimate:
    """A number measured on a sample, and its 95 % interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (self.low <= self.value <= self.high and math.isfinite(self.high - self.low)):  # NaN fails too
            raise ConfigError(f"{self.value} is not a finite estimate between {self.low} and {self.high}")


def auroc(scores: ArrayLike, labels: ArrayLike) -> Estimate:
    """The chance that a random positive scores above a random negative; a tie counts half.

    scores: (n,), larger means more likely positive.   labels: (n,) of 0 and 1, both present.
    Interval: DeLong, DeLong, Clarke-Pearson 1988 variance, normal on the logit scale (Pepe 2003, section 5.2), so it
    stays inside 0..1. Where that variance is blind (all pairs ordered alike, or one record of a class), the exact
    binomial interval of Clopper and Pearson 1934 over as many disjoint pairs as the smaller class has records.
    Raises ConfigError when a class is missing or a score is not finite.
    """
    score, label = np.asarray(scores, np.float64), np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape or not np.isfinite(score).all():
        raise ConfigError(f"AUROC needs one finite score for each label, got shapes {score.shape} and {label.shape}")
    positive, negative = score[label == 1], score[label == 0]
    pairs = min(len(positive), len(negative))
    if pairs == 0 or len(positive) + len(negative) != len(score):
        raise ConfigError("AUROC needs labels 0 and 1, and both of them")

    ranks = _midranks(np.concatenate([positive, negative]))
    above = (ranks[: len(positive)] - _midranks(positive)) / len(negative)  # share of negatives under each positive
    below = 1 - (ranks[len(positive) :] - _midranks(negative)) / len(positive)
    area = float(np.clip(above.mean(), 0.0, 1.0))
    if area in (0.0, 1.0):
        reach = 1 - _MISSED ** (1 / pairs)
        return Estimate(area, max(0.0, area - reach), min(1.0, area + reach))
    if pairs == 1:
        return Estimate(area, 0.0, 1.0)
    variance = above.var(ddof=1) / len(positive) + below.var(ddof=1) / len(negative)
    logit = math.log(area / (1 - area))
    reach = _Z * math.sqrt(variance) / (area * (1 - area))
    return Estimate(area, min(area, _expit(logit - reach)), max(area, _expit(logit + reach)))


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> Estimate:
    """The share of records whose most probable class is their label. Interval: Wilson 1927.

    probabilities: (n, classes).   labels: (n,), 0 to classes - 1.
    """
    rows, label = checked_predictions(probabilities, labels)
    return wilson(int((rows.argmax(axis=1) == label).sum()), len(label))


def log_loss(probabilities: ArrayLike, labels: ArrayLike) -> Estimate:
    """Mean of -log(probability given to the true class), nats (Good 1952). Interval: normal, cut where it must end.

    probabilities: (n, classes), taken as at least 2^-52 so that one sure mistake does not cost infinity.
    """
    rows, label = checked_predictions(probabilities, labels)
    tiny = float(np.finfo(np.float64).eps)
    losses = np.abs(np.log(np.clip(rows[np.arange(len(label)), label], tiny, 1.0)))
    mean, worst = float(losses.mean()), -math.log(tiny)
    if len(losses) == 1:  # one record has no spread to measure
        return Estimate(mean, 0.0, worst)
    reach = _Z * float(losses.std(ddof=1)) / math.sqrt(len(losses))
    return Estimate(mean, max(0.0, mean - reach), max(mean, min(worst, mean + reach)))


def wilson(right: int, n: int) -> Estimate:
    """The share right / n of independent trials. Interval: Wilson 1927, as in Brown, Cai, DasGupta 2001, eq. 4."""
    share = right / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    reach = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return Estimate(share, min(share, max(0.0, centre - reach)), max(share, min(1.0, centre + reach)))


def precision(probabilities: ArrayLike, labels: ArrayLike, positive: int = 1) -> Estimate:
    """The share of records named `positive` that are (van Rijsbergen 1979, chapter 7). Interval: Wilson, over those.

    Raises ConfigError where no record is named so.
    """
    both, named, _ = _matches(probabilities, labels, positive)
    return _share(both, named, f"no record is named class {positive}, so it has no precision")


def recall(probabilities: ArrayLike, labels: ArrayLike, positive: int = 1) -> Estimate:
    """The share of `positive` records that are named so (van Rijsbergen 1979, chapter 7). Interval: Wilson, over those.

    Raises ConfigError where there is none.
    """
    both, _, true = _matches(probabilities, labels, positive)
    return _share(both, true, f"no record is of class {positive}, so it has no recall")


def f1(probabilities: ArrayLike, labels: ArrayLike, positive: int = 1) -> Estimate:
    """The harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979, chapter 7).

    It is 2J / (1 + J) of J = TP / (TP + FP + FN), the share of hits among records that are positive or named so
    (Jaccard 1901); interval: Wilson's for J, carried along. Raises ConfigError where there is no such record.
    """
    both, named, true = _matches(probabilities, labels, positive)
    hits = _share(both, named + true - both, f"no record is or is named class {positive}, so it has no F1")
    value, low, high = (2 * share / (1 + share) for share in (hits.value, hits.low, hits.high))
    return Estimate(value, low, high)


def macro_f1(probabilities: ArrayLike, labels: ArrayLike, rng: np.random.Generator) -> Estimate:
    """The mean of the F1 of every class that occurs or is named (Sokolova and Lapalme 2009, table 3).

    Interval: `bootstrap`.
    """
    rows, label = checked_predictions(probabilities, labels)
    classes, decision = rows.shape[1], rows.argmax(axis=1)

    def mean_f1(chosen: NDArray[np.int64]) -> float:
        table = np.bincount(label[chosen] * classes + decision[chosen], minlength=classes**2).reshape(classes, classes)
        hits, met = table.diagonal(), table.sum(axis=0) + table.sum(axis=1)
        return float((2 * hits[met > 0] / met[met > 0]).mean())

    return bootstrap(mean_f1, len(label), rng)


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], n: int, rng: np.random.Generator) -> Estimate:
    """What `statistic` says of records 0 to n - 1. Interval: percentiles of 1,000 resamples (Efron 1987, eq. 2.4).

    statistic: from the places (n,) of the chosen records, repeats among them. The interval is stretched to the value
    where resampling moves the statistic to one side, as it does one that chance can only raise.
    """
    value = statistic(np.arange(n))
    drawn = [statistic(rng.integers(n, size=n)) for _ in range(_RESAMPLES)]
    low, high = np.quantile(drawn, [_MISSED, 1 - _MISSED])
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def evaluate(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, Estimate]:
    """Every figure that these predictions support: `accuracy`, `loss`, and `auc` for two classes that both occur."""
    rows, label = checked_predictions(probabilities, labels)
    figures = {"accuracy": accuracy(rows, label), "loss": log_loss(rows, label)}
    if rows.shape[1] == 2 and len(np.unique(label)) == 2:
        figures["auc"] = auroc(rows[:, 1], label)
    return figures


def cross_site(
    models: Mapping[str, Predict],
    sites: Mapping[str, Labelled],
    figure: Callable[[ArrayLike, ArrayLike], Estimate] = accuracy,
) -> dict[tuple[str, str], Estimate]:
    """`figure` of every model on every site's records, by (model, site).

    The figure of a model on another site's data is its external validation (Collins et al. 2014). models: those that
    the sites' policies let travel.
    """
    return {
        (model, site): figure(predict(features), labels)
        for model, predict in models.items()
        for site, (features, labels) in sites.items()
    }


def leave_one_site_out(
    fit: Callable[[Mapping[str, Labelled]], Predict],
    sites: Mapping[str, Labelled],
    figure: Callable[[ArrayLike, ArrayLike], Estimate] = accuracy,
) -> dict[str, Estimate]:
    """For every site, `figure` on its records of a model that was fitted to all other sites' (Stone 1974, by site)."""
    found = {}
    for site, (features, labels) in sites.items():
        predict = fit({name: held for name, held in sites.items() if name != site})
        found[site] = figure(predict(features), labels)
    return found


def _matches(probabilities: ArrayLike, labels: ArrayLike, positive: int) -> tuple[int, int, int]:
    """How many records are both, are named, and are of class `positive`."""
    rows, label = checked_predictions(probabilities, labels)
    named, true = rows.argmax(axis=1) == positive, label == positive
    return int((named & true).sum()), int(named.sum()), int(true.sum())


def _share(part: int, whole: int, otherwise: str) -> Estimate:
    if not whole:
        raise ConfigError(otherwise)
    return wilson(part, whole)


def checked_predictions(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[Any]]:
    """Both as arrays. Raises ConfigError unless they are probabilities (n, classes) and classes (n,), n > 0."""
    rows, label = np.asarray(probabilities, np.float64), np.asarray(labels)
    if rows.ndim != 2 or rows.shape[1] < 2 or len(rows) == 0 or label.shape != (len(rows),):
        raise ConfigError(f"needs probabilities (n, classes) and labels (n,), got {rows.shape} and {label.shape}")
    if not ((rows >= 0) & (rows <= 1 + 1e-6)).all():  # NaN fails too; float32 softmax may end a hair above 1
        raise ConfigError("probabilities must be between 0 and 1")
    if label.dtype.kind not in "iu" or not ((label >= 0) & (label < rows.shape[1])).all():
        raise ConfigError(f"labels must be whole numbers from 0 to {rows.shape[1] - 1}")
    return rows, label


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
