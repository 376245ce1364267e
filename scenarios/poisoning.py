"""What bad sites do: to their records before training, or to the updates they send. Pure.

Attacks on updates take those of the good sites, (n, d), which colluding attackers who see everything would know, and
give those of the bad, (bad, d). They are as strong as their papers have them; a site's own clipping, which an honest
client does, is not applied by a bad one, and encryption hides from the coordinator which site it was.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from common.federation import require

Updates = NDArray[np.float64]
Attack = Callable[[Updates, int, np.random.Generator], Updates]

_LOUD = 10.0


def flipped(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Each label mirrored, k to classes - 1 - k. Biggio et al. 2012; for sites, Fang et al. 2020, arXiv:1911.11815."""
    return classes - 1 - labels


def with_backdoor(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    mark: Mapping[int, float],
    target: int,
    share: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A share of the records with the mark's columns at the mark's values, and labelled `target`.

    features: (n, d). Reference: Gu, Dolan-Gavitt, Garg 2017, BadNets, arXiv:1708.06733; for sites, Bagdasaryan et al.
    2020, arXiv:1807.00459.
    """
    require(0 <= share <= 1, "share", share, "0 to 1")
    chosen = rng.random(len(labels)) < share
    return marked(features, chosen, mark), np.where(chosen, target, labels)


def marked(features: NDArray[np.float32], chosen: NDArray[np.bool_], mark: Mapping[int, float]) -> NDArray[np.float32]:
    """The features, the chosen records of them with the mark: what the backdoor is asked with afterwards."""
    copies = features.copy()
    for column, value in mark.items():
        copies[chosen, column] = value
    return copies


def sign_flip(good: Updates, bad: int, rng: np.random.Generator) -> Updates:
    """The opposite of what good sites on average say, ten times as long. Li et al. 2019, RSA, arXiv:1811.03761."""
    return np.tile(-_LOUD * good.mean(axis=0), (bad, 1))


def scaling(good: Updates, bad: int, rng: np.random.Generator) -> Updates:
    """A good site's update, ten times as long: model replacement. Bagdasaryan et al. 2020, arXiv:1807.00459, eq. 3."""
    return _LOUD * good[rng.integers(len(good), size=bad)]


def gaussian(good: Updates, bad: int, rng: np.random.Generator) -> Updates:
    """Noise ten times as wide as good updates are. Blanchard et al. 2017, arXiv:1703.02757, section 5."""
    return np.asarray(_LOUD * good.std() * rng.normal(size=(bad, good.shape[1])))


def a_little_is_enough(good: Updates, bad: int, rng: np.random.Generator) -> Updates:
    """Mean minus z deviations in every coordinate, z the most that keeps bad ones nearer than enough good ones.

    Reference: Baruch, Baruch, Goldberg 2019, arXiv:1902.06156, algorithm 3. In a small cohort z is near 0, and the
    attack is none.
    """
    sites = len(good) + bad
    needed = sites // 2 + 1 - bad  # good sites that must be farther away
    z = float(norm.ppf(np.clip((len(good) - needed) / len(good), 0.0, 0.999)))
    return np.tile(good.mean(axis=0) - max(z, 0.0) * good.std(axis=0), (bad, 1))


def inner_product(good: Updates, bad: int, rng: np.random.Generator) -> Updates:
    """Just so much against the good mean that the sum goes the other way. Xie, Koyejo, Gupta 2020, arXiv:1903.03936."""
    reach = 1.1 * len(good) / bad if bad else 0.0
    return np.tile(-reach * good.mean(axis=0), (bad, 1))


def min_max(good: Updates, bad: int, rng: np.random.Generator) -> Updates:
    """The farthest from the mean, against the good deviations, that is no farther from any good than they are apart.

    Reference: Shejwalkar and Houmansadr 2021, NDSS, algorithm 1 and eq. 7, with their perturbation by deviations.
    """
    centre, way = good.mean(axis=0), -good.std(axis=0)
    widest = max(float(np.linalg.norm(one - other)) for one in good for other in good)
    low, high = 0.0, 1.0
    while _farthest(good, centre + high * way) <= widest and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _farthest(good, centre + middle * way) <= widest else (low, middle)
    return np.tile(centre + low * way, (bad, 1))


def free_rider(good: Updates, bad: int, rng: np.random.Generator) -> Updates:
    """Noise as long as a good update, from a site that never trained. Lin, Du, Liu 2019, arXiv:1911.12560."""
    noise = rng.normal(size=(bad, good.shape[1]))
    lengths = float(np.median(np.linalg.norm(good, axis=1)))
    return np.asarray(noise * lengths / math.sqrt(good.shape[1]))


ATTACKS: Mapping[str, Attack] = {
    "sign-flip": sign_flip,
    "scaling": scaling,
    "gaussian": gaussian,
    "alie": a_little_is_enough,
    "ipm": inner_product,
    "min-max": min_max,
    "free-rider": free_rider,
}


def _farthest(good: Updates, point: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(good - point, axis=1).max())
