"""Any threshold of the shares gives the secret back, fewer say nothing, and bad ones are told apart."""

import contextlib
import json
import secrets
from itertools import chain, combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from common.errors import CohortTooSmall, ConfigError, ProtocolError
from common.he.shares import SHARE_BYTES, combine_shares, commit, split_secret

GOLDEN = json.loads((Path(__file__).parents[2] / "vectors/mask_vectors.json").read_text(encoding="utf-8"))["shares"]
SITES = ["a", "b", "c", "d", "e"]


def some(shares: dict[str, bytes], names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: shares[name] for name in names}


def test_golden_shares_combine_and_match_the_golden_commitment():
    shares = {name: bytes.fromhex(share) for name, share in GOLDEN["shares"].items()}
    for names in combinations(shares, GOLDEN["threshold"]):
        secret = combine_shares(some(shares, names), GOLDEN["threshold"])
        assert secret.hex() == GOLDEN["secret"]
        assert commit(secret).hex() == GOLDEN["commitment"]


@settings(max_examples=30, deadline=None)
@given(
    secret=st.binary(min_size=32, max_size=32),
    names=st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=6, unique=True),
    data=st.data(),
)
def test_every_subset_of_threshold_size_gives_the_secret(secret, names, data):
    threshold = data.draw(st.integers(2, len(names)))
    shares = split_secret(secret, threshold, names)
    assert set(shares) == set(names)
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    for subset in combinations(names, threshold):
        assert combine_shares(some(shares, subset), threshold) == secret


def test_more_than_threshold_shares_give_the_secret_too():
    secret = secrets.token_bytes(32)
    shares = split_secret(secret, 2, SITES)
    for size in (3, 4, 5):
        for subset in permutations(SITES, size):
            assert combine_shares(some(shares, subset), 2) == secret


def test_fewer_than_threshold_shares_are_refused():
    shares = split_secret(bytes(32), 4, SITES)
    for size in range(4):
        with pytest.raises(CohortTooSmall):
            combine_shares(some(shares, tuple(SITES[:size])), 4)


def byte_counts(samples: list[bytes]) -> np.ndarray:
    return np.bincount(np.frombuffer(b"".join(samples), np.uint8), minlength=256)


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(range(32))], ids=["zeros", "ones", "rising"])
def test_below_the_threshold_shares_are_uniform_whatever_the_secret(secret):
    """Each of two shares, their sum, and the line through them at zero: 12 chi-squares, false alarm 1e-6 per run."""
    odds = 1e-6 / 12
    low, high = chi2.ppf([odds / 2, 1 - odds / 2], df=255)
    views: list[list[bytes]] = [[], [], [], []]
    for _ in range(400):
        shares = split_secret(secret, 3, SITES)
        one, two = shares["b"][2:], shares["e"][2:]
        both = bytes(x ^ y for x, y in zip(one, two, strict=True))
        for view, seen in zip(views, (one, two, both, combine_shares(some(shares, ("b", "e")), 2)), strict=True):
            view.append(seen)
    for view in views:
        counts = byte_counts(view)
        expected = counts.sum() / 256
        assert low < ((counts - expected) ** 2 / expected).sum() < high


def test_two_splits_of_one_secret_share_nothing():
    first, second = split_secret(bytes(32), 3, SITES), split_secret(bytes(32), 3, SITES)
    assert all(first[name][2:] != second[name][2:] for name in SITES)


@pytest.mark.parametrize("threshold", [2, 3, 4])
def test_a_wrong_share_among_more_than_threshold_is_noticed_or_not_used(threshold):
    """For every set of sites and every liar, errors in one half or the other, at either end of it."""
    secret = secrets.token_bytes(32)
    shares = split_secret(secret, threshold, SITES)
    for subset in chain.from_iterable(combinations(SITES, size) for size in range(threshold + 1, 6)):
        for nth, liar in enumerate(subset):
            place = secrets.choice((2, 17, 18, SHARE_BYTES - 1))
            wrong = bytearray(shares[liar])
            wrong[place] ^= 1 << secrets.randbelow(8)
            given_shares = {**some(shares, subset), liar: bytes(wrong)}
            if nth <= threshold:
                with pytest.raises(ProtocolError, match="contradict"):
                    combine_shares(given_shares, threshold)
            else:
                assert combine_shares(given_shares, threshold) == secret


def test_a_wrong_share_among_just_enough_is_caught_by_the_commitment():
    secret = secrets.token_bytes(32)
    shares = split_secret(secret, 3, SITES)
    shares["a"] = shares["a"][:2] + secrets.token_bytes(32)
    assert commit(combine_shares(some(shares, ("a", "b", "c")), 3)) != commit(secret)
    assert commit(combine_shares(some(shares, ("b", "c", "d")), 3)) == commit(secret)


@pytest.mark.parametrize("length", [0, 1, 2, SHARE_BYTES - 1, SHARE_BYTES + 1])
def test_a_share_of_another_length_is_refused(length):
    shares = split_secret(bytes(32), 2, SITES)
    with pytest.raises(ProtocolError, match="bytes"):
        combine_shares({**shares, "e": bytes([0, 9]).ljust(length, b"x")[:length]}, 2)


def test_the_same_share_twice_is_refused():
    shares = split_secret(bytes(32), 3, SITES)
    with pytest.raises(ProtocolError, match="another"):
        combine_shares({"a": shares["a"], "b": shares["a"], "c": shares["c"]}, 3)


def test_swapped_shares_are_refused():
    shares = split_secret(bytes(32), 2, SITES)
    with pytest.raises(ProtocolError, match="another"):
        combine_shares({"a": shares["b"], "b": shares["a"]}, 2)


def test_index_zero_which_would_choose_the_secret_is_refused():
    shares = split_secret(bytes(32), 2, SITES)
    with pytest.raises(ProtocolError, match="another"):
        combine_shares({**shares, "a": bytes(2) + b"chosen by the attacker".ljust(32)}, 2)


@given(st.dictionaries(st.text(max_size=3), st.binary(max_size=40), max_size=5), st.integers(2, 4))
def test_any_bytes_at_all_end_in_a_secret_or_a_refusal(shares, threshold):
    with contextlib.suppress(ProtocolError, CohortTooSmall):
        assert len(combine_shares(shares, threshold)) == 32


@pytest.mark.parametrize(
    ("secret", "threshold", "names"),
    [
        (bytes(31), 2, SITES),
        (bytes(33), 2, SITES),
        (bytes(32), 1, SITES),
        (bytes(32), 0, SITES),
        (bytes(32), 6, SITES),
        (bytes(32), 2, ["a", "a", "b"]),
        (bytes(32), 2, []),
    ],
)
def test_splits_that_protect_nothing_are_refused(secret, threshold, names):
    with pytest.raises(ConfigError):
        split_secret(secret, threshold, names)


def test_errors_never_quote_the_secret():
    with pytest.raises(ConfigError) as caught:
        split_secret(b"tell nobody", 2, SITES)
    assert "nobody" not in str(caught.value)


def test_a_threshold_below_two_is_refused_when_combining():
    with pytest.raises(ConfigError):
        combine_shares({}, 0)
