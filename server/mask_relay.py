"""The coordinator's part in the mask protocol: it relays offers and packages, and asks for what lifts one sum's masks.

What it asks for is on disk first, so that a restarted coordinator asks for the same sum: sites answer no other.
"""

from collections.abc import Mapping
from typing import Any

from common.buckets import Buckets, shuffled
from common.errors import CohortTooSmall, FederationError, TrustError
from common.masking import Lifting, Offer, Opening, Published, agrees, holders, mask_context
from common.roster import COORDINATOR
from common.wire import Bytes, Envelope, Kind, decode, digest, encode, from_hex, from_json, to_json
from server.links import Links, Reply
from server.round import LeftOut, too_few
from server.store import RunStore
from server.unmasking import lift_all, silent_sites

EXCHANGE_TIMEOUT_SECONDS = 300.0


class MaskRelay:
    def __init__(self, store: RunStore, links: Links) -> None:
        self.store, self.links = store, links
        self.threshold = store.plan.encryption.threshold_of(len(store.cohort))
        self._coming: dict[int, dict[str, Any]] = {}

    def take(self, number: int, offered: Mapping[str, Any]) -> None:
        """What sites have offered for that round with another answer."""
        self._coming.setdefault(number, {}).update(offered)

    def orders(self, number: int, ready: list[str], version: str) -> dict[str, bytes]:
        """A training order for every ready site that offers masks: all offers, and its own packages of shares."""
        made = self.store.offers(number) or self._gather(number, ready)
        offers = {site: offered["offer"] for site, offered in made.items()}
        return {
            site: self._signed(
                number,
                {
                    "model_hash": version,
                    "offers": offers,
                    "packages": {peer: made[peer]["packages"][site] for peer in made if site in made[peer]["packages"]},
                },
            )
            for site in ready
            if site in made
        }

    def buckets(self, number: int, version: str) -> Buckets:
        """Who are summed together in that round, on top of that model."""
        count, sites = self.store.plan.robustness.buckets, self.store.cohort
        return shuffled(sites, count, self.store.run, number, from_hex(version))

    def publish(self, number: int, received: list[str], version: str, total: Bytes) -> Published:
        """`total`, the encrypted sums of these sites on top of that model, with all that lets every site open them.

        Raises ProtocolError or CohortTooSmall when too few sites agree, or stand in for those that fell silent.
        """
        opening = Opening(tuple(received), digest(total).hex(), version)
        shown: dict[str, Any] = {"received": received, "sum": opening.sum_hash}
        agreed = self._agreed(number, opening, shown)
        shown["agreed"] = [reply.data.hex() for reply in agreed.values()]
        try:
            lifting = self._lifting(number, list(agreed), version, shown)
        except CohortTooSmall:  # a site that was away for a moment is asked once more before the run is given up
            lifting = self._lifting(number, list(agreed), version, shown)
        return Published(opening.sites, tuple(shown["agreed"]), lifting, total)

    def _lifting(self, number: int, agreed: list[str], version: str, shown: Mapping[str, Any]) -> Lifting:
        """What removes the masks: of sites that answer by their own word, of silent ones by what the rest keep."""
        revealed = self._bodies("unmask", number, agreed, shown)
        self._coming = {number + 1: {site: body["next"] for site, body in revealed.items() if "next" in body}}
        offers = {site: self._offer(number, site, made) for site, made in (self.store.offers(number) or {}).items()}
        shares: Mapping[str, Any] = {}
        buckets, received = self.buckets(number, version), shown["received"]
        if silent := silent_sites(offers, received, revealed, buckets):
            shares = self._bodies("stand_in", number, agreed, {**shown, "silent": silent})
        context = mask_context(self.store.run, number, version)
        threshold = self.store.plan.encryption.share_threshold_of(len(self.store.cohort))
        return lift_all(buckets, context, threshold, offers, received, revealed, shares)

    def _agreed(self, number: int, opening: Opening, shown: Mapping[str, Any]) -> dict[str, Reply]:
        answers = self._ask("agree", number, list(opening.sites), shown)
        wanted = self._order(number, shown)
        replies = {site: answer for site, answer in answers.items() if isinstance(answer, Reply)}
        members = self.store.members()  # the sites count no others
        agreed = {s: reply for s, reply in replies.items() if s in members and agrees(reply.envelope, opening, wanted)}
        if len(agreed) < self.threshold:
            failed = tuple(answer for answer in answers.values() if isinstance(answer, LeftOut))
            raise too_few(number, len(agreed), self.threshold, failed)
        return agreed

    def _gather(self, number: int, ready: list[str]) -> dict[str, Any]:
        """Each ready site's offer and packages: of those that hold the cohort's key, and whose word holds."""
        keyed = self.store.ceremony(self.store.plan.encryption.epoch_of(number))["joined"]
        members = self.store.members()
        peers = [site for site in ready if site in keyed and site in members]
        made = {site: offered for site, offered in self._coming.get(number, {}).items() if site in peers}
        made |= self._bodies("offer", number, [site for site in peers if site not in made], {})
        made = {site: made[site] for site in sorted(made) if self._is_complete(number, site, made[site], peers)}
        if len(made) < self.threshold:
            raise too_few(number, len(made), self.threshold, ())
        self.store.keep_offers(number, made)
        return made

    def _is_complete(self, number: int, site: str, made: Any, peers: list[str]) -> bool:
        """Whether the offer is the site's own and brings a package for every holder that is there."""
        try:
            self._offer(number, site, made)
            keepers = set(holders(self.store.cohort, site)) & set(peers) - {site}
            return all(isinstance(made["packages"][keeper], str) for keeper in keepers)
        except (FederationError, KeyError, TypeError):
            return False

    def _offer(self, number: int, site: str, made: Any) -> Offer:
        envelope = decode(from_hex(made["offer"]), self.store.roster.key_of_member)
        if envelope.sender != site:
            raise TrustError(f"{site} brought an offer of {envelope.sender}")
        return Offer.of(envelope, self.store.run, self.store.plan_hash, number)

    def _bodies(self, action: str, number: int, sites: list[str], body: Mapping[str, Any]) -> dict[str, Any]:
        """What each site answers, read as JSON; a site that says nothing readable, or not about this, is silent."""
        bodies = {}
        for site, answer in self._ask(action, number, sites, body).items():
            if isinstance(answer, Reply) and answer.envelope.kind is Kind.ANSWER:
                try:
                    bodies[site] = from_json(answer.envelope.body)
                except FederationError:
                    continue
        return bodies

    def _ask(self, action: str, number: int, sites: list[str], body: Mapping[str, Any]) -> dict[str, Reply | LeftOut]:
        """Of the sites that are there."""
        orders = dict.fromkeys((site for site in sites if site in self.links.by_site), self._signed(number, body))
        return self.links.exchange(f"query.{action}", orders, number, EXCHANGE_TIMEOUT_SECONDS)

    def _order(self, number: int, body: Mapping[str, Any]) -> Envelope:
        return Envelope(Kind.ORDER, self.store.run, number, self.store.plan_hash, COORDINATOR, to_json(dict(body)))

    def _signed(self, number: int, body: Mapping[str, Any]) -> bytes:
        return encode(self._order(number, body), self.store.identity)
