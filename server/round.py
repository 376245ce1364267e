"""The states of a round, without I/O: Collecting, then Closed, or an error that says who failed and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from common.errors import (
    AwaitingApproval,
    CohortTooSmall,
    FederationError,
    LateUpdate,
    NotNow,
    ProtocolError,
    UnexpectedSender,
    WireError,
    WrongRound,
)
from common.wire import Bytes, Envelope, Kind, from_json


@dataclass(frozen=True)
class LeftOut:
    """One site whose answer does not count in this round. `code` is an error's name, or `Silent`."""

    site: str
    code: str
    message: str
    exit_code: int = ProtocolError.exit_code

    @classmethod
    def because(cls, site: str, error: FederationError) -> "LeftOut":
        return cls(site, error.code, error.message, error.exit_code)

    def to_json(self) -> dict[str, str]:
        """As the record of a round names it."""
        return {"site": self.site, "reason": self.code, "message": self.message}

    @property
    def not_now(self) -> bool:
        """Whether the site may say yes when it is asked the same again later."""
        return self.code in (NotNow.__name__, AwaitingApproval.__name__)

    @property
    def awaits_a_person(self) -> bool:
        return self.code == AwaitingApproval.__name__

    def __str__(self) -> str:
        return f"{self.site}: {self.code}, {self.message}"


@dataclass(frozen=True)
class Closed:
    """Enough valid updates are in: site -> body of its update, and the sites that did not count.

    late: updates of earlier rounds that were dropped, from sites whose update of this round counts.
    """

    round_number: int
    received: Mapping[str, Bytes]
    left_out: tuple[LeftOut, ...]
    late: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Collecting:
    """A round that is open. `update` is the kind of envelope an update of this run travels in."""

    run: bytes
    plan: bytes
    round_number: int
    cohort: frozenset[str]
    min_cohort: int
    update: Kind
    received: Mapping[str, Bytes] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    late: tuple[LeftOut, ...] = ()

    def receive(self, envelope: Envelope) -> "Collecting":
        """With one more update. Raises LateUpdate for one of an earlier round, else when it is not what we asked for.

        Only a late one is no answer to this round: see `drop`.
        """
        site = envelope.sender
        if site not in self.cohort:
            raise UnexpectedSender(f"{site} was not asked in round {self.round_number}")
        if envelope.run != self.run or envelope.plan != self.plan:
            raise WrongRound(f"{site} answered for another run or plan")
        if envelope.round_number != self.round_number:
            error = LateUpdate if envelope.round_number < self.round_number else WrongRound
            raise error(f"{site} answered round {envelope.round_number}, now collecting {self.round_number}")
        if site in self.received or any(left.site == site for left in self.left_out):
            raise UnexpectedSender(f"{site} has answered round {self.round_number} already")
        if envelope.kind != self.update:
            raise WireError(f"{site} sent {envelope.kind.name} instead of {self.update.name}")
        return replace(self, received={**self.received, site: envelope.body})

    def keep(self, site: str, body: Bytes) -> "Collecting":
        """With `body` in place of what that site sent: nothing, when it was set aside."""
        return replace(self, received={**self.received, site: body})

    def drop(self, late: LeftOut) -> "Collecting":
        """Without what came late, and with all else that its site has sent or will send in this round."""
        return replace(self, late=(*self.late, late))

    def leave_out(self, left: LeftOut) -> "Collecting":
        """Without that site; what it had sent in this round, if anything, is dropped too."""
        received = {site: body for site, body in self.received.items() if site != left.site}
        return replace(self, received=received, left_out=(*self.left_out, left))

    def close(self) -> Closed:
        """Every site that did not answer is left out, as silent or late. Raises when too few are in: see `too_few`."""
        known = {*self.received, *(left.site for left in self.left_out)}
        late = {left.site: left for left in self.late}
        absent = (late.get(site, LeftOut(site, "Silent", "no answer in time")) for site in sorted(self.cohort - known))
        left_out = (*self.left_out, *absent)
        if len(self.received) < self.min_cohort:
            raise too_few(self.round_number, len(self.received), self.min_cohort, left_out)
        dropped = tuple(left for left in self.late if left.site in self.received)
        return Closed(self.round_number, dict(sorted(self.received.items())), left_out, dropped)


def too_few(
    round_number: int, present: int, required: int, left_out: tuple[LeftOut, ...], of: str = "sites"
) -> FederationError:
    """A privacy error when sites refused for privacy's sake (exit 3), else a protocol error (exit 4)."""
    reasons = "; ".join(map(str, left_out))
    message = f"round {round_number} stopped: {present} of at least {required} {of} could be used ({reasons})"
    refused = any(left.exit_code == CohortTooSmall.exit_code for left in left_out)
    hint = "nothing is lost: mend what the sites name, then go on with --resume"
    return CohortTooSmall(message, hint) if refused else ProtocolError(message, hint)


def refusal_of(envelope: Envelope) -> LeftOut | None:
    """What a site's refusal says, or None when the envelope is something else."""
    if envelope.kind != Kind.REFUSAL:
        return None
    body = from_json(envelope.body)
    code, message, exit_code = body.get("code"), body.get("message"), body.get("exit_code")
    if not (isinstance(code, str) and isinstance(message, str) and isinstance(exit_code, int)):
        raise WireError(f"{envelope.sender} sent a refusal without a reason")
    return LeftOut(envelope.sender, code, message, exit_code)
