"""Public schemas of tables: what a column may hold is declared here, never learnt from anybody's records.

A constant fitted on pooled records (a mean, a largest value, the list of categories seen) would tell every site
something about the others' records outside the privacy budget. So ranges and categories come from the data sets'
own documentation or from medicine; values outside a range are clamped; a missing value is a fact about one record.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_MISSING = frozenset({"", "?"})


@dataclass(frozen=True)
class Number:
    """A measurement with a declared range; `zero_is_missing` where nobody alive can have a zero."""

    name: str
    low: float
    high: float
    zero_is_missing: bool = False

    def read(self, text: str) -> float:
        """The value, clamped to the range; NaN where it is missing. Raises ValueError on anything else."""
        if text in _MISSING:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError("not a finite number")
        if value == 0 and self.zero_is_missing:
            return math.nan
        return min(self.high, max(self.low, value))

    def encode(self, values: Sequence[float]) -> Floats:
        """(n, 2): the value from -1 (low) to 1 (high), 0 where missing; then 1 where missing. Row norm <= 1."""
        column = np.asarray(values, np.float64)
        scaled = 2 * (column - self.low) / (self.high - self.low) - 1
        absent = np.isnan(column)
        return np.stack([np.where(absent, 0, scaled), absent], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Category:
    """One of the declared levels."""

    name: str
    levels: tuple[str, ...]

    def read(self, text: str) -> float:
        """The level's place; one past the last where it is missing. Raises ValueError on an undeclared level."""
        if text in _MISSING:
            return len(self.levels)
        if text not in self.levels:
            raise ValueError(f"not one of {', '.join(self.levels)}")
        return self.levels.index(text)

    def encode(self, values: Sequence[float]) -> Floats:
        """(n, levels + 1): 1 at the level's place, or at the last where it is missing. Row norm 1."""
        return np.eye(len(self.levels) + 1, dtype=np.float32)[np.asarray(values, np.int64)]


@dataclass(frozen=True)
class Outcome:
    """What is predicted: the class of each text that the column may hold."""

    name: str
    classes: Mapping[str, int]

    def read(self, text: str) -> float:
        """The class. Raises ValueError on an undeclared text, also on a missing one."""
        if text not in self.classes:
            raise ValueError(f"not one of {', '.join(self.classes)}")
        return self.classes[text]


Column = Number | Category | Outcome


@dataclass(frozen=True)
class Schema:
    """The columns that become features, the one that is predicted, and the protected attributes."""

    columns: tuple[Number | Category, ...]
    outcome: Outcome
    groups: tuple[str, ...]

    @property
    def width(self) -> int:
        return sum(map(len, self.places.values()))

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """By column of the table, the columns of `encode` that it becomes."""
        widths = [column.encode([0.0]).shape[1] for column in self.columns]
        ends = accumulate(widths)
        return {
            column.name: tuple(range(end - width, end))
            for column, width, end in zip(self.columns, widths, ends, strict=True)
        }

    def encode(self, values: Sequence[Sequence[float]]) -> Floats:
        """(n, width) features; `values` are read, column by column. A row's norm is at most 1, whatever it holds."""
        blocks = [column.encode(read) for column, read in zip(self.columns, values, strict=True)]
        return np.concatenate(blocks, axis=1) / np.float32(math.sqrt(len(blocks)))


HEART_SITES: Mapping[str, str] = {
    "cleveland": "Cleveland",
    "hungary": "Hungary",
    "switzerland": "Switzerland",
    "va-long-beach": "VA Long Beach",
}
# Ranges: adults and what an examination can yield (mm Hg, mg/dl, beats a minute, mm); `ca` counts the vessels
# coloured by fluoroscopy, 0 to 3. Levels: the data set's documentation, doi 10.24432/C52P4X.
HEART = Schema(
    columns=(
        Number("age", 20, 80),
        Category("sex", ("Female", "Male")),
        Category("cp", ("typical angina", "atypical angina", "non-anginal", "asymptomatic")),
        Number("trestbps", 80, 200, zero_is_missing=True),
        Number("chol", 100, 600, zero_is_missing=True),
        Category("fbs", ("FALSE", "TRUE")),
        Category("restecg", ("normal", "st-t abnormality", "lv hypertrophy")),
        Number("thalch", 60, 202, zero_is_missing=True),
        Category("exang", ("FALSE", "TRUE")),
        Number("oldpeak", -3, 7),
        Category("slope", ("upsloping", "flat", "downsloping")),
        Number("ca", 0, 3),
        Category("thal", ("normal", "fixed defect", "reversable defect")),
    ),
    outcome=Outcome("num", {"0": 0, "1": 1, "2": 1, "3": 1, "4": 1}),
    groups=("sex",),
)

ADULT_COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
)
# Levels: the data set's own `adult.names`. Left out: fnlwgt (a survey weight), education (education-num says it),
# native-country (41 levels, nearly all in one).
ADULT = Schema(
    columns=(
        Number("age", 17, 90),
        Category(
            "workclass",
            (
                *("Private", "Self-emp-not-inc", "Self-emp-inc", "Federal-gov", "Local-gov", "State-gov"),
                *("Without-pay", "Never-worked"),
            ),
        ),
        Number("education-num", 1, 16),
        Category(
            "marital-status",
            (
                *("Married-civ-spouse", "Divorced", "Never-married", "Separated", "Widowed"),
                *("Married-spouse-absent", "Married-AF-spouse"),
            ),
        ),
        Category(
            "occupation",
            (
                *("Tech-support", "Craft-repair", "Other-service", "Sales", "Exec-managerial", "Prof-specialty"),
                *("Handlers-cleaners", "Machine-op-inspct", "Adm-clerical", "Farming-fishing", "Transport-moving"),
                *("Priv-house-serv", "Protective-serv", "Armed-Forces"),
            ),
        ),
        Category("relationship", ("Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried")),
        Category("race", ("White", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other", "Black")),
        Category("sex", ("Female", "Male")),
        Number("capital-gain", 0, 20000),
        Number("capital-loss", 0, 3000),
        Number("hours-per-week", 1, 99),
    ),
    # The test file writes a full stop after each.
    outcome=Outcome("income", {"<=50K": 0, "<=50K.": 0, ">50K": 1, ">50K.": 1}),
    groups=("sex", "race"),
)
