"""The site's worker: an order's bytes in; the answer's bytes and its public numbers out. Refusals are answers too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from client import cohort_keys, masking
from client import round as local_round
from client.round import joined
from client.runs import SiteRun
from client.site import Site
from common.errors import FederationError, ProtocolError, TrustError
from common.files import exclusive
from common.roster import COORDINATOR
from common.wire import Envelope, Kind, decode, encode, to_json

_LONGEST_MESSAGE = 500  # characters: a message may quote what the other side wrote


@dataclass(frozen=True)
class Answer:
    """metrics: numbers that the plan declares public (`federation.public`), and no others."""

    data: bytes
    metrics: Mapping[str, float] = field(default_factory=dict)


def answer(site: Site, action: str, data: bytes, approved: Callable[[Envelope], None] = lambda order: None) -> Answer:
    """What this site says to one order. action: one of those in `client/courier.py`.

    approved: what else must hold of a verified order before it is acted on; it raises when it does not.

    Whatever goes wrong on purpose becomes a signed refusal with a reason code, never silence, and is in the site's
    audit log before it is said; anything else is a bug of ours and propagates.
    Orders take turns, whichever thread or process brings them: what was checked must still hold when it is acted on.
    """
    with exclusive(site.directory / "turn"):
        return _answer(site, action, data, approved)


def _answer(site: Site, action: str, data: bytes, approved: Callable[[Envelope], None]) -> Answer:
    order = None
    try:
        order = decode(data, site.roster.public_key_of)
        if order.sender != COORDINATOR:
            raise TrustError("an order must come from the coordinator")
        approved(order)
        return _act(site, action, order)
    except FederationError as error:
        try:
            _record(site, action, order, error)
        except FederationError as broken:  # the log was tampered with: refuse all the same, and say so
            error = broken
        return Answer(refusal(site, order, error))


def _record(site: Site, action: str, order: Envelope | None, error: FederationError) -> None:
    site.audit.append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "action": action,
            "run": order.run.hex() if order else "",
            "round": order.round_number if order else 0,
            "code": error.code,
            "message": error.message[:_LONGEST_MESSAGE],
        }
    )


def refusal(site: Site, order: Envelope | None, error: FederationError) -> bytes:
    """A signed refusal: the error's code and sentence. An order that could not be read has no run to refer to."""
    run, plan = (order.run, order.plan) if order else (bytes(16), bytes(32))
    message = error.message[:_LONGEST_MESSAGE]
    body = to_json({"code": error.code, "exit_code": error.exit_code, "message": message})
    number = order.round_number if order else 0
    return encode(Envelope(Kind.REFUSAL, run, number, plan, site.name, body), site.identity)


def _act(site: Site, action: str, order: Envelope) -> Answer:
    match action, order.kind:
        case "join", Kind.ORDER:
            return Answer(local_round.join(site, order))
        case (("make_key" | "install_key"), Kind.ORDER):
            return Answer(getattr(cohort_keys, action)(site, joined(site, order), order))
        case "offer", Kind.ORDER:
            return Answer(local_round.offer_masks(site, order))
        case "train", Kind.ORDER | Kind.READABLE_ORDER:
            readable = order.kind is Kind.READABLE_ORDER
            sealed = (local_round.run_readable_round if readable else local_round.run_local_round)(site, order)
            public = {
                "train_s": sealed.train_seconds,
                "encrypt_s": sealed.encrypt_seconds,
                "epsilon": sealed.epsilon,
            }
            return Answer(sealed.data, _declared(joined(site, order), public))
        case "apply", Kind.AGGREGATE:
            data, seconds = local_round.apply_aggregate(site, order)
            run = joined(site, order)
            return Answer(data, _declared(run, {"open_s": seconds, "epsilon": local_round.spent(site, run)}))
        case (("agree" | "unmask" | "stand_in"), Kind.ORDER):
            return Answer(getattr(masking, action)(site, joined(site, order), order))
        case "release", Kind.ORDER:
            return Answer(local_round.release(site, order))
    raise ProtocolError(f"{action!r} with {order.kind.name} is not an order that this site knows")


def _declared(run: SiteRun, numbers: Mapping[str, float]) -> dict[str, float]:
    public = run.plan.federation.public
    kinds = {name: "epsilon" if name == "epsilon" else "seconds" for name in numbers}
    return {name: value for name, value in numbers.items() if value and kinds[name] in public}
