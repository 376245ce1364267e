"""A site watched by its own administrator: each order as an event in the log, as a span, and as numbers for the meter.

The worker writes DIR/run/worker.numbers, which the node shows beside its own. These numbers are the site's view: they
may say more than the plan lets out, so whoever may fetch them belongs to the site.
"""

import logging
import time
from collections.abc import Callable, Mapping

from client import agent
from client.agent import Answer
from client.exposed import NUMBERS
from client.site import Site
from common.log import say
from common.spans import span
from common.telemetry import Meter, Number, reason
from common.wire import Kind, decode, from_json, label

log = logging.getLogger("veilfed.worker")
_ACTIONS = ("join", "make_key", "install_key", "offer", "train", "apply", "agree", "unmask", "stand_in", "release")
_MAY_COST = ("join", "train", "apply")


Act = Callable[[Site, str, bytes], Answer]


def answer(site: Site, action: str, order: bytes, act: Act = agent.answer) -> Answer:
    """What `act` answers, counted and told. A bug of ours is counted as `failed` and propagates."""
    meter, name = Meter(site.directory / NUMBERS), action if action in _ACTIONS else "other"
    started = time.perf_counter()
    try:
        with span("order", site=site.name, action=name, bytes_received=len(order)) as tell:
            said = act(site, action, order)
            kind, run, round_number = label(said.data)
            refusal = _refusal(site, said.data) if kind is Kind.REFUSAL else {}
            tell(run=run.hex(), round=round_number, bytes_sent=len(said.data))
            if refusal:
                tell(code=reason(refusal["code"]))
    except BaseException:
        meter.add([Number("veilfed_site_orders_total", 1, (name, "failed"))])
        raise
    seconds = time.perf_counter() - started
    numbers = _numbers(name, len(order), len(said.data), seconds, refusal)
    if kind in (Kind.UPDATE, Kind.READABLE_UPDATE):
        numbers.append(Number("veilfed_site_round", round_number))
    if name in _MAY_COST and not refusal:
        numbers += spent(site)
    meter.add(numbers)
    say(
        log,
        "order refused" if refusal else "order answered",
        logging.WARNING if refusal else logging.INFO,
        action=name,
        run=run.hex(),
        round=round_number,
        code=refusal.get("code"),
        message=refusal.get("message"),
        seconds=round(seconds, 3),
        bytes_received=len(order),
        bytes_sent=len(said.data),
    )
    return said


def spent(site: Site) -> list[Number]:
    """What the site's data set has lost and may lose; nothing before its ledger exists."""
    name = site.settings.data.name
    if not (site.directory / "ledgers" / f"{name}.jsonl").exists():
        return []
    return [
        Number("veilfed_site_epsilon_spent", site.ledger.epsilon, (name,)),
        Number("veilfed_site_epsilon_budget", site.ledger.budget.epsilon, (name,)),
    ]


def _numbers(action: str, received: int, sent: int, seconds: float, refusal: Mapping[str, str]) -> list[Number]:
    numbers = [
        Number("veilfed_site_orders_total", 1, (action, "refused" if refusal else "answered")),
        Number("veilfed_site_order_seconds_total", seconds, (action,)),
        Number("veilfed_site_bytes_total", received, ("received",)),
        Number("veilfed_site_bytes_total", sent, ("sent",)),
        Number("veilfed_site_last_order_timestamp_seconds", time.time()),
    ]
    return [*numbers, Number("veilfed_site_refusals_total", 1, (reason(refusal["code"]),))] if refusal else numbers


def _refusal(site: Site, data: bytes) -> Mapping[str, str]:
    return from_json(decode(data, lambda _: site.identity.public).body)
