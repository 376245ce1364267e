"""What the coordinator keeps of one run: enough to go on after a crash, nothing that opens an update.

HOME/identity.key      the coordinator's Ed25519 key      HOME/roster.json   names and keys
HOME/runs/RUN = DIR    one run
DIR/agreement.json     plan and cohort     DIR/ceremonies/N   signed answers of the key ceremony of epoch N
DIR/rounds.jsonl       one entry per closed round, hash-chained
DIR/aggregates/N       the sum of round N, as every site received it
DIR/model              model state (readable runs), DIR/released.safetensors  the model the sites released
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from common.append_log import AppendLog
from common.audit import Audit, Released, RunSubmitted
from common.config import fill, to_table
from common.errors import ConfigError, FederationError, ProtocolError
from common.federation import Plan
from common.files import write_atomically
from common.keystore import load_secret
from common.model_state import ModelState
from common.roster import Roster
from common.signing import Identity
from common.wire import decode, digest, from_hex, from_json, names, plan_hash, table, to_json

_ENDING_SECONDS = 60.0  # that a conductor takes at most to hear that its run was handed to another


@dataclass(frozen=True)
class RunStore:
    """cohort: the sites on the roster when the run began, whoever came or went since; roster: as it is now."""

    directory: Path
    run: bytes
    plan: Plan
    cohort: tuple[str, ...]
    roster: Roster
    identity: Identity

    @classmethod
    def create(cls, home: Path, plan: Plan, by: str, run: bytes = b"") -> "RunStore":
        """A new run in a home that holds the coordinator's identity and roster already.

        run: its 16 bytes, or drawn. by: who asked for it, for the audit log.
        """
        directory = home / "runs" / (run or os.urandom(16)).hex()
        (directory / "aggregates").mkdir(parents=True, exist_ok=True)
        agreement = {"plan": to_table(plan), "cohort": list(Roster.read(home / "roster.json").sites)}
        write_atomically(directory / "agreement.json", to_json(agreement))
        store = cls.open(directory)
        store.audit.note(RunSubmitted(store.run.hex(), store.plan_hash.hex(), by))
        return store

    @classmethod
    def begin(cls, home: Path, run: bytes, plan: Plan, by: str) -> "RunStore":
        """That run, from wherever it stopped, or new. Raises ProtocolError when it has begun with another plan."""
        if not (home / "runs" / run.hex() / "agreement.json").exists():
            return cls.create(home, plan, by, run)
        store = cls.open(home / "runs" / run.hex())
        if store.plan_hash != plan_hash(plan):
            raise ProtocolError(f"run {run.hex()} has begun with another plan", "submit this one as a new run")
        return store

    @classmethod
    def open(cls, directory: Path) -> "RunStore":
        """Raises ConfigError when there is no run in that directory."""
        try:
            agreement = from_json((directory / "agreement.json").read_bytes())
        except OSError:
            raise ConfigError(f"{directory} holds no run", "give the directory of an earlier run") from None
        home = cls._home_of(directory)
        identity = Identity.from_private_bytes(load_secret(home / "identity.key", None))
        plan, cohort = fill(Plan, table(agreement, "plan")), tuple(names(agreement, "cohort"))
        return cls(directory, from_hex(directory.name), plan, cohort, Roster.read(home / "roster.json"), identity)

    def sweep(self) -> None:
        """Remove what a crash cut short. For whoever conducts the run: it takes what others are writing too."""
        for leftover in [*self.directory.glob(".*.part"), *self.directory.glob("*/.*.part")]:
            leftover.unlink()

    @staticmethod
    def _home_of(directory: Path) -> Path:
        return directory.parents[1]

    @staticmethod
    @contextmanager
    def held(home: Path, run: bytes) -> Iterator[None]:
        """That run is this process's alone. Raises ProtocolError when another one conducts it, and does not end."""
        path = home / "runs" / f".{run.hex()}.lock"
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + _ENDING_SECONDS
            while not _locked(descriptor):
                if time.monotonic() > until:
                    raise ProtocolError(f"run {run.hex()} is conducted already", "see: veilfed status")
                time.sleep(0.2)
            yield
        finally:
            os.close(descriptor)

    @classmethod
    def unfinished(cls, home: Path) -> "list[RunStore]":
        """Runs of signed bundles that have begun and not ended, in no order."""
        begun = [path.parent for path in (home / "runs").glob("*/bundle")]
        found = []
        for place in begun:
            if not (place / "ended").exists():
                with suppress(FederationError):  # a damaged one keeps no other from going on
                    found.append(cls.open(place))
        return found

    def members(self) -> tuple[str, ...]:
        """The sites on the roster at this moment, whoever was on it when the run was opened."""
        return Roster.read(self._home_of(self.directory) / "roster.json").sites

    def keep_bundle(self, content: bytes, signature: str) -> None:
        """As it was submitted: with it the run can be submitted again. A run that had ended goes on from here."""
        write_atomically(self.directory / "signature", signature.encode())
        write_atomically(self.directory / "bundle", content)
        (self.directory / "ended").unlink(missing_ok=True)

    def bundle(self) -> tuple[bytes, str]:
        """Content and signature."""
        return (self.directory / "bundle").read_bytes(), (self.directory / "signature").read_text()

    def end(self, outcome: str) -> None:
        """Nobody is to go on with this run unless it is asked for. outcome: `done`, or why it stopped."""
        write_atomically(self.directory / "ended", outcome.encode())

    @property
    def ended(self) -> str:
        """What `end` was told; empty while the run goes on."""
        path = self.directory / "ended"
        return path.read_text() if path.exists() else ""

    @cached_property
    def plan_hash(self) -> bytes:
        return plan_hash(self.plan)

    def rounds(self) -> list[dict[str, Any]]:
        """The records of the rounds that are closed, oldest first."""
        return [dict(entry.record) for entry in self._log.entries()]

    def record_round(self, record: Mapping[str, Any]) -> None:
        self._log.append(record)

    def fill_gap(self, closed: int) -> None:
        """Record the rounds whose result is on disk but whose record a crash prevented; their times are unknown."""
        for number in range(len(self.rounds()) + 1, closed + 1):
            unknown = {"seconds": 0.0, "sites": [], "left_out": [], "late": [], "epsilon": {}, "reported": {}}
            self.record_round({"round": number, **unknown})

    def aggregate(self, round_number: int) -> bytes:
        return self._aggregate(round_number).read_bytes()

    def has_aggregate(self, round_number: int) -> bool:
        return self._aggregate(round_number).exists()

    def keep_aggregate(self, round_number: int, envelope: bytes | Sequence[bytes | memoryview]) -> None:
        write_atomically(self._aggregate(round_number), envelope)
        self._sum(round_number).unlink(missing_ok=True)

    def offers(self, round_number: int) -> dict[str, Any] | None:
        """The mask offers that the sites were shown in that round: fixed before anybody masks with them."""
        path = self.directory / "offers" / f"{round_number:06d}"
        return from_json(path.read_bytes()) if path.exists() else None

    def keep_offers(self, round_number: int, offers: Mapping[str, Any]) -> None:
        (self.directory / "offers").mkdir(exist_ok=True)
        write_atomically(self.directory / "offers" / f"{round_number:06d}", to_json(dict(offers)))

    def has_sum(self, round_number: int) -> bool:
        """Whether that round's blind sum is on disk but not yet published."""
        return self._sum(round_number).exists() and not self.has_aggregate(round_number)

    def sum(self, round_number: int) -> tuple[list[str], memoryview]:
        """The sites that were summed, and their sums, one after the other, with their masks still on."""
        data = self._sum(round_number).read_bytes()
        length = int.from_bytes(data[:4], "big")
        return from_json(data[4 : 4 + length])["sites"], memoryview(data)[4 + length :]

    def keep_sum(self, round_number: int, sites: list[str], totals: Sequence[bytes | memoryview]) -> None:
        """On disk before any site is asked to agree: the list of a round never changes. totals: one a bucket."""
        head = to_json({"sites": sites})
        write_atomically(self._sum(round_number), (len(head).to_bytes(4, "big") + head, *totals))

    def set_aside(self, body: bytes | memoryview) -> IO[bytes]:
        """A file that holds `body` and has no name, so that it is gone with whoever holds it, or with this process."""
        file = tempfile.TemporaryFile(dir=self.directory)  # noqa: SIM115 - it is given away
        file.write(body)
        file.flush()
        return file

    def ceremony(self, epoch: int) -> dict[str, Any]:
        """{joined: site -> its signed exchange key, made: the maker's answer, once there is one} of an epoch."""
        path = self.directory / "ceremonies" / f"{epoch:06d}"
        return from_json(path.read_bytes()) if path.exists() else {"joined": {}}

    def keep_ceremony(self, epoch: int, answers: Mapping[str, Any]) -> None:
        (self.directory / "ceremonies").mkdir(exist_ok=True)
        write_atomically(self.directory / "ceremonies" / f"{epoch:06d}", to_json(dict(answers)))

    def makers(self) -> list[str]:
        """Who made the cohort's key, epoch after epoch: as often as it was renewed, and once before."""
        answers = (self.ceremony(int(path.name)) for path in sorted((self.directory / "ceremonies").glob("[0-9]*")))
        return [decode(from_hex(a["made"]), self.roster.key_of_member).sender for a in answers if "made" in a]

    def state(self) -> ModelState | None:
        path = self.directory / "model"
        return ModelState.from_bytes(path.read_bytes()) if path.exists() else None

    def keep_state(self, state: ModelState) -> None:
        write_atomically(self.directory / "model", state.to_bytes())

    def keep_release(self, model: NDArray[np.float32], round_number: int) -> None:
        """As a safetensors file of one tensor, `model`. Its writer would hold the model four times."""
        numbers = model.astype("<f4", copy=False).view(np.uint8).data
        about = {"dtype": "F32", "shape": [model.size], "data_offsets": [0, len(numbers)]}
        head = to_json({"model": about})
        head += b" " * (-len(head) % 8)
        parts = (len(head).to_bytes(8, "little"), head, numbers)
        write_atomically(self.directory / "released.safetensors", parts, mode=0o644)
        self.audit.note(Released(self.run.hex(), round_number, digest(numbers).hex()))

    def _sum(self, round_number: int) -> Path:
        return self.directory / "aggregates" / f"{round_number:06d}.masked"

    def _aggregate(self, round_number: int) -> Path:
        return self.directory / "aggregates" / f"{round_number:06d}"

    @cached_property
    def audit(self) -> Audit:
        """What the coordinator did, in all of its runs: beside its key, not in this run."""
        return Audit.open(self._home_of(self.directory), self.identity)

    @cached_property
    def _log(self) -> AppendLog:
        return AppendLog(self.directory / "rounds.jsonl")


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
