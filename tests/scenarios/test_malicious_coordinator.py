"""The coordinator turns on the sites: with its own true key it asks real workers for what they must never give.

Every attack ends in a signed refusal with a reason code at an honest site, and in that site's audit log.
"""

import dataclasses
import json
from itertools import combinations

import numpy as np
import pytest

from client import cohort_keys, masking
from client.runs import SiteRun
from common.audit import Audit
from common.config import fill, to_table
from common.errors import ProtocolError
from common.federation import Plan
from common.he.ciphertexts import Aggregate, Ciphertext, from_dense, round_words, to_dense
from common.he.keys import wrap
from common.he.packing import blocks
from common.he.scheme import PRESETS, CohortKey, encrypt, expand_seeds, open_sum
from common.keystore import load_secret
from common.masking import Lifting, Published
from common.roster import COORDINATOR
from common.signing import Identity
from common.wire import Kind, encode, from_hex, plan_hash, to_json
from server.aggregate_encrypted import BlindSum
from tests.by_hand import NAMES, Coordinator, restart, workplace

ADLER, BIRKE, CEDAR, DORN = NAMES


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Four sites that hold the cohort's key; no round yet."""
    return Coordinator.ready(tmp_path_factory.mktemp("joined") / "run")


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """Round 1 is over; in round 2 every site has offered its masks."""
    made = Coordinator.ready(tmp_path_factory.mktemp("offered") / "run")
    made.first = made.whole_round(1)
    made.made = made.offers(2)
    return made


@pytest.fixture(scope="module")
def trained(offered, tmp_path_factory):
    """In round 2 every site has sent its update as well, and nothing was agreed on."""
    made = offered.copy(tmp_path_factory.mktemp("trained") / "run")
    made.first, made.made = offered.first, offered.made
    made.updates = made.train(2, made.made)
    return made


@pytest.fixture
def begun(joined, tmp_path):
    copied = joined.copy(tmp_path / "run")
    copied.joined, copied.coming, copied.made_key = joined.joined, joined.coming, joined.made_key
    return copied


@pytest.fixture
def untrained(offered, tmp_path):
    copied = offered.copy(tmp_path / "run")
    copied.first, copied.made = offered.first, offered.made
    return copied


@pytest.fixture
def attack(trained, tmp_path):
    copied = trained.copy(tmp_path / "run")
    copied.first, copied.made, copied.updates = trained.first, trained.made, trained.updates
    return copied


def run_of(coordinator: Coordinator, name: str) -> SiteRun:
    return SiteRun.open(coordinator.directories[name] / "runs", coordinator.store.run)


def secrets_of(coordinator: Coordinator, name: str, number: int) -> tuple[bytes, bytes]:
    data = load_secret(run_of(coordinator, name).directory / f"masks-{number:06d}", None)
    return data[:32], data[32:]


# One site's update is never opened as "the aggregate".


@pytest.mark.parametrize("received", [[ADLER], [ADLER, BIRKE]])
def test_a_list_shorter_than_the_threshold_is_never_agreed_on(attack, received):
    code, message = attack.refused(ADLER, "agree", 2, attack.wanted(received, b"sum"))
    assert (code, message) == ("CohortTooSmall", f"a sum of {len(received)} sites is not opened, 3 are required")


@pytest.mark.parametrize("sites", [[ADLER], [ADLER, ADLER, ADLER], [ADLER, BIRKE, "mallory"], [CEDAR, BIRKE, ADLER]])
def test_nor_is_its_sum_opened(attack, sites):
    total = attack.total([attack.updates[ADLER]])
    published = Published(tuple(sites), (), Lifting({}, {}), total)
    code, _ = attack.refused(ADLER, "apply", 2, published.encode(), kind=Kind.AGGREGATE)
    assert code == ("CohortTooSmall" if len(sites) == 1 else "TrustError")


def one_as_many(coordinator: Coordinator, name: str, sites: int) -> bytes:
    """One site's ciphertext, dressed as the sum of `sites`: it decrypts, under the cohort's key, to that one vector."""
    body = coordinator.read(coordinator.updates[name]).body[32:]
    sent = Ciphertext.decode(coordinator.scheme, coordinator.length, body)
    c1 = b"".join(expand_seeds(coordinator.scheme, [bytes(sent.seeds)]))
    return Aggregate(coordinator.scheme, coordinator.length, sites, sent.c0, c1=c1).encode()


def test_the_masks_are_all_that_keeps_one_ciphertext_shut(attack):
    """Whoever held the cohort's key and adler's own mask would read adler's update: so the attacks below are real."""
    run, size = run_of(attack, ADLER), attack.length
    sent = Aggregate.decode(attack.scheme, size, one_as_many(attack, ADLER, 1))
    opened = open_sum(sent, run.cohort_key(1), masking.mask(attack.site(ADLER), run, 2, size))
    assert np.abs(opened).max() < 2**15
    with pytest.raises(ProtocolError, match="does not open"):
        open_sum(sent, run.cohort_key(1))


def test_one_ciphertext_under_many_names_after_the_true_sum_was_agreed_on(attack):
    published = attack.publish(2, attack.made, attack.names, attack.total(attack.updates.values()))
    swapped = dataclasses.replace(published, total=one_as_many(attack, ADLER, 4))
    code, message = attack.refused(BIRKE, "apply", 2, swapped.encode(), kind=Kind.AGGREGATE)
    assert code == "TrustError"
    assert "not the sum and list that this site agreed on" in message
    attack.apply(2, published)  # and the true one still opens


def test_one_ciphertext_under_many_names_that_all_sites_agreed_on_unseen(attack):
    """Nobody can see what a sum is made of before it is opened; the masks of the others keep it shut."""
    published = attack.publish(2, attack.made, attack.names, one_as_many(attack, ADLER, 4))
    before = run_of(attack, BIRKE).state().model_hash
    assert attack.refused(BIRKE, "apply", 2, published.encode(), kind=Kind.AGGREGATE) == (
        "ProtocolError",
        "the aggregate does not open",
    )
    assert run_of(attack, BIRKE).state().model_hash == before


def test_a_site_that_agreed_to_nothing_opens_no_sum_that_too_few_agreed_on(attack):
    """Else any site that missed a round would open whatever it is sent, again and again."""
    total = attack.total(attack.updates.values())
    published = attack.publish(2, attack.made, [ADLER, BIRKE, CEDAR], total)
    for agreed in (published.agreed[:2], published.agreed[:1] * 3, ()):
        few = dataclasses.replace(published, agreed=agreed)
        code, message = attack.refused(DORN, "apply", 2, few.encode(), kind=Kind.AGGREGATE)
        assert code == "TrustError"
        assert message == f"{len(set(agreed))} sites have agreed on this sum and list, 3 are required"


def test_sums_cannot_be_tried_out_on_a_site(attack):
    """A second sum of the same round is refused for ever, so nobody learns a key bit by bit from what opens."""
    first = attack.publish(2, attack.made, attack.names, one_as_many(attack, ADLER, 4))
    attack.refused(BIRKE, "apply", 2, first.encode(), kind=Kind.AGGREGATE)
    for name in attack.names:
        wanted = attack.wanted(attack.names, one_as_many(attack, BIRKE, 4))
        code, message = attack.refused(name, "agree", 2, wanted)
        assert (code, message) == ("TrustError", "this site has agreed on another sum or list for round 2")


@pytest.mark.parametrize("amount", [1, 1 << 10, -(1 << 14)])
@pytest.mark.parametrize("place", [0, 1, 4095])
def test_a_sum_with_a_crafted_second_polynomial_does_not_open(amount, place):
    """It would open to the true sum plus `amount` times the secret key, for the coordinator to read off the model."""
    scheme = PRESETS["compact"]
    key, length = CohortKey.generate(scheme), 2 * scheme.values_per_ciphertext
    total = BlindSum(scheme, length)
    for _ in range(3):
        total.add(encrypt(np.zeros(length, np.int64), key))
    honest = total.result()
    assert (open_sum(honest, key) == 0).all()
    (prime,), (block,) = scheme.primes, blocks(scheme, length)
    words = from_dense(honest.c1, block.whole(scheme), scheme, scheme.dropped_bits_down)
    words[1, 0, place] = (int(words[1, 0, place]) + amount * (prime >> scheme.plain_modulus_bits)) % prime
    round_words(words, scheme.dropped_bits_down)
    crafted = dataclasses.replace(honest, c1=to_dense(words, scheme, scheme.dropped_bits_down).tobytes())
    with pytest.raises(ProtocolError, match="does not open"):
        open_sum(crafted, key)


# Rounds are not replayed, skipped or prolonged.


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


# Keys are not swapped.


def test_a_swapped_exchange_key_is_refused(begun):
    answers = dict(begun.joined)
    swapped = {**answers, ADLER: answers[BIRKE]}
    for name in (ADLER, CEDAR):
        code, message = begun.refused(name, "install_key", 1, {"joined": swapped, "made": begun.made_key})
        assert (code, message) == (
            "TrustError",
            "an exchange key is not signed by the site that it is said to be from",
        )
    mine = begun.read(from_hex(answers[ADLER]))
    body = json.loads(mine.body) | {"exchange": "11" * 32}
    forged = encode(dataclasses.replace(mine, body=to_json(body), sender=COORDINATOR), begun.store.identity).hex()
    for shown in ({**answers, ADLER: forged}, {**answers, "mallory": forged}):
        assert begun.refused(CEDAR, "install_key", 1, {"joined": shown, "made": begun.made_key})[0] == "TrustError"


def test_exchange_keys_once_shown_never_change(begun):
    """Not even to fewer sites: shares would be sealed for nobody."""
    fewer = {name: begun.joined[name] for name in (ADLER, BIRKE, CEDAR)}
    code, message = begun.refused(ADLER, "install_key", 1, {"joined": fewer, "made": begun.made_key})
    assert (code, message) == ("TrustError", "the coordinator shows other exchange keys than before")


def test_an_exchange_key_of_another_run_is_refused(begun, tmp_path):
    other = Coordinator(begun.place)
    other.store = type(other.store).create(begun.place.out / "coordinator", begun.store.plan, "by hand")
    other.join()
    mixed = {**begun.joined, BIRKE: other.joined[BIRKE]}
    code, message = begun.refused(ADLER, "install_key", 1, {"joined": mixed, "made": begun.made_key})
    assert (code, message) == ("TrustError", "a relayed answer belongs to another run")


def test_swapped_mask_keys_and_forged_offers_are_refused_before_any_charge(begun):
    made = begun.offers(1)
    good = begun.training(ADLER, made)
    birke = begun.read(from_hex(made[BIRKE]["offer"]))
    forged = encode(dataclasses.replace(birke, sender=COORDINATOR), begun.store.identity).hex()
    later = encode(dataclasses.replace(birke, round_number=2, sender=COORDINATOR), begun.store.identity).hex()
    for name, offer in [
        (BIRKE, made[CEDAR]["offer"]),
        (BIRKE, forged),
        (BIRKE, later),
        (ADLER, made[BIRKE]["offer"]),
        ("mallory", made[BIRKE]["offer"]),
        (COORDINATOR, forged),
    ]:
        body = {**good, "offers": {**good["offers"], name: offer}}
        assert begun.refused(ADLER, "train", 1, body)[0] == "TrustError"
    without = {site: offer for site, offer in good["offers"].items() if site != ADLER}
    code, message = begun.refused(ADLER, "train", 1, {**good, "offers": without})
    assert (code, message) == ("TrustError", "this site's own offer is missing or was changed")
    assert begun.site(ADLER).ledger.entries == ()


def test_an_offer_of_an_earlier_round_is_refused(untrained):
    body = untrained.training(ADLER, untrained.made)
    earlier = dataclasses.replace(untrained.read(from_hex(untrained.made[BIRKE]["offer"])), round_number=1)
    signer = Identity.from_private_bytes(load_secret(untrained.directories[BIRKE] / "identity.key", None))
    body["offers"][BIRKE] = encode(earlier, signer).hex()
    code, message = untrained.refused(ADLER, "train", 2, body)
    assert (code, message) == ("TrustError", "birke's offer belongs to another round")


def test_sites_that_were_told_of_different_cohorts_do_not_mask_together(tmp_path):
    """Else the victim would charge for shares of noise that the others do not add."""
    coordinator, there = Coordinator(workplace(tmp_path / "run")), NAMES[:3]
    every = coordinator.join_order()
    told = {name: {**every, "cohort": there} if name == ADLER else every for name in there}
    coordinator.joined = {name: coordinator.ask(name, "join", 0, told[name]).hex() for name in there}
    coordinator.share_key()
    made = coordinator.offers(1, there)
    for name in there:
        code, message = coordinator.refused(name, "train", 1, coordinator.training(name, made))
        assert (code, "another cohort" in message) == ("TrustError", True)
        assert coordinator.site(name).ledger.entries == ()


def test_too_few_offers_are_refused(begun):
    made = begun.offers(1, [ADLER, BIRKE])
    assert begun.refused(ADLER, "train", 1, begun.training(ADLER, made))[0] == "CohortTooSmall"


# Every epoch has one key of its own.


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


# The cohort is who the roster says.


@pytest.mark.parametrize(
    "cohort",
    [
        [*NAMES, "mallory"],
        [ADLER, "mallory", "trent"],
        [ADLER, ADLER, ADLER],
        [*NAMES, ADLER],
        [*NAMES, COORDINATOR],
        [BIRKE, CEDAR, DORN],
    ],
)
def test_a_cohort_padded_to_reach_the_minimum_is_refused(begun, cohort):
    body = {**begun.join_order(), "cohort": cohort}
    assert begun.refused(ADLER, "join", 0, body, run=bytes(16))[0] == "TrustError"


def test_a_cohort_smaller_than_the_sites_policy_is_refused(begun):
    code, message = begun.refused(ADLER, "join", 0, {**begun.join_order(), "cohort": [ADLER]}, run=bytes(16))
    assert code == "CohortTooSmall"
    assert "policy" in message


def test_a_stranger_speaks_for_nobody(begun):
    stranger = Identity.generate()
    for changes in (
        {"identity": stranger},
        {"identity": stranger, "sender": "mallory"},
        {"identity": stranger, "sender": ADLER},
    ):
        data = begun.order(0, begun.join_order(), **changes)
        assert begun.refuses(ADLER, "join", data)[0] == "TrustError"
    sites_own = Identity.from_private_bytes(load_secret(begun.directories[BIRKE] / "identity.key", None))
    data = begun.order(0, begun.join_order(), identity=sites_own, sender=BIRKE)
    assert begun.refuses(ADLER, "join", data) == ("TrustError", "an order must come from the coordinator")


# The plan is what was agreed to.


def test_the_plan_does_not_change_within_a_run(begun):
    table = to_table(begun.store.plan)
    table["federation"]["rounds"] = 9
    changed = fill(Plan, table)
    body = {**begun.join_order(), "plan": table}
    assert begun.refused(ADLER, "join", 0, body, plan=plan_hash(changed)) == (
        "ProtocolError",
        "the coordinator changed the plan or the cohort of a run that had begun",
    )
    assert begun.refused(ADLER, "join", 0, body) == (
        "ProtocolError",
        "the plan is not the one whose hash the order carries",
    )
    fewer = {**begun.join_order(), "cohort": [ADLER, BIRKE, CEDAR]}
    assert begun.refused(ADLER, "join", 0, fewer)[0] == "ProtocolError"
    for action in ("offer", "train", "agree", "unmask", "stand_in", "release", "make_key", "install_key"):
        assert begun.refused(ADLER, action, 1, plan=plan_hash(changed)) == (
            "TrustError",
            "the order carries another plan than the one this site joined",
        )


def test_code_that_the_sites_policy_does_not_name_is_never_imported(begun):
    """An import runs what it imports."""
    table = to_table(begun.store.plan)
    table["model"]["factory"] = "tests.common.bomb:build"
    body, plan = {"plan": table, "cohort": begun.names}, fill(Plan, table)
    code, message = begun.refused(ADLER, "join", 0, body, run=bytes(16), plan=plan_hash(plan))
    assert code == "PrivacyError"
    assert "'tests.common.bomb:build'" in message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"factory": "mlp", "hidden": [2**26, 2**26]}, "weights"),
        ({"inputs": [2**40]}, "weights"),
        ({"inputs": [4]}, "do not fit"),
        ({"inputs": []}, "do not fit"),
        ({"inputs": [3], "classes": 0}, "do not fit"),
    ],
)
def test_a_model_that_does_not_fit_is_never_built(tmp_path, joined, change, reason):
    """Neither a site's records nor its memory: nothing of the kind is allocated or trained."""
    table = to_table(joined.store.plan)
    table["model"] |= change
    attacked = joined.copy(tmp_path / "run")
    settings = attacked.directories[ADLER] / "policy.toml"
    settings.write_text(settings.read_text().replace("max_weights = 2147483648", "max_weights = 1000000"))
    body, plan = {"plan": table, "cohort": attacked.names}, fill(Plan, table)
    code, message = attacked.refused(ADLER, "join", 0, body, run=bytes(16), plan=plan_hash(plan))
    assert (code, reason in message) == ("ProtocolError", True), message


def test_scales_for_another_number_of_layers_are_refused_when_joining(begun):
    table = to_table(begun.store.plan)
    table["encryption"] |= {"layer_scales": [1.0]}
    body, plan = {"plan": table, "cohort": begun.names}, fill(Plan, table)
    code, message = begun.refused(ADLER, "join", 0, body, run=bytes(16), plan=plan_hash(plan))
    assert (code, "encryption.layer_scales" in message) == ("ConfigError", True)
    assert not (begun.directories[ADLER] / "runs" / bytes(16).hex()).exists()


def test_a_readable_order_gets_no_update_from_an_encrypted_plan(begun):
    model = bytes(4 * begun.length)
    code, message = begun.refused(ADLER, "train", 1, model, kind=Kind.READABLE_ORDER)
    assert (code, message) == ("ProtocolError", "the plan encrypts updates; a readable one is never sent")


def test_the_model_is_not_released_before_the_end(attack):
    for number in (0, 1, 2, 3):
        code, message = attack.refused(ADLER, "release", number)
        assert (code, message) == (
            "ProtocolError",
            "the plan does not reveal the model now (federation.reveal = 'final')",
        )


def test_nor_ever_where_the_plan_reveals_nothing(tmp_path):
    coordinator = Coordinator.ready(tmp_path / "run", NAMES, "federation.rounds=1", "federation.reveal=never")
    coordinator.whole_round(1)
    assert coordinator.refused(ADLER, "release", 0)[0] == "ProtocolError"


# The envelope means what it says.


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.ORDER])
def test_a_relabelled_order_is_refused(attack, kind):
    data = bytearray(attack.order(2, attack.wanted(attack.names, b"sum")))
    data[3] = kind
    assert attack.refuses(ADLER, "agree", bytes(data))[0] in ("TrustError", "WireError")


def test_an_order_of_the_wrong_kind_is_refused(attack):
    for kind in Kind:
        if kind is not Kind.ORDER:
            body = attack.wanted(attack.names, b"sum")
            assert attack.refused(ADLER, "agree", 2, body, kind=kind)[0] == "ProtocolError"
    assert attack.refused(ADLER, "format_disk", 2)[0] == "ProtocolError"


# The record.


def test_the_audit_log_is_chained_signed_and_says_what_was_asked(attack):
    attack.refused(ADLER, "release", 2)
    attack.refuses(ADLER, "agree", b"garbage")
    log = Audit.read(attack.directories[ADLER], attack.site(ADLER).identity.public)
    *_, refused, unread = (dict(entry.record) for entry in log.entries())
    assert refused.pop("time").endswith("+00:00")
    assert refused == {
        "event": "Refused",
        "action": "release",
        "run": attack.store.run.hex(),
        "round": 2,
        "code": "ProtocolError",
        "message": "the plan does not reveal the model now (federation.reveal = 'final')",
    }
    assert (unread["run"], unread["round"], unread["code"]) == ("", 0, "WireError")


def test_a_record_that_was_taken_out_is_noticed_and_the_site_still_refuses(attack):
    attack.refused(ADLER, "release", 2)
    attack.refused(ADLER, "release", 2)
    path = attack.directories[ADLER] / "audit.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    restart()
    said = attack.read(attack.send(ADLER, "release", attack.order(2, b"{}")))
    assert said.kind is Kind.REFUSAL
    assert json.loads(said.body)["code"] == "TrustError"
    assert "rolled back or truncated" in json.loads(said.body)["message"]


def test_the_record_holds_no_secret_and_no_flood_of_words(attack):
    wanted = attack.wanted(attack.names, b"sum")
    attack.ask(ADLER, "agree", 2, wanted)
    attack.refused(ADLER, "unmask", 2, {**wanted, "agreed": []})
    attack.refused(ADLER, "train", 3, attack.training(ADLER, attack.made))
    attack.refused(ADLER, "join", 0, {**attack.join_order(), "plan": {"x" * 100_000: 1}}, run=bytes(16))
    log = (attack.directories[ADLER] / "audit.jsonl").read_bytes()
    run = run_of(attack, ADLER)
    keys = [run.exchange_key(1).private_bytes(), run.cohort_key(1).export_for_wrapping()]
    secrets = [*secrets_of(attack, ADLER, 2), *keys]
    assert not any(secret.hex().encode() in log or secret in log for secret in secrets)
    assert len(log) < 10_000


def test_a_site_without_a_key_or_peers_refuses_in_words(tmp_path):
    """It has joined, and the coordinator skips the key ceremony."""
    coordinator = Coordinator.ready(tmp_path / "run")
    run = run_of(coordinator, ADLER)
    for name in ("peers-000001", "offer-000001"):
        (run.directory / name).unlink()
    assert coordinator.refused(ADLER, "offer", 1)[0] == "ProtocolError"
