"""One site's update: bounded before anything else may touch it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import InvalidUpdate

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Clipped:
    """Made only by `clip`: its L2 norm is at most `max_norm` (model units)."""

    values: Vector
    max_norm: float


def clip(update: Vector, max_norm: float) -> Clipped:
    """The update scaled down to L2 norm `max_norm`, or unchanged when it is shorter.

    update: (num_parameters,) float64, new minus global.
    Raises InvalidUpdate when a value is NaN or infinite.
    """
    norm = float(np.linalg.norm(update))
    if not math.isfinite(norm):
        raise InvalidUpdate("the update holds NaN or infinite values")
    return Clipped(update * (max_norm / norm) if norm > max_norm else update, max_norm)
