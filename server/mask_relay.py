"""The coordinator's part in the mask protocol: it relays offers and packages, and asks for what lifts one list.

What it asks for is on disk first, so that a restarted coordinator asks for the same list: sites answer no other.
"""

from collections.abc import Mapping
from typing import Any

from common.errors import WireError
from common.masking import Lifting, Offer
from common.roster import COORDINATOR
from common.wire import Envelope, Kind, decode, encode, from_hex, from_json, to_json
from server.links import Links, Reply
from server.round import LeftOut, too_few
from server.store import RunStore
from server.unmasking import lift, silent_sites

EXCHANGE_TIMEOUT_SECONDS = 300.0


class MaskRelay:
    def __init__(self, store: RunStore, links: Links) -> None:
        self.store, self.links = store, links
        self.threshold = store.plan.encryption.threshold_of(len(store.roster.sites))
        self._coming: dict[int, dict[str, Any]] = {}

    def orders(self, number: int, ready: list[str], version: str) -> dict[str, bytes]:
        """A training order for every ready site that offers masks: all offers, and its own packages of shares."""
        made = self.store.offers(number) or self._gather(number, ready)
        offers = {site: offered["offer"] for site, offered in made.items()}
        return {
            site: self._order(
                number,
                {
                    "model_hash": version,
                    "offers": offers,
                    "packages": {peer: made[peer]["packages"][site] for peer in made if peer != site},
                },
            )
            for site in ready
            if site in made
        }

    def lift(self, number: int, received: list[str]) -> Lifting:
        """Have the list agreed on, then its masks lifted. Raises when fewer than the threshold help."""
        agreed = self._ask("agree", number, received, {"received": received})
        signatures = [reply.data.hex() for reply in agreed.values()]
        shown = {"received": received, "agreed": signatures}
        revealed = self._bodies(self._ask("unmask", number, list(agreed), shown))
        self._coming = {number + 1: {site: body["next"] for site, body in revealed.items() if "next" in body}}
        offers = self._offers(number)
        shares: Mapping[str, Any] = {}
        if silent := silent_sites(offers, received, revealed):
            answers = self._ask("stand_in", number, list(agreed), {**shown, "silent": silent}, required=0)
            shares = self._bodies(answers)
        return lift(self.store.run, number, self.threshold, offers, received, revealed, shares)

    def _gather(self, number: int, ready: list[str]) -> dict[str, Any]:
        made = {site: offered for site, offered in self._coming.get(number, {}).items() if site in ready}
        missing = [site for site in ready if site not in made]
        made |= self._bodies(self._ask("offer", number, missing, {}, required=0))
        made = {site: offered for site, offered in sorted(made.items()) if _is_complete(offered, ready)}
        if len(made) < self.threshold:
            raise too_few(number, len(made), self.threshold, ())
        self.store.keep_offers(number, made)
        return made

    def _offers(self, number: int) -> dict[str, Offer]:
        offers = {}
        for site, offered in (self.store.offers(number) or {}).items():
            envelope = decode(from_hex(offered["offer"]), self.store.roster.public_key_of)
            offers[site] = Offer.of(envelope, self.store.run, self.store.plan_hash, number)
        return offers

    def _ask(
        self, action: str, number: int, sites: list[str], body: Mapping[str, Any], required: int | None = None
    ) -> dict[str, Reply]:
        orders = dict.fromkeys(sites, self._order(number, body))
        answers = self.links.exchange(f"query.{action}", orders, number, EXCHANGE_TIMEOUT_SECONDS)
        good = {site: answer for site, answer in answers.items() if isinstance(answer, Reply)}
        if len(good) < (self.threshold if required is None else required) and sites:
            failed = tuple(answer for answer in answers.values() if isinstance(answer, LeftOut))
            raise too_few(number, len(good), self.threshold, failed)
        return good

    def _order(self, number: int, body: Mapping[str, Any]) -> bytes:
        envelope = Envelope(Kind.ORDER, self.store.run, number, self.store.plan_hash, COORDINATOR, to_json(dict(body)))
        return encode(envelope, self.store.identity)

    @staticmethod
    def _bodies(replies: Mapping[str, Reply]) -> dict[str, Any]:
        bodies = {}
        for site, reply in replies.items():
            try:
                bodies[site] = from_json(reply.envelope.body)
            except WireError:
                continue  # a site that says nothing readable is silent
        return bodies


def _is_complete(offered: Any, peers: list[str]) -> bool:
    """Whether an offer carries a package for every peer, so that each could stand in."""
    packages = offered.get("packages") if isinstance(offered, Mapping) else None
    return isinstance(packages, Mapping) and isinstance(offered.get("offer"), str) and len(packages) >= len(peers) - 1
