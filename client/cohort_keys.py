"""A site's part in the key ceremony of an epoch: make the cohort's key when it is its turn, or install another's.

Nothing of an epoch is done before its turn has come at this site, so a stolen disk never holds keys far ahead; the
order's round number, the first of the epoch, says which one is meant. Exchange keys are new in every epoch as well:
without that, a key that was destroyed could be unwrapped again from what the coordinator has on record.
"""

from collections.abc import Callable, Mapping
from typing import Any

from client import masking
from client.runs import SiteRun, signed_answer
from client.site import Site
from common.errors import ProtocolError, TrustError, WrongRound
from common.he.keys import unwrap, wrap
from common.he.scheme import CohortKey
from common.wire import Envelope, Kind, decode, from_hex, from_json, table


def make_key(site: Site, run: SiteRun, order: Envelope) -> bytes:
    """Order {joined: site -> signed answer that announces its exchange key} -> answer with the key wrapped for each.

    Asked again for the same sites, the same again. Made is not installed: what counts is what the sites are shown.
    """
    epoch, joined = _due(run, order), table(from_json(order.body), "joined")
    publics = _exchange_keys(site, run, epoch, joined, site.roster.public_key_of)
    if run.has_cohort_key(epoch):
        raise ProtocolError("this site holds the key of that epoch already")
    if made := run.made_key(epoch, joined):
        return made
    key, mine = CohortKey.generate(run.scheme), run.exchange_key(epoch)
    wrapped = wrap(key, mine, publics, _context(run, epoch, site.name))
    boxes = {name: box.hex() for name, box in wrapped.boxes.items()}
    answer = signed_answer(site, run, order.round_number, {"wrapped": wrapped.wrapped.hex(), "boxes": boxes})
    run.keep_made_key(epoch, joined, answer)
    return answer


def install_key(site: Site, run: SiteRun, order: Envelope) -> bytes:
    """Order {joined, made: the maker's signed answer} -> {announcement, next}.

    announcement: our own word on our exchange key for the epoch after this one. next: our offer for the coming round.
    Raises TrustError for a second key in one epoch, for one that was made for another, for one that comes back, and
    for one that is new here and was made by a site that was revoked since. One that was revoked may be among those it
    was made for: the maker knew.
    """
    epoch, body = _due(run, order), from_json(order.body)
    publics = _exchange_keys(site, run, epoch, table(body, "joined"), site.roster.key_of_member)
    held = run.has_cohort_key(epoch)
    made = _signed(run, body.get("made"), site.roster.key_of_member if held else site.roster.public_key_of)
    if made.sender not in publics:
        raise TrustError("the key was made by a site that has not joined")
    if made.round_number != order.round_number:
        raise TrustError("the key was made for another epoch")
    run.keep_peers(epoch, publics)
    answer = from_json(made.body)
    key = unwrap(
        from_hex(answer.get("wrapped")),
        from_hex(table(answer, "boxes").get(site.name)),
        site.name,
        run.exchange_key(epoch),
        publics[made.sender],
        _context(run, epoch, made.sender),
        run.scheme,
    )
    run.keep_cohort_key(epoch, key)
    announcement = signed_answer(site, run, order.round_number, run.announcement(epoch + 1))
    offer = masking.offer(site, run, run.version().round_number + 1)
    return signed_answer(site, run, order.round_number, {"announcement": announcement.hex(), "next": offer})


def _due(run: SiteRun, order: Envelope) -> int:
    epoch = run.due_epoch
    if not epoch or order.round_number != run.plan.encryption.first_round(epoch):
        raise WrongRound(f"no epoch that is due at this site begins with round {order.round_number}")
    return epoch


def _exchange_keys(
    site: Site, run: SiteRun, epoch: int, joined: Mapping[str, Any], key_of: Callable[[str], bytes]
) -> dict[str, bytes]:
    """Everybody's own word on its exchange key for this epoch, ours as we know it."""
    answers = {name: _signed(run, data, key_of) for name, data in joined.items()}
    if any(answer.sender != name or name not in run.cohort for name, answer in answers.items()):
        raise TrustError("an exchange key is not signed by the site that it is said to be from")
    announced = {name: from_json(answer.body) for name, answer in answers.items()}
    if any(body.get("epoch") != epoch for body in announced.values()):
        raise TrustError("an exchange key belongs to another epoch")
    publics = {name: from_hex(body.get("exchange")) for name, body in announced.items()}
    if publics.get(site.name) != run.exchange_key(epoch).public:
        raise TrustError("the coordinator shows another exchange key for this site")
    return publics


def _signed(run: SiteRun, data: object, key_of: Callable[[str], bytes]) -> Envelope:
    if not isinstance(data, str):
        raise ProtocolError("a relayed answer is missing")
    envelope = decode(from_hex(data), key_of)
    if envelope.kind != Kind.ANSWER or envelope.run != run.run or envelope.plan != run.plan_hash:
        raise TrustError("a relayed answer belongs to another run")
    return envelope


def _context(run: SiteRun, epoch: int, maker: str) -> bytes:
    return b"veilfed.cohort-key.v1|" + run.run + run.plan_hash + epoch.to_bytes(4, "big") + maker.encode()
