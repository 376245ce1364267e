"""The coordinator's part in the key ceremonies: it relays, epoch after epoch, a key that it cannot open.

Every site announces an exchange key for an epoch before that begins: for the first when it joins, then each time that
it installs a key, when it offers its masks for the coming round as well, which spares asking for them.
So a site need not be there at the moment of a ceremony to get the key, only at the one before.
All of it is on disk before it is relayed, so that a resumed run relays the same key.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from common.audit import KeyRelayed
from common.config import to_table
from common.errors import FederationError, ProtocolError
from common.he.sealing import ExchangeKey
from common.roster import COORDINATOR
from common.wire import Envelope, Kind, decode, encode, from_hex, from_json, to_json
from server.links import Links, Reply
from server.round import LeftOut, too_few
from server.store import RunStore

EXCHANGE_TIMEOUT_SECONDS = 300.0


class KeyRelay:
    """joined: every site's signed join answer, hexadecimal."""

    def __init__(self, store: RunStore, links: Links, joined: Mapping[str, str]) -> None:
        self.store, self.links, self.settings = store, links, store.plan.encryption
        self._holders: dict[int, set[str]] = defaultdict(set)
        self.offers: dict[int, dict[str, Any]] = defaultdict(dict)  # round -> what sites offered with their thanks
        for site, answer in joined.items():
            self._note(site, answer)

    def ready(self, number: int, sites: Sequence[str], required: int) -> list[str]:
        """Those of `sites` that hold the key of the round, all of which must have applied the one before.

        Raises CohortTooSmall or ProtocolError when there are fewer than `required`.
        """
        failed = self.hand_out(number, sites, required)
        ready = [site for site in sites if site in self._holders[self.settings.epoch_of(number)]]
        if len(ready) < required:
            raise too_few(number, len(ready), required, failed)
        return ready

    def hand_out(self, number: int, sites: Sequence[str], required: int = 0) -> tuple[LeftOut, ...]:
        """Relay the round's key to those of `sites` that do not hold it yet, made first where it is new."""
        epoch = self.settings.epoch_of(number)
        missing = [site for site in sites if site not in self._holders[epoch]]
        if not missing:
            return ()
        ceremony = self.store.ceremony(epoch)
        if "made" not in ceremony:
            ceremony = self._make(epoch, sites, required)
        wanted = [site for site in missing if site in ceremony["joined"]]
        answers = self._ask("install_key", epoch, wanted, ceremony)
        for site, answer in answers.items():
            if isinstance(answer, Reply):
                self._holders[epoch].add(site)
                self._installed(number, site, answer.envelope)
        return tuple(answer for answer in answers.values() if isinstance(answer, LeftOut))

    def _make(self, epoch: int, sites: Sequence[str], required: int) -> dict[str, Any]:
        """The key of a new epoch, made by the sites in turn; by the next one where one does not answer."""
        first = self.settings.first_round(epoch)
        silent = [site for site in sites if site not in self.store.ceremony(epoch)["joined"]]
        order = {"plan": to_table(self.store.plan), "cohort": list(self.store.cohort)}
        for site, said in self._ask("join", epoch, silent, order).items():
            if isinstance(said, Reply):
                self._note(site, said.data.hex())
        joined = {s: said for s, said in self.store.ceremony(epoch)["joined"].items() if s in self.store.roster.sites}
        makers = [site for site in sorted(sites) if site in joined]
        if len(makers) < required:
            raise too_few(first, len(makers), required, ())
        turn, reason = (epoch - 1) % max(1, len(makers)), "no site is there"
        for maker in makers[turn:] + makers[:turn]:
            answer = self._ask("make_key", epoch, [maker], {"joined": joined}).get(maker)
            if isinstance(answer, Reply):
                ceremony = {"joined": joined, "made": answer.data.hex()}
                self.store.keep_ceremony(epoch, ceremony)
                self.store.audit.note(KeyRelayed(self.store.run.hex(), epoch, maker, tuple(sorted(joined))))
                return ceremony
            reason = f"{maker}: {answer.message}" if answer else f"{maker} did not answer"
        raise ProtocolError(f"round {first}: nobody made the cohort's key ({reason})")

    def _installed(self, number: int, site: str, answer: Envelope) -> None:
        try:
            said = from_json(answer.body)
        except FederationError:
            return
        self._note(site, str(said.get("announcement")))
        self.offers[number][site] = said.get("next")

    def _note(self, site: str, answer: str) -> None:
        """Keep what a site announced for an epoch whose key is not made yet; nonsense is as good as nothing."""
        try:
            envelope = self._read(answer)
            if (envelope.kind, envelope.run, envelope.plan) != (Kind.ANSWER, self.store.run, self.store.plan_hash):
                return
            said = from_json(envelope.body)
            epoch = said.get("epoch")
            ExchangeKey.generate().agree(from_hex(said.get("exchange")), b"")
        except FederationError:
            return
        if type(epoch) is int and 1 <= epoch <= self.settings.epoch_of(self.store.plan.last_round):
            ceremony = self.store.ceremony(epoch)
            if "made" not in ceremony:
                self.store.keep_ceremony(epoch, {"joined": {**ceremony["joined"], site: answer}})

    def _read(self, answer: str) -> Envelope:
        return decode(from_hex(answer), self.store.roster.public_key_of)

    def _ask(
        self, action: str, epoch: int, sites: Sequence[str], body: Mapping[str, Any]
    ) -> dict[str, Reply | LeftOut]:
        number = 0 if action == "join" else self.settings.first_round(epoch)
        order = Envelope(Kind.ORDER, self.store.run, number, self.store.plan_hash, COORDINATOR, to_json(dict(body)))
        orders = dict.fromkeys(sites, encode(order, self.store.identity))
        return self.links.exchange(f"query.{action}", orders, number, EXCHANGE_TIMEOUT_SECONDS)
