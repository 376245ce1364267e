"""A federation on real site directories, its coordinator played by hand: it holds the true key and says anything."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from client import runs, site
from client.agent import answer
from client.site import Site, open_site, settings_stamp
from common.buckets import Buckets, filled, shuffled
from common.config import to_table
from common.errors import ProtocolError
from common.he.ciphertexts import Ciphertext
from common.he.parameters import choose_scheme
from common.masking import Offer, Published, mask_context
from common.roster import COORDINATOR
from common.wire import Envelope, Kind, decode, digest, encode, from_hex, from_json, to_json
from scenarios.simulation import Workplace, reopen
from server.aggregate_encrypted import BlindSum
from server.store import RunStore
from server.unmasking import lift_all, silent_sites


def restart() -> None:
    """Forget all that a process remembers: what is left is what is on disk."""
    open_site.cache_clear()
    site._records.cache_clear()
    runs._open.cache_clear()


class Coordinator:
    """Speaks to each site's worker as the coordinator would, with its own key, and can say whatever it likes."""

    def __init__(self, place: Workplace) -> None:
        self.place = place
        self.store = RunStore.open(place.run)
        self.directories = {path.name: path for path in place.sites}
        self.names = sorted(self.directories)
        self.threshold = self.store.plan.encryption.threshold_of(len(self.names))

    @classmethod
    def prepared(cls, place: Workplace) -> Self:
        """Every site has joined and holds the cohort's key."""
        made = cls(place)
        made.join()
        made.share_key()
        return made

    def copy(self, out: Path) -> Self:
        """The same federation, moment for moment, in another place."""
        shutil.copytree(self.place.out, out)
        restart()
        return type(self)(reopen(out))

    def site(self, name: str) -> Site:
        return open_site(self.directories[name], settings_stamp(self.directories[name]))

    def order(self, number: int, body: Mapping[str, Any] | bytes, **changes: Any) -> bytes:
        """A signed order. changes: fields of the envelope, or `identity`, to be other than they should."""
        identity = changes.pop("identity", self.store.identity)
        fields = {
            "kind": Kind.ORDER,
            "run": self.store.run,
            "round_number": number,
            "plan": self.store.plan_hash,
            "sender": COORDINATOR,
            "body": body if isinstance(body, bytes) else to_json(dict(body)),
        }
        envelope = Envelope(**(fields | changes))
        return encode(envelope, identity if envelope.kind.signed else None)

    def send(self, name: str, action: str, data: bytes) -> bytes:
        return answer(self.site(name), action, data).data

    def ask(
        self, name: str, action: str, number: int, body: Mapping[str, Any] | bytes = b"{}", **changes: Any
    ) -> bytes:
        """The signed bytes of a site that does as it is asked."""
        data = self.send(name, action, self.order(number, body, **changes))
        said = self.read(data)
        if said.kind is Kind.REFUSAL:
            raise ProtocolError(f"{name} refused to {action}: {bytes(said.body).decode()}")
        return data

    def refused(
        self, name: str, action: str, number: int, body: Mapping[str, Any] | bytes = b"{}", **changes: Any
    ) -> tuple[str, str]:
        """Code and message of a refusal, after checking that the site has it on record, word for word."""
        return self.refuses(name, action, self.order(number, body, **changes))

    def refuses(self, name: str, action: str, data: bytes) -> tuple[str, str]:
        """Raises ProtocolError when the site does as it is asked, or refuses without a word in its audit log."""
        before = len(self.site(name).audit.entries())
        said = self.read(self.send(name, action, data))
        if said.kind is not Kind.REFUSAL or said.sender != name:
            raise ProtocolError(f"{name} did as asked: {action}")
        reason = from_json(said.body)
        restart()
        entries = self.site(name).audit.entries()
        written = [entries[-1].record.get(key) for key in ("action", "code", "message")]
        if len(entries) != before + 1 or written != [action, reason["code"], reason["message"]]:
            raise ProtocolError(f"{name} refused to {action} and did not write down why")
        return reason["code"], reason["message"]

    def read(self, data: bytes) -> Envelope:
        return decode(data, self.store.roster.public_key_of)

    def body(self, data: bytes) -> dict[str, Any]:
        return from_json(self.read(data).body)

    # The steps of an honest run.

    def join_order(self, **changes: Any) -> dict[str, Any]:
        """changes: tables of the plan."""
        return {"plan": to_table(self.store.plan) | changes, "cohort": self.names}

    def join(self, names: Iterable[str] | None = None) -> None:
        self.joined = {name: self.ask(name, "join", 0, self.join_order()).hex() for name in names or self.names}

    def share_key(self, epoch: int = 1) -> None:
        """The key of an epoch, made by one of those who announced exchange keys for it: now in `joined`."""
        first = self.store.plan.encryption.first_round(epoch)
        self.joined = self.joined if epoch == 1 else self.coming
        makers = sorted(self.joined)
        self.made_key = self.ask(makers[(epoch - 1) % len(makers)], "make_key", first, {"joined": self.joined}).hex()
        order = {"joined": self.joined, "made": self.made_key}
        installed = {name: self.body(self.ask(name, "install_key", first, order)) for name in self.joined}
        self.coming = {name: said["announcement"] for name, said in installed.items()}

    def model_hash(self, name: str) -> str:
        run = runs.SiteRun.open(self.directories[name] / "runs", self.store.run)
        return run.state().model_hash.hex()

    def offers(self, number: int, names: Iterable[str] | None = None) -> dict[str, Any]:
        return {name: self.body(self.ask(name, "offer", number)) for name in names or self.names}

    def training(self, name: str, made: Mapping[str, Any]) -> dict[str, Any]:
        """The body of the training order for one site, among the sites whose offers are `made`."""
        return {
            "model_hash": self.model_hash(name),
            "offers": {site: made[site]["offer"] for site in made},
            "packages": {site: made[site]["packages"][name] for site in made if site != name},
        }

    def train(self, number: int, made: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, bytes]:
        """Each site's sealed update."""
        return {name: self.ask(name, "train", number, self.training(name, made)) for name in names or self.names}

    @property
    def scheme(self) -> Any:
        return choose_scheme(self.store.plan.encryption.preset, len(self.names), self.length)

    @property
    def length(self) -> int:
        run = runs.SiteRun.open(next(iter(self.directories.values())) / "runs", self.store.run)
        return run.state().model.size

    def buckets(self, number: int) -> Buckets:
        """Who are summed together in the round that comes next."""
        model, count = from_hex(self.model_hash(self.names[0])), self.store.plan.robustness.buckets
        return shuffled(self.names, count, self.store.run, number, model)

    def total(self, updates: Iterable[bytes]) -> bytes:
        """The encrypted sum, or one a bucket, masks still on."""
        said = {envelope.sender: envelope for envelope in map(self.read, updates)}
        number = next(iter(said.values())).round_number
        totals = []
        for bucket in filled(self.buckets(number), said):
            total = BlindSum(self.scheme, self.length)
            for name in bucket:
                total.add(Ciphertext.decode(self.scheme, self.length, said[name].body[32:]))
            totals.append(total.result().encode())
        return b"".join(totals)

    def wanted(self, received: Sequence[str], total: bytes) -> dict[str, Any]:
        return {"received": sorted(received), "sum": digest(total).hex()}

    def agree(self, number: int, wanted: Mapping[str, Any], names: Iterable[str] | None = None) -> list[str]:
        """The signed agreements, hexadecimal."""
        return [self.ask(name, "agree", number, wanted).hex() for name in names or wanted["received"]]

    def publish(
        self, number: int, made: Mapping[str, Any], received: Sequence[str], total: bytes, silent: Sequence[str] = ()
    ) -> Published:
        """Agreed on by all but the silent, and its masks lifted."""
        live = [name for name in sorted(received) if name not in silent]
        wanted = self.wanted(received, total)
        shown = {**wanted, "agreed": self.agree(number, wanted, live)}
        revealed = {name: self.body(self.ask(name, "unmask", number, shown)) for name in live}
        signed = {name: self.read(from_hex(offered["offer"])) for name, offered in made.items()}
        offers = {name: Offer.of(e, self.store.run, self.store.plan_hash, number) for name, e in signed.items()}
        shares: dict[str, Any] = {}
        buckets = self.buckets(number)
        if gone := silent_sites(offers, sorted(received), revealed, buckets):
            shares = {name: self.body(self.ask(name, "stand_in", number, {**shown, "silent": gone})) for name in live}
        model = self.model_hash(live[0])
        context = mask_context(self.store.run, number, model)
        lifting = lift_all(buckets, context, self.threshold, offers, sorted(received), revealed, shares)
        return Published(tuple(sorted(received)), tuple(shown["agreed"]), lifting, total)

    def whole_round(self, number: int) -> Published:
        """One honest round of all sites, applied by all."""
        made = self.offers(number)
        total = self.total(self.train(number, made).values())
        published = self.publish(number, made, self.names, total)
        self.apply(number, published)
        return published

    def apply(self, number: int, published: Published, names: Iterable[str] | None = None) -> None:
        for name in names or self.names:
            self.ask(name, "apply", number, published.encode(), kind=Kind.AGGREGATE)
