"""Rounds whose updates the coordinator cannot read: it sums blind, has the masks lifted, and relays the sum.

It never holds the model: the sites open the sum, apply it and answer with the hash of what they hold.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import IO, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from common.buckets import filled
from common.errors import FederationError, TrustError, WireError
from common.evaluators import importance
from common.evaluators.counts import estimates
from common.evaluators.groups import GroupCounts
from common.evaluators.utility import Estimate
from common.he.ciphertexts import Ciphertext
from common.he.parameters import Scheme
from common.layout import Layout, group_cells
from common.metrics import MetricsCode
from common.robust_update import BROKEN
from common.roster import COORDINATOR
from common.wire import Bytes, Envelope, Kind, encode_parts, from_json
from server.aggregate_encrypted import BlindSum
from server.fairness import by_group
from server.key_relay import KeyRelay
from server.links import Links, Reply
from server.mask_relay import MaskRelay
from server.quarantine import quarantined
from server.round import Closed, LeftOut, too_few
from server.store import RunStore
from server.strategy import ROUND_TIMEOUT_SECONDS, OnRound, Rounds

TOO_SMALL = "BucketTooSmall"


class EncryptedRounds(Rounds):
    """The coordinator sums what it cannot read and relays the sum. It never holds the model."""

    update = Kind.UPDATE

    def __init__(
        self,
        store: RunStore,
        links: Links,
        keys: KeyRelay,
        closed: int,
        on_round: OnRound,
        scheme: Scheme,
        parameters: int,
    ) -> None:
        super().__init__(store, links, closed, on_round)
        self.keys, self.scheme, self.parameters = keys, scheme, parameters
        self.relay = MaskRelay(store, links)
        self._kept_out: tuple[LeftOut, ...] = ()
        self.catch_up()
        if store.has_sum(closed + 1):  # the process stopped between the sum and its publication
            self.version = self._common_version(closed)
            self._publish(closed + 1)
            self.closed = closed + 1
            store.fill_gap(self.closed)
            self.catch_up()

    def catch_up(self) -> None:
        """Send each site that missed rounds the sums that it lacks, oldest first."""
        for number in range(min(link.round_number for link in self.links.by_site.values()) + 1, self.closed + 1):
            behind = self.links.at_round(number - 1)
            self.keys.hand_out(number, behind)
            orders = dict.fromkeys(behind, self.store.aggregate(number))
            self._applied(number, self.links.exchange("evaluate", orders, number, ROUND_TIMEOUT_SECONDS))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        orders = dict.fromkeys(self.links.at_round(self.closed - 1), self.store.aggregate(self.closed))
        return self.links.messages("evaluate", orders, self.closed)

    def _orders(self, number: int) -> Mapping[str, bytes]:
        self.catch_up()
        self.version = self._common_version(self.closed)
        ready = self.keys.ready(number, self.links.at_round(self.closed), self.required)
        self.relay.take(number, self.keys.offers.pop(number, {}))
        self._kept_out = quarantined(self.store.rounds(), self.plan, self.store.cohort)
        kept_out = {left.site for left in self._kept_out}
        return self.relay.orders(number, [site for site in ready if site not in kept_out], self.version)

    def _begin(self) -> None:
        super()._begin()
        self._aside: dict[str, IO[bytes]] = {}

    def _check(self, site: str, body: Bytes) -> Bytes:
        """Set aside on disk, as only one site's update is ever in memory; its words are looked at when it is summed."""
        if body[:32].hex() != self.version:
            raise TrustError("the update was trained on another model")
        length = self.scheme.message_bytes(self._length(self.collecting.round_number))
        if len(body) != 32 + length:
            raise WireError(f"{len(body) - 32} bytes of ciphertext, expected {length}")
        self._aside[site] = self.store.set_aside(body[32:])
        return b""

    def _combine(self) -> Closed:
        with self._phase("sum"):
            closed = self._sum()
        self._publish(closed.round_number)
        return closed

    def _length(self, number: int) -> int:
        return Layout.of(self.plan, self.parameters, number).length

    def _sum(self) -> Closed:
        """Add what was set aside, bucket by bucket, one update after the other; the sums are on disk afterwards."""
        number, totals = self.collecting.round_number, []
        fewest = self.plan.federation.min_cohort if self.plan.robustness.buckets else 0
        for bucket in filled(self.relay.buckets(number, self.version), self.collecting.received):
            total, added = self._sum_of(bucket)
            if len(added) < fewest:
                self._leave_out(added)
            elif added:
                totals.append(total)
                self.buckets.append({"sites": added, "code": ""})
        closed = self.collecting.close()
        if len(totals) < self.plan.fewest_vectors:
            raise too_few(number, len(totals), self.plan.fewest_vectors, closed.left_out, "buckets")
        self.summed = len(closed.received)
        self.store.keep_sum(closed.round_number, sorted(closed.received), totals)
        return replace(closed, left_out=(*closed.left_out, *self._kept_out))

    def _sum_of(self, bucket: Iterable[str]) -> tuple[memoryview, list[str]]:
        """The encrypted sum, and those whose updates are in it."""
        length = self._length(self.collecting.round_number)
        total, added = BlindSum(self.scheme, length), []
        for site in bucket:
            try:
                with self._aside.pop(site) as file:
                    file.seek(0)
                    total.add(Ciphertext.decode(self.scheme, length, file.read()))
                added.append(site)
            except FederationError as error:
                self._refuse(site, error)
        return total.message() if added else memoryview(b""), added

    def _leave_out(self, sites: list[str]) -> None:
        """Sites whose bucket is too small to be opened: what they sent stays masked."""
        for site in sites:
            told = f"{len(sites)} sites of its bucket could be summed, fewer than are ever opened"
            self.collecting = self.collecting.leave_out(LeftOut(site, TOO_SMALL, told))

    def _publish(self, number: int) -> None:
        """Have the masks of the stored sum lifted, and put sum and lifting on disk as the sites will receive them."""
        with self._phase("unmask"):
            received, total = self.store.sum(number)
            published = self.relay.publish(number, received, self.version, total)
            envelope = Envelope(Kind.AGGREGATE, self.store.run, number, self.store.plan_hash, COORDINATOR, b"")
            self.store.keep_aggregate(number, encode_parts(envelope, published.parts(), self.store.identity))

    def _after(self, replies: Iterable[Message]) -> None:
        said = self._applied(self.closed, dict(self.links.read(message) for message in replies))
        self._take_counts(said.get("counts", []))
        self._leave_out_broken(said.get("broken", []))

    def _leave_out_broken(self, places: list[Any]) -> None:
        """Buckets that the sites opened and did not use, each named with all its sites: nobody can tell who it was."""
        if not all(type(place) is int and 0 <= place < len(self.buckets) for place in places):
            raise WireError(f"buckets {places} of {len(self.buckets)} are said to be broken")
        for bucket in (self.buckets[place] for place in places):
            bucket["code"] = BROKEN
            told = f"the sum of {', '.join(bucket['sites'])} is longer than clipped updates add up to: one did not clip"
            self.left_out = (*self.left_out, *(LeftOut(site, BROKEN, told) for site in bucket["sites"]))

    def _model_hash(self) -> str:
        return self._common_version(self.closed)

    def _applied(self, number: int, answers: Mapping[str, Reply | LeftOut]) -> dict[str, list[Any]]:
        """Take in what the sites say after a sum: the model they hold now, and what enough of them found in it."""
        found: dict[str, list[str]] = {}
        for site, answer in answers.items():
            if isinstance(answer, Reply) and (said := _said_after(answer.envelope, number)) is not None:
                link = self.links.by_site[site]
                link.round_number, link.model_hash = number, str(said.get("model_hash"))
                lists = {key: said[key] for key in ("broken", "counts") if isinstance(said.get(key), list)}
                found.setdefault(json.dumps(lists), []).append(site)
                self._note(site, answer)
        self._common_version(number)
        applied = len(self.links.at_round(number))
        if number == self.closed and applied < self.plan.federation.min_cohort:
            failed = tuple(answer for answer in answers.values() if isinstance(answer, LeftOut))
            raise too_few(number, applied, self.plan.federation.min_cohort, failed)
        agreed = [said for said, sites in found.items() if len(sites) >= self.required]
        return json.loads(agreed[0]) if agreed else {}

    def _take_counts(self, counts: list[Any]) -> None:
        """Note what this round's opened counts say of the model before it; nothing when there are none to believe."""
        if not counts:
            return
        layout, plan = Layout.of(self.plan, self.parameters, self.closed), self.plan
        if len(counts) != layout.counted or not all(type(count) is int for count in counts):
            raise WireError(f"{len(counts)} counts were opened in round {self.closed}, the plan has {layout.counted}")
        opened, kinds = np.array(counts, np.int64), layout.kinds
        codes = MetricsCode.of(plan, len(self.store.cohort), self.scheme.value_bits, self.closed)
        sums = {kind: codes[kind].decode(opened[place]) for kind, place in kinds.items()}
        noise = {kind: code.noise_in_sum(self.summed) for kind, code in codes.items()}
        self.reported = _plain(estimates(sums["counts"], plan.model.classes, noise["counts"]))
        if cells := group_cells(plan):
            self.fairness = by_group(GroupCounts(cells, sums["groups"], noise["groups"]))
        if layout.importance:
            asked = plan.metrics.importance
            self.importance = _plain(importance.estimates(sums["importance"], asked, noise["importance"]))

    def _common_version(self, number: int) -> str:
        """The hash of the model that every site holds after that round. Raises TrustError when they differ."""
        versions: dict[str, list[str]] = {}
        for site in self.links.at_round(number):
            versions.setdefault(self.links.by_site[site].model_hash, []).append(site)
        if len(versions) > 1:
            raise TrustError(f"after round {number} the sites hold different models: {sorted(versions.values())}")
        return next(iter(versions), "")


def _plain(found: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in found.items()}


def _said_after(envelope: Envelope, number: int) -> dict[str, Any] | None:
    """A site's answer to the sum of that round; None when it says anything else."""
    if (envelope.kind, envelope.round_number) != (Kind.ANSWER, number):
        return None
    try:
        return from_json(envelope.body)
    except WireError:
        return None
