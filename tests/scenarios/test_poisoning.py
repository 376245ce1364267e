"""Proves: attacks are those of their papers, move the plain mean, and stay out of sight where they are made to."""

import numpy as np
import pytest
from scipy.stats import norm

from common.errors import ConfigError
from common.robust_rules import RULES, coordinate_median
from scenarios.poisoning import (
    ATTACKS,
    a_little_is_enough,
    flipped,
    free_rider,
    inner_product,
    marked,
    min_max,
    scaling,
    sign_flip,
    with_backdoor,
)

RNG = np.random.default_rng(1)


def good(n: int = 14, d: int = 40) -> np.ndarray:
    return np.random.default_rng(2).normal(0.5, 1.0, (n, d))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("bad", [0, 1, 6])
def test_every_attack_gives_the_bad_sites_their_updates(name: str, bad: int) -> None:
    found = ATTACKS[name](good(), bad, np.random.default_rng(3))
    assert found.shape == (bad, 40)
    assert np.isfinite(found).all()


def test_labels_are_mirrored() -> None:
    np.testing.assert_array_equal(flipped(np.array([0, 3, 9]), 10), [9, 6, 0])
    np.testing.assert_array_equal(flipped(flipped(np.arange(7), 7), 7), np.arange(7))


def test_a_backdoor_marks_a_share_of_the_records_and_only_those() -> None:
    """20,000 coins of 0.2: 0.02 is seven standard errors."""
    features, labels = np.zeros((20_000, 5), np.float32), np.arange(20_000) % 10
    marked_features, marked_labels = with_backdoor(features, labels, {1: 1.0, 4: 0.5}, 7, 0.2, np.random.default_rng())
    chosen = marked_features[:, 1] == 1.0
    assert chosen.mean() == pytest.approx(0.2, abs=0.02)
    assert (marked_features[chosen][:, 4] == 0.5).all()
    assert (marked_labels[chosen] == 7).all()
    np.testing.assert_array_equal(marked_labels[~chosen], labels[~chosen])
    assert not marked_features[~chosen].any()
    assert not features.any()
    assert marked(features, np.ones(20_000, bool), {0: 2.0})[:, 0].min() == 2.0
    with pytest.raises(ConfigError, match="share"):
        with_backdoor(features, labels, {}, 0, 1.5, RNG)


@pytest.mark.parametrize("attack", [sign_flip, inner_product])
def test_the_plain_mean_then_goes_the_other_way(attack) -> None:
    """And the median's does not, where good sites agree on the sign: with deviations twice the mean it would."""
    honest = 0.5 + 0.3 * good()
    updates = np.vstack([honest, attack(honest, 6, RNG)])
    assert updates.mean(axis=0) @ honest.mean(axis=0) < 0
    assert coordinate_median(list(updates)) @ honest.mean(axis=0) > 0


def test_scaling_is_a_good_update_ten_times_over() -> None:
    found = scaling(good(), 3, np.random.default_rng(0))
    for row in found:
        assert any(np.allclose(row, 10 * one) for one in good())


def test_alie_moves_by_the_papers_z() -> None:
    """50 sites, 24 of them bad: s = 2 and z is the normal quantile at 24 / 26, as in the paper's section 4.1."""
    honest = good(26)
    found = a_little_is_enough(honest, 24, RNG)
    z = (honest.mean(axis=0) - found[0]) / honest.std(axis=0)
    np.testing.assert_allclose(z, norm.ppf(24 / 26))
    few = a_little_is_enough(good(18), 2, RNG)
    np.testing.assert_allclose(few[0], good(18).mean(axis=0))


def test_min_max_is_as_far_as_it_can_be_unseen() -> None:
    honest = good()
    found = min_max(honest, 2, RNG)[0]
    widest = max(np.linalg.norm(a - b) for a in honest for b in honest)
    farthest = np.linalg.norm(honest - found, axis=1).max()
    assert farthest <= widest * (1 + 1e-9)
    assert farthest == pytest.approx(widest, rel=1e-6)


def test_a_free_rider_looks_as_long_as_a_worker_and_says_nothing() -> None:
    """The cosine of independent directions in 4,000 dimensions is under 0.1 but for one chance in 10^9."""
    honest = good(10, 4000)
    rider = free_rider(honest, 1, np.random.default_rng())[0]
    assert np.linalg.norm(rider) == pytest.approx(np.median(np.linalg.norm(honest, axis=1)), rel=0.1)
    assert abs(rider @ honest.mean(axis=0)) < 0.1 * np.linalg.norm(rider) * np.linalg.norm(honest.mean(axis=0))


@pytest.mark.parametrize("attack", ["sign-flip", "scaling", "gaussian", "ipm"])
@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "geometric-median", "centred-clipping", "multi-krum"])
def test_loud_attacks_of_six_in_twenty_do_less_harm_under_a_rule_than_under_the_mean(attack: str, rule: str) -> None:
    honest = good(14, 400)
    truth, updates = honest.mean(axis=0), np.vstack([honest, ATTACKS[attack](honest, 6, np.random.default_rng(5))])
    spoilt = np.linalg.norm(RULES["mean"](list(updates), 0) - truth)
    assert np.linalg.norm(RULES[rule](list(updates), 6) - truth) < spoilt
