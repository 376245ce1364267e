"""How much accuracy hangs on each feature, as sums over many sites that are fit to travel encrypted and noised. Pure.

    records compared | named right, a few times | named right with the feature of somebody else, for each feature

A held-out record is named once as it is, and once for each feature (all columns of one attribute together) with what a
training record of the same site has there: permutation importance, Breiman 2001, section 10, as an average over pairs
of records (Fisher, Rudin and Dominici 2019, arXiv:1801.01489, eq. 3 and 5, with a difference instead of a ratio).
All differences are taken from how many are named right, so that number travels about sqrt(features) times, each with
noise of its own, and the mean is taken: with a few copies differences have the least noise for the same price.

Who gives to whom is drawn uniformly (`paired`), and nobody gives twice. That keeps small what one record can do. For
fixed pairs a record adds at most 1 to each number. Pairs with it can be drawn beside those without it so that all
chances are right and one pair at most differs: a held-out record comes with a giver that was free, or takes the place
of one that had a giver, or gets none; a training record likewise gives to one that had no giver, in another's place, or
to nobody. Each number moves by 1 at most every time, so the vector by `sensitivity` in L2 norm; and what is drawn with
the same chances loses no more than the worst draw (joint convexity). Were held-out records permuted among themselves, a
record would both take and give, and move every number by 2. Values from public ranges would do with less, as only the
record itself counted, but they ask about records that do not exist: on Adult, whose capital gains are nearly all 0,
such values cost that column 0.28 of accuracy, and permutation 0.03.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.evaluators.counts import Counts
from common.evaluators.utility import Estimate, Floats, Predict

_Z = 1.959963984540054  # standard normal quantile at 0.975


def size(features: int) -> int:
    """How many numbers travel; none where no feature is asked about."""
    return 1 + _copies(features) + features if features else 0


def sensitivity(features: int) -> float:
    """The L2 norm of what one record, in whichever part of a site's records, changes at most."""
    return math.sqrt(size(features))


def paired(taking: Floats, giving: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of held-out records and of the training records that give to them, drawn uniformly: of the fewer, all.

    taking, giving: a uniform number for each held-out and for each training record, fresh and independent.
    """
    pairs = min(len(taking), len(giving))
    return np.argsort(taking)[:pairs], np.argsort(giving)[:pairs]


def tally(
    predict: Predict,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    given: NDArray[np.float32],
    columns: Sequence[Sequence[int]],
) -> Counts:
    """(size,): what these pairs count.

    features, given: (k, d), of the records that take and of those that give; k may be 0.   labels: (k,) of the former.
    columns: those of each feature.   A prediction that is no number counts as 0, so that no record can stop a site.
    """
    if features.ndim != 2 or features.shape != given.shape or labels.shape != (len(features),):
        raise ConfigError(
            f"needs features (k, d) twice and labels (k,): {features.shape}, {given.shape}, {labels.shape}"
        )

    def right(asked: NDArray[np.float32]) -> int:
        return int((np.nan_to_num(predict(asked)).argmax(axis=1) == labels).sum())

    counts = [len(labels), *[right(features)] * _copies(len(columns))]
    for chosen in columns:
        mixed = features.copy()
        mixed[:, chosen] = given[:, chosen]
        counts.append(right(mixed))
    return np.array(counts, np.float64)


def estimates(sums: Counts, features: Sequence[str], noise_std: float) -> dict[str, Estimate]:
    """The accuracy that is lost without each feature; nothing where noise drowns the records.

    sums: (size,) of all sites, with independent noise of standard deviation `noise_std` on each.
    Intervals: 95 % or more, for the choice of records and the noise together, normal by the delta method, cut at -1
    and 1. How many predictions turn from wrong to right, which the sums do not tell, enters at its largest.
    """
    if sums.shape != (size(len(features)),):
        raise ConfigError(f"{sums.size} sums for {len(features)} features, expected {size(len(features))}")
    copies, noise, n = _copies(len(features)), noise_std**2, float(sums[0])
    before, after = float(sums[1 : 1 + copies].mean()), sums[1 + copies :].tolist()
    right = min(n, max(0.0, before))
    if n <= max(1.0, 3 * noise_std):
        return {}
    found = {}
    for name, kept in zip(features, after, strict=True):
        lost = before - kept
        value = min(1.0, max(-1.0, lost / n))
        turned = min(n, max(abs(lost), min(lost + 2 * (n - right), 2 * right - lost)))
        reach = _Z * math.sqrt(max(0.0, turned - n * value**2) + noise * (1 + 1 / copies + value**2)) / n
        found[name] = Estimate(value, max(-1.0, value - reach), min(1.0, value + reach))
    return found


def _copies(features: int) -> int:
    """r, about where (1 + r + features) (1 + 1 / r), which the variance of a difference goes by, is least."""
    return round(math.sqrt(features + 1))
