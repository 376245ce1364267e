"""Predictions of many sites as sums by protected group, fit to travel encrypted and noised. Pure.

One number for every cell: a level of each attribute, the true class (0 or 1), a bin of the probability of class 1.
A record adds 1 to one number and nothing to the others, so it moves the vector by SENSITIVITY in L2 norm, whatever it
is and however many attributes there are. Coarser groups are sums of cells and cost nothing more, only more noise.
The attribute `site` may be one of them: each site fills its own cells, and the sum hides nothing but what noise hides.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.errors import ConfigError
from common.evaluators.utility import Floats
from common.federation import require

SENSITIVITY = 1.0
_MOST_CELLS = 1 << 16


@dataclass(frozen=True)
class GroupCells:
    """Which groups are looked at: public, and fixed before anybody looks at data.

    attributes: the levels of each, in their order; records of other levels are counted nowhere.
    bins: of the probability given to class 1, even, so that one edge is 0.5; 2 gives confusion counts.
    """

    attributes: Mapping[str, tuple[str, ...]]
    bins: int = 2

    def __post_init__(self) -> None:
        require(bool(self.attributes), "attributes", dict(self.attributes), "one or more")
        for name, levels in self.attributes.items():
            distinct = len(levels) >= 2 and len(set(levels)) == len(levels)
            require(distinct, f"levels of {name}", levels, "two or more, all different")
        require(2 <= self.bins <= 100 and self.bins % 2 == 0, "bins", self.bins, "an even number from 2 to 100")
        require(self.size <= _MOST_CELLS, "cells", self.size, f"at most {_MOST_CELLS}: fewer attributes or levels")

    @property
    def shape(self) -> tuple[int, ...]:
        return (*(len(levels) for levels in self.attributes.values()), 2, self.bins)

    @property
    def size(self) -> int:
        """How many numbers travel."""
        return math.prod(self.shape)

    def tally(self, probabilities: ArrayLike, labels: ArrayLike, groups: Mapping[str, ArrayLike]) -> Floats:
        """(size,): the counts of these predictions.

        probabilities: (n, 2); what is no number counts as 0, so that no record can stop a site by its predictions.
        labels: (n,) of 0 and 1.   groups: (n,) level of each attribute, as text.   n may be 0.
        """
        rows, label = np.nan_to_num(np.asarray(probabilities, np.float64)), np.asarray(labels, np.int64)
        if rows.shape != (len(label), 2) or not np.isin(label, (0, 1)).all():
            raise ConfigError(f"needs probabilities (n, 2) and labels of 0 and 1, got {rows.shape}, {label.shape}")
        if missing := self.attributes.keys() - groups.keys():
            raise ConfigError(f"records have no attribute {', '.join(sorted(missing))}")
        counted = np.ones(len(label), bool)
        cell = np.zeros(len(label), np.int64)
        for name, levels in self.attributes.items():
            values = np.asarray(groups[name]).astype(str)
            if values.shape != label.shape:
                raise ConfigError(f"{len(label)} labels but {values.shape} values of {name}")
            order = np.argsort(levels)
            found = order[np.searchsorted(levels, values, sorter=order).clip(max=len(levels) - 1)]
            counted &= np.asarray(levels)[found] == values
            cell = cell * len(levels) + found
        place = (cell * 2 + label) * self.bins + np.clip((rows[:, 1] * self.bins).astype(np.int64), 0, self.bins - 1)
        return np.bincount(place[counted], minlength=self.size).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Table:
    """One group's sums. counts: (2, bins), by true class and bin. variance: of the noise in each of them."""

    counts: Floats
    variance: float

    @property
    def bins(self) -> int:
        return int(self.counts.shape[1])


@dataclass(frozen=True, eq=False)
class GroupCounts:
    """Sums over all sites, with independent noise of standard deviation `noise_std` on each number (0: none)."""

    cells: GroupCells
    sums: NDArray[np.float64] = field(repr=False)
    noise_std: float

    def __post_init__(self) -> None:
        if self.sums.shape != (self.cells.size,) or not np.isfinite(self.sums).all():
            raise ConfigError(f"{self.sums.shape} sums for {self.cells.size} cells, or not finite")
        require(0 <= self.noise_std < np.inf, "noise_std", self.noise_std, "0 or more, finite")

    def by(self, *attributes: str) -> dict[str, Table]:
        """Every group that these attributes make, named `level` or `level, level`; the others are summed over."""
        if unknown := set(attributes) - self.cells.attributes.keys() or len(set(attributes)) != len(attributes):
            raise ConfigError(f"no groups by {attributes}: {unknown}", f"allowed: {', '.join(self.cells.attributes)}")
        names = list(self.cells.attributes)
        sums = self.sums.reshape(self.cells.shape)
        others = tuple(place for place, name in enumerate(names) if name not in attributes)
        merged = math.prod(sums.shape[place] for place in others)
        kept = [name for name in names if name in attributes]
        ordered = np.transpose(sums.sum(axis=others), (*(kept.index(name) for name in attributes), -2, -1))
        levels = [self.cells.attributes[name] for name in attributes]
        return {
            ", ".join(level[i] for level, i in zip(levels, place, strict=True)): Table(
                ordered[place], merged * self.noise_std**2
            )
            for place in np.ndindex(*ordered.shape[:-2])
        }
