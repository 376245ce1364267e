"""Whether records, or what a model says of them, are still distributed as they were: column by column. Pure.

Counts by bin are all that is kept of the records before; bins are their deciles, or their levels where they are few.
Both tests take records for independent draws. What they tell of one site's records is a statistic of those: it stays at
the site, or is a release.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2_contingency, ks_2samp

from common.errors import ConfigError
from common.evaluators.report import Findings, Material, needed
from common.evaluators.utility import Estimate, Floats, bootstrap

LARGE = 0.25  # of a stability index: by custom, a shift that has to be looked into
CHANCE = 0.01  # that any column of all is said to have moved where none has
_BINS = 10
_LEVELS = 20  # a column with more values than so many is taken for continuous
_HALF = 0.5  # of a record, added to each bin: an empty one is no infinite surprise


@dataclass(frozen=True, eq=False)
class Profile:
    """How columns were distributed. edges: ascending, for each column. counts: records between them, one more."""

    edges: tuple[Floats, ...] = field(repr=False)
    counts: tuple[Floats, ...] = field(repr=False)

    def __post_init__(self) -> None:
        fits = len(self.edges) == len(self.counts) and all(
            len(counts) == len(edges) + 1 for edges, counts in zip(self.edges, self.counts, strict=False)
        )
        if not fits or not all((counts >= 0).all() and counts.sum() >= 1 for counts in self.counts):
            raise ConfigError("a profile needs one more count than edges for each column, and at least one record")

    @classmethod
    def of(cls, values: ArrayLike) -> "Profile":
        """values: (n, ...), n > 0; whatever follows the first axis is taken for columns."""
        table = _columns(values)
        edges = tuple(_edges(column) for column in table.T)
        return cls(edges, tuple(_counted(column, limits) for column, limits in zip(table.T, edges, strict=True)))

    def counted(self, values: ArrayLike) -> tuple[Floats, ...]:
        """Other records (n, ...) by the same bins. Raises ConfigError for another number of columns."""
        table = _columns(values)
        if table.shape[1] != len(self.edges):
            raise ConfigError(
                f"records of {table.shape[1]} columns cannot be compared with a profile of {len(self.edges)}"
            )
        return tuple(_counted(column, limits) for column, limits in zip(table.T, self.edges, strict=True))


@dataclass(frozen=True)
class Shift:
    """Of one column. index: its population stability index. p_value: adjusted for all columns that were looked at."""

    index: float
    p_value: float

    @property
    def moved(self) -> bool:
        return self.p_value < CHANCE


def stability_index(expected: ArrayLike, observed: ArrayLike) -> float:
    """PSI, the sum over bins of (q - p) log(q / p) for shares p, q of counts (bins,): 0 where all is as it was.

    Below 0.1 little has happened, by custom, and above 0.25 enough to act on; chance alone adds about (bins - 1)
    (1 / n + 1 / m). Reference: Yurdakul and Naranjo 2020, Journal of Risk Model Validation.
    """
    before, now = (np.asarray(counts, np.float64) + _HALF for counts in (expected, observed))
    p, q = before / before.sum(), now / now.sum()
    return float(((q - p) * np.log(q / p)).sum())


def shifts(before: Profile, values: ArrayLike) -> list[Shift]:
    """Each column's shift. Test: chi-squared over the profile's bins (Pearson 1900), by Holm 1979 for all columns."""
    now = before.counted(values)
    pairs = list(zip(before.counts, now, strict=True))
    adjusted = holm([_chi_squared(old, new) for old, new in pairs])
    return [Shift(stability_index(old, new), float(p)) for (old, new), p in zip(pairs, adjusted, strict=True)]


def shifts_between(reference: ArrayLike, values: ArrayLike) -> list[Shift]:
    """The same where the records before are at hand: continuous columns by Kolmogorov-Smirnov (Smirnov 1939).

    It looks at all values, so it sees what happens within a bin as well. A column of few levels: chi-squared.
    """
    table, other = _columns(reference), _columns(values)
    before = Profile.of(table)
    found = shifts(before, other)
    raw = [
        _chi_squared(counts, new) if _is_level(old) else float(ks_2samp(old, column, method="asymp").pvalue)
        for old, column, counts, new in zip(table.T, other.T, before.counts, before.counted(other), strict=True)
    ]
    return [Shift(shift.index, float(p)) for shift, p in zip(found, holm(raw), strict=True)]


def holm(p_values: Sequence[float]) -> Floats:
    """Adjusted for each other: any of them below `CHANCE` comes by chance with that chance, or less. Holm 1979."""
    raw = np.asarray(p_values, np.float64)
    order = np.argsort(raw)
    stepped = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    adjusted = np.empty(len(raw))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def output_shift(before: Floats, after: Floats, rng: np.random.Generator) -> Estimate:
    """Stability index of what two models say of the same records, by the probability of class 1 or the class named.

    before, after: (n, classes). Interval: `bootstrap` over the records. Reference: that of `stability_index`.
    """
    classes = before.shape[1]
    bins = _BINS if classes == 2 else classes

    def placed(rows: Floats) -> NDArray[np.int64]:
        if classes > 2:
            return np.asarray(rows.argmax(axis=1))
        return np.clip((rows[:, 1] * _BINS).astype(np.int64), 0, _BINS - 1)

    old, new = placed(before), placed(after)

    def index(chosen: NDArray[np.int64]) -> float:
        return stability_index(np.bincount(old[chosen], minlength=bins), np.bincount(new[chosen], minlength=bins))

    return bootstrap(index, len(old), rng)


class Drift:
    """Inputs and outputs against the reference. References: those of `stability_index`, `shifts_between` and `holm`."""

    name = "drift"
    needs = frozenset({"reference", "features", "predict"})

    def evaluate(self, material: Material) -> Findings:
        predict = needed(material.predict, "predict", self.name)
        reference = needed(material.reference, "reference", self.name)
        features = needed(material.features, "features", self.name)
        inputs, outputs = (
            shifts_between(*both) for both in ((reference, features), (predict(reference), predict(features)))
        )
        moved = [place for place, shift in enumerate(inputs) if shift.moved]
        figures = {
            "largest_input_index": _point(max(shift.index for shift in inputs)),
            "inputs_moved": _point(len(moved)),
            "largest_output_index": _point(max(shift.index for shift in outputs)),
            "outputs_moved": _point(sum(shift.moved for shift in outputs)),
        }
        which = f"; columns {', '.join(map(str, moved[:10]))}" if moved else ""
        return Findings(
            self.name, figures, (f"moved: beyond chance, at odds of {CHANCE:g} for all columns together{which}",)
        )


def _point(value: float) -> Estimate:
    return Estimate(value, value, value)


def _columns(values: ArrayLike) -> Floats:
    table = np.asarray(values, np.float64)
    if table.ndim < 2 or not len(table) or not np.isfinite(table).all():
        raise ConfigError(f"needs finite records (n, ...), n > 0, got {table.shape}")
    return table.reshape(len(table), -1)


def _is_level(column: Floats) -> bool:
    return len(np.unique(column)) <= _LEVELS


def _edges(column: Floats) -> Floats:
    """Between the levels, or the deciles; a record on an edge lies above it."""
    levels = np.unique(column)
    if len(levels) <= _LEVELS:
        return np.asarray((levels[1:] + levels[:-1]) / 2)
    return np.unique(np.quantile(column, np.arange(1, _BINS) / _BINS))


def _counted(column: Floats, edges: Floats) -> Floats:
    places = np.searchsorted(edges, column, side="right")
    return np.bincount(places, minlength=len(edges) + 1).astype(np.float64)


def _chi_squared(before: Floats, now: Floats) -> float:
    """p-value of equal shares in both; bins that neither fills say nothing."""
    table = np.stack([before, now])
    table = table[:, table.sum(axis=0) > 0]
    return 1.0 if table.shape[1] < 2 else float(chi2_contingency(table, correction=False).pvalue)
