"""The rounds as a Flower Strategy: orders out, updates in, a result out, and a record of what happened.

Flower's own loop drives it: `train` collects updates, `evaluate` carries a result back. What a result is depends on
the run: see `encrypted_rounds.py`, and here `ReadableRounds` for baselines without encryption.
"""

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from common.audit import RoundClosed
from common.buckets import Buckets, filled, require_full_enough, shuffled
from common.errors import FederationError, InvalidUpdate, LateUpdate
from common.fair_update import step
from common.federation import Plan
from common.model_state import ModelState, advance
from common.robust_rules import length
from common.robust_update import robust_update
from common.roster import COORDINATOR
from common.spans import span
from common.updates import Vector
from common.wire import Bytes, Envelope, Kind, encode
from server.aggregate_clear import mean
from server.links import Links, Reply
from server.round import Closed, Collecting, LeftOut
from server.store import RunStore

ROUND_TIMEOUT_SECONDS = 3600.0
_ROUNDED = 1e-6  # relative: what single precision may add to a clipped update
OnRound = Callable[[Mapping[str, Any]], None]


class Rounds(Strategy):
    """What both kinds of run share. `closed` is the number of the last closed round."""

    update: Kind

    def __init__(self, store: RunStore, links: Links, closed: int, on_round: OnRound) -> None:
        self.store, self.links, self.closed, self.on_round = store, links, closed, on_round
        self.plan: Plan = store.plan
        self.required = self.plan.fewest_sites(len(store.cohort))  # the sites open nothing of fewer
        self._begin()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._begin()
        number = self.closed + 1
        with span("prepare"):
            orders = self._orders(number)
        self.collecting = Collecting(
            self.store.run,
            self.store.plan_hash,
            number,
            frozenset(orders),
            self.required,
            self.update,
        )
        return self.links.messages("train", orders, number)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        with span("updates") as tell:
            for message in replies:
                self._take(message)
                del message  # a large one is gone before the next is fetched, and before they are summed
            tell(
                cohort=len(self.collecting.received),
                train_seconds=self.seconds["train_s"],
                encrypt_seconds=self.seconds["encrypt_s"],
            )
        closed = self._combine()
        self.closed = closed.round_number
        self.left_out, self.late = closed.left_out, closed.late
        return None, None

    def _take(self, message: Message) -> None:
        site, answer = self.links.read(message)
        if isinstance(answer, LeftOut):
            self.collecting = self.collecting.leave_out(answer)
            return
        try:
            self.collecting = self.collecting.receive(answer.envelope)
            self.collecting = self.collecting.keep(site, self._check(site, answer.envelope.body))
            self._note(site, answer)
        except LateUpdate as error:
            self.collecting = self.collecting.drop(LeftOut.because(site, error))
        except FederationError as error:
            self._refuse(site, error)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        with span("results") as tell:
            self._after(replies)
            tell(open_seconds=self.seconds["open_s"])
        record = {
            "round": self.closed,
            "seconds": time.perf_counter() - self.started,
            **self.seconds,
            "sites": sorted(self.collecting.received),
            "left_out": [left.to_json() for left in self.left_out],
            "late": [left.to_json() for left in self.late],
            "epsilon": self.epsilon,
            "reported": self.reported,
            "fairness": self.fairness,
            "importance": self.importance,
            **({"buckets": self.buckets} if self.plan.robustness.buckets else {}),
            "bytes_up": {site: link.bytes_up for site, link in sorted(self.links.by_site.items())},
        }
        self.store.record_round(record)
        left_out = tuple(map(str, (*self.left_out, *self.late)))
        summed = tuple(sorted(self.collecting.received))
        self.store.audit.note(RoundClosed(self.store.run.hex(), self.closed, summed, left_out, self._model_hash()))
        self.on_round(record)
        return None

    def summary(self) -> None:
        """Nothing: the run's own records say more."""

    def _begin(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = dict.fromkeys(_PHASES, 0.0)
        self.epsilon: dict[str, float] = {}
        self.reported: dict[str, Any] = {}
        self.fairness: dict[str, Any] = {}
        self.importance: dict[str, Any] = {}
        self.buckets: list[dict[str, Any]] = []

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """One of the round's own, for its record and as a span."""
        started = time.perf_counter()
        with span(name):
            yield
        self.seconds[f"{name}_s"] = time.perf_counter() - started

    def _note(self, site: str, answer: Reply) -> None:
        for phase in _PHASES:
            self.seconds[phase] += answer.metrics.get(phase, 0.0)
        if "epsilon" in answer.metrics:
            self.epsilon[site] = answer.metrics["epsilon"]

    def _refuse(self, site: str, error: FederationError) -> None:
        left = LeftOut.because(site, error)
        self.links.by_site[site].refusals.append(left)
        self.collecting = self.collecting.leave_out(left)

    @abstractmethod
    def _orders(self, number: int) -> Mapping[str, bytes]:
        """This round's order for every site that is asked."""

    @abstractmethod
    def _check(self, site: str, body: Bytes) -> Bytes:
        """What to keep of the body of a site's update. Raises FederationError when it cannot be what it says."""

    @abstractmethod
    def _combine(self) -> Closed:
        """Close the round and put its result on disk."""

    @abstractmethod
    def _model_hash(self) -> str:
        """Of the model after the round that closed last."""

    @abstractmethod
    def _after(self, replies: Iterable[Message]) -> None:
        """Take in the sites' answers to the sum."""


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

    def _orders(self, number: int) -> Mapping[str, bytes]:
        body = self.state.model.astype("<f4").tobytes()
        order = encode(Envelope(Kind.READABLE_ORDER, self.store.run, number, self.store.plan_hash, COORDINATOR, body))
        return dict.fromkeys(sorted(self.links.by_site), order)

    def _check(self, site: str, body: Bytes) -> Bytes:
        values, weighs = self.state.model.size, self.plan.training.q > 0
        if len(body) != 4 * (values + weighs):
            raise InvalidUpdate(f"an update of {len(body) / 4:g} values for a model of {values}")
        update = np.frombuffer(body, "<f4")
        if not np.isfinite(update).all() or (weighs and update[-1] <= 0):
            raise InvalidUpdate("the update holds NaN or infinite values, or weighs nothing")
        most = self.plan.privacy.max_update_norm
        if self.plan.privacy.mode != "none" and length(update.astype(np.float64)) > most * (1 + _ROUNDED):
            raise InvalidUpdate(f"the update is longer than privacy.max_update_norm = {most:g}, to which sites clip")
        return body

    def _combine(self) -> Closed:
        with self._phase("sum"):
            closed = self.collecting.close()
            update = self._robust_update({site: np.frombuffer(body, "<f4") for site, body in closed.received.items()})
            self.state = advance(self.state, update, self.plan.training, self.plan.federation.rounds)
            self.store.keep_state(self.state)
        return closed

    def _robust_update(self, updates: Mapping[str, NDArray[np.float32]]) -> Vector:
        """What the plan's rule makes of them, each alone or the means of buckets, as under encryption."""
        settings, number = self.plan.robustness, self.collecting.round_number
        if settings.rule == "mean":
            average = mean(list(updates.values()))
            return step(average) if self.plan.training.q else average
        buckets: Buckets = tuple((site,) for site in updates)
        if settings.buckets:
            sites, model = self.store.cohort, self.state.model_hash
            buckets = shuffled(sites, settings.buckets, self.store.run, number, model)
        summed = filled(buckets, updates)
        require_full_enough(self.plan, summed, self.plan.federation.min_cohort if settings.buckets else 1)
        if settings.buckets:
            self.buckets = [{"sites": list(bucket), "code": ""} for bucket in summed]
        means = [mean([updates[site] for site in bucket]) for bucket in summed]
        return robust_update(means, [math.inf] * len(means), settings).values

    def _after(self, replies: Iterable[Message]) -> None:
        pass

    def _model_hash(self) -> str:
        return self.state.model_hash.hex()


_PHASES = ("train_s", "encrypt_s", "sum_s", "unmask_s", "open_s")
