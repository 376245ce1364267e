"""Offers, openings and what lifts masks, as bytes from others; and what a masked update looks like from outside."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from client import masking
from client.runs import SiteRun
from common.errors import FederationError, ProtocolError, TrustError, WireError
from common.federation import EncryptionSettings
from common.he.ciphertexts import Ciphertext
from common.he.masks import expand
from common.he.scheme import CohortKey, _opened, encrypt
from common.he.sealing import ExchangeKey
from common.he.shares import SHARE_BYTES
from common.keystore import load_secret
from common.masking import (
    Lifting,
    Offer,
    Opening,
    Published,
    agrees,
    holders,
    mask_context,
    package_context,
    require_agreement,
    split_package,
)
from common.wire import Envelope, Kind, from_json, to_json
from server.aggregate_encrypted import BlindSum
from tests.by_hand import NAMES, Coordinator

ADLER, BIRKE, CEDAR, DORN = NAMES
RUN, PLAN = b"r" * 16, b"p" * 32
OPENING = Opening((ADLER, BIRKE, CEDAR), "11" * 32, "22" * 32)
WANTED = Envelope(Kind.ORDER, RUN, 3, PLAN, "coordinator", b"{}")
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
SEEDS = st.binary(min_size=32, max_size=32)


def signed(site: str, opening: Opening = OPENING, number: int = 3, **changes: object) -> Envelope:
    """An agreement whose signature was checked when it was read."""
    body = to_json({"list": opening.digest(RUN, number)})
    return Envelope(
        **({"kind": Kind.ANSWER, "run": RUN, "round_number": 3, "plan": PLAN, "sender": site, "body": body} | changes)
    )


def test_enough_different_sites_on_the_list_must_have_signed():
    require_agreement([signed(ADLER), signed(BIRKE)], OPENING, 2, WANTED)
    for few in ([signed(ADLER)], [signed(ADLER)] * 3, [signed(ADLER), signed(DORN)], []):
        with pytest.raises(TrustError):
            require_agreement(few, OPENING, 2, WANTED)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": Kind.OFFER},
        {"run": b"x" * 16},
        {"plan": b"x" * 32},
        {"round_number": 2},
        {"sender": DORN},
        {"body": b"{}"},
        {"body": b"not json"},
        {"body": to_json({"list": 5})},
    ],
)
def test_what_was_signed_for_something_else_is_no_agreement(changes):
    assert agrees(signed(ADLER), OPENING, WANTED)
    assert not agrees(signed(ADLER, **changes), OPENING, WANTED)


@pytest.mark.parametrize(
    "other",
    [
        Opening((ADLER, BIRKE), OPENING.sum_hash, OPENING.model_hash),
        Opening(OPENING.sites, "12" * 32, OPENING.model_hash),
        Opening(OPENING.sites, OPENING.sum_hash, "23" * 32),
    ],
    ids=["list", "sum", "model"],
)
def test_an_agreement_is_about_list_sum_and_model(other):
    assert not agrees(signed(ADLER, other), OPENING, WANTED)
    assert not agrees(signed(ADLER, OPENING, number=2), OPENING, WANTED)


def test_masks_belong_to_one_run_round_and_model():
    contexts = {
        mask_context(run, number, model)
        for run in (RUN, PLAN[:16])
        for number in (1, 2, 256)
        for model in ("00" * 32, "01" * 32)
    }
    assert len(contexts) == 12


@given(st.integers(2, 120))
def test_every_site_has_enough_holders_and_no_ten_of_them_rebuild_a_secret(sites):
    cohort = [f"s{place}" for place in range(sites)]
    for owner in cohort:
        kept = holders(cohort, owner)
        assert owner in kept
        assert len(set(kept)) == len(kept) == min(sites, 16)
        assert list(kept) == sorted(kept)
    threshold = EncryptionSettings().share_threshold_of(len(cohort))
    assert threshold == (11 if sites > 16 else 2 * sites // 3 + 1)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=2, unique=True))
def test_packages_belong_to_one_sender_and_one_recipient(pairs):
    first, second = (package_context(RUN, 1, *pair) for pair in pairs)
    assert first != second


@given(
    st.lists(TEXTS, max_size=4),
    st.lists(TEXTS, max_size=4),
    st.dictionaries(TEXTS, SEEDS, max_size=4),
    st.dictionaries(st.tuples(TEXTS, TEXTS), SEEDS, max_size=4),
    st.binary(max_size=40),
)
def test_what_is_published_comes_back(sites, agreed, seeds, pairs, total):
    published = Published(tuple(sites), tuple(agreed), Lifting(seeds, pairs), total)
    assert Published.decode(published.encode()) == published


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"sites": "abc"},
        {"sites": [1]},
        {"agreed": None},
        {"agreed": [["x"]]},
        {"self": []},
        {"self": {"a": 5}},
        {"self": {"a": "zz"}},
        {"pairs": {}},
        {"pairs": [["a", "b"]]},
        {"pairs": [["a", "b", 5]]},
        {"pairs": [["a", 5, "00"]]},
        {"pairs": [["a", "b", "00"], ["a", "b", "01"]]},
        {"pairs": ["abc"]},
    ],
)
def test_a_head_that_is_not_what_encode_writes_is_refused(head):
    good = {"sites": ["a"], "agreed": [], "self": {}, "pairs": []}
    data = to_json(good | head) if head else b"{}"
    with pytest.raises(WireError):
        Published.decode(len(data).to_bytes(4, "big") + data)


@pytest.mark.parametrize("body", [b"", b"\0", b"\xff" * 4, b"\xff\xff\xff\xff{}", b"\0\0\0\2[]", b"\0\0\0\4{}"])
def test_a_head_that_promises_more_than_there_is_costs_nothing(body):
    with pytest.raises(WireError):
        Published.decode(body)


@pytest.mark.parametrize(
    "body",
    [
        {"mask_key": "00" * 31, "commitment": "00" * 32, "cohort": "00" * 32},
        {"mask_key": "00" * 32, "commitment": "00" * 33, "cohort": "00" * 32},
        {"mask_key": "00" * 32, "commitment": "00" * 32, "cohort": "00" * 31},
        {"mask_key": "00" * 32, "commitment": "00" * 32},
        {"mask_key": 5, "commitment": None, "cohort": 0},
    ],
)
def test_a_malformed_offer_is_refused(body: Mapping[str, object]):
    with pytest.raises(WireError):
        Offer.of(Envelope(Kind.OFFER, RUN, 1, PLAN, ADLER, to_json(body)), RUN, PLAN, 1)


def test_an_offer_is_for_one_round_and_comes_back():
    offer = Offer(b"k" * 32, b"c" * 32, b"h" * 32)
    envelope = Envelope(Kind.OFFER, RUN, 1, PLAN, ADLER, offer.encode())
    assert Offer.of(envelope, RUN, PLAN, 1) == offer
    for about in ((PLAN[:16], PLAN, 1), (RUN, RUN * 2, 1), (RUN, PLAN, 2)):
        with pytest.raises(TrustError):
            Offer.of(envelope, *about)
    relabelled = Envelope(Kind.ANSWER, RUN, 1, PLAN, ADLER, offer.encode())
    with pytest.raises(TrustError):
        Offer.of(relabelled, RUN, PLAN, 1)


@given(st.binary(max_size=3 * SHARE_BYTES))
def test_a_package_holds_two_shares_or_is_refused(data):
    if len(data) == 2 * SHARE_BYTES:
        assert b"".join(split_package(data)) == data
    else:
        with pytest.raises(ProtocolError):
            split_package(data)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1, "b":2}',
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1.0}',
        b'{"a":1e400}',
        b'{"a":9007199254740993}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\u0061"}',
        b'{"a":-0}',
        b'{"a":1}\n',
        '{"a":1}'.encode("utf-16"),
    ],
)
def test_a_body_has_one_spelling(body):
    """Two parsers can never read two things from one signed message."""
    with pytest.raises(FederationError):
        from_json(body)


# What the coordinator and one colluding site see of another site's update.


FALSE_ALARM = 1e-6  # of one call of `looks_uniform`, all its tests together
BITS = 8


def looks_uniform(coefficients: np.ndarray, bits: int) -> bool:
    """Chi-square on the lowest, highest and middle 8 bits, and correlation of neighbours at three distances.

    Uniform, independent numbers below 2^bits pass with chance 1 - FALSE_ALARM.
    """
    alpha = FALSE_ALARM / 6
    n, cells = coefficients.size, 1 << BITS
    low, high = chi2.ppf([alpha / 2, 1 - alpha / 2], df=cells - 1)
    for shift in (0, bits // 2, bits - BITS):
        seen = np.bincount((coefficients >> np.uint64(shift) & np.uint64(cells - 1)).astype(np.int64), minlength=cells)
        if not low < np.sum((seen - n / cells) ** 2) * cells / n < high:
            return False
    centred = coefficients.astype(np.float64) / 2**bits - 0.5
    for lag in (1, 2, 64):
        correlation = 12 * np.mean(centred[:-lag] * centred[lag:])
        if abs(correlation) * np.sqrt(n - lag) > norm.isf(alpha / 2):
            return False
    return True


def decrypted(ciphertext: Ciphertext, key: CohortKey) -> np.ndarray:
    """All coefficients of one site's plaintext, as whoever holds the cohort's key sees them, in range or not."""
    total = BlindSum(ciphertext.scheme, ciphertext.length)
    total.add(ciphertext)
    return np.concatenate([rows.reshape(-1) for _, rows in _opened(total.result(), key)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Round 1: every site has masked its update and nothing was agreed on."""
    made = Coordinator.ready(tmp_path_factory.mktemp("trained") / "run")
    made.train(1, made.offers(1))
    return made


def run_of(coordinator: Coordinator, name: str) -> SiteRun:
    return SiteRun.open(coordinator.directories[name] / "runs", coordinator.store.run)


@pytest.fixture(scope="module")
def seen(trained):
    """Adler's long update as dorn and the coordinator decrypt it, dorn's pair masks taken off; and without masks."""
    run, scheme = run_of(trained, ADLER), trained.scheme
    length, bits = 12 * scheme.values_per_ciphertext, scheme.plain_modulus_bits
    update = np.rint(np.random.default_rng().normal(scale=300, size=length)).astype(np.int64)
    key = run_of(trained, DORN).cohort_key(1)
    mask = masking.mask(trained.site(ADLER), run, 1, length)[:]
    masked, bare = (decrypted(encrypt(update, key, added), key) for added in (mask, None))
    pair = masking._pair_seeds(trained.site(DORN), run_of(trained, DORN), 1, mask_key_of(trained, DORN))[ADLER]
    return (masked - expand(pair, masked.size, bits)) & np.uint64((1 << bits) - 1), bare, mask, bits


def mask_key_of(coordinator: Coordinator, name: str) -> ExchangeKey:
    data = load_secret(run_of(coordinator, name).directory / "masks-000001", None)
    return ExchangeKey.from_private_bytes(data[32:])


def test_a_masked_update_is_noise_to_the_coordinator_and_a_colluding_site(seen):
    """False alarm 1e-6 per run, fresh seeds."""
    masked, _, _, bits = seen
    assert looks_uniform(masked, bits)


def test_and_without_masks_it_is_not(seen):
    """So the test above can fail: also when as little as the high half, or one value in fifty, lies bare."""
    masked, bare, mask, bits = seen
    assert not looks_uniform(bare, bits)
    half = np.uint64((1 << bits // 2) - 1)
    assert not looks_uniform((bare & ~half) | (masked & half), bits)
    some = masked.copy()
    some[::50] = bare[::50]
    assert not looks_uniform(some, bits)
    twice = masked.copy()
    twice[1::2] = masked[::2]
    assert not looks_uniform(twice, bits)
    assert ((masked - bare) & np.uint64((1 << bits) - 1) != mask).all()  # dorn's part is off, the rest is not
