"""What a run costs this site's data set, from what its ledger holds and what the plan says. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from client.policy import SitePolicy
from common.dp.accounting import epsilon
from common.dp.cost import planned_events, round_events
from common.dp.events import DpEvent
from common.dp.ledger import Charge
from common.errors import BudgetExceeded
from common.federation import Plan


@dataclass(frozen=True)
class Price:
    """In epsilon, at the policy's delta.

    of_run: the run alone, at most. before: all that was ever released. after: that and the run, if every site attends
    every round. reserved: the most on the way there, while a round is charged for as few sites as may be summed.
    """

    of_run: float
    before: float
    after: float
    reserved: float


def price(spent: Sequence[Charge], delta: float, run: str, plan: Plan, cohort: int) -> Price:
    """What the rounds of the plan that are not paid for will cost. spent: the ledger. run: its name in there."""
    numbers = unpaid_rounds(spent, run, plan, cohort, 0)
    whole = plan.whole_sum(cohort)
    attended = [e for number in numbers for cost in round_events(plan, number, cohort, whole).values() for e in cost]
    reserved = planned_events(plan, cohort, numbers)
    everything = [event for charge in spent for event in charge.events]
    return Price(
        epsilon((*events_of(spent, run), *reserved), delta),
        epsilon(everything, delta),
        epsilon((*everything, *attended), delta),
        epsilon((*everything, *reserved), delta),
    )


def over_budget(policy: SitePolicy, cost: Price) -> Iterator[BudgetExceeded]:
    """Every cap of the policy that a run of that price would break."""
    for key, cap, asked in (
        ("epsilon", policy.epsilon, cost.reserved),
        ("epsilon_per_run", policy.epsilon_per_run or policy.epsilon, cost.of_run),
    ):
        if not asked <= cap:  # NaN refuses too
            yield exceeded(policy, key, asked)


def exceeded(policy: SitePolicy, key: str, asked: float) -> BudgetExceeded:
    """The refusal of what would come to `asked`. key: whose cap that breaks, in policy.toml."""
    what = "the data set" if key == "epsilon" else "this run"
    return BudgetExceeded(
        f"policy.{key}: {what} would come to epsilon {asked:.4f}, over {getattr(policy, key) or policy.epsilon:g} at "
        f"delta {policy.delta:g}",
        "fewer rounds or more noise; only the site's own administrator can raise the budget",
    )


def unpaid_rounds(spent: Sequence[Charge], run: str, plan: Plan, cohort: int, applied: int) -> list[int]:
    """The rounds after `applied` that something is still to be paid for."""
    paid = {charge.key for charge in spent}
    return [
        number
        for number in range(applied + 1, plan.last_round + 1)
        if not all(
            (run, number, purpose) in paid for purpose in round_events(plan, number, cohort, plan.whole_sum(cohort))
        )
    ]


def events_of(spent: Sequence[Charge], run: str) -> list[DpEvent]:
    """What that run has released."""
    return [event for charge in spent if charge.run == run for event in charge.events]
