"""From a plan to a run that is under way, and to its end: whoever submits it, on whatever machine."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from common import bundle
from common.buckets import require_room
from common.dp.cost import calibrated, noise_shares
from common.errors import ConfigError, FederationError, ProtocolError
from common.federation import Plan, require
from common.wire import from_hex
from server.account import Account
from server.control import Control, Submitted, rebuilt

_LOST_SECONDS = 300.0  # within which a run whose conductor was lost goes on: a machine starts again
_LOOK_SECONDS = 0.5


def complete(plan: Plan, sites: int) -> Plan:
    """The plan with the least noise that fits its epsilon, for that many sites.

    Raises ConfigError for a plan that does not say all, or that no noise and no number format can bear.
    """
    require(sites >= plan.federation.min_cohort, "federation.min_cohort", plan.federation.min_cohort, f"2 to {sites}")
    require_room(plan, sites)
    if not plan.model.inputs or not plan.model.classes:
        raise ConfigError(
            "the plan does not say what a record looks like", "set model.inputs, e.g. [13], and model.classes"
        )
    if plan.privacy.mode != "none" and not plan.privacy.noise_multiplier:
        plan = replace(plan, privacy=calibrated(plan, sites).privacy)
    if plan.privacy.in_shares:
        noise_shares(plan, sites)
    return plan


def submit(account: Account, plan: Plan, run: str = "") -> str:
    """Sign the plan and hand it in. Returns the run's number, hexadecimal. run: an earlier one to go on with."""
    content, number = bundle.build(plan), run or os.urandom(16).hex()
    account.control.start(content, bundle.sign(content, account.bundle_key, from_hex(number)), number)
    return number


def find(control: Control, run: str) -> Submitted:
    """The newest submission of the run whose number begins like that. Raises ConfigError when there is not just one."""
    listed = [one for one in control.runs() if one.run and one.run.startswith(run)]
    if len({one.run for one in listed}) != 1:
        what = "no run" if not listed else "more than one run"
        raise ConfigError(f"{what} has a number that begins with {run!r}", "see: veilfed status")
    return listed[-1]


def follow(control: Control, run: str) -> Iterator[tuple[str, Any]]:
    """Each event of the run once, until it ends, across every restart of the coordinator: (`round`, record), ...

    The last two are (`signed`, the files of the report: see `signature.copy_of`) and (`report`, report). Raises the
    error that stopped the run.
    """
    seen: set[int] = set()
    told: Counter[int] = Counter()  # events of each submission: after a cut line it is read from its beginning again
    lost_at = time.monotonic()
    while True:
        current = _found(control, run)
        if current.number in seen:
            if time.monotonic() - lost_at > _LOST_SECONDS:
                raise ProtocolError(f"run {run} was lost: {current.details or current.outcome}", "see: veilfed logs")
            time.sleep(_LOOK_SECONDS)
            continue
        try:
            for event in islice(control.events(current.number), told[current.number], None):
                told[current.number] += 1
                ((kind, value),) = event.items()
                if kind == "error":
                    raise rebuilt(value)
                yield kind, value
                if kind == "report":
                    return
        except FederationError as error:
            if error.code != "Unreachable":
                raise
            _wait_until_reachable(control, error)
            continue
        if _found(control, run).outcome == "stopped":
            raise ProtocolError(f"run {run} was stopped", "it goes on with: veilfed run ... --run " + run)
        seen.add(current.number)
        lost_at = time.monotonic()


def _found(control: Control, run: str) -> Submitted:
    """The newest submission, however often the coordinator has to be asked."""
    while True:
        try:
            return find(control, run)
        except FederationError as error:
            if error.code != "Unreachable":
                raise
            _wait_until_reachable(control, error)


def _wait_until_reachable(control: Control, error: FederationError) -> None:
    until = time.monotonic() + _LOST_SECONDS
    while time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        try:
            control.runs()
            return
        except FederationError as again:
            error = again
    raise error


def outcome_of(one: Submitted) -> Mapping[str, Any]:
    """A run as `veilfed status` shows it."""
    return {"run": one.run, "state": one.state, "outcome": one.outcome, "details": one.details, "submitted": one.since}
