"""What a federation file would ask of this site, before anyone says yes. Nothing is written."""

import dataclasses
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from client.policy import objections, require_names, size_objection
from client.pricing import Price, over_budget, price
from client.site import Site
from common.buckets import require_room
from common.config import fill, load_table, to_table
from common.dp.cost import calibrated
from common.errors import FederationError
from common.federation import Plan
from common.he.ciphertexts import dense_bytes, whole
from common.he.parameters import SEED_BYTES, choose_scheme
from common.layout import longest
from common.models import build, parameters_of
from common.wire import header_bytes

_NEW_RUN = ""  # no ledger knows of it
_BYTES_A_WEIGHT = 4 + 8 + 8 + 8  # the network in float32; the model, its update and what is sealed of it in float64
_MODEL_HASH_BYTES = 32


@dataclass(frozen=True)
class DryRun:
    """Whether this site would agree to a plan, why not, and what it would cost; epsilons at the policy's delta.

    epsilon_after: when every site attends every round. epsilon_reserved: the most on the way, see `Price`.
    update_bytes, sum_bytes: one round's, sent and, at most, received. memory_bytes: of records, model and update, so
    without what the model computes with. They are 0 where the plan is refused before any model is built.
    """

    agreed: bool
    reasons: tuple[str, ...]
    site: str
    data_set: str
    sites: int
    rounds: int
    noise_multiplier: float
    epsilon_of_plan: float
    epsilon_before: float
    epsilon_after: float
    epsilon_reserved: float
    budget_epsilon: float
    delta: float
    parameters: int
    update_bytes: int
    sum_bytes: int
    memory_bytes: int
    approval: str

    def to_report(self) -> dict[str, Any]:
        """Ready for JSON, which has no infinity: an epsilon that nothing bounds is null."""
        table = to_table(self)
        return {key: None if isinstance(v, float) and not isfinite(v) else v for key, v in table.items()}


def read_plan(path: Path) -> Plan:
    """The plan of a federation file; what only a simulation reads of it is left out."""
    known = {field.name for field in dataclasses.fields(Plan)}
    return fill(Plan, {name: value for name, value in load_table(path).items() if name in known})


def dry_run(site: Site, plan: Plan, sites: int) -> DryRun:
    """For a cohort of that many sites. Model shape and noise that the plan leaves open are what a coordinator fills in.

    Raises ConfigError for a plan that nobody could run with this site.
    """
    policy, records = site.policy, site.training_records
    require_room(plan, sites)
    plan, cost = priced(site, plan, sites)
    plan = _shaped(plan, records.features.shape[1:], int(records.labels.max(initial=1)) + 1)
    reasons = [*objections(policy, plan, sites, len(records)), *over_budget(policy, cost)]
    try:
        require_names(policy, plan, records)
    except FederationError as error:
        reasons.append(error)
    parameters = sent = received = memory = 0
    if not reasons:  # nothing too large is built, and no code imported that the policy does not name
        parameters = parameters_of(build(plan.model)).size
        reasons += filter(None, [size_objection(policy, parameters)])
        sent, received = _bytes_a_round(plan, sites, parameters, site.name)
        held = site.held_out_records
        memory = records.features.nbytes + held.features.nbytes + _BYTES_A_WEIGHT * parameters
    return DryRun(
        agreed=not reasons,
        reasons=tuple(reason.message for reason in reasons),
        site=site.name,
        data_set=site.settings.data.name,
        sites=sites,
        rounds=plan.last_round,
        noise_multiplier=plan.privacy.noise_multiplier,
        epsilon_of_plan=cost.of_run,
        epsilon_before=cost.before,
        epsilon_after=cost.after,
        epsilon_reserved=cost.reserved,
        budget_epsilon=policy.epsilon,
        delta=policy.delta,
        parameters=parameters,
        update_bytes=sent,
        sum_bytes=received,
        memory_bytes=memory,
        approval=policy.approval,
    )


def priced(site: Site, plan: Plan, sites: int) -> tuple[Plan, Price]:
    """The plan, with the least noise that fits it where it names none, and what it would cost this site."""
    if plan.privacy.mode != "none" and not plan.privacy.noise_multiplier:
        plan = calibrated(plan, sites)
    return plan, price(site.spent(), site.policy.delta, _NEW_RUN, plan, sites)


def _shaped(plan: Plan, inputs: tuple[int, ...], classes: int) -> Plan:
    model = plan.model
    shaped = dataclasses.replace(model, inputs=model.inputs or inputs, classes=model.classes or classes)
    return dataclasses.replace(plan, model=shaped)


def _bytes_a_round(plan: Plan, sites: int, parameters: int, name: str) -> tuple[int, int]:
    """What one site sends as its update, and the most that the sum takes which it receives."""
    if plan.encryption.preset == "none":
        return header_bytes(name) + 4 * parameters, header_bytes("coordinator") + 4 * parameters
    length = longest(plan, parameters)
    scheme = choose_scheme(plan.encryption.preset, sites, length)
    seeds = SEED_BYTES * scheme.ciphertexts(length)
    message = scheme.message_bytes(length)
    expanded = dense_bytes(scheme, whole(scheme, length), scheme.dropped_bits_down)
    sums = max(1, plan.robustness.buckets)
    received = sums * (message - seeds + max(-(-sites // sums) * seeds, expanded))
    return header_bytes(name) + _MODEL_HASH_BYTES + message, received
