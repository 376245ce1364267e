"""Every epoch has one key of its own, whatever the coordinator relays."""

import dataclasses

import pytest

from client import cohort_keys
from common.he.keys import wrap
from common.keystore import load_secret
from common.signing import Identity
from common.wire import Kind, encode, from_hex, to_json
from tests.by_hand import NAMES, Coordinator, run_of

ADLER, BIRKE, CEDAR, DORN = NAMES


@pytest.fixture(scope="module")
def epoch_over(tmp_path_factory):
    """A key for every round: the first is over, the second key is not made yet."""
    made = Coordinator.ready(tmp_path_factory.mktemp("epochs") / "run", NAMES, "encryption.key_rounds=1")
    made.old_key = run_of(made, ADLER).cohort_key(1)
    made.first = made.whole_round(1)
    return made


@pytest.fixture
def due(epoch_over, tmp_path):
    copied = epoch_over.copy(tmp_path / "run")
    copied.joined, copied.coming, copied.made_key = epoch_over.joined, epoch_over.coming, epoch_over.made_key
    copied.old_key = epoch_over.old_key
    return copied


def signed_by(coordinator: Coordinator, name: str, number: int, body: dict) -> str:
    """What a site that colludes would say."""
    envelope = dataclasses.replace(coordinator.read(from_hex(coordinator.coming[name])), round_number=number)
    signer = Identity.from_private_bytes(load_secret(coordinator.directories[name] / "identity.key", None))
    return encode(dataclasses.replace(envelope, body=to_json(body)), signer).hex()


def test_the_key_of_one_epoch_is_no_key_of_another(due):
    code, message = due.refused(ADLER, "install_key", 2, {"joined": due.coming, "made": due.made_key})
    assert (code, message) == ("TrustError", "the key was made for another epoch")
    stale = due.body(from_hex(due.made_key))
    relabelled = signed_by(due, due.read(from_hex(due.made_key)).sender, 2, stale)
    code, message = due.refused(ADLER, "install_key", 2, {"joined": due.coming, "made": relabelled})
    assert (code, message) == ("TrustError", "a sealed message does not open")
    assert not run_of(due, ADLER).has_cohort_key(2)


def test_a_key_that_served_an_earlier_epoch_never_comes_back(due):
    """Its maker colludes: signature, context and boxes are all as they should be."""
    run = run_of(due, BIRKE)
    publics = {name: from_hex(due.body(from_hex(data))["exchange"]) for name, data in due.coming.items()}
    wrapped = wrap(due.old_key, run.exchange_key(2), publics, cohort_keys._context(run, 2, BIRKE))
    boxes = {name: box.hex() for name, box in wrapped.boxes.items()}
    made = signed_by(due, BIRKE, 2, {"wrapped": wrapped.wrapped.hex(), "boxes": boxes})
    code, message = due.refused(ADLER, "install_key", 2, {"joined": due.coming, "made": made})
    assert (code, message) == ("TrustError", "the key of an earlier epoch is shown as a new one")
    assert not run_of(due, ADLER).has_cohort_key(2)


def test_two_keys_for_one_epoch_are_refused_for_ever(due):
    first, second = (due.ask(name, "make_key", 2, {"joined": due.coming}).hex() for name in (BIRKE, CEDAR))
    due.ask(ADLER, "install_key", 2, {"joined": due.coming, "made": first})
    kept = run_of(due, ADLER).cohort_key(2).export_for_wrapping()
    for _ in range(2):
        code, message = due.refused(ADLER, "install_key", 2, {"joined": due.coming, "made": second})
        assert (code, message) == ("TrustError", "the coordinator shows another key for an epoch that has one")
    assert due.refused(ADLER, "make_key", 2, {"joined": due.coming})[0] == "ProtocolError"
    due.ask(ADLER, "install_key", 2, {"joined": due.coming, "made": first})
    assert run_of(due, ADLER).cohort_key(2).export_for_wrapping() == kept


def test_sites_that_were_shown_different_keys_open_nothing_together(due):
    first, second = (due.ask(name, "make_key", 2, {"joined": due.coming}).hex() for name in (BIRKE, CEDAR))
    for name in NAMES:
        due.ask(name, "install_key", 2, {"joined": due.coming, "made": second if name == DORN else first})
    made = due.offers(2)
    published = due.publish(2, made, NAMES, due.total(due.train(2, made).values()))
    for name in NAMES:
        code, message = due.refused(name, "apply", 2, published.encode(), kind=Kind.AGGREGATE)
        assert (code, message) == ("ProtocolError", "the aggregate does not open")


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("action", ["make_key", "install_key"])
def test_no_key_before_its_epoch_is_due_nor_after(due, action, number):
    code, message = due.refused(ADLER, action, number, {"joined": due.coming, "made": due.made_key})
    assert (code, message) == ("WrongRound", f"no epoch that is due at this site begins with round {number}")


def test_an_exchange_key_of_an_earlier_epoch_is_refused(due):
    """Else a key that a thief took in one epoch would open the cohort key of every later one."""
    for stale in (due.joined, {**due.coming, BIRKE: due.joined[BIRKE]}):
        for action in ("make_key", "install_key"):
            code, message = due.refused(ADLER, action, 2, {"joined": stale, "made": due.made_key})
            assert (code, message) == ("TrustError", "an exchange key belongs to another epoch")


def test_a_site_left_out_of_a_ceremony_installs_and_offers_nothing(due):
    """Nor do the others go on alone once too few of them are left to reach the threshold."""
    fewer = {name: due.coming[name] for name in (BIRKE, CEDAR)}
    made = due.ask(BIRKE, "make_key", 2, {"joined": fewer}).hex()
    code, message = due.refused(ADLER, "install_key", 2, {"joined": fewer, "made": made})
    assert (code, message) == ("TrustError", "the coordinator shows another exchange key for this site")
    assert due.refused(ADLER, "offer", 2)[0] == "ProtocolError"
    for name in fewer:
        due.ask(name, "install_key", 2, {"joined": fewer, "made": made})
    offers = due.offers(2, fewer)
    body = {
        "model_hash": due.model_hash(BIRKE),
        "offers": {name: offers[name]["offer"] for name in fewer},
        "packages": {CEDAR: offers[CEDAR]["packages"][BIRKE]},
    }
    spent = len(due.site(BIRKE).ledger.entries)
    assert due.refused(BIRKE, "train", 2, body)[0] == "CohortTooSmall"
    assert len(due.site(BIRKE).ledger.entries) == spent


def test_a_round_without_the_key_of_its_epoch_is_not_masked_trained_or_charged(due):
    spent = len(due.site(ADLER).ledger.entries)
    assert due.refused(ADLER, "offer", 2)[0] == "ProtocolError"
    body = {"model_hash": due.model_hash(ADLER), "offers": {}, "packages": {}}
    assert due.refused(ADLER, "train", 2, body)[0] == "ProtocolError"
    assert len(due.site(ADLER).ledger.entries) == spent
