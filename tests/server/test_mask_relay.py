"""The coordinator's part in the mask protocol, facing sites that lie, fall silent or are not there."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from common.errors import CohortTooSmall, FederationError, ProtocolError
from common.keystore import load_secret
from common.masking import Published
from common.signing import Identity
from common.wire import Envelope, Kind, decode, encode, from_hex, from_json, to_json
from server.links import Link, Reply
from server.mask_relay import MaskRelay
from server.round import LeftOut, refusal_of
from tests.by_hand import NAMES, Coordinator, restart

ADLER, BIRKE, CEDAR, DORN = NAMES
Change = Callable[[Envelope], Envelope | None]


class DirectLinks:
    """Real sites, asked without a network. changes: what becomes of one site's answer to one action."""

    def __init__(self, played: Coordinator, changes: Mapping[tuple[str, str], Change] = {}) -> None:
        self.played, self.changes = played, changes
        self.by_site = {name: Link(name, node, 0, "") for node, name in enumerate(played.names, 2)}
        self.asked: list[tuple[str, str]] = []

    def exchange(
        self, message_type: str, orders: Mapping[str, bytes], round_number: int, timeout: float
    ) -> dict[str, Reply | LeftOut]:
        action = message_type.removeprefix("query.")
        answers: dict[str, Reply | LeftOut] = {}
        for site, data in orders.items():
            self.by_site[site]  # as `Links.send`: only sites that joined can be asked
            self.asked.append((site, action))
            said = self.played.send(site, action, data)
            if change := self.changes.get((site, action)):
                changed = change(self.played.read(said))
                if changed is None:
                    continue
                said = encode(changed, identity_of(self.played, changed.sender))
            envelope = self.played.read(said)
            answers[site] = refusal_of(envelope) or Reply(envelope, said, {})
        return answers


def identity_of(played: Coordinator, name: str) -> Identity:
    return Identity.from_private_bytes(load_secret(played.directories[name] / "identity.key", None))


def silent(envelope: Envelope) -> None:
    return None


def saying(body: bytes) -> Change:
    return lambda envelope: Envelope(
        Kind.ANSWER, envelope.run, envelope.round_number, envelope.plan, envelope.sender, body
    )


def edited(edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(envelope: Envelope) -> Envelope:
        body = from_json(envelope.body)
        edit(body)
        return saying(to_json(body))(envelope)

    return change


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    made = Coordinator.ready(tmp_path_factory.mktemp("joined") / "run")
    made.store.keep_ceremony(1, {"joined": made.joined, "made": made.made_key})
    return made


@pytest.fixture
def played(joined, tmp_path):
    return joined.copy(tmp_path / "run")


def relay_of(played: Coordinator, changes: Mapping[tuple[str, str], Change] = {}) -> MaskRelay:
    return MaskRelay(played.store, DirectLinks(played, changes))  # type: ignore[arg-type]


def trained(played: Coordinator, relay: MaskRelay, number: int = 1) -> tuple[list[str], bytes]:
    orders = relay.orders(number, played.names, played.model_hash(ADLER))
    updates = {name: played.send(name, "train", order) for name, order in orders.items()}
    return sorted(updates), played.total(updates.values())


def publish(played: Coordinator, relay: MaskRelay, received: list[str], total: bytes, number: int = 1) -> Published:
    return relay.publish(number, received, played.model_hash(received[0]), total)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {(ADLER, "unmask"): silent},
        {(ADLER, "agree"): silent},
        {(ADLER, "unmask"): saying(b"not json")},
        {(ADLER, "unmask"): saying(to_json({"self": "00" * 32, "pairs": {}}))},
        {(ADLER, "unmask"): edited(lambda body: body.update(self=5))},
        {(ADLER, "agree"): saying(to_json({"list": "00" * 32}))},
        {(ADLER, "agree"): saying(b"\xff")},
        {(ADLER, "unmask"): edited(lambda body: body.update(next={"offer": "00"}))},
        {(name, "unmask"): silent for name in NAMES[:3]},
    ],
    ids=[
        "all well",
        "silent to unmask",
        "silent to agree",
        "unreadable",
        "another seed",
        "no seed",
        "another list",
        "no agreement",
        "a bad next offer",
        "three fall silent, and stand in for each other later",
    ],
)
def test_one_site_that_misbehaves_costs_the_others_nothing(played, changes):
    relay = relay_of(played, changes)
    received, total = trained(played, relay)
    played.apply(1, publish(played, relay, received, total))
    assert len({played.model_hash(name) for name in played.names}) == 1


def test_a_site_whose_update_did_not_come_is_unmasked_by_its_peers_seeds(played):
    relay = relay_of(played)
    orders = relay.orders(1, played.names, played.model_hash(ADLER))
    updates = {name: played.send(name, "train", order) for name, order in orders.items() if name != DORN}
    published = publish(played, relay, sorted(updates), played.total(updates.values()))
    assert {gone for _, gone in published.lifting.broken_pairs} == {DORN}
    played.apply(1, published, [ADLER, BIRKE, CEDAR])
    played.apply(1, published, [DORN])  # it catches up, on the agreement of the others


def test_who_was_away_for_a_moment_is_asked_again_before_a_run_is_given_up(played):
    away = iter([True, False])
    changes = {(DORN, "stand_in"): silent, (CEDAR, "stand_in"): silent}
    changes |= {(ADLER, "unmask"): lambda envelope: None if next(away) else envelope}
    relay = relay_of(played, changes)
    received, total = trained(played, relay)
    played.apply(1, publish(played, relay, received, total))
    assert relay.links.asked.count((ADLER, "unmask")) == 2


@pytest.mark.parametrize("action", ["agree", "stand_in"])
def test_too_few_helpers_stop_the_round_and_it_goes_on_when_they_are_back(played, action):
    changes = {(name, action): silent for name in (ADLER, BIRKE)} | {(ADLER, "unmask"): silent}
    relay = relay_of(played, changes)
    received, total = trained(played, relay)
    with pytest.raises((ProtocolError, CohortTooSmall)):
        publish(played, relay, received, total)
    restart()
    played.apply(1, publish(played, relay_of(played), received, total))


def test_a_site_that_has_not_joined_again_is_not_asked(played):
    """After a restart of the coordinator the list may name sites that are away."""
    received, total = trained(played, relay_of(played))
    relay = relay_of(played)
    del relay.links.by_site[BIRKE]
    played.apply(1, publish(played, relay, received, total), [ADLER, CEDAR, DORN])
    assert (BIRKE, "agree") not in relay.links.asked


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body.pop("packages"),
        lambda body: body.update(packages=5),
        lambda body: body["packages"].pop(ADLER),
        lambda body: body.update(packages={"x": "00", "y": "00", "z": "00"}),
        lambda body: body["packages"].update({ADLER: 5}),
        lambda body: body.pop("offer"),
        lambda body: body.update(offer=5),
        lambda body: body.update(offer="00"),
        lambda body: body.update(offer="zz"),
    ],
)
def test_a_site_that_offers_nonsense_is_left_out_and_the_others_train(played, spoil):
    relay = relay_of(played, {(BIRKE, "offer"): edited(spoil)})
    received, total = trained(played, relay)
    assert received == [ADLER, CEDAR, DORN]
    played.apply(1, publish(played, relay, received, total))


def test_an_offer_of_another_site_or_round_is_left_out(played):
    theirs = played.body(played.ask(ADLER, "offer", 1))
    relay = relay_of(played, {(BIRKE, "offer"): edited(lambda body: body.update(offer=theirs["offer"]))})
    assert trained(played, relay)[0] == [ADLER, CEDAR, DORN]


def test_a_site_that_came_after_the_key_ceremony_stops_nobody(played):
    """Nobody has a package for it, and it has no key: the round goes on without it."""
    early = {name: answer for name, answer in played.store.ceremony(1)["joined"].items() if name != BIRKE}
    played.store.keep_ceremony(1, {**played.store.ceremony(1), "joined": early})
    relay = relay_of(played, {(n, "offer"): edited(lambda body: body["packages"].pop(BIRKE)) for n in early})
    assert trained(played, relay)[0] == [ADLER, CEDAR, DORN]


def test_fewer_offers_than_the_threshold_stop_the_round_before_anybody_trains(played):
    relay = relay_of(played, {(name, "offer"): silent for name in (ADLER, BIRKE)})
    with pytest.raises(ProtocolError, match="2 of at least 3"):
        relay.orders(1, played.names, played.model_hash(ADLER))
    assert played.store.offers(1) is None
    assert len(relay_of(played).orders(1, played.names, played.model_hash(ADLER))) == 4


def test_a_restarted_coordinator_shows_the_same_offers(played):
    """Even if a site could offer anew: masks of one round are made of one set of offers."""
    version = played.model_hash(ADLER)
    first = relay_of(played).orders(1, played.names, version)
    assert relay_of(played, {(ADLER, "offer"): silent}).orders(1, played.names, version) == first
    fewer = relay_of(played).orders(1, [ADLER, CEDAR, DORN], version)
    assert set(from_json(played.read(fewer[ADLER]).body)["offers"]) == set(NAMES)


def test_the_next_rounds_offers_come_with_the_seeds_and_save_a_message(played):
    relay = relay_of(played)
    received, total = trained(played, relay)
    played.apply(1, publish(played, relay, received, total))
    relay.links.asked.clear()
    received, total = trained(played, relay, 2)
    assert relay.links.asked == []
    played.apply(2, publish(played, relay, received, total, 2))


def test_what_is_asked_for_is_the_same_sum_after_a_restart(played):
    """Sites agree once: a coordinator that forgot its sum could never finish the round."""
    relay = relay_of(played)
    received, total = trained(played, relay)
    first = publish(played, relay, received, total)
    again = publish(played, relay_of(played), received, total)
    assert (again.sites, again.lifting, again.total) == (first.sites, first.lifting, first.total)
    with pytest.raises(FederationError, match="another sum or list"):
        publish(played, relay_of(played), received[:3], total)


def test_the_coordinator_learns_no_secret_of_a_site_that_is_left_out(played):
    """What it keeps of a round in which dorn's update came too late."""
    relay = relay_of(played)
    orders = relay.orders(1, played.names, played.model_hash(ADLER))
    updates = {name: played.send(name, "train", order) for name, order in orders.items()}
    late = updates.pop(DORN)
    published = publish(played, relay, sorted(updates), played.total(updates.values()))
    assert DORN not in published.lifting.self_seeds
    assert decode(late, played.store.roster.public_key_of).sender == DORN
    run = played.directories[DORN] / "runs" / played.store.run.hex()
    seed = load_secret(run / "masks-000001", None)[:32]
    assert seed.hex().encode() not in published.encode()
    assert from_hex(seed.hex()) == seed
