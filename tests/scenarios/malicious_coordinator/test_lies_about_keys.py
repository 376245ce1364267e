"""Exchange keys and offers are the sites' own, whoever the coordinator says that they are from."""

import dataclasses
import json

from common.keystore import load_secret
from common.roster import COORDINATOR
from common.signing import Identity
from common.wire import encode, from_hex, to_json
from tests.by_hand import NAMES, Coordinator, workplace

ADLER, BIRKE, CEDAR, _ = NAMES


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
