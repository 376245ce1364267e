"""What one round's vector of integers is made of: the update, counts of predictions, counts by group, or some. Pure."""

from dataclasses import dataclass

from common.evaluators.counts import size
from common.evaluators.groups import GroupCells
from common.federation import Plan


@dataclass(frozen=True)
class Layout:
    """update, counts, groups: how many integers each has."""

    update: int
    counts: int
    groups: int

    @classmethod
    def of(cls, plan: Plan, parameters: int, round_number: int) -> "Layout":
        counts, groups = _counted(plan) if plan.measures(round_number) else (0, 0)
        return cls(parameters if plan.trains(round_number) else 0, counts, groups)

    @property
    def length(self) -> int:
        return self.update + self.counts + self.groups


def longest(plan: Plan, parameters: int) -> int:
    """The most integers that any round of the plan carries: what its encryption must hold."""
    return parameters + (sum(_counted(plan)) if plan.metrics.every else 0)


def group_cells(plan: Plan) -> GroupCells | None:
    """What is counted by protected group, if anything; attributes by name, in whatever order a file has them."""
    groups = plan.metrics.groups
    return GroupCells({name: groups[name] for name in sorted(groups)}, plan.metrics.group_bins) if groups else None


def _counted(plan: Plan) -> tuple[int, int]:
    cells = group_cells(plan)
    return size(plan.model.classes), cells.size if cells else 0
