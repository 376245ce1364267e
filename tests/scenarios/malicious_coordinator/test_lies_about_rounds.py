"""Rounds are not replayed, skipped or prolonged, whatever number the coordinator gives them."""

import pytest

from common.wire import Kind
from tests.by_hand import NAMES, Coordinator

ADLER, BIRKE, CEDAR, _ = NAMES


def test_a_round_that_is_over_gives_nothing_more(attack):
    wanted = attack.wanted(attack.names, attack.first.total)
    shown = {**wanted, "agreed": list(attack.first.agreed)}
    for action, body in [
        ("offer", {}),
        ("agree", wanted),
        ("unmask", shown),
        ("stand_in", {**shown, "silent": [BIRKE]}),
        ("train", attack.training(ADLER, attack.made)),
    ]:
        assert attack.refused(ADLER, action, 1, body)[0] == "WrongRound"


def test_an_earlier_aggregate_is_not_applied_again_as_a_later_one(attack):
    code, message = attack.refused(ADLER, "apply", 2, attack.first.encode(), kind=Kind.AGGREGATE)
    assert code == "TrustError"
    assert "0 sites have agreed" in message


def test_asking_again_for_an_update_gives_the_very_same_bytes(attack):
    """Also under other offers, which would be another mask over the same numbers."""
    fewer = {name: attack.made[name] for name in (ADLER, BIRKE, CEDAR)}
    again = attack.send(ADLER, "train", attack.order(2, attack.training(ADLER, fewer)))
    assert again == attack.updates[ADLER]


@pytest.mark.parametrize("number", [1, 3, 4, 2**32 - 1])
def test_rounds_come_in_order(attack, number):
    assert attack.refused(ADLER, "offer", number)[0] == "WrongRound"
    assert attack.refused(ADLER, "train", number, attack.training(ADLER, attack.made))[0] == "WrongRound"


def test_no_round_beyond_the_plan(tmp_path):
    coordinator = Coordinator.ready(tmp_path / "run", NAMES, "federation.rounds=1")
    coordinator.whole_round(1)
    assert coordinator.refused(ADLER, "offer", 2) == ("WrongRound", "round 2 of a plan for 1 rounds")
    assert coordinator.refused(ADLER, "train", 2, {"model_hash": coordinator.model_hash(ADLER)})[0] == "WrongRound"
    assert len(coordinator.site(ADLER).ledger.entries) == 1


def test_another_model_is_never_trained_on_and_nothing_is_charged(tmp_path):
    coordinator = Coordinator.ready(tmp_path / "run")
    initial = coordinator.model_hash(ADLER)
    coordinator.whole_round(1)
    good = coordinator.training(ADLER, coordinator.offers(2))
    for version in (initial, "00" * 32, None, 5):
        code, message = coordinator.refused(ADLER, "train", 2, {**good, "model_hash": version})
        assert (code, message) == ("TrustError", "the coordinator expects another model than the one this site holds")
    assert len(coordinator.site(ADLER).ledger.entries) == 1
