"""What the coordinator itself can say of a finished run: the report, without what only a simulation sees."""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from common.config import to_table
from common.dp.accounting import NEIGHBOURING
from common.federation import Plan
from common.he.parameters import choose_scheme
from common.layout import longest
from common.models import planned_sizes
from common.wire import header_bytes
from server.links import Link
from server.store import RunStore
from server.watched import alerts_of

_PACKAGES = ("veilfed", "flwr", "torch", "tenseal", "dp-accounting", "opacus", "cryptography", "numpy")
_MODEL_HASH_BYTES = 32


def report_of(store: RunStore, links: Iterable[Link], engine: str) -> dict[str, Any]:
    """The report of `CONTRACT`: rounds, sites, wire, privacy. `final` is what the sites reported under encryption."""
    plan, rounds = store.plan, store.rounds()
    reported = [record["reported"] for record in rounds if record.get("reported")]
    return {
        "outcome": "done",
        "run": store.run.hex(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": engine,
        "insecure": unprotected(plan),
        "config": to_table(plan),
        "versions": package_versions(),
        "rounds": rounds,
        "alerts": alerts_of(plan.monitoring.alerts, rounds),
        "final": reported[-1] if reported else {},
        "sites": [_site_row(plan, rounds, link) for link in links],
        "wire": wire(store),
        "privacy": promise(plan),
    }


def package_versions() -> dict[str, str]:
    """Of all that a result rests on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def promise(plan: Plan) -> dict[str, Any]:
    """What the plan promises a record, with everything that a number of epsilon depends on."""
    privacy, shares = plan.privacy, plan.privacy.in_shares
    sees = "sees the opened sum of every round" if shares else "sees every released update of the site"
    return {
        "mode": privacy.mode,
        "unit": "all records of one site" if privacy.mode == "site" else "record",
        "neighbouring": "one site's records, replaced by any others" if privacy.mode == "site" else NEIGHBOURING,
        "adversary": f"{sees}, and knows everything but the one unit",
        "sampling": plan.training.sampling,
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        **({"colluding": privacy.colluding} if shares else {}),
    }


def unprotected(plan: Plan) -> list[str]:
    """What the plan leaves open, for everybody to see."""
    reasons = []
    if plan.encryption.preset == "none":
        reasons.append("updates travelled readable and unsigned: the coordinator saw every site's update")
    if plan.privacy.mode == "none":
        reasons.append("no differential privacy: updates and model may reveal training records")
    return reasons


def wire(store: RunStore) -> dict[str, Any]:
    """Bytes of one update as it travels: header, signature and model hash included."""
    plan, head = store.plan, header_bytes(store.cohort[0])
    parameters = sum(planned_sizes(plan.model))
    if plan.encryption.preset == "none":
        sent, scheme = head + 4 * parameters, None
    else:
        length = longest(plan, parameters)
        scheme = choose_scheme(plan.encryption.preset, len(store.cohort), length)
        sent = head + _MODEL_HASH_BYTES + scheme.message_bytes(length)
    return {
        "parameters": parameters,
        "bytes_per_update": sent,
        "bytes_up_per_parameter": sent / parameters,
        "header_bytes": head,
        "cohort_keys": len(store.makers()),
        "scheme": {**asdict(scheme), "security_bits": scheme.security_bits} if scheme else {},
    }


def _site_row(plan: Plan, rounds: list[dict[str, Any]], link: Link) -> dict[str, Any]:
    """epsilon: what the site itself last declared, where the plan has it declared at all."""
    declared: list[Mapping[str, float]] = [record["epsilon"] for record in rounds if link.site in record["epsilon"]]
    return {
        "site": link.site,
        "epsilon": declared[-1][link.site] if declared else None,
        "delta": plan.privacy.delta if declared else None,
        "bytes_up": link.bytes_up,
        "bytes_down": link.bytes_down,
        "refusals": len(link.refusals),
        "records": None,
        "noise_multiplier": plan.privacy.noise_multiplier if plan.privacy.mode != "none" else None,
        "ledger_head": None,
    }
