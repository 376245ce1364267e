"""One site's update is never opened as "the aggregate", whatever the coordinator says that it is."""

import dataclasses

import numpy as np
import pytest

from client import masking
from common.errors import ProtocolError
from common.he.ciphertexts import Aggregate, Ciphertext, from_dense, round_words, to_dense
from common.he.packing import blocks
from common.he.scheme import PRESETS, CohortKey, encrypt, expand_seeds, open_sum
from common.masking import Lifting, Published
from common.wire import Kind
from server.aggregate_encrypted import BlindSum
from tests.by_hand import NAMES, Coordinator, run_of

ADLER, BIRKE, CEDAR, DORN = NAMES


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
