"""What each party writes down about itself, at both sides alike: a chained log that it signs, and the events in it.

    DIR/audit.jsonl         one event a line (`common/append_log.py`)
    DIR/witnesses/audit     its newest head, which is better kept on another disk

An event says what was done, never a secret, and names what others said only shortened. Read or export it with
`veilfed audit`, which also needs no key of the party's but its public one.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from common.append_log import AppendLog, Entry
from common.errors import ConfigError
from common.signing import Identity, verify

CONTEXT = "veilfed.audit.v1"
LONGEST_TEXT = 500  # characters: it may quote what the other side wrote


# At both sides.


@dataclass(frozen=True)
class Started:
    """process: worker, node, executor, ... version: of Veilfed."""

    process: str
    version: str


@dataclass(frozen=True)
class Stopped:
    """reason: a signal, an error's name, or nothing for an orderly end."""

    process: str
    reason: str = ""


@dataclass(frozen=True)
class Connected:
    """peer: whom this party reached, or was reached by."""

    peer: str


@dataclass(frozen=True)
class ConnectionLost:
    peer: str
    reason: str


@dataclass(frozen=True)
class AdminCommand:
    """command: lock, unlock, admit, revoke, stop, ... by: the account that gave it."""

    command: str
    subject: str
    by: str

    @classmethod
    def now(cls, command: str, subject: str = "") -> "AdminCommand":
        """Given by the account that runs this process."""
        return cls(command, subject, f"uid {os.getuid()}")


@dataclass(frozen=True)
class BundleAccepted:
    """sha256: of the bundle. key: SHA-256 of the key that signed it."""

    run: str
    sha256: str
    key: str


@dataclass(frozen=True)
class Released:
    """The model, in the clear, as the plan allows. sha256: of its bytes."""

    run: str
    round: int
    sha256: str


# At a site.


@dataclass(frozen=True)
class RosterFollowed:
    """A newer kit of the coordinator was verified and installed. version: of the roster in it."""

    version: int


@dataclass(frozen=True)
class RunJoined:
    """The site agreed to a plan, or said again where it stands. plan: its hash. applied: the last round it knows.

    With encryption "none" and privacy "none" every round sends a readable update that has no event of its own.
    """

    run: str
    plan: str
    cohort: tuple[str, ...]
    privacy: str
    encryption: str
    rounds: int
    applied: int


@dataclass(frozen=True)
class Refused:
    """The answer to an order was no. code: an error's name. message: as it was sent."""

    action: str
    run: str
    round: int
    code: str
    message: str


@dataclass(frozen=True)
class Awaited:
    """A run that the policy allows waits for the administrator's word."""

    run: str
    plan: str
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class Approved:
    """The administrator agreed to this run with this plan and cohort, and to nothing else."""

    run: str
    plan: str
    cohort: tuple[str, ...]
    by: str


@dataclass(frozen=True)
class Denied:
    run: str
    plan: str
    cohort: tuple[str, ...]
    by: str


@dataclass(frozen=True)
class KeyCeremony:
    """This site's part: `make_key`, or `install_key` when it took the cohort's key of that epoch."""

    run: str
    epoch: int
    part: str


@dataclass(frozen=True)
class Sealed:
    """An order to train was accepted, paid for and answered. order, update: SHA-256 of their bytes.

    epsilon: what the data set has lost by now; 0 in a run without privacy. Sent again, it is noted again.
    """

    run: str
    round: int
    order: str
    update: str
    epsilon: float


@dataclass(frozen=True)
class StoodIn:
    """This site gave its shares of the secrets of sites that had vanished."""

    run: str
    round: int
    silent: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """The sum of these sites was opened and applied; the site holds this model now."""

    run: str
    round: int
    sites: tuple[str, ...]
    model: str


# At the coordinator.


@dataclass(frozen=True)
class RunSubmitted:
    """by: whoever asked for it, as the coordinator knows them."""

    run: str
    plan: str
    by: str


@dataclass(frozen=True)
class SitesGathered:
    """refused: "site: code, message" of every site that said no."""

    run: str
    joined: tuple[str, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True)
class KeyRelayed:
    """The key of an epoch was made by one site for the sites that had joined."""

    run: str
    epoch: int
    maker: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class RoundClosed:
    """sites: those summed. left_out: "site: code, message", of late updates too, whose sites may have been summed.

    model: the hash that the sites hold afterwards.
    """

    run: str
    round: int
    sites: tuple[str, ...]
    left_out: tuple[str, ...]
    model: str


@dataclass(frozen=True)
class RunEnded:
    """outcome: done, or an error's code."""

    run: str
    outcome: str
    message: str = ""


Event: TypeAlias = (
    Started
    | Stopped
    | Connected
    | ConnectionLost
    | AdminCommand
    | BundleAccepted
    | Released
    | RosterFollowed
    | RunJoined
    | Refused
    | Awaited
    | Approved
    | Denied
    | KeyCeremony
    | Sealed
    | StoodIn
    | Opened
    | RunSubmitted
    | SitesGathered
    | KeyRelayed
    | RoundClosed
    | RunEnded
)


class Audit:
    """One party's log. Made by `open`, or by `read`, which needs only the public key and changes nothing."""

    def __init__(self, log: AppendLog) -> None:
        self._log = log

    @classmethod
    def open(cls, directory: Path, signer: Identity, witnesses: Path | None = None) -> "Audit":
        """witnesses: the folder for its witness, best on another disk. Raises TrustError if the log was touched."""
        place = witnesses or directory / "witnesses"
        place.mkdir(parents=True, exist_ok=True)
        sign = partial(signer.sign, CONTEXT)
        return cls(AppendLog(directory / "audit.jsonl", place / "audit", sign, _signed_by(signer.public)))

    @classmethod
    def read(cls, directory: Path, public: bytes, witness: Path | None = None) -> "Audit":
        """Every line verified. Raises TrustError naming the line, ConfigError when there is no log."""
        path = directory / "audit.jsonl"
        if not path.exists():
            raise ConfigError(f"{directory} holds no audit log", "give the home of a site or of the coordinator")
        seen = witness or directory / "witnesses" / "audit"
        return cls(AppendLog(path, seen, verify=_signed_by(public), read_only=True))

    def note(self, event: Event) -> None:
        """On disk before this returns."""
        fields = {name: _short(value) for name, value in asdict(event).items()}
        time = datetime.now(UTC).isoformat(timespec="seconds")
        self._log.append({"time": time, "event": type(event).__name__, **fields})

    def entries(self) -> Sequence[Entry]:
        return self._log.entries()

    def latest(self) -> Sequence[Entry]:
        """All entries, those that other processes have written in the meantime among them."""
        with self._log.exclusive():
            return self._log.entries()

    @property
    def head(self) -> bytes:
        return self._log.head


def _signed_by(public: bytes) -> Any:
    return lambda signature, data: verify(public, CONTEXT, data, signature)


def _short(value: object) -> object:
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    return [_short(item) for item in value] if isinstance(value, tuple) else value
