"""Counts of predictions on their way through the encrypted sum: public scale, noise, and back. Pure.

Each kind of counts has a noise of its own: many small numbers need less of it than a few large totals do. What the
kinds of a round cost together is one release at the plan's noise multiplier. A record moves the vector of kind k by
reach_k at most, and sum over k of (reach_k / std_k)^2 is one over that multiplier squared: divided by their standard
deviations, all numbers of the round are one vector with standard normal noise, which one record moves by no more.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.dp.cost import noise_shares
from common.dp.noise_shares import NoiseGrid
from common.evaluators import groups, importance
from common.evaluators.counts import Counts, sensitivity
from common.federation import Plan
from common.layout import CountKind, Layout

# What a record loses by its counts in a round, squared, is split between the kinds that the round carries like this.
_WEIGHTS: dict[CountKind, int] = {"counts": 1, "groups": 3, "importance": 3}


@dataclass(frozen=True)
class MetricsCode:
    """What all sites of a cohort do to their counts of one kind.

    std: of the noise that one site adds to each count, in counts; 0 where the plan protects nothing.
    """

    bits: int
    largest_count: int
    std: float

    @classmethod
    def of(cls, plan: Plan, cohort: int, bits: int, round_number: int) -> "dict[CountKind, MetricsCode]":
        """For each kind that the round carries. Raises ConfigError when the noise is too small for the integers."""
        kinds = Layout.of(plan, 0, round_number).kinds
        whole = sum(_WEIGHTS[kind] for kind in kinds)
        return {
            kind: cls._of(plan, cohort, bits, _reach(plan, kind) * math.sqrt(whole / _WEIGHTS[kind])) for kind in kinds
        }

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


def _reach(plan: Plan, kind: CountKind) -> float:
    """How far one record moves that kind of counts at most, in L2 norm."""
    match kind:
        case "counts":
            return sensitivity(plan.model.classes)
        case "groups":
            return groups.SENSITIVITY
        case "importance":
            return importance.sensitivity(len(plan.metrics.importance))
