"""What one round's vector of integers is made of: the update, and the kinds of counts that the round carries. Pure."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from common.evaluators import importance
from common.evaluators.counts import size
from common.evaluators.groups import GroupCells
from common.federation import Plan

CountKind = Literal["counts", "groups", "importance"]  # of all predictions, by protected group, with features replaced


@dataclass(frozen=True)
class Layout:
    """How many integers each part has, in the order in which they travel; 0 where the round does without."""

    update: int
    counts: int
    groups: int
    importance: int

    @classmethod
    def of(cls, plan: Plan, parameters: int, round_number: int) -> "Layout":
        update, cells = parameters if plan.trains(round_number) else 0, group_cells(plan)
        if not plan.measures(round_number):
            return cls(update, 0, 0, 0)
        features = len(plan.metrics.importance) if plan.explains(round_number) else 0
        return cls(update, size(plan.model.classes), cells.size if cells else 0, importance.size(features))

    @property
    def length(self) -> int:
        return self.update + self.counted

    @property
    def counted(self) -> int:
        return self.counts + self.groups + self.importance

    @property
    def kinds(self) -> dict[CountKind, slice]:
        """Where each kind that is there lies in what comes behind the update."""
        sizes: dict[CountKind, int] = {"counts": self.counts, "groups": self.groups, "importance": self.importance}
        ends = accumulate(sizes.values())
        return {kind: slice(end - n, end) for (kind, n), end in zip(sizes.items(), ends, strict=True) if n}


def longest(plan: Plan, parameters: int) -> int:
    """The most integers that any round of the plan carries: what its encryption must hold."""
    last = Layout.of(plan, 0, plan.last_round)
    return last.counts + last.groups + max(parameters, last.importance)


def group_cells(plan: Plan) -> GroupCells | None:
    """What is counted by protected group, if anything; attributes by name, in whatever order a file has them."""
    groups = plan.metrics.groups
    return GroupCells({name: groups[name] for name in sorted(groups)}, plan.metrics.group_bins) if groups else None
