"""Counts of predictions on their way through the encrypted sum: public scale, noise, and back. Pure.

Counts by group have a noise of their own: many small cells need less of it than a few large totals do. What the two
cost together is one release at the plan's noise multiplier: squared, one over theirs add up to one over that.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.dp.cost import noise_shares
from common.dp.noise_shares import NoiseGrid
from common.evaluators.counts import Counts, sensitivity
from common.evaluators.groups import SENSITIVITY
from common.federation import Plan

_GROUPS_PART = 0.75  # of what a record loses by its counts, where both kinds are released


@dataclass(frozen=True)
class MetricsCode:
    """What all sites of a cohort do to their counts of one kind.

    std: of the noise that one site adds to each count, in counts; 0 where the plan protects nothing.
    """

    bits: int
    largest_count: int
    std: float

    @classmethod
    def of(cls, plan: Plan, cohort: int, bits: int) -> "MetricsCode":
        """For the counts of all predictions. Raises ConfigError when the noise is too small for the integers."""
        part = 1 - _GROUPS_PART if plan.metrics.groups else 1.0
        return cls._of(plan, cohort, bits, sensitivity(plan.model.classes) / math.sqrt(part))

    @classmethod
    def of_groups(cls, plan: Plan, cohort: int, bits: int) -> "MetricsCode":
        """For the counts by protected group. Raises ConfigError when the noise is too small for the integers."""
        return cls._of(plan, cohort, bits, SENSITIVITY / math.sqrt(_GROUPS_PART))

    @classmethod
    def _of(cls, plan: Plan, cohort: int, bits: int, reach: float) -> "MetricsCode":
        total = plan.metrics.noise_multiplier * reach if plan.privacy.mode != "none" else 0.0
        if plan.privacy.in_shares:
            total = noise_shares(plan, cohort).share(total)
        code = cls(bits, plan.metrics.largest_count, total)
        if total:
            code._grid()
        return code

    @property
    def step(self) -> float:
        """Counts per integer; without noise such that whole counts are whole numbers of steps."""
        if self.std:
            return self._grid().step
        most = (1 << (self.bits - 1)) - 1
        return 1 / (most // self.largest_count) if most >= self.largest_count else self.largest_count / most

    def encode(self, counts: Counts, normal: NDArray[np.floating]) -> NDArray[np.int64]:
        """counts, normal: (size,); normal: fresh, secret draws from the standard normal distribution."""
        if self.std:
            return self._grid().noised(counts, normal)
        return np.rint(np.clip(counts, 0, self.largest_count) / self.step).astype(np.int64)

    def decode(self, totals: NDArray[np.int64]) -> Counts:
        return np.multiply(totals, self.step, dtype=np.float64)

    def noise_in_sum(self, summed: int) -> float:
        """Standard deviation, in counts, of the noise in a sum over `summed` sites."""
        return self.std * math.sqrt(summed)

    def _grid(self) -> NoiseGrid:
        return NoiseGrid(self.bits, float(self.largest_count), self.std)
