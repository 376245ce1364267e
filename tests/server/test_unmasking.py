"""From what sites reveal to what lifts the masks: exact for every set of survivors, and never from a lie."""

import os
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CohortTooSmall, FederationError, ProtocolError
from common.he.masks import masks_left_in_sum, pairwise_seed, site_mask
from common.he.sealing import ExchangeKey
from common.he.shares import commit, split_secret
from common.masking import Offer, mask_context
from server.unmasking import lift, silent_sites

NAMES = ("a", "b", "c", "d", "e")
THRESHOLD, BITS, COUNT = 3, 44, 5
CONTEXT = mask_context(b"r" * 16, 7, "00" * 32)


class Site:
    """One site's secrets of one round, and what it would say."""

    def __init__(self, name: str) -> None:
        self.name, self.seed, self.key = name, os.urandom(32), ExchangeKey.generate()
        self.offer = Offer(self.key.public, commit(self.seed), bytes(32))
        self.seed_shares = split_secret(self.seed, THRESHOLD, NAMES)
        self.key_shares = split_secret(self.key.private_bytes(), THRESHOLD, NAMES)

    def pair(self, other: "Site") -> bytes:
        return pairwise_seed(self.key, other.offer.mask_key, self.name, other.name, CONTEXT)


@cache
def sites() -> dict[str, Site]:
    return {name: Site(name) for name in NAMES}


def offers() -> dict[str, Offer]:
    return {name: site.offer for name, site in sites().items()}


def revealed(received: list[str], speakers: set[str]) -> dict[str, dict]:
    gone = [name for name in NAMES if name not in received]
    return {
        name: {
            "self": sites()[name].seed.hex(),
            "pairs": {other: sites()[name].pair(sites()[other]).hex() for other in gone},
        }
        for name in speakers
    }


def shares(received: list[str], holders: set[str]) -> dict[str, dict]:
    return {
        holder: {
            "self": {name: sites()[name].seed_shares[holder].hex() for name in received},
            "keys": {name: sites()[name].key_shares[holder].hex() for name in NAMES if name not in received},
        }
        for holder in holders
    }


def left_in_sum(received: list[str]) -> np.ndarray:
    """What the masks of these sites come to, from what each of them really added."""
    total = np.zeros(COUNT, np.uint64)
    for name in received:
        pairs = {other: sites()[name].pair(sites()[other]) for other in NAMES if other != name}
        total += site_mask(name, sites()[name].seed, pairs, COUNT, BITS)
    return total & np.uint64((1 << BITS) - 1)


@given(st.sets(st.sampled_from(NAMES), min_size=2), st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_masks_of_any_survivors_are_lifted_exactly_or_not_at_all(received, speakers, holders):
    listed = sorted(received)
    said = revealed(listed, speakers & received)
    silent = silent_sites(offers(), listed, said)
    assert silent == sorted(received - speakers)
    given_shares = shares(listed, holders) if silent else {}
    if silent and len(holders) < THRESHOLD:
        with pytest.raises(CohortTooSmall, match="stood in"):
            lift(CONTEXT, THRESHOLD, offers(), listed, said, given_shares)
        return
    lifting = lift(CONTEXT, THRESHOLD, offers(), listed, said, given_shares)
    left = masks_left_in_sum(lifting.self_seeds, lifting.broken_pairs, COUNT, BITS)
    assert (left == left_in_sum(listed)).all()


def test_never_both_secrets_of_one_site():
    """A self seed for each on the list, seeds of pairs only where one half is missing."""
    lifting = lift(CONTEXT, THRESHOLD, offers(), ["a", "b", "c"], revealed(["a", "b", "c"], {"a", "b", "c"}), {})
    assert set(lifting.self_seeds) == {"a", "b", "c"}
    assert {gone for _, gone in lifting.broken_pairs} == {"d", "e"}
    assert {mine for mine, _ in lifting.broken_pairs} == {"a", "b", "c"}


@pytest.mark.parametrize(
    "said",
    [
        None,
        5,
        [],
        {},
        {"self": "zz", "pairs": {}},
        {"self": "00" * 32, "pairs": {}},
        {"self": None, "pairs": {}},
        {"self": 5, "pairs": {}},
        {"pairs": {}},
    ],
)
def test_a_site_that_lies_about_its_seed_is_silent(said):
    received = ["a", "b", "c"]
    good = revealed(received, {"b", "c"})
    assert silent_sites(offers(), received, {**good, "a": said}) == ["a"]


@pytest.mark.parametrize(
    "pairs", [None, 5, [], {}, {"d": "00" * 32}, {"d": "00" * 32, "e": "00" * 31}, {"d": 5, "e": 5}]
)
def test_a_site_that_leaves_out_a_pair_is_silent(pairs):
    received = ["a", "b", "c"]
    said = revealed(received, set(received))
    said["a"]["pairs"] = pairs
    assert silent_sites(offers(), received, said) == ["a"]


@pytest.mark.parametrize("part", ["self", "keys"])
@pytest.mark.parametrize("spoilt", ["", "zz", "00" * 34, "00" * 33, None, 5, "another's", "of the other secret"])
def test_a_wrong_share_never_gives_a_wrong_mask(part, spoilt):
    received = ["a", "b", "c", "d"]
    owner = "a" if part == "self" else "e"
    said = revealed(received, {"b", "c", "d"})
    given_shares = shares(received, {"b", "c", "d"})
    mine = sites()[owner].seed_shares if part == "self" else sites()[owner].key_shares
    other = sites()[owner].key_shares if part == "self" else sites()[owner].seed_shares
    put = {"another's": mine["c"].hex(), "of the other secret": other["b"].hex()}.get(spoilt, spoilt)
    given_shares["b"][part][owner] = put
    with pytest.raises((ProtocolError, CohortTooSmall)):
        lift(CONTEXT, THRESHOLD, offers(), received, said, given_shares)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_whatever_a_peer_says_is_shares_or_a_clean_error(said):
    received = ["a", "b", "c", "d"]
    given_shares = {**shares(received, {"b", "c"}), "d": said}
    with pytest.raises(FederationError):
        lift(CONTEXT, THRESHOLD, offers(), received, revealed(received, {"b", "c", "d"}), given_shares)


def test_a_spare_share_is_checked_against_the_others():
    received = ["a", "b", "c", "d"]
    said, given_shares = revealed(received, {"b", "c", "d"}), shares(received, {"b", "c", "d", "e"})
    assert lift(CONTEXT, THRESHOLD, offers(), received, said, given_shares)
    last = given_shares["e"]["self"]["a"][-1]
    given_shares["e"]["self"]["a"] = given_shares["e"]["self"]["a"][:-1] + ("1" if last == "0" else "0")
    with pytest.raises(ProtocolError):
        lift(CONTEXT, THRESHOLD, offers(), received, said, given_shares)


def test_masks_of_one_model_do_not_lift_those_of_another():
    """The seed of a pair whose one half trained on another model is another seed."""
    contexts = [mask_context(b"r" * 16, 7, model) for model in ("00" * 32, "01" * 32)]
    seeds = [pairwise_seed(sites()["a"].key, sites()["b"].offer.mask_key, "a", "b", context) for context in contexts]
    assert all(one != other for one, other in pairwise(seeds))
