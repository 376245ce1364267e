"""The mean of readable updates: for baselines, and the number that every encrypted sum is compared with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.updates import Vector


def mean(updates: Sequence[NDArray[np.float32]]) -> Vector:
    """Equal, public weights: a true record count is private.

    updates: one (num_parameters,) vector per site. Returns float64, summed in the order given.
    """
    total = updates[0].astype(np.float64)
    for update in updates[1:]:
        total += update
    return total / len(updates)
