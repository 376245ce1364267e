"""One run as the site remembers it on disk, so that a restart goes on where it stopped and never releases twice."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from common.config import fill, to_table
from common.errors import ProtocolError, TrustError
from common.federation import Plan
from common.files import write_atomically
from common.he.packing import Integers
from common.he.parameters import Scheme, choose_scheme
from common.he.scheme import CohortKey
from common.he.sealing import ExchangeKey
from common.keystore import load_secret, save_secret
from common.layout import Layout, longest
from common.metrics import MetricsCode
from common.model_state import ModelState
from common.wire import from_hex, from_json, plan_hash, to_json


@dataclass(frozen=True)
class SiteRun:
    """directory: DIR/runs/ID. agreement: what the join order said, fixed for the whole run."""

    directory: Path
    run: bytes
    plan: Plan
    cohort: tuple[str, ...]

    @classmethod
    def create(cls, directory: Path, run: bytes, plan: Plan, cohort: tuple[str, ...], initial: ModelState) -> "SiteRun":
        """The run's directory, made once: asking again with the same plan and cohort changes nothing."""
        agreement = to_json({"plan": to_table(plan), "cohort": list(cohort)})
        place = directory / run.hex()
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in place.glob(".*.part"):
            leftover.unlink()
        path = place / "agreement.json"
        if path.exists():
            if path.read_bytes() != agreement:
                raise ProtocolError("the coordinator changed the plan or the cohort of a run that had begun")
        else:
            write_atomically(place / "state", initial.to_bytes())
            save_secret(place / "exchange.key", ExchangeKey.generate().private_bytes(), None)
            write_atomically(path, agreement)
        return cls(place, run, plan, cohort)

    @classmethod
    def open(cls, directory: Path, run: bytes) -> "SiteRun":
        """The run this site joined. Raises ProtocolError when it did not."""
        return _open(cls, directory, run)

    @cached_property
    def plan_hash(self) -> bytes:
        return plan_hash(self.plan)

    @property
    def exchange_key(self) -> ExchangeKey:
        return ExchangeKey.from_private_bytes(load_secret(self.directory / "exchange.key", None))

    @cached_property
    def scheme(self) -> Scheme:
        return choose_scheme(self.plan.encryption.preset, len(self.cohort), longest(self.plan, self._parameters))

    @cached_property
    def metrics_code(self) -> MetricsCode:
        return MetricsCode.of(self.plan, len(self.cohort), self.scheme.value_bits)

    def layout(self, round_number: int) -> Layout:
        return Layout.of(self.plan, self._parameters, round_number)

    @cached_property
    def _parameters(self) -> int:
        return self.state().model.size

    @property
    def has_cohort_key(self) -> bool:
        return (self.directory / "cohort.key").exists()

    def cohort_key(self) -> CohortKey:
        return CohortKey.load(self.scheme, load_secret(self.directory / "cohort.key", None))

    def keep_cohort_key(self, key: CohortKey) -> None:
        save_secret(self.directory / "cohort.key", key.export_for_wrapping(), None)

    def keep_peers(self, publics: Mapping[str, bytes]) -> None:
        """The cohort's X25519 keys of this run, this site's own among them; once kept they never change."""
        path = self.directory / "peers.json"
        peers = to_json({name: public.hex() for name, public in publics.items()})
        if path.exists() and path.read_bytes() != peers:
            raise TrustError("the coordinator shows other exchange keys than before")
        write_atomically(path, peers)

    def peers(self) -> dict[str, bytes]:
        try:
            shown = from_json((self.directory / "peers.json").read_bytes())
        except OSError:
            raise ProtocolError("this site has not been shown its peers' exchange keys yet") from None
        return {name: from_hex(public) for name, public in shown.items()}

    def state(self) -> ModelState:
        return ModelState.from_bytes((self.directory / "state").read_bytes())

    def keep_state(self, state: ModelState) -> None:
        write_atomically(self.directory / "state", state.to_bytes())

    def counts(self, round_number: int) -> list[int]:
        """The opened sum of that round's counts, in integer steps; none when it had none."""
        path = self._counts(round_number)
        return list(from_json(path.read_bytes())["counts"]) if path.exists() else []

    def keep_counts(self, round_number: int, totals: Integers) -> None:
        write_atomically(self._counts(round_number), to_json({"counts": totals.tolist()}))

    def sealed_update(self, round_number: int) -> bytes | None:
        """What this site sent, or was about to send, in that round."""
        path = self._outbox(round_number)
        return path.read_bytes() if path.exists() else None

    def keep_sealed_update(self, round_number: int, data: bytes) -> None:
        """On disk before it is sent: whoever asks again gets these very bytes, never a second release."""
        write_atomically(self._outbox(round_number), data)
        self._outbox(round_number - 1).unlink(missing_ok=True)

    def _counts(self, round_number: int) -> Path:
        return self.directory / f"counts-{round_number:06d}"

    def _outbox(self, round_number: int) -> Path:
        return self.directory / f"update-{round_number:06d}"


@lru_cache(maxsize=256)
def _open(cls: type[SiteRun], directory: Path, run: bytes) -> SiteRun:
    """Cached, because an agreement never changes once it is on disk."""
    place = directory / run.hex()
    try:
        agreement = from_json((place / "agreement.json").read_bytes())
    except OSError:
        raise ProtocolError("this site has not joined that run") from None
    return cls(place, run, fill(Plan, agreement["plan"]), tuple(agreement["cohort"]))
