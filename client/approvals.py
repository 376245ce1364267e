"""Runs that wait for a person: what each asks is in DIR/pending/RUN, what was decided is in the audit log.

An approval holds for one run with one plan and one cohort, and so ends with it; a denial stops the run's training. What
is shown to the administrator never changes: a second ask of the same run with anything else is refused.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from client.pricing import Price
from client.runs import SiteRun
from client.site import Site
from common.audit import Approved, Awaited, Denied
from common.config import fill, to_table
from common.errors import AwaitingApproval, ConfigError, NotNow, PrivacyError, ProtocolError
from common.federation import Plan
from common.files import write_atomically
from common.wire import from_json, plan_hash, to_json

_MOST_WAITING = 100  # a coordinator can ask for as many runs as it likes

State = Literal["waiting", "approved", "denied"]


@dataclass(frozen=True)
class Ask:
    """What one run asks of this site. cost: when it asked. asked: when it was first heard of."""

    run: str
    plan: Plan
    cohort: tuple[str, ...]
    cost: Price
    asked: str

    @property
    def plan_hash(self) -> str:
        return plan_hash(self.plan).hex()


def require_approval(site: Site, run: str, plan: Plan, cohort: tuple[str, ...], cost: Callable[[], Price]) -> None:
    """Returns when this run was approved as it is. Else keeps what it asks, and raises AwaitingApproval.

    cost: asked once, to be shown to the administrator. Raises PrivacyError when the run was denied, ProtocolError when
    it asks for something else than before.
    """
    ask = _kept(site, run)
    if ask is None:
        _make_room(site)
        ask = Ask(run, plan, cohort, cost(), datetime.now(UTC).isoformat(timespec="seconds"))
        _place(site).mkdir(exist_ok=True, mode=0o700)
        table = {"plan": to_table(plan), "cohort": list(cohort), "cost": to_table(ask.cost), "asked": ask.asked}
        write_atomically(_place(site) / run, to_json(table))
        site.audit.note(Awaited(run, ask.plan_hash, cohort))
    elif (ask.plan, ask.cohort) != (plan, cohort):
        raise ProtocolError("the coordinator changed the plan or the cohort of a run that was put before a person")
    match state_of(site, ask):
        case "denied":
            raise PrivacyError("policy.approval: this site's administrator has denied this run")
        case "waiting":
            raise AwaitingApproval("policy.approval: this run waits for the site's administrator", "ask again later")


def state_of(site: Site, ask: Ask) -> State:
    """What the audit log says last about this very run, plan and cohort."""
    for entry in reversed(site.audit.latest()):
        record = entry.record
        if record.get("event") in ("Approved", "Denied") and record["run"] == ask.run:
            same = (record["plan"], tuple(record["cohort"])) == (ask.plan_hash, ask.cohort)
            if record["event"] == "Denied":
                return "denied"
            return "approved" if same else "waiting"
    return "waiting"


def waiting(site: Site) -> list[tuple[Ask, State]]:
    """Every run that was put before the administrator and is not over, oldest first."""
    asks = [ask for path in sorted(_place(site).glob("[0-9a-f]*")) if (ask := _kept(site, path.name))]
    for ask in asks:
        if _is_over(site, ask):
            (_place(site) / ask.run).unlink()
    alive = sorted((ask for ask in asks if (_place(site) / ask.run).exists()), key=lambda ask: (ask.asked, ask.run))
    return [(ask, state_of(site, ask)) for ask in alive]


def decide(site: Site, run: str, agreed: bool) -> Ask:
    """The administrator's word on a run, in the audit log. run: its name, or the beginning of it.

    Raises ConfigError when no run, or more than one, is called that.
    """
    asks = [ask for ask, _ in waiting(site) if run and ask.run.startswith(run)]
    if len(asks) != 1:
        raise ConfigError(f"{len(asks)} runs at {site.directory} begin with {run!r}", "see veilfed site approve --list")
    ask, by = asks[0], f"uid {os.getuid()}"
    site.audit.note((Approved if agreed else Denied)(ask.run, ask.plan_hash, ask.cohort, by))
    return ask


def _kept(site: Site, run: str) -> Ask | None:
    path = _place(site) / run
    if not path.exists():
        return None
    table: dict[str, Any] = from_json(path.read_bytes())
    return Ask(run, fill(Plan, table["plan"]), tuple(table["cohort"]), fill(Price, table["cost"]), table["asked"])


def _make_room(site: Site) -> None:
    if len([state for _, state in waiting(site) if state == "waiting"]) >= _MOST_WAITING:
        raise NotNow(f"policy.approval: {_MOST_WAITING} runs wait for this site's administrator", "ask again later")


def _is_over(site: Site, ask: Ask) -> bool:
    return SiteRun.applied(site, bytes.fromhex(ask.run)) >= ask.plan.last_round


def _place(site: Site) -> Path:
    return site.directory / "pending"
