"""Whether this site acts on an order: its policy, its ledger, its clock, its disk and its administrator are asked here.

Asked before a run is joined and before every order that leads to an update; what only finishes a round whose update
has left (agreeing, lifting masks, opening, releasing) is never held up, or the others would be left with half of it.
So a policy that was tightened holds from the next training on, in runs that had begun as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from client.approvals import require_approval
from client.limits import require_free_disk
from client.policy import consent, require_open_window
from client.runs import SiteRun
from client.site import Site
from common.dp.accounting import epsilon
from common.dp.cost import planned_events, round_events
from common.dp.events import DpEvent
from common.errors import BudgetExceeded
from common.federation import Plan
from common.wire import Envelope

_LEADS_TO_AN_UPDATE = ("make_key", "install_key", "offer", "train")


@dataclass(frozen=True)
class Price:
    """What a run costs this site's data set, in epsilon at the policy's delta.

    of_run: the run alone. before, after: all that was ever released, now and when every site has attended every round.
    reserved: the most that it comes to on the way, while a round is charged for as few sites as may be summed.
    """

    of_run: float
    before: float
    after: float
    reserved: float


def require_leave(site: Site, action: str, order: Envelope) -> None:
    """Returns when the order may be acted on, as far as it belongs to a run that this site has joined.

    Raises what `require_consent` raises, or NotNow outside of the policy's windows.
    """
    if action not in _LEADS_TO_AN_UPDATE:
        return
    run = SiteRun.open(site.directory / "runs", order.run, site.at_rest)
    require_consent(site, order.run.hex(), run.plan, run.cohort)
    if action == "train" and not run.has_sealed_update(order.round_number):
        require_open_window(site.policy, datetime.now(UTC))


def require_consent(site: Site, run: str, plan: Plan, cohort: tuple[str, ...]) -> None:
    """Raises what `consent` raises, NotNow for want of disk, and in manual mode AwaitingApproval or PrivacyError."""
    consent(site.policy, plan, cohort, len(site.training_records))
    require_free_disk(site.policy.resources, site.directory)
    if site.policy.approval == "manual":
        cost = price(site, run, plan, len(cohort))
        table = {"epsilon_before": cost.before, "epsilon_after": cost.after, "delta": site.policy.delta}
        require_approval(site, run, plan, cohort, {**table, "epsilon_of_run": cost.of_run})


def require_budget(site: Site, run: str, events: Sequence[DpEvent]) -> None:
    """Raises BudgetExceeded unless `events` of that run fit the data set's cap and the run's as well."""
    site.ledger.require(events)
    cap, delta = site.policy.epsilon_per_run, site.policy.delta
    if not cap:
        return
    total = epsilon((*_paid_events(site, run), *events), delta)
    if not total <= cap:  # NaN refuses too
        raise BudgetExceeded(
            f"policy.epsilon_per_run: this run would come to epsilon {total:.4f} at {site.name}, over {cap:g} at delta "
            f"{delta:g}",
            "fewer rounds or more noise; only the site's own administrator can raise it",
        )


def unpaid_events(site: Site, run: str, plan: Plan, cohort: int, applied: int) -> tuple[DpEvent, ...]:
    """What the rounds after `applied` still cost, with one of them reserved for as few as may be summed."""
    return planned_events(plan, cohort, _unpaid_rounds(site, run, plan, cohort, applied))


def price(site: Site, run: str, plan: Plan, cohort: int) -> Price:
    """What the rounds of the plan that are not in the ledger yet will cost; nothing is written."""
    if plan.privacy.mode == "none":
        return Price(0.0, 0.0, 0.0, 0.0)
    ledger, delta = site.ledger, site.policy.delta
    unpaid = _unpaid_rounds(site, run, plan, cohort, 0)
    attended = [e for number in unpaid for cost in round_events(plan, number, cohort, cohort).values() for e in cost]
    return Price(
        epsilon((*_paid_events(site, run), *attended), delta),
        ledger.epsilon,
        epsilon((*ledger.events, *attended), delta),
        epsilon((*ledger.events, *planned_events(plan, cohort, unpaid)), delta),
    )


def _unpaid_rounds(site: Site, run: str, plan: Plan, cohort: int, applied: int) -> list[int]:
    return [
        number
        for number in range(applied + 1, plan.last_round + 1)
        if not all(site.ledger.charged(run, number, purpose) for purpose in round_events(plan, number, cohort, cohort))
    ]


def _paid_events(site: Site, run: str) -> list[DpEvent]:
    return [event for charge in site.ledger.entries if charge.run == run for event in charge.events]
