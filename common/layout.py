"""What one round's vector of integers is made of: the update, then counts of predictions, or one of them. Pure."""

from dataclasses import dataclass

from common.evaluators.counts import size
from common.federation import Plan


@dataclass(frozen=True)
class Layout:
    """update, counts: how many integers each has."""

    update: int
    counts: int

    @classmethod
    def of(cls, plan: Plan, parameters: int, round_number: int) -> "Layout":
        counts = size(plan.model.classes) if plan.measures(round_number) else 0
        return cls(parameters if plan.trains(round_number) else 0, counts)

    @property
    def length(self) -> int:
        return self.update + self.counts


def longest(plan: Plan, parameters: int) -> int:
    """The most integers that any round of the plan carries: what its encryption must hold."""
    return parameters + (size(plan.model.classes) if plan.metrics.every else 0)
