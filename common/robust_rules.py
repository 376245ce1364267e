"""Rules that a few bad vectors cannot lead astray: for readable updates, or for the bucket sums that sites open. Pure.

The coordinator cannot take the median of what it cannot read, so in an encrypted run these act on means of buckets:
every bad site spoils one bucket at most, so of n sites in buckets of s, f bad ones leave at least n / s - f good means,
and a rule tolerates as many bad sites as it tolerates bad buckets (Karimireddy et al. 2022, arXiv:2006.09365).
Sites apply the result and must hold the same bits: sums run over vectors in their order, and every length is rounded to
single precision before it weighs anything, lest two machines differ in its last digit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from common.breakdown import RuleName, tolerated
from common.errors import InvalidUpdate
from common.federation import require
from common.updates import Vector

Rule = Callable[[Sequence[Vector], int], Vector]  # vectors (d,) each, and how many of them may be bad -> (d,)

_TINY = float(np.finfo(np.float32).tiny)
_ITERATIONS = 50  # of Weiszfeld's: each brings the objective down
_CLIPPINGS = 5
_NEAR = 1e-6  # of the median distance: nearer vectors weigh as if they were so far


def mean(updates: Sequence[Vector], bad: int = 0) -> Vector:
    """All vectors alike. One bad vector moves it anywhere; it is here to be compared with (Blanchard et al. 2017)."""
    return _weighted(updates, np.full(len(_stacked(updates, bad)), 1 / len(updates)))


def coordinate_median(updates: Sequence[Vector], bad: int = 0) -> Vector:
    """Each coordinate's median. Yin et al. 2018, arXiv:1803.01498, definition 1."""
    return np.asarray(np.median(_stacked(updates, bad), axis=0))


def trimmed_mean(updates: Sequence[Vector], bad: int) -> Vector:
    """Each coordinate's mean without its `bad` highest and `bad` lowest values. Yin et al. 2018, definition 2."""
    ordered = np.sort(_stacked(updates, bad), axis=0)[bad : len(updates) - bad]
    return _weighted(list(ordered), np.full(len(ordered), 1 / len(ordered)))


def geometric_median(updates: Sequence[Vector], bad: int = 0) -> Vector:
    """The point with the least sum of distances to all vectors, by Weiszfeld's steps from the coordinate median.

    Reference: Pillutla, Kakade, Harchaoui 2022, arXiv:1912.13445, algorithm 2.
    """
    point = coordinate_median(updates, bad)
    for _ in range(_ITERATIONS):
        far = _distances(updates, point)
        middle = float(np.median(far))
        if not middle:
            return point
        weights = np.array([1 / max(distance, _NEAR * middle) for distance in far.tolist()])
        point = _weighted(updates, weights / math.fsum(weights))
    return point


def centred_clipping(updates: Sequence[Vector], bad: int = 0) -> Vector:
    """A centre moved by the mean of the vectors' distances from it, each cut to a radius; five times.

    The centre begins at the coordinate median and the radius is the median distance from it: the paper leaves both to
    the last round, which sites that join late do not have. Karimireddy, He, Jaggi 2021, arXiv:2012.10333, algorithm 2.
    """
    centre = coordinate_median(updates, bad)
    radius = float(np.median(_distances(updates, centre)))
    for _ in range(_CLIPPINGS):
        shares = radius / np.maximum(_distances(updates, centre), max(radius, _TINY))
        centre = centre + _weighted([update - centre for update in updates], shares / len(updates))
    return centre


def multi_krum(updates: Sequence[Vector], bad: int) -> Vector:
    """The mean of the n - bad vectors that are nearest to their own n - bad - 2 nearest others.

    Reference: Blanchard et al. 2017, arXiv:1703.02757, sections 4 and 6.
    """
    n = len(_stacked(updates, bad))
    if bad:
        require(bad <= tolerated("multi-krum", n), "bad vectors", bad, f"0 to {tolerated('multi-krum', n)} of {n}")
    squared = np.zeros((n, n))
    for i, j in combinations(range(n), 2):
        squared[i, j] = squared[j, i] = length(updates[i] - updates[j]) ** 2
    scores = [sum(np.sort(np.delete(squared[i], i))[: n - bad - 2].tolist()) for i in range(n)]
    chosen = sorted(np.argsort(scores, kind="stable")[: n - bad].tolist())
    return _weighted([updates[i] for i in chosen], np.full(len(chosen), 1 / len(chosen)))


def norm_bound(updates: Sequence[Vector], bad: int = 0) -> Vector:
    """The mean of the vectors, each scaled down to the median length. Sun et al. 2019, arXiv:1911.07963, section 5.

    A bad vector still pulls with full weight, by no more than that length: enough to stop a run, never to blow it up.
    """
    lengths = np.array([length(update) for update in _stacked(updates, bad)])
    shares = np.minimum(1.0, np.median(lengths) / np.maximum(lengths, _TINY))
    return _weighted(updates, shares / len(updates))


RULES: Mapping[RuleName, Rule] = {
    "mean": mean,
    "median": coordinate_median,
    "trimmed-mean": trimmed_mean,
    "geometric-median": geometric_median,
    "centred-clipping": centred_clipping,
    "multi-krum": multi_krum,
    "norm-bound": norm_bound,
}


def _stacked(updates: Sequence[Vector], bad: int) -> Vector:
    """(n, d). Raises InvalidUpdate on vectors of different lengths or not finite, ConfigError on too many bad."""
    if not updates or len({update.shape for update in updates}) != 1 or updates[0].ndim != 1:
        raise InvalidUpdate("a rule needs one or more vectors of one length")
    stacked = np.stack(updates)
    if not np.isfinite(stacked).all():
        raise InvalidUpdate("a vector holds NaN or infinite values")
    require(0 <= 2 * bad < len(updates), "bad vectors", bad, f"0 to {(len(updates) - 1) // 2} of {len(updates)}")
    return stacked


def _weighted(updates: Sequence[Vector], weights: Vector) -> Vector:
    """(d,): the weighted sum, in the order given."""
    total = np.zeros_like(updates[0], np.float64)
    for update, weight in zip(updates, weights.tolist(), strict=True):
        total += weight * update
    return total


def length(vector: Vector) -> float:
    """The L2 norm in single precision; one that is beyond its range counts as the largest there is.

    Every site must find the same: numpy adds in one order on all machines, which no BLAS promises for a dot product.
    """
    with np.errstate(over="ignore"):
        squared = float(np.add.reduce(np.square(vector, dtype=np.float64)))
    return float(np.float32(min(math.sqrt(squared), float(np.finfo(np.float32).max))))


def _distances(updates: Sequence[Vector], point: Vector) -> Vector:
    return np.array([length(update - point) for update in updates])
