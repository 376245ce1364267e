"""Proves: who comes to the consortium or is revoked while a run goes on changes nothing of what has begun."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message

from common.certificates import read_roots
from common.roster import Roster, install
from common.signing import Identity
from common.wire import decode, encode, from_hex
from scenarios.by_hand import restart
from scenarios.simulate import simulate
from scenarios.simulation import identity_at
from server.key_relay import KeyRelay
from server.mask_relay import MaskRelay
from server.store import RunStore
from tests.by_hand import NAMES, Coordinator, envelope_of, with_envelope, workplace
from tests.server.test_mask_relay import DirectLinks, silent

ADLER, BIRKE, CEDAR, DORN = NAMES


@pytest.fixture
def played(tmp_path):
    made = Coordinator.ready(tmp_path / "run")
    made.store.keep_ceremony(1, {"joined": made.joined, "made": made.made_key})
    return made


def change_roster(played: Coordinator) -> None:
    """Dorn is revoked and esche admitted; everybody else has it from the consortium's root."""
    home = played.store.directory.parents[1]
    parties = [home, *(played.directories[name] for name in (ADLER, BIRKE, CEDAR))]
    put_on_roster(home.parent, parties, Identity.generate(), revoked=frozenset({DORN}))
    restart()


def put_on_roster(out: Path, parties: Sequence[Path], esche: Identity, revoked: frozenset[str] = frozenset()) -> None:
    held = Roster.read(out / "coordinator" / "roster.json")
    keys = {**held.keys, "esche": esche.public}
    changed = replace(held, keys=keys, revoked=revoked, version=held.version + 1)
    signed = changed.signed([identity_at(out / "consortium", "root.key")])
    for place in parties:
        install(place, signed, read_roots((out / "consortium" / "roots.pem").read_bytes()))


class Changing(DirectLinks):
    """The roster changes just before that action is asked for; dorn does not answer from then on."""

    def __init__(self, played: Coordinator, action: str) -> None:
        super().__init__(played)
        self.action = action

    def exchange(self, message_type, *rest):
        if message_type == f"query.{self.action}" and not self.changes:
            change_roster(self.played)
            self.changes = {(DORN, action): silent for action in ("agree", "unmask", "stand_in")}
        return super().exchange(message_type, *rest)


@pytest.mark.parametrize("action", ["agree", "unmask", "stand_in"])
@pytest.mark.parametrize("summed", [NAMES, NAMES[:3]], ids=["its update is in the sum", "it is not"])
def test_a_round_that_has_begun_with_a_site_ends_though_it_is_revoked(played, action, summed):
    relay = MaskRelay(played.store, Changing(played, action))  # type: ignore[arg-type]
    orders = relay.orders(1, played.names, played.model_hash(ADLER))
    total = played.total([played.send(name, "train", orders[name]) for name in summed])
    published = relay.publish(1, list(summed), played.model_hash(ADLER), total)
    if not played.site(ADLER).roster.revoked:
        change_roster(played)  # nobody had to stand in
    played.apply(1, published, NAMES[:3])
    assert len({played.model_hash(name) for name in NAMES[:3]}) == 1


def test_a_round_begins_though_a_site_was_revoked_just_after_it_had_offered_masks(played):
    relay = MaskRelay(played.store, DirectLinks(played))  # type: ignore[arg-type]
    orders = relay.orders(1, played.names, played.model_hash(ADLER))
    change_roster(played)
    total = played.total([played.send(name, "train", orders[name]) for name in NAMES[:3]])
    relay.links.changes = {(DORN, action): silent for action in ("agree", "unmask", "stand_in")}
    played.apply(1, relay.publish(1, list(NAMES[:3]), played.model_hash(ADLER), total), NAMES[:3])


def test_what_a_revoked_site_still_says_is_not_shown_as_an_agreement(played):
    """Dorn has not heard of it, and answers as ever."""
    relay = MaskRelay(played.store, DirectLinks(played))  # type: ignore[arg-type]
    version = played.model_hash(ADLER)
    orders = relay.orders(1, played.names, version)
    total = played.total(played.send(name, "train", order) for name, order in orders.items())
    change_roster(played)
    published = relay.publish(1, list(NAMES), version, total)
    assert [played.read(from_hex(said)).sender for said in published.agreed] == list(NAMES[:3])
    played.apply(1, published, NAMES[:3])


def test_a_revoked_site_that_offers_masks_is_given_no_order(played):
    relay = MaskRelay(played.store, DirectLinks(played))  # type: ignore[arg-type]
    change_roster(played)
    assert sorted(relay.orders(1, played.names, played.model_hash(ADLER))) == list(NAMES[:3])


def test_who_was_revoked_does_not_count_among_offers(played):
    made = played.offers(1)
    few = {name: made[name] for name in (ADLER, BIRKE, DORN)}
    change_roster(played)
    assert "2 sites offer masks" in played.refused(ADLER, "train", 1, played.training(ADLER, few))[1]


def test_who_was_revoked_does_not_count_on_a_list(played):
    few = (ADLER, BIRKE, DORN)
    updates = played.train(1, played.offers(1))
    wanted = played.wanted(few, played.total(updates[name] for name in few))
    change_roster(played)
    assert "a sum of 2 sites is not opened" in played.refused(ADLER, "agree", 1, wanted)[1]


def test_a_coordinator_that_starts_again_after_a_site_was_revoked_ends_its_round(played):
    relay = MaskRelay(played.store, DirectLinks(played))  # type: ignore[arg-type]
    orders = relay.orders(1, played.names, played.model_hash(ADLER))
    total = played.total(played.send(name, "train", order) for name, order in orders.items())
    change_roster(played)
    links = DirectLinks(played)
    del links.by_site[DORN]  # it cannot join again
    again = MaskRelay(RunStore.open(played.store.directory), links)  # type: ignore[arg-type]
    played.apply(1, again.publish(1, list(NAMES), played.model_hash(ADLER), total), NAMES[:3])


def test_the_next_key_is_made_without_a_site_that_was_revoked(tmp_path):
    """It has announced an exchange key for it while it belonged."""
    played = Coordinator.ready(tmp_path / "run", NAMES, "encryption.key_rounds=1")
    played.store.keep_ceremony(2, {"joined": played.coming})
    played.whole_round(1)
    relay = KeyRelay(played.store, DirectLinks(played), {})  # type: ignore[arg-type]
    change_roster(played)
    assert relay.ready(2, NAMES[:3], 3) == list(NAMES[:3])
    assert sorted(played.store.ceremony(2)["joined"]) == list(NAMES[:3])


def test_a_run_goes_on_with_the_cohort_that_it_began_with(played):
    change_roster(played)
    store = RunStore.open(played.store.directory)
    assert store.roster.sites == (ADLER, BIRKE, CEDAR, "esche")
    assert store.cohort == NAMES
    played.join([ADLER, BIRKE, CEDAR])


def test_who_has_the_key_takes_it_again_from_a_coordinator_that_starts_again(played):
    """It was made for dorn as well, while it belonged."""
    change_roster(played)
    relay = KeyRelay(RunStore.open(played.store.directory), DirectLinks(played), {})  # type: ignore[arg-type]
    assert relay.ready(1, NAMES[:3], 3) == list(NAMES[:3])


@pytest.mark.parametrize(("maker", "taken"), [(BIRKE, True), (DORN, False)])
def test_a_new_key_of_a_revoked_maker_is_not_taken_and_one_that_was_made_for_it_is(tmp_path, maker, taken):
    played = Coordinator(workplace(tmp_path / "run"))
    played.join()
    made = played.ask(maker, "make_key", 1, {"joined": played.joined}).hex()
    change_roster(played)
    order = {"joined": played.joined, "made": made}
    if taken:
        assert "announcement" in played.body(played.ask(ADLER, "install_key", 1, order))
    else:
        assert "revoked" in played.refused(ADLER, "install_key", 1, order)[1]
    assert "revoked" in played.refused(CEDAR, "make_key", 1, {"joined": played.joined})[1]


def test_nobody_joins_a_run_that_began_without_it(tmp_path):
    """Esche is on the roster now, and says that it takes part."""
    place, esche = workplace(tmp_path / "run"), Identity.generate()
    put_on_roster(place.out, [place.out / "coordinator"], esche)

    def network(reply: Message) -> Iterable[Message]:
        if reply.metadata.message_type == "query.join" and reply.metadata.src_node_id == 2:
            said = decode(envelope_of(reply), RunStore.open(place.run).roster.public_key_of)
            reply = with_envelope(reply, encode(replace(said, sender="esche"), esche))
        return (reply,)

    report = simulate(place, deliver=network)
    assert all(len(record["sites"]) == 3 and "esche" not in record["sites"] for record in report["rounds"])
    assert "not in this run's cohort" in (place.out / "coordinator" / "audit.jsonl").read_text()


def test_no_run_begins_with_a_site_that_was_revoked(played):
    change_roster(played)
    order = played.order(0, played.join_order(), run=bytes(16))
    code, message = played.refuses(ADLER, "join", order)
    assert (code, "not on the roster" in message) == ("TrustError", True)


def test_what_a_revoked_site_has_signed_does_not_count_towards_an_agreement(played):
    """Three of four must agree: of adler, birke and dorn only two are left once dorn is revoked."""
    relay = MaskRelay(played.store, DirectLinks(played))  # type: ignore[arg-type]
    orders = relay.orders(1, played.names, played.model_hash(ADLER))
    total = played.total(played.send(name, "train", order) for name, order in orders.items())
    shown = played.wanted(NAMES, total)
    agreed = dict(zip(NAMES, played.agree(1, shown), strict=True))
    few = {**shown, "agreed": [agreed[name] for name in (ADLER, BIRKE, DORN)]}
    assert "self" in played.body(played.ask(ADLER, "unmask", 1, few))
    change_roster(played)
    assert "2 sites have agreed" in played.refused(ADLER, "unmask", 1, few)[1]
    enough = {**shown, "agreed": [agreed[name] for name in (ADLER, BIRKE, CEDAR, DORN)]}
    assert "self" in played.body(played.ask(ADLER, "unmask", 1, enough))
