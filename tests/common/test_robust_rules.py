"""Proves: each rule is its textbook definition, holds up to its breakdown point and breaks beyond it."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import trim_mean

from common.breakdown import RuleName, fewest_vectors, tolerated
from common.encoding import Encoding
from common.errors import ConfigError, InvalidUpdate
from common.federation import ModelSettings, Plan, PrivacySettings
from common.he.parameters import choose_scheme
from common.he.scheme import CohortKey, encrypt, open_sum
from common.randomness import Randomness
from common.robust_rules import (
    RULES,
    centred_clipping,
    coordinate_median,
    geometric_median,
    multi_krum,
    norm_bound,
    trimmed_mean,
)
from common.updates import clip
from server.aggregate_encrypted import BlindSum

EVERY = pytest.mark.parametrize("rule", RULES)
FAR = 1e9


def good(n: int, d: int = 5, seed: int | None = None) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(1.0, 0.3, (n, d)))


def test_median_and_trimmed_mean_are_numpys_and_scipys() -> None:
    updates = good(11)
    np.testing.assert_allclose(coordinate_median(updates), np.median(updates, axis=0))
    for bad in range(5):
        np.testing.assert_allclose(trimmed_mean(updates, bad), trim_mean(updates, (bad + 1e-9) / 11, axis=0))


def test_the_geometric_median_is_where_the_sum_of_distances_is_least() -> None:
    """Fixed draws: where it falls on a vector, once in some hundred, Weiszfeld's fifty steps end 1e-3 beside it."""
    for seed in range(5):
        updates = good(7, seed=seed)
        found = geometric_median(updates)
        theirs = minimize(lambda x, us=updates: sum(np.linalg.norm(u - x) for u in us), updates[0], tol=1e-12).x
        np.testing.assert_allclose(found, theirs, atol=1e-4)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 14))
def test_krum_chooses_by_brute_force(seed: int, n: int) -> None:
    """Heavy tails, so that how many neighbours count makes a difference."""
    updates, bad = list(np.random.default_rng(seed).standard_cauchy((n, 3))), (n - 3) // 2
    scores = []
    for i, update in enumerate(updates):
        near = sorted(float(((update - other) ** 2).sum()) for j, other in enumerate(updates) if j != i)
        scores.append(sum(near[: n - bad - 2]))
    chosen = np.argsort(scores)[: n - bad]
    np.testing.assert_allclose(multi_krum(updates, bad), np.mean([updates[i] for i in chosen], axis=0), atol=1e-9)


def test_krum_leaves_out_those_that_collude() -> None:
    np.testing.assert_allclose(
        multi_krum([*good(9, seed=3), *(5 + u for u in good(3))], 3), np.mean(good(9, seed=3), axis=0)
    )


def test_centred_clipping_is_the_papers_loop() -> None:
    updates = [*good(8), np.full(5, 40.0)]
    centre = np.median(updates, axis=0)
    radius = np.median([np.linalg.norm(u - centre) for u in updates])
    for _ in range(5):
        steps = [(u - centre) * min(1, radius / np.linalg.norm(u - centre)) for u in updates if (u != centre).any()]
        centre = centre + np.sum(steps, axis=0) / len(updates)
    np.testing.assert_allclose(centred_clipping(updates), centre, rtol=1e-5)


def test_no_vector_is_longer_than_the_median_under_a_norm_bound() -> None:
    updates = [*good(4), np.full(5, FAR)]
    lengths = [np.linalg.norm(u) for u in updates]
    bound = np.median(lengths)
    expected = np.mean([u * min(1, bound / n) for u, n in zip(updates, lengths, strict=True)], axis=0)
    np.testing.assert_allclose(norm_bound(updates), expected, rtol=1e-6)


@EVERY
@settings(deadline=None)
@given(st.integers(3, 15), st.integers(0, 1000))
def test_vectors_that_agree_are_the_answer(rule: str, n: int, seed: int) -> None:
    vector = np.random.default_rng(seed).normal(size=4)
    np.testing.assert_allclose(RULES[rule]([vector] * n, tolerated(rule, n)), vector, rtol=1e-12)


@EVERY
@pytest.mark.parametrize("n", [5, 6, 11, 20])
@pytest.mark.parametrize("where", ["together", "apart"])
def test_as_many_as_are_tolerated_do_bounded_harm(rule: str, n: int, where: str) -> None:
    bad = tolerated(rule, n)
    for distance in (1e3, 1e6, FAR):
        ways = np.random.default_rng(1).normal(size=(bad, 5))
        lies = [distance * (ways[0] if where == "together" else way) for way in ways]
        found = RULES[rule]([*good(n - bad, seed=2), *lies], bad)
        assert np.linalg.norm(found - np.mean(good(n - bad, seed=2), axis=0)) < 6


@EVERY
def test_one_more_moves_it_anywhere(rule: str) -> None:
    """Of eleven: one for the mean, five for Krum (told of four), six for all others: then the bad are the majority."""
    bad = tolerated(rule, 11) + 1
    lies = [np.full(5, FAR)] * bad
    found = RULES[rule]([*good(11 - bad), *lies], tolerated(rule, 11))
    if rule == "multi-krum":  # five colluding are nearest to one another: each is among the n - f that are kept
        assert np.linalg.norm(found) > FAR / 10
    else:
        assert np.linalg.norm(found) > FAR / 100


@EVERY
def test_the_order_of_vectors_decides_nothing(rule: str) -> None:
    """But how a length in single precision is rounded, by 6e-8 of it."""
    updates = good(9)
    np.testing.assert_allclose(RULES[rule](updates, 2), RULES[rule](updates[::-1], 2), rtol=1e-6)


def test_what_is_tolerated() -> None:
    assert [tolerated("median", n) for n in (1, 2, 3, 4, 5, 20)] == [0, 0, 1, 1, 2, 9]
    assert [tolerated("multi-krum", n) for n in (2, 4, 5, 7, 20)] == [0, 0, 1, 2, 8]
    assert tolerated("mean", 100) == 0
    with pytest.raises(ConfigError, match="no rule"):
        tolerated("vote", 5)


@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"mean"}))
@pytest.mark.parametrize("bad", [1, 2, 6])
def test_the_fewest_vectors_are_no_more_than_needed(rule: str, bad: int) -> None:
    assert tolerated(rule, fewest_vectors(rule, bad)) == bad
    assert tolerated(rule, fewest_vectors(rule, bad) - 1) < bad


def test_every_rule_that_a_plan_can_name_is_there() -> None:
    assert set(RULES) == set(get_args(RuleName))


@EVERY
def test_vectors_that_make_no_sense_are_refused(rule: str) -> None:
    for updates in ([], [np.zeros(2), np.zeros(3)], [np.zeros(2), np.array([0, np.nan])], [np.zeros((2, 2))]):
        with pytest.raises(InvalidUpdate):
            RULES[rule](updates, 0)
    with pytest.raises(ConfigError, match="bad vectors"):
        RULES[rule](good(4), 2)


def test_krum_refuses_too_few_neighbours() -> None:
    with pytest.raises(ConfigError, match="bad vectors"):
        multi_krum(good(4), 1)


@EVERY
def test_lengths_that_differ_in_the_last_digit_make_the_same_bits(rule: str) -> None:
    """What another machine's linear algebra may do to a norm; the answer in single precision must stay."""
    updates = good(9, d=1000, seed=4)
    turned = [np.ascontiguousarray(u[::-1]) for u in updates]  # sums in another order: other last digits
    found, again = RULES[rule](updates, 2), RULES[rule](turned, 2)[::-1]
    np.testing.assert_array_equal(found, again)


def opened_buckets(updates: list[np.ndarray], size: int) -> list[np.ndarray]:
    """The means of buckets as sites have them: encoded, encrypted, summed blind, opened; nothing else is readable."""
    plan = Plan(model=ModelSettings("logistic", (4,), 2), privacy=PrivacySettings(mode="none", max_update_norm=10.0))
    scheme = choose_scheme("compact", size, updates[0].size)
    key, randomness, means = CohortKey.generate(scheme), Randomness.from_os(), []
    encoding = Encoding.of(plan, b"robust rules run", 1, scheme.value_bits, [updates[0].size], size)
    for start in range(0, len(updates), size):
        total = BlindSum(scheme, updates[0].size)
        for update in updates[start : start + size]:
            total.add(encrypt(encoding.encode(clip(update, plan.privacy.max_update_norm), randomness), key))
        means.append(encoding.decode(open_sum(total.result(), key)) / size)
    return means


@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"mean"}))
def test_on_opened_buckets_one_bad_site_of_fifteen_does_little_and_to_the_mean_much(rule: str) -> None:
    updates = [u / 10 for u in good(15, d=50, seed=6)]
    truth = np.mean(updates, axis=0)
    updates[7] = np.full(50, -10 / np.sqrt(50))  # as long as clipping lets it be
    means = opened_buckets(updates, 3)
    assert tolerated(rule, len(means)) >= 1
    spoilt = np.linalg.norm(RULES["mean"](means, 0) - truth)
    assert np.linalg.norm(RULES[rule](means, 1) - truth) < spoilt / 2
