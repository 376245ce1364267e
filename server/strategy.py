"""The rounds as a Flower Strategy: orders out, updates in, a sum out, and a record of what happened.

Flower's own loop drives it: `train` collects updates, `evaluate` carries the encrypted sum to the sites, which
open and apply it. A run without encryption has no sum to carry: the coordinator applies the mean itself.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.errors import FederationError, InvalidUpdate, ProtocolError, TrustError
from common.federation import Plan
from common.he.ciphertexts import Ciphertext
from common.he.parameters import Scheme
from common.model_state import ModelState, advance
from common.roster import COORDINATOR
from common.wire import Envelope, Kind, encode, from_json, to_json
from server.aggregate_clear import mean
from server.aggregate_encrypted import BlindSum
from server.links import Links, Reply
from server.round import Closed, Collecting, LeftOut, too_few
from server.store import RunStore

ROUND_TIMEOUT_SECONDS = 3600.0
OnRound = Callable[[Mapping[str, Any]], None]


class Rounds(Strategy):
    """What both kinds of run share. `closed` is the number of the last closed round."""

    update: Kind

    def __init__(self, store: RunStore, links: Links, closed: int, on_round: OnRound) -> None:
        self.store, self.links, self.closed, self.on_round = store, links, closed, on_round
        self.plan: Plan = store.plan
        self._begin()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._begin()
        number, ready = self.closed + 1, self._ready()
        self.collecting = Collecting(
            self.store.run,
            self.store.plan_hash,
            number,
            frozenset(ready),
            self.plan.federation.min_cohort,
            self.update,
        )
        order = self._order(number)
        return [self.links.send(site, "train", order, number) for site in ready]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        for message in replies:
            site, answer = self.links.read(message)
            if isinstance(answer, LeftOut):
                self.collecting = self.collecting.leave_out(answer)
                continue
            try:
                self.collecting = self.collecting.receive(answer.envelope)
                self._check(answer.envelope.body)
                self._note(site, answer)
            except FederationError as error:
                self._refuse(site, error)
        closed = self._combine()
        self.closed = closed.round_number
        self.left_out = closed.left_out
        return None, None

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        self._after(replies)
        record = {
            "round": self.closed,
            "seconds": time.perf_counter() - self.started,
            **self.seconds,
            "sites": sorted(self.collecting.received),
            "left_out": [{"site": left.site, "reason": left.code, "message": left.message} for left in self.left_out],
            "epsilon": self.epsilon,
        }
        self.store.record_round(record)
        self.on_round(record)
        return None

    def summary(self) -> None:
        """Nothing: the run's own records say more."""

    def _begin(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = dict.fromkeys(_PHASES, 0.0)
        self.epsilon: dict[str, float] = {}

    def _note(self, site: str, answer: Reply) -> None:
        for phase in _PHASES:
            self.seconds[phase] += answer.metrics.get(phase, 0.0)
        if "epsilon" in answer.metrics:
            self.epsilon[site] = answer.metrics["epsilon"]

    def _refuse(self, site: str, error: FederationError) -> None:
        left = LeftOut.because(site, error)
        self.links.by_site[site].refusals.append(left)
        self.collecting = self.collecting.leave_out(left)

    def _ready(self) -> list[str]:
        return sorted(self.links.by_site)

    @abstractmethod
    def _order(self, number: int) -> bytes:
        """The bytes of this round's order: the same for every site."""

    @abstractmethod
    def _check(self, body: bytes) -> None:
        """Raises FederationError when the body of an update cannot be what it says."""

    @abstractmethod
    def _combine(self) -> Closed:
        """Close the round and put its result on disk."""

    @abstractmethod
    def _after(self, replies: Iterable[Message]) -> None:
        """Take in the sites' answers to the sum."""


class EncryptedRounds(Rounds):
    """The coordinator sums what it cannot read and relays the sum. It never holds the model."""

    update = Kind.UPDATE

    def __init__(
        self, store: RunStore, links: Links, closed: int, on_round: OnRound, scheme: Scheme, length: int
    ) -> None:
        super().__init__(store, links, closed, on_round)
        self.scheme, self.length = scheme, length
        self.catch_up()

    def catch_up(self) -> None:
        """Send each site that missed rounds the sums that it lacks, oldest first."""
        for number in range(min(link.round_number for link in self.links.by_site.values()) + 1, self.closed + 1):
            data = self.store.aggregate(number)
            behind = dict.fromkeys(self.links.at_round(number - 1), data)
            self._applied(number, self.links.exchange("evaluate", behind, number, ROUND_TIMEOUT_SECONDS))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        data = self.store.aggregate(self.closed)
        return [self.links.send(site, "evaluate", data, self.closed) for site in self.links.at_round(self.closed - 1)]

    def _ready(self) -> list[str]:
        self.catch_up()
        return self.links.at_round(self.closed)

    def _order(self, number: int) -> bytes:
        self.version = self._common_version(self.closed)
        body = to_json({"model_hash": self.version})
        return encode(self._envelope(Kind.ORDER, number, body), self.store.identity)

    def _check(self, body: bytes) -> None:
        if body[:32].hex() != self.version:
            raise TrustError("the update was trained on another model")
        Ciphertext.decode(self.scheme, self.length, body[32:])

    def _combine(self) -> Closed:
        started = time.perf_counter()
        total = BlindSum(self.scheme, self.length)
        for site, body in sorted(self.collecting.received.items()):
            try:
                total.add(Ciphertext.decode(self.scheme, self.length, body[32:]))
            except ProtocolError as error:
                self._refuse(site, error)
        closed = self.collecting.close()
        head = to_json({"sites": sorted(closed.received)})
        body = len(head).to_bytes(4, "big") + head + total.result().encode()
        envelope = self._envelope(Kind.AGGREGATE, closed.round_number, body)
        self.store.keep_aggregate(closed.round_number, encode(envelope, self.store.identity))
        self.seconds["sum_s"] = time.perf_counter() - started
        return closed

    def _after(self, replies: Iterable[Message]) -> None:
        self._applied(self.closed, dict(self.links.read(message) for message in replies))

    def _applied(self, number: int, answers: Mapping[str, Reply | LeftOut]) -> None:
        for site, answer in answers.items():
            if isinstance(answer, Reply):
                link = self.links.by_site[site]
                link.round_number = number
                link.model_hash = str(from_json(answer.envelope.body).get("model_hash"))
                self.seconds["open_s"] += answer.metrics.get("open_s", 0.0)
        self._common_version(number)
        applied = len(self.links.at_round(number))
        if number == self.closed and applied < self.plan.federation.min_cohort:
            failed = tuple(answer for answer in answers.values() if isinstance(answer, LeftOut))
            raise too_few(number, applied, self.plan.federation.min_cohort, failed)

    def _common_version(self, number: int) -> str:
        """The hash of the model that every site holds after that round. Raises TrustError when they differ."""
        versions: dict[str, list[str]] = {}
        for site in self.links.at_round(number):
            versions.setdefault(self.links.by_site[site].model_hash, []).append(site)
        if len(versions) > 1:
            raise TrustError(f"after round {number} the sites hold different models: {sorted(versions.values())}")
        return next(iter(versions), "")

    def _envelope(self, kind: Kind, number: int, body: bytes) -> Envelope:
        return Envelope(kind, self.store.run, number, self.store.plan_hash, COORDINATOR, body)


class ReadableRounds(Rounds):
    """A baseline without encryption: the coordinator reads updates and holds the model."""

    update = Kind.READABLE_UPDATE

    def __init__(self, store: RunStore, links: Links, state: ModelState, on_round: OnRound) -> None:
        super().__init__(store, links, state.round_number, on_round)
        self.state = state

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []

    def _order(self, number: int) -> bytes:
        body = self.state.model.astype("<f4").tobytes()
        return encode(Envelope(Kind.READABLE_ORDER, self.store.run, number, self.store.plan_hash, COORDINATOR, body))

    def _check(self, body: bytes) -> None:
        if len(body) != 4 * self.state.model.size:
            raise InvalidUpdate(f"an update of {len(body) / 4:g} values for a model of {self.state.model.size}")
        if not np.isfinite(np.frombuffer(body, "<f4")).all():
            raise InvalidUpdate("the update holds NaN or infinite values")

    def _combine(self) -> Closed:
        started = time.perf_counter()
        closed = self.collecting.close()
        average = mean([np.frombuffer(body, "<f4") for body in closed.received.values()])
        self.state = advance(self.state, average, self.plan.training, self.plan.federation.rounds)
        self.store.keep_state(self.state)
        self.seconds["sum_s"] = time.perf_counter() - started
        return closed

    def _after(self, replies: Iterable[Message]) -> None:
        pass


_PHASES = ("train_s", "encrypt_s", "sum_s", "open_s")
