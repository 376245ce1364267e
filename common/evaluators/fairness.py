"""Whether a model serves all groups alike: gaps between groups, and the group it serves worst. Pure.

All of it follows from `GroupCounts`, so from a noised sum as well as from records. Intervals: 95 %, for the choice of
records and the noise together, normal, Bonferroni over the groups that are compared; so they hold for all groups at
once, and are wide where groups are many. A rate's variance takes (x + 1) / (n + 2) for its share (Agresti and Caffo
2000), lest a small group without an error look certain. A group that noise drowns is left out and named.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np

from common.errors import ConfigError
from common.evaluators.groups import Table
from common.evaluators.report import Findings, Material, needed
from common.evaluators.utility import Estimate

_MISSED = 0.05
_DROWNED = 3.0  # standard deviations of its noise: a group must have more records than so many


@dataclass(frozen=True)
class Rate:
    """A share of some records, and the variance of what was measured of it."""

    value: float
    variance: float


Rates = Mapping[str, Rate]  # by group


def selection_rates(tables: Mapping[str, Table]) -> dict[str, Rate]:
    """The share of each group's records that is named class 1."""
    return _rates(tables, lambda c: (c.tp + c.fp, c.tn + c.fn), halves=2)


def true_positive_rates(tables: Mapping[str, Table]) -> dict[str, Rate]:
    return _rates(tables, lambda c: (c.tp, c.fn), halves=1)


def false_positive_rates(tables: Mapping[str, Table]) -> dict[str, Rate]:
    return _rates(tables, lambda c: (c.fp, c.tn), halves=1)


def precisions(tables: Mapping[str, Table]) -> dict[str, Rate]:
    return _rates(tables, lambda c: (c.tp, c.fp), halves=1)


def accuracies(tables: Mapping[str, Table]) -> dict[str, Rate]:
    return _rates(tables, lambda c: (c.tp + c.tn, c.fp + c.fn), halves=2)


def rates_by_group(tables: Mapping[str, Table]) -> dict[str, dict[str, Estimate]]:
    """`selection_rates` and the others, by group and name; each rate's intervals hold for all groups at once."""
    found: dict[str, dict[str, Estimate]] = {group: {} for group in tables}
    for name, rates_of in _RATES.items():
        if rates := rates_of(tables):
            for (group, rate), (low, high) in zip(rates.items(), _bounds(rates), strict=True):
                found[group][name] = Estimate(rate.value, min(low, rate.value), max(high, rate.value))
    return found


def demographic_parity_difference(tables: Mapping[str, Table]) -> Estimate:
    """The largest gap in selection rate between groups; 0 is equal. Agarwal et al. 2018, arXiv:1803.02453, def. 1."""
    return _gap(selection_rates(tables))


def demographic_parity_ratio(tables: Mapping[str, Table]) -> Estimate:
    """The lowest selection rate over the highest; 0.8 is the four-fifths rule. Feldman et al. 2015, definition 1.1."""
    rates = selection_rates(tables)
    held = _bounds(rates)
    values = [rate.value for rate in rates.values()]
    most, least = max(high for _, high in held), max(low for low, _ in held)
    value = min(values) / max(values) if max(values) else 1.0
    low = min(low for low, _ in held) / most if most else 1.0
    high = min(1.0, min(high for _, high in held) / least) if least else 1.0
    return Estimate(value, min(value, low), max(value, high))


def equal_opportunity_difference(tables: Mapping[str, Table]) -> Estimate:
    """The largest gap in true positive rate. Hardt, Price, Srebro 2016, arXiv:1610.02413, definition 2.2."""
    return _gap(true_positive_rates(tables))


def equalized_odds_difference(tables: Mapping[str, Table]) -> Estimate:
    """The larger of the gaps in true and in false positive rate. Hardt, Price, Srebro 2016, definition 2.1."""
    return _gap(true_positive_rates(tables), false_positive_rates(tables))


def predictive_parity_difference(tables: Mapping[str, Table]) -> Estimate:
    """The largest gap in precision. Chouldechova 2017, arXiv:1610.07524, definition 2."""
    return _gap(precisions(tables))


def calibration_by_group(tables: Mapping[str, Table]) -> dict[str, Rate]:
    """For each group its share of class 1 minus the mean probability given to class 1; 0 is calibrated in the large.

    A bin counts with its middle, so a value may be off by half a bin's width, whichever the records.
    Reference: Pleiss et al. 2017, arXiv:1709.02012, definition 1, of the whole group.
    """
    found = {}
    for group, table in tables.items():
        bins = table.bins
        middles = (np.arange(bins) + 0.5) / bins
        n, noise = float(table.counts.sum()), table.variance
        if not _told(n, 2 * bins * noise):
            continue
        surplus = np.stack([-middles, 1 - middles])  # of one record of that class and bin
        value = float((table.counts * surplus).sum() / n)
        drawn = float((np.maximum(table.counts, 0) * (surplus - value) ** 2).sum())
        found[group] = Rate(value, (drawn + 1 + noise * float(((surplus - value) ** 2).sum())) / n**2)
    return found


def calibration_difference(tables: Mapping[str, Table]) -> Estimate:
    """The largest gap between two groups in `calibration_by_group`; the interval is wider by one bin."""
    gap, bin_width = _gap(calibration_by_group(tables), most=2.0), 1 / next(iter(tables.values())).bins
    return Estimate(gap.value, max(0.0, gap.low - bin_width), gap.high + bin_width)


def worst_group(tables: Mapping[str, Table]) -> tuple[str, Estimate]:
    """The group with the lowest accuracy, and that accuracy (Sagawa et al. 2020, arXiv:1911.08731, eq. 4, of 0-1 loss).

    The interval is of the lowest accuracy of any group, not of that of the group which happened to show it. With sites
    as groups it is the worst site (Mohri et al. 2019, arXiv:1902.00146).
    """
    rates = accuracies(tables)
    held = _bounds(rates)
    name = min(rates, key=lambda group: rates[group].value)
    value = rates[name].value
    low, high = min(low for low, _ in held), min(high for _, high in held)
    return name, Estimate(value, min(low, value), max(high, value))


_RATES: Mapping[str, Callable[[Mapping[str, Table]], dict[str, Rate]]] = {
    "selection_rate": selection_rates,
    "true_positive_rate": true_positive_rates,
    "false_positive_rate": false_positive_rates,
    "accuracy": accuracies,
}
_DIFFERENCES: Mapping[str, Callable[[Mapping[str, Table]], Estimate]] = {
    "demographic_parity_difference": demographic_parity_difference,
    "demographic_parity_ratio": demographic_parity_ratio,
    "equal_opportunity_difference": equal_opportunity_difference,
    "equalized_odds_difference": equalized_odds_difference,
    "predictive_parity_difference": predictive_parity_difference,
    "calibration_difference": calibration_difference,
}


class Fairness:
    """Every gap of this file and the worst group, by each attribute and by each two of them together.

    References: those of the functions; for intersections, Kearns et al. 2018, arXiv:1711.05144.
    """

    name = "fairness"
    needs = frozenset({"groups"})

    def evaluate(self, material: Material) -> Findings:
        counts = needed(material.groups, "groups", self.name)
        figures, remarks = {}, []
        for chosen in groupings(counts.cells.attributes):
            tables, prefix = counts.by(*chosen), " and ".join(chosen)
            for name, figure in _DIFFERENCES.items():
                if name == "calibration_difference" and counts.cells.bins < 4:
                    continue  # two bins say nothing of probabilities
                try:
                    figures[f"{prefix}: {name}"] = figure(tables)
                except ConfigError as error:
                    remarks.append(f"{prefix}: no {name}, for {error.message}")
            try:
                worst, figures[f"{prefix}: worst_accuracy"] = worst_group(tables)
                remarks.append(f"{prefix}: the lowest accuracy is that of {worst}")
            except ConfigError as error:
                remarks.append(f"{prefix}: no worst_accuracy, for {error.message}")
            if left_out := sorted(tables.keys() - accuracies(tables).keys()):
                remarks.append(f"{prefix}: too few records, for the noise, of {'; '.join(left_out)}")
        return Findings(self.name, figures, tuple(remarks))


def groupings(attributes: Iterable[str]) -> list[tuple[str, ...]]:
    """Each attribute, and each two of them together."""
    names = list(attributes)
    return [(name,) for name in names] + list(combinations(names, 2))


@dataclass(frozen=True)
class _Confusion:
    tn: float
    fp: float
    fn: float
    tp: float

    @classmethod
    def of(cls, table: Table) -> "_Confusion":
        half = table.bins // 2
        (tn, fp), (fn, tp) = ([float(row[:half].sum()), float(row[half:].sum())] for row in table.counts)
        return cls(tn, fp, fn, tp)


def _rates(
    tables: Mapping[str, Table], parts: Callable[[_Confusion], tuple[float, float]], halves: int
) -> dict[str, Rate]:
    """part / (part + rest) of every group that has records enough; each is `halves` of the entries of a confusion."""
    found = {}
    for group, table in tables.items():
        part, rest = parts(_Confusion.of(table))
        n, noise = part + rest, halves * table.bins / 2 * table.variance
        if not _told(n, 2 * noise):
            continue
        value, likely = min(1.0, max(0.0, part / n)), min(1.0, max(0.0, (part + 1) / (n + 2)))
        drawn = n * likely * (1 - likely)
        found[group] = Rate(value, (drawn + noise * (value**2 + (1 - value) ** 2)) / n**2)
    return found


def _told(n: float, variance: float) -> bool:
    return n >= 1 and n > _DROWNED * math.sqrt(variance)


def _gap(*families: Rates, most: float = 1.0) -> Estimate:
    """The largest difference between two groups in any family, intervals for all of these pairs at once.

    most: the largest that there can be.
    """
    pairs = [pair for rates in families for pair in combinations(rates.values(), 2)]
    if not pairs:
        raise ConfigError("fewer than two groups have records enough to compare")
    z = NormalDist().inv_cdf(1 - _MISSED / (2 * len(pairs)))
    gaps = [(abs(a.value - b.value), z * math.sqrt(a.variance + b.variance)) for a, b in pairs]
    value = max(gap for gap, _ in gaps)
    low, high = max(0.0, *(gap - reach for gap, reach in gaps)), max(gap + reach for gap, reach in gaps)
    return Estimate(value, low, max(value, min(most, high)))


def _bounds(rates: Rates) -> list[tuple[float, float]]:
    """(low, high) of every group's rate, for all groups at once."""
    if not rates:
        raise ConfigError("no group has records enough")
    z = NormalDist().inv_cdf(1 - _MISSED / (2 * len(rates)))
    reach = [(rate.value, z * math.sqrt(rate.variance)) for rate in rates.values()]
    return [(max(0.0, value - far), min(1.0, value + far)) for value, far in reach]
