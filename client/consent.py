"""Whether this site acts on an order: its policy, its ledger, its clock, its disk and its administrator are asked here.

Asked before a run is joined and before every order that leads to an update; what only finishes a round whose update
has left (agreeing, lifting masks, opening, releasing) is never held up, or the others would be left with half of it.
So a policy that was tightened holds from the next training on, in runs that had begun as well.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from client.approvals import require_approval
from client.limits import require_free_disk
from client.policy import consent, require_open_window
from client.pricing import events_of, exceeded, price
from client.runs import SiteRun
from client.site import Site
from common.dp.accounting import epsilon
from common.dp.events import DpEvent
from common.federation import Plan
from common.wire import Envelope

_LEADS_TO_AN_UPDATE = ("make_key", "install_key", "offer", "train")


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
        require_approval(
            site, run, plan, cohort, lambda: price(site.spent(), site.policy.delta, run, plan, len(cohort))
        )


def require_budget(site: Site, run: str, events: Sequence[DpEvent]) -> None:
    """Raises BudgetExceeded unless `events` fit the data set's cap and the run's as well."""
    site.ledger.require(events)
    cap = site.policy.epsilon_per_run
    total = epsilon((*events_of(site.ledger.entries, run), *events), site.policy.delta) if cap else 0.0
    if not total <= cap:  # NaN refuses too
        raise exceeded(site.policy, "epsilon_per_run", total)
