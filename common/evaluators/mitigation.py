"""What narrows a gap between groups: other weights in training, or other thresholds afterwards. Pure.

Both start from `GroupCounts`, so from a sum that was paid for once; what follows from it costs no record anything more.
Whether they should be used is a question of law and of purpose: both treat records by their group.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from common.errors import ConfigError
from common.evaluators.groups import Table
from common.evaluators.utility import Floats
from common.federation import require

_RATES = 401  # selection rates that are tried, 0 to 1


def reweighing(tables: Mapping[str, Table]) -> dict[tuple[str, int], float]:
    """The weight of a record by (group, class) that makes group and class independent: P(group) P(class) / P(both).

    Reference: Kamiran and Calders 2012, doi 10.1007/s10115-011-0463-8, section 4.2.
    Under DP: the weights follow from noised counts, so they cost what the counts cost. To multiply a record's gradient
    before it is clipped costs nothing more; to repeat records would, as one person would be drawn more than once. Where
    training takes no weights, `keep_chances` does the same by leaving records out, at the price of those.
    """
    counts = np.stack([np.maximum(table.counts.sum(axis=1), 1.0) for table in tables.values()])
    shares = counts / counts.sum()
    weights = shares.sum(axis=1, keepdims=True) * shares.sum(axis=0) / shares
    return {(group, label): float(weights[i, label]) for i, group in enumerate(tables) for label in (0, 1)}


def keep_chances(weights: Mapping[tuple[str, int], float], labels: ArrayLike, groups: ArrayLike) -> Floats:
    """(n,): the chance with which each record is to be kept, so that those kept weigh as `weights` says.

    groups: (n,) names of groups; a record of an unknown group is kept as if its weight were 1.
    Under DP: each record is left out by a coin of its own, before training. That moves no other record, so training
    costs at most what it would have cost with all of them.
    """
    largest = max(1.0, *weights.values())
    pairs = zip(np.asarray(groups).tolist(), np.asarray(labels).tolist(), strict=True)
    return np.array([weights.get((str(group), int(label)), 1.0) / largest for group, label in pairs], np.float64)


@dataclass(frozen=True)
class Thresholds:
    """A record is named class 1 when its probability of it is above its group's threshold; `other`: of no group."""

    by_group: Mapping[str, float]
    other: float = 0.5

    def decide(self, probabilities: ArrayLike, groups: ArrayLike) -> NDArray[np.bool_]:
        """(n,) from probabilities (n, 2) and names of groups (n,)."""
        limits = [self.by_group.get(str(group), self.other) for group in np.asarray(groups).tolist()]
        return np.asarray(np.asarray(probabilities, np.float64)[:, 1] > np.array(limits, np.float64))


def parity_thresholds(tables: Mapping[str, Table], slack: float = 0.0) -> Thresholds:
    """The thresholds with the most records named right, among those whose selection rates differ by `slack` at most.

    Found by trying every common rate; within a bin, records are taken to lie evenly. It is the derived predictor of
    Hardt, Price and Srebro 2016, arXiv:1610.02413, section 4, for demographic parity, without randomising.
    Under DP: post-processing of noised counts. Deciding needs the group of every record, which is then an input.
    """
    require(0 <= slack < 1, "slack", slack, "0 up to, not including, 1")
    curves = {group: _Curve.of(group, table) for group, table in tables.items()}
    rates = np.linspace(0, 1, _RATES)
    within = round(slack * (_RATES - 1))
    right = {group: np.interp(rates, curve.rates, curve.right) for group, curve in curves.items()}
    reach = np.arange(within + 1)
    windows = np.minimum(np.arange(_RATES)[:, None] + reach, _RATES - 1)
    best = {group: values[windows].argmax(axis=1) for group, values in right.items()}
    chosen = {group: windows[np.arange(_RATES), place] for group, place in best.items()}
    lowest = int(np.sum([right[group][places] for group, places in chosen.items()], axis=0).argmax())
    return Thresholds({group: curve.threshold(rates[chosen[group][lowest]]) for group, curve in curves.items()})


@dataclass(frozen=True, eq=False)
class _Curve:
    """One group at every edge between bins, from the highest: (bins + 1,) each. right: records then named right."""

    edges: Floats
    rates: Floats
    right: Floats

    @classmethod
    def of(cls, group: str, table: Table) -> "_Curve":
        totals = np.maximum(table.counts.sum(axis=1), 0.0)
        if not totals.sum() >= 1:
            raise ConfigError(f"group {group!r} has no records to set a threshold by")
        summed = np.concatenate([np.zeros((2, 1)), np.cumsum(table.counts[:, ::-1], axis=1)], axis=1)
        above = np.clip([isotonic_regression(row).x for row in summed], 0.0, totals[:, None])  # as without noise
        right = above[1] + totals[0] - above[0]
        return cls(np.linspace(1, 0, table.bins + 1), above.sum(axis=0) / totals.sum(), right)

    def threshold(self, rate: float) -> float:
        return float(np.interp(rate, self.rates, self.edges))
