"""Alert rules: how far a figure of a run's rounds may go, and for how long. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from common.errors import ConfigError

_KEY = "monitoring.alerts"


@dataclass(frozen=True)
class AlertRule:
    """It fires in a round where the figure is beyond the limit, and was in the `rounds` - 1 measured ones before it.

    figure: as the records of rounds name it: accuracy, loss, auc, mean_score; by group e.g.
    "sex: demographic_parity_difference"; in a simulation also output_shift, of what this model says from what the one
    before it said. when: `above` or `below` the limit, or `moved` by more than that since it was measured first.
    """

    figure: str
    when: Literal["above", "below", "moved"]
    limit: float
    rounds: int = 1

    def __post_init__(self) -> None:
        for holds, name, allowed in (
            (0 < len(self.figure) <= 100 and self.figure.isprintable(), "figure", "1 to 100 printable letters"),
            (math.isfinite(self.limit), "limit", "finite"),
            (self.when != "moved" or self.limit >= 0, "limit", "0 or more, for what has moved"),
            (1 <= self.rounds <= 1000, "rounds", "1 to 1000"),
        ):
            if not holds:
                raise ConfigError(f"{_KEY}: {name} = {getattr(self, name)!r} is not possible", f"allowed: {allowed}")

    def __str__(self) -> str:
        verb = f"{self.when} by more than" if self.when == "moved" else self.when
        return f"{self.figure} {verb} {self.limit:g}" + (f", {self.rounds} times in a row" if self.rounds > 1 else "")

    def fires_in(self, values: Mapping[int, float]) -> tuple[int, ...]:
        """The rounds in which it fires. values: of its figure, by round, for those in which it was measured."""
        if not values:
            return ()
        numbers, fired, in_a_row = sorted(values), [], 0
        for number in numbers:
            in_a_row = in_a_row + 1 if self._beyond(values[number], values[numbers[0]]) else 0
            if in_a_row >= self.rounds:
                fired.append(number)
        return tuple(fired)

    def _beyond(self, value: float, first: float) -> bool:
        match self.when:
            case "above":
                return value > self.limit
            case "below":
                return value < self.limit
            case _:
                return abs(value - first) > self.limit
