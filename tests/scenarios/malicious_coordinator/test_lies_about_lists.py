"""One list for one round, whatever the coordinator says of who sent; no mask is lifted unless enough sites agree."""

import dataclasses
from itertools import combinations

import pytest

from common.keystore import load_secret
from common.masking import Lifting
from common.roster import COORDINATOR
from common.signing import Identity
from common.wire import Kind, encode, from_hex
from tests.by_hand import NAMES, run_of

ADLER, BIRKE, CEDAR, DORN = NAMES


# One list for one round.


def test_different_lists_for_different_sites_never_gain_the_threshold_twice(attack):
    """Every way to ask each site for one of two lists, first come first served: at most one list is agreed on."""
    lists = [list(chosen) for size in (3, 4) for chosen in combinations(NAMES, size)]
    first, second = lists[0], lists[-1]
    agreed = {tuple(first): set(), tuple(second): set()}
    for place, name in enumerate(NAMES):
        for received in (first, second) if place % 2 else (second, first):
            said = attack.read(attack.send(name, "agree", attack.order(2, attack.wanted(received, b"sum"))))
            if said.kind is Kind.ANSWER:
                agreed[tuple(received)].add(name)
    assert sum(len(names) >= attack.threshold for names in agreed.values()) <= 1
    assert not set.intersection(*agreed.values())


def test_an_honest_site_refuses_a_second_list_for_ever(attack):
    first, second = attack.wanted([ADLER, BIRKE, CEDAR], b"sum"), attack.wanted([ADLER, BIRKE, DORN], b"sum")
    answered = attack.ask(ADLER, "agree", 2, first)
    for _ in range(3):
        assert attack.refused(ADLER, "agree", 2, second)[0] == "TrustError"  # restarts the site each time
    assert attack.ask(ADLER, "agree", 2, first) == answered


def test_a_second_sum_of_the_same_list_is_another_list(attack):
    attack.ask(ADLER, "agree", 2, attack.wanted(attack.names, b"sum"))
    assert attack.refused(ADLER, "agree", 2, attack.wanted(attack.names, b"other"))[0] == "TrustError"


def test_a_site_that_has_sent_nothing_agrees_to_nothing(attack):
    """Not even when it has seen the offers: its update would come after its self seed."""
    (run_of(attack, ADLER).directory / "update-000002").unlink()
    code, message = attack.refused(ADLER, "agree", 2, attack.wanted(attack.names, b"sum"))
    assert (code, message) == ("WrongRound", "this site sent nothing in round 2")


@pytest.mark.parametrize(
    "received",
    [[ADLER, ADLER, BIRKE, CEDAR], [CEDAR, BIRKE, ADLER], [ADLER, BIRKE, "mallory"], [ADLER, BIRKE, COORDINATOR]],
    ids=["doubled", "disordered", "stranger", "coordinator"],
)
def test_a_list_is_sorted_without_doubles_or_strangers(attack, received):
    body = {"received": received, "sum": "00" * 32}
    assert attack.refused(ADLER, "agree", 2, body)[0] == "TrustError"


def test_a_site_that_sent_its_update_is_not_dropped(attack):
    """It says so, and nobody gives away what would bare it."""
    rest = [ADLER, BIRKE, CEDAR]
    wanted = attack.wanted(rest, attack.total(attack.updates[name] for name in rest))
    assert attack.refused(DORN, "agree", 2, wanted) == (
        "TrustError",
        "this site sent its update for round 2 and is not on the list",
    )
    shown = {**wanted, "agreed": attack.agree(2, wanted)}
    assert attack.refused(DORN, "unmask", 2, shown)[0] == "TrustError"
    code, message = attack.refused(ADLER, "stand_in", 2, {**shown, "silent": [DORN]})
    assert (code, message) == ("ProtocolError", "only sites on the list can have fallen silent")
    for silent, vanished in (([], []), ([BIRKE], [DORN])):
        given = attack.body(attack.ask(ADLER, "stand_in", 2, {**shown, "silent": silent}))
        assert (list(given["self"]), list(given["keys"])) == (silent, vanished)


def test_an_aggregate_of_another_list_than_the_agreed_one(attack):
    total = attack.total(attack.updates.values())
    published = attack.publish(2, attack.made, attack.names, total)
    fewer = {name: published.lifting.self_seeds[name] for name in (ADLER, BIRKE, CEDAR)}
    other = dataclasses.replace(published, sites=(ADLER, BIRKE, CEDAR), lifting=Lifting(fewer, {}))
    assert attack.refused(ADLER, "apply", 2, other.encode(), kind=Kind.AGGREGATE)[0] == "TrustError"
    relabelled = dataclasses.replace(published, lifting=Lifting(fewer, {}))
    assert attack.refused(ADLER, "apply", 2, relabelled.encode(), kind=Kind.AGGREGATE)[0] == "ProtocolError"


def test_updates_of_sites_on_different_models_do_not_add_up(untrained):
    """One site was led astray before: its peers' agreement does not fit its model, its masks do not cancel theirs."""
    other = dataclasses.replace(run_of(untrained, ADLER).state(), model=run_of(untrained, ADLER).state().model + 1)
    run_of(untrained, ADLER).keep_state(other)
    updates = untrained.train(2, untrained.made)
    total = untrained.total(updates.values())
    wanted = untrained.wanted(untrained.names, total)
    shown = {**wanted, "agreed": untrained.agree(2, wanted)}
    code, message = untrained.refused(ADLER, "unmask", 2, shown)
    assert (code, message) == ("TrustError", "1 sites have agreed on this sum and list, 3 are required")
    published = untrained.publish(2, untrained.made, untrained.names, total, silent=[ADLER])
    code, message = untrained.refused(BIRKE, "apply", 2, published.encode(), kind=Kind.AGGREGATE)
    assert (code, message) == ("ProtocolError", "the aggregate does not open")


# Nothing that lifts a mask without the agreement of enough sites.


@pytest.mark.parametrize("action", ["unmask", "stand_in"])
def test_no_secret_without_enough_agreements(attack, action):
    wanted = attack.wanted(attack.names, b"sum")
    agreed = attack.agree(2, wanted)
    for few in ([], agreed[:2], agreed[:1] * 3, agreed[:2] * 2):
        code, message = attack.refused(ADLER, action, 2, {**wanted, "agreed": few, "silent": []})
        assert code == "TrustError"
        assert f"{len(set(few))} sites have agreed" in message


def test_agreements_of_another_round_run_or_plan_do_not_count(attack):
    wanted = attack.wanted(attack.names, b"sum")
    agreed = attack.agree(2, wanted)
    body = from_hex(agreed[1])
    signer = Identity.from_private_bytes(load_secret(attack.directories[BIRKE] / "identity.key", None))
    honest = attack.read(body)
    strays = [
        list(attack.first.agreed),
        *(
            [agreed[0], agreed[2], encode(dataclasses.replace(honest, **change), signer).hex()]
            for change in ({"round_number": 1}, {"run": bytes(16)}, {"plan": bytes(32)}, {"kind": Kind.OFFER})
        ),
    ]
    for stray in strays:
        assert attack.refused(ADLER, "unmask", 2, {**wanted, "agreed": stray})[0] == "TrustError"


def test_agreement_of_a_site_that_is_not_on_the_list_does_not_count(attack):
    """Its signature is true, but a sum is agreed on by those who are in it."""
    rest = [ADLER, BIRKE, CEDAR]
    wanted = attack.wanted(rest, b"sum")
    agreed = attack.agree(2, wanted)
    signer = Identity.from_private_bytes(load_secret(attack.directories[DORN] / "identity.key", None))
    forged = encode(dataclasses.replace(attack.read(from_hex(agreed[0])), sender=DORN), signer).hex()
    assert attack.refused(ADLER, "unmask", 2, {**wanted, "agreed": [*agreed[:2], forged]})[0] == "TrustError"


def test_a_list_that_this_site_did_not_sign_itself_opens_nothing_here(attack):
    wanted = attack.wanted(attack.names, b"sum")
    agreed = attack.agree(2, wanted, [BIRKE, CEDAR, DORN])
    code, message = attack.refused(ADLER, "unmask", 2, {**wanted, "agreed": agreed})
    assert (code, message) == ("TrustError", "this site has not agreed on that sum and list for round 2")


def test_stand_in_shares_of_both_kinds_are_never_given_for_one_site(attack):
    """Cedar is on the list, so only shares of its self seed; dorn is not, so only shares of its mask key."""
    rest = [ADLER, BIRKE, CEDAR]
    wanted = attack.wanted(rest, b"sum")
    shown = {**wanted, "agreed": attack.agree(2, wanted)}
    for silent in ([CEDAR], [], [ADLER, CEDAR], [BIRKE]):
        given = attack.body(attack.ask(ADLER, "stand_in", 2, {**shown, "silent": silent}))
        assert set(given["self"]) == set(silent) - {ADLER}
        assert set(given["keys"]) == ({DORN} if silent else set())
    other = attack.wanted(attack.names, b"sum")
    assert attack.refused(ADLER, "stand_in", 2, {**other, "agreed": shown["agreed"], "silent": [DORN]})[0] == (
        "TrustError"
    )
