"""Which records enter a batch: Poisson sampling, the scheme that amplification by subsampling is proved for."""

import math

import numpy as np
from numpy.typing import NDArray

from common.federation import require
from common.randomness import Randomness


def poisson_batch(records: int, sample_rate: float, randomness: Randomness) -> NDArray[np.int64]:
    """Indices below `records`, ascending; each is there with chance `sample_rate`, independent of all others.

    The batch may be empty: that is an outcome like any other, and its step adds noise like any other.
    Works by the geometric distances between chosen records, so its cost follows the batch, not the data set.
    Reference: Zhu and Wang 2019, arXiv:1812.00984, for the amplification.
    """
    require(0 < sample_rate <= 1, "training.sample_rate", sample_rate, "above 0, at most 1")
    if sample_rate == 1:
        return np.arange(records)
    expected = records * sample_rate
    draws = int(expected + 6 * math.sqrt(expected)) + 12
    log_miss = math.log1p(-sample_rate)
    pieces: list[NDArray[np.int64]] = []
    last = -1
    while last < records:
        # P(distance > k) = P(u <= (1 - rate)^k) for u uniform in (0, 1].
        distances = np.log(1 - randomness.uniform(draws))
        distances /= log_miss
        positions = np.minimum(distances, records).astype(np.int64)
        positions += 1
        np.cumsum(positions, out=positions)
        positions += last
        pieces.append(positions[: np.searchsorted(positions, records)])
        last = int(positions[-1])
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
