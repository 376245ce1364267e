"""One run as the site remembers it on disk, so that a restart goes on where it stopped and never releases twice.

Of every epoch (`common/federation.py`) while a round of this site may need it, N being its number:
exchange-N.key   this site's X25519 key   peers-N   the cohort's   cohort-N.key   the key they share
made-N           the cohort key that this site made, wrapped, until one is installed
cohort-N.hash    SHA-256 of a key that was destroyed, so that it is known again
Of the run: signer   the public key that signed the bundle with which it was joined last
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from client.site import Site
from common.buckets import Buckets, shuffled
from common.config import fill, to_table
from common.errors import ProtocolError, TrustError, WrongRound
from common.federation import Plan
from common.files import write_atomically
from common.he.packing import Integers
from common.he.parameters import Scheme, choose_scheme
from common.he.scheme import CohortKey
from common.he.sealing import ExchangeKey
from common.keystore import AtRest
from common.layout import CountKind, Layout, longest
from common.metrics import MetricsCode
from common.model_state import ModelState, ModelVersion
from common.wire import Envelope, Kind, digest, encode, from_hex, from_json, plan_hash, to_json


@dataclass(frozen=True)
class SiteRun:
    """directory: DIR/runs/ID. agreement: what the join order said, fixed for the whole run. at_rest: of its secrets."""

    directory: Path
    run: bytes
    plan: Plan
    cohort: tuple[str, ...]
    at_rest: AtRest

    @classmethod
    def create(cls, site: Site, run: bytes, plan: Plan, cohort: tuple[str, ...], initial: ModelState) -> "SiteRun":
        """The run's directory, made once: asking again with the same plan and cohort changes nothing."""
        agreement = to_json({"plan": to_table(plan), "cohort": list(cohort)})
        place = site.directory / "runs" / run.hex()
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in place.glob(".*.part"):
            leftover.unlink()
        path = place / "agreement.json"
        if path.exists():
            if path.read_bytes() != agreement:
                raise ProtocolError("the coordinator changed the plan or the cohort of a run that had begun")
        else:
            write_atomically(place / "state", initial.to_bytes())
            write_atomically(path, agreement)
        return cls(place, run, plan, cohort, site.at_rest)

    @classmethod
    def open(cls, directory: Path, run: bytes, at_rest: AtRest = AtRest()) -> "SiteRun":  # noqa: B008 - frozen
        """The run this site joined. Raises ProtocolError when it did not. at_rest: only secrets need it."""
        return _open(cls, directory, run, at_rest)

    @staticmethod
    def has_begun(site: Site, run: bytes) -> bool:
        """Whether this site has joined that run: then with a plan and a cohort that stay as they are."""
        return (site.directory / "runs" / run.hex() / "agreement.json").exists()

    @classmethod
    def applied(cls, site: Site, run: bytes) -> int:
        """The last round of that run that this site has applied; 0 in a run that is new to it."""
        known = cls.has_begun(site, run)
        return cls.open(site.directory / "runs", run, site.at_rest).version().round_number if known else 0

    @cached_property
    def plan_hash(self) -> bytes:
        return plan_hash(self.plan)

    def keep_signer(self, public: bytes) -> None:
        write_atomically(self.directory / "signer", public)

    def signer(self) -> bytes:
        """The Ed25519 key that signed the bundle with which this run was joined last. Raises ProtocolError."""
        try:
            return (self.directory / "signer").read_bytes()
        except OSError:
            raise ProtocolError("this site has joined that run without a bundle", "submit it again") from None

    @cached_property
    def scheme(self) -> Scheme:
        return choose_scheme(self.plan.encryption.preset, len(self.cohort), longest(self.plan, self._parameters))

    def metrics_codes(self, round_number: int) -> dict[CountKind, MetricsCode]:
        return MetricsCode.of(self.plan, len(self.cohort), self.scheme.value_bits, round_number)

    def layout(self, round_number: int) -> Layout:
        return Layout.of(self.plan, self._parameters, round_number)

    def buckets(self, round_number: int) -> Buckets:
        """Who are summed together in that round, which must be the one after the last that this site has applied."""
        version = self.version()
        if round_number != version.round_number + 1:
            raise WrongRound(f"round {round_number} is not the next one of this site")
        return shuffled(self.cohort, self.plan.robustness.buckets, self.run, round_number, version.model_hash)

    @cached_property
    def _parameters(self) -> int:
        return self.version().size

    @property
    def due_epoch(self) -> int:
        """The epoch of this site's next round; 0 when there is none."""
        closed = self.version().round_number
        return self.plan.encryption.epoch_of(closed + 1) if closed < self.plan.last_round else 0

    def announcement(self, epoch: int) -> dict[str, Any]:
        """{epoch, exchange}: our exchange key for an epoch, made when first asked for; nothing after the last."""
        if not 1 <= epoch <= self._last_epoch:
            return {}
        if not self._key("exchange", epoch).exists():
            self.at_rest.save(self._key("exchange", epoch), ExchangeKey.generate().private_bytes())
        return {"epoch": epoch, "exchange": self.exchange_key(epoch).public.hex()}

    def exchange_key(self, epoch: int) -> ExchangeKey:
        self._require(self._key("exchange", epoch), epoch)
        return ExchangeKey.from_private_bytes(self.at_rest.load(self._key("exchange", epoch)))

    def has_cohort_key(self, epoch: int) -> bool:
        return self._key("cohort", epoch).exists()

    def cohort_key(self, epoch: int) -> CohortKey:
        self._require(self._key("cohort", epoch), epoch)
        return CohortKey.load(self.scheme, self.at_rest.load(self._key("cohort", epoch)))

    def keep_cohort_key(self, epoch: int, key: CohortKey) -> None:
        """Raises TrustError when this epoch has another key already, or an earlier one had this very key."""
        secret = key.export_for_wrapping()
        known, mine = self._key_hashes(), digest(secret)
        if known.get(epoch, mine) != mine:
            raise TrustError("the coordinator shows another key for an epoch that has one")
        if mine in (theirs for other, theirs in known.items() if other != epoch):
            raise TrustError("the key of an earlier epoch is shown as a new one")
        if epoch not in known:
            self.at_rest.save(self._key("cohort", epoch), secret)
        self._made(epoch).unlink(missing_ok=True)

    def destroy_keys(self) -> None:
        """Of every epoch that is over at this site: whoever takes its disk from now on can open nothing of it.

        A site that is behind still has its own copy, because it goes by the rounds that it has applied itself.
        """
        due = self.due_epoch or self._last_epoch + 1
        for path in sorted(self.directory.glob("*-*.key")):
            kind, epoch = path.stem.split("-")
            if int(epoch) < due:
                if kind == "cohort":
                    write_atomically(path.with_suffix(".hash"), digest(self.at_rest.load(path)))
                path.unlink()
                self._peers(int(epoch)).unlink(missing_ok=True)
                self._made(int(epoch)).unlink(missing_ok=True)

    def made_key(self, epoch: int, joined: Mapping[str, Any]) -> bytes | None:
        """The signed answer with which this site made that epoch's key for the very sites that have `joined`."""
        if not self._made(epoch).exists():
            return None
        made = from_json(self._made(epoch).read_bytes())
        return from_hex(made["answer"]) if made["joined"] == joined else None

    def keep_made_key(self, epoch: int, joined: Mapping[str, Any], answer: bytes) -> None:
        write_atomically(self._made(epoch), to_json({"joined": dict(joined), "answer": answer.hex()}))

    def keep_peers(self, epoch: int, publics: Mapping[str, bytes]) -> None:
        """The cohort's X25519 keys of that epoch, this site's own among them; once kept they never change."""
        peers = to_json({name: public.hex() for name, public in publics.items()})
        if self._peers(epoch).exists() and self._peers(epoch).read_bytes() != peers:
            raise TrustError("the coordinator shows other exchange keys than before")
        write_atomically(self._peers(epoch), peers)

    def peers(self, epoch: int) -> dict[str, bytes]:
        try:
            shown = from_json(self._peers(epoch).read_bytes())
        except OSError:
            raise ProtocolError("this site has not been shown its peers' exchange keys yet") from None
        return {name: from_hex(public) for name, public in shown.items()}

    def state(self) -> ModelState:
        return ModelState.from_bytes((self.directory / "state").read_bytes())

    def version(self) -> ModelVersion:
        """Which model this site holds, without reading it."""
        return ModelVersion.read(self.directory / "state")

    def keep_state(self, state: ModelState) -> None:
        write_atomically(self.directory / "state", state.to_bytes())

    def counts(self, round_number: int) -> list[int]:
        """The opened sum of that round's counts, in integer steps; none when it had none."""
        return self._listed("counts", round_number)

    def keep_counts(self, round_number: int, totals: Integers) -> None:
        self._keep_listed("counts", round_number, totals.tolist())

    def broken_buckets(self, round_number: int) -> list[int]:
        """Places, among the buckets that were opened in that round, of those that were left out of the update."""
        return self._listed("broken", round_number)

    def keep_broken_buckets(self, round_number: int, places: Sequence[int]) -> None:
        self._keep_listed("broken", round_number, list(places))

    def sealed_update(self, round_number: int) -> bytes | None:
        """What this site sent, or was about to send, in that round."""
        path = self._outbox(round_number)
        return path.read_bytes() if path.exists() else None

    def has_sealed_update(self, round_number: int) -> bool:
        return self._outbox(round_number).exists()

    def keep_sealed_update(self, round_number: int, data: bytes) -> None:
        """On disk before it is sent: whoever asks again gets these very bytes, never a second release."""
        write_atomically(self._outbox(round_number), data)
        self._outbox(round_number - 1).unlink(missing_ok=True)

    def _listed(self, kind: str, round_number: int) -> list[int]:
        path = self.directory / f"{kind}-{round_number:06d}"
        return list(from_json(path.read_bytes())[kind]) if path.exists() else []

    def _keep_listed(self, kind: str, round_number: int, numbers: list[int]) -> None:
        write_atomically(self.directory / f"{kind}-{round_number:06d}", to_json({kind: numbers}))

    @property
    def _last_epoch(self) -> int:
        return self.plan.encryption.epoch_of(self.plan.last_round)

    def _key_hashes(self) -> dict[int, bytes]:
        """Of every cohort key that this site has ever held in this run."""
        gone = {int(path.stem.split("-")[1]): path.read_bytes() for path in self.directory.glob("cohort-*.hash")}
        held = {int(path.stem.split("-")[1]): path for path in self.directory.glob("cohort-*.key")}
        return gone | {epoch: digest(self.at_rest.load(path)) for epoch, path in held.items()}

    def _require(self, path: Path, epoch: int) -> None:
        if not path.exists():
            raise ProtocolError(f"this site holds no {path.stem.split('-')[0]} key of epoch {epoch}")

    def _key(self, kind: str, epoch: int) -> Path:
        return self.directory / f"{kind}-{epoch:06d}.key"

    def _peers(self, epoch: int) -> Path:
        return self.directory / f"peers-{epoch:06d}"

    def _made(self, epoch: int) -> Path:
        return self.directory / f"made-{epoch:06d}"

    def _outbox(self, round_number: int) -> Path:
        return self.directory / f"update-{round_number:06d}"


@lru_cache(maxsize=256)
def _open(cls: type[SiteRun], directory: Path, run: bytes, at_rest: AtRest) -> SiteRun:
    """Cached, because an agreement never changes once it is on disk."""
    place = directory / run.hex()
    try:
        agreement = from_json((place / "agreement.json").read_bytes())
    except OSError:
        raise ProtocolError("this site has not joined that run") from None
    return cls(place, run, fill(Plan, agreement["plan"]), tuple(agreement["cohort"]), at_rest)


def signed_answer(site: Site, run: SiteRun, number: int, body: Mapping[str, Any]) -> bytes:
    return encode(Envelope(Kind.ANSWER, run.run, number, run.plan_hash, site.name, to_json(dict(body))), site.identity)
