"""The site's worker: an order's bytes in; the answer's bytes and its public numbers out. Refusals are answers too."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from client import cohort_keys, masking
from client import round as local_round
from client.consent import require_leave
from client.limits import held_to
from client.round import joined, reported
from client.runs import SiteRun
from client.site import Site
from common.audit import LONGEST_TEXT, Event, KeyCeremony, Opened, Refused, Released, RunJoined, Sealed, StoodIn
from common.errors import FederationError, NotNow, ProtocolError, TrustError
from common.files import exclusive
from common.roster import COORDINATOR
from common.wire import Envelope, Kind, decode, digest, encode, from_json, names, to_json


@dataclass(frozen=True)
class Answer:
    """metrics: numbers that the plan declares public (`federation.public`) and the policy lets go, and no others."""

    data: bytes
    metrics: Mapping[str, float] = field(default_factory=dict)


Approved = Callable[[Envelope], bytes]


def answer(site: Site, action: str, data: bytes, approved: Approved = lambda order: b"") -> Answer:
    """What this site says to one order. action: one of those in `client/courier.py`.

    approved: what else must hold of a verified order before it is acted on; it raises when it does not. It returns the
    key that signed the bundle with which a run is joined, to be kept with the run, else nothing.

    Whatever goes wrong on purpose becomes a signed refusal with a reason code, never silence; anything else is a bug of
    ours and propagates. What was done or refused is in the site's audit log before it is said.
    Orders take turns, whichever thread or process brings them: what was checked must still hold when it is acted on.
    """
    with exclusive(site.directory / "turn"):
        return _answer(site, action, data, approved)


def _answer(site: Site, action: str, data: bytes, approved: Approved) -> Answer:
    order = None
    try:
        order = decode(data, site.roster.public_key_of)
        if order.sender != COORDINATOR:
            raise TrustError("an order must come from the coordinator")
        signer = approved(order)
        require_leave(site, action, order)
        with held_to(site.policy.resources):
            said, event = _act(site, action, order, data)
        if signer:
            joined(site, order).keep_signer(signer)
        if event:
            site.audit.note(event)
        return said
    except (FederationError, OSError) as error:
        refused = error if isinstance(error, FederationError) else _disk_is_full(error)
        try:
            _record(site, action, order, refused)
        except FederationError as broken:  # the log was tampered with: refuse all the same, and say so
            refused = broken
        except OSError as full:  # nor can it be written down, and the site still says why
            refused = _disk_is_full(full)
        return Answer(refusal(site, order, refused))


def _disk_is_full(error: OSError) -> NotNow:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    return NotNow("there is no space left on this site's disk", "its administrator must make room; ask again later")


def _record(site: Site, action: str, order: Envelope | None, error: FederationError) -> None:
    run, number = (order.run.hex(), order.round_number) if order else ("", 0)
    site.audit.note(Refused(action, run, number, error.code, error.message))


def refusal(site: Site, order: Envelope | None, error: FederationError) -> bytes:
    """A signed refusal: the error's code and sentence. An order that could not be read has no run to refer to.

    The code of a NotNow asks the coordinator to come again; every other one is this site's last word.
    """
    run, plan = (order.run, order.plan) if order else (bytes(16), bytes(32))
    message = error.message[:LONGEST_TEXT]
    body = to_json({"code": error.code, "exit_code": error.exit_code, "message": message})
    number = order.round_number if order else 0
    return encode(Envelope(Kind.REFUSAL, run, number, plan, site.name, body), site.identity)


def _act(site: Site, action: str, order: Envelope, data: bytes) -> tuple[Answer, Event | None]:
    """The answer, and what of it belongs into the audit log."""
    name, number = order.run.hex(), order.round_number
    match action, order.kind:
        case "join", Kind.ORDER:
            said = Answer(local_round.join(site, order))
            return said, _run_joined(joined(site, order))
        case (("make_key" | "install_key"), Kind.ORDER):
            run = joined(site, order)
            said = Answer(getattr(cohort_keys, action)(site, run, order))
            return said, KeyCeremony(name, run.plan.encryption.epoch_of(number), action)
        case "offer", Kind.ORDER:
            return Answer(local_round.offer_masks(site, order)), None
        case "train", Kind.ORDER | Kind.READABLE_ORDER:
            readable = order.kind is Kind.READABLE_ORDER
            sealed = (local_round.run_readable_round if readable else local_round.run_local_round)(site, order)
            public = {
                "train_s": sealed.train_seconds,
                "encrypt_s": sealed.encrypt_seconds,
                "epsilon": sealed.epsilon,
            }
            run = joined(site, order)
            return Answer(sealed.data, _declared(site, run, public)), _sealed(site, run, order, data, sealed)
        case "apply", Kind.AGGREGATE:
            applied = local_round.apply_aggregate(site, order)
            run = joined(site, order)
            public = {"open_s": applied.open_seconds, "epsilon": local_round.spent(site, run)}
            opened = Opened(name, number, applied.sites, run.version().model_hash.hex()) if applied.sites else None
            return Answer(applied.data, _declared(site, run, public)), opened
        case (("agree" | "unmask"), Kind.ORDER):
            return Answer(getattr(masking, action)(site, joined(site, order), order)), None
        case "stand_in", Kind.ORDER:
            said = Answer(masking.stand_in(site, joined(site, order), order))
            return said, StoodIn(name, number, tuple(names(from_json(order.body), "silent")))
        case "release", Kind.ORDER:
            said = Answer(local_round.release(site, order))
            released = decode(said.data, site.roster.public_key_of)
            return said, Released(name, released.round_number, digest(released.body).hex())
    raise ProtocolError(f"{action!r} with {order.kind.name} is not an order that this site knows")


def _run_joined(run: SiteRun) -> RunJoined:
    modes, plan = (run.plan.privacy.mode, run.plan.encryption.preset), run.plan_hash.hex()
    return RunJoined(run.run.hex(), plan, run.cohort, *modes, run.plan.last_round, run.version().round_number)


def _sealed(site: Site, run: SiteRun, order: Envelope, data: bytes, sealed: local_round.SealedUpdate) -> Sealed | None:
    """None where an update is neither private nor encrypted: that was noted once for all, when the run was joined."""
    private = run.plan.privacy.mode != "none"
    if not private and run.plan.encryption.preset == "none":
        return None
    name, number = run.run.hex(), order.round_number
    update = (site.ledger.sealed(name, number) if private else None) or digest(sealed.data).hex()
    return Sealed(name, number, digest(data).hex(), update, sealed.epsilon)


def _declared(site: Site, run: SiteRun, numbers: Mapping[str, float]) -> dict[str, float]:
    public = reported(site, run)
    kinds = {name: "epsilon" if name == "epsilon" else "seconds" for name in numbers}
    return {name: value for name, value in numbers.items() if value and kinds[name] in public}
