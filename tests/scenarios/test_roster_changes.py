"""Proves: who comes to the consortium or is revoked while a run goes on changes nothing of what has begun."""

from dataclasses import replace

import pytest

from common.certificates import read_roots
from common.roster import Roster, install
from common.signing import Identity
from scenarios.by_hand import restart
from scenarios.simulation import identity_at
from server.mask_relay import MaskRelay
from server.store import RunStore
from tests.by_hand import NAMES, Coordinator
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
    consortium = home.parent / "consortium"
    held = Roster.read(home / "roster.json")
    keys = {**held.keys, "esche": Identity.generate().public}
    changed = replace(held, keys=keys, revoked=frozenset({DORN}), version=held.version + 1)
    signed = changed.signed([identity_at(consortium, "root.key")])
    roots = read_roots((consortium / "roots.pem").read_bytes())
    for place in (home, *(played.directories[name] for name in (ADLER, BIRKE, CEDAR))):
        install(place, signed, roots)
    restart()


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


def test_a_coordinator_that_starts_again_after_a_site_was_revoked_ends_its_round(played):
    relay = MaskRelay(played.store, DirectLinks(played))  # type: ignore[arg-type]
    orders = relay.orders(1, played.names, played.model_hash(ADLER))
    total = played.total(played.send(name, "train", order) for name, order in orders.items())
    change_roster(played)
    links = DirectLinks(played)
    del links.by_site[DORN]  # it cannot join again
    again = MaskRelay(RunStore.open(played.store.directory), links)  # type: ignore[arg-type]
    played.apply(1, again.publish(1, list(NAMES), played.model_hash(ADLER), total), NAMES[:3])


def test_a_run_goes_on_with_the_cohort_that_it_began_with(played):
    change_roster(played)
    store = RunStore.open(played.store.directory)
    assert store.roster.sites == (ADLER, BIRKE, CEDAR, "esche")
    assert store.cohort == NAMES
    played.join([ADLER, BIRKE, CEDAR])


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
