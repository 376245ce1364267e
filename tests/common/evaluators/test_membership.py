"""Proves: LiRA's scores and rates are what the paper defines, on scores whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_curve

from common.errors import ConfigError
from common.evaluators.membership import (
    Attacked,
    clopper_pearson,
    confidences,
    likelihood_ratios,
    true_positives_at,
)
from common.evaluators.utility import auroc


def test_confidences_by_hand() -> None:
    found = confidences([[0.1, 0.9], [0.8, 0.2], [1.0, 0.0]], [1, 1, 0])
    np.testing.assert_allclose(found[:2], [np.log(9), np.log(0.25)])
    assert np.isfinite(found).all()


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(100, 400))
def test_true_positives_are_those_of_sklearns_curve(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    members = random.random(n) < 0.5
    scores = random.integers(0, 60, n) + 10.0 * members
    false, true, _ = roc_curve(members, scores, drop_intermediate=False)
    found = true_positives_at(Attacked(scores, members))
    assert found.value == pytest.approx(true[false <= 0.01].max())
    assert found.low <= found.value <= found.high


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 50))
def test_clopper_pearson_is_scipys(right: int, n: int) -> None:
    right = min(right, n)
    expected = binomtest(right, n).proportion_ci(0.95, "exact")
    found = clopper_pearson(right, n)
    assert (found.value, found.low, found.high) == pytest.approx((right / n, expected.low, expected.high))


def test_the_ratio_is_as_good_as_the_best_there_is() -> None:
    """Confidences truly normal, each record with its own mean: the attack's AUC is Phi(gap / sqrt 2) up to the means'
    own error with 40 shadows and to chance (4,000 records: 0.008)."""
    random, gap = np.random.default_rng(), 1.0
    hardness = 5 * random.normal(size=4000)
    inside = random.random((41, 4000)) < 0.5
    told = hardness + gap * inside + random.normal(size=inside.shape)
    found = likelihood_ratios(told[0], told[1:], inside[1:])
    area = auroc(found, inside[0].astype(int)).value
    assert area == pytest.approx(norm.cdf(gap / 2**0.5), abs=0.05)
    assert area > auroc(told[0], inside[0].astype(int)).value + 0.1  # loss alone is lost between hard and easy records


def test_nothing_is_found_where_nothing_is() -> None:
    """False alarm 1e-6: the standard error of an AUC of 2,000 and 2,000 is 0.0091."""
    random = np.random.default_rng()
    inside = random.random((9, 4000)) < 0.5
    told = random.normal(size=inside.shape)
    found = Attacked(likelihood_ratios(told[0], told[1:], inside[1:]), inside[0])
    assert auroc(found.scores, found.members.astype(int)).value == pytest.approx(0.5, abs=5 * 0.0091)


def test_records_that_no_shadow_or_every_shadow_had_are_no_trouble() -> None:
    inside = np.array([[True, False, True], [True, False, False]])
    found = likelihood_ratios(np.array([1.0, 2.0, 3.0]), np.array([[1.0, 2.0, 3.0], [1.5, 2.5, 1.0]]), inside)
    assert np.isfinite(found).all()


def test_what_is_no_attack_is_refused() -> None:
    for scores, members in [([1.0, 2.0], [True, True]), ([1.0, np.nan], [True, False]), ([1.0], [True, False])]:
        with pytest.raises(ConfigError):
            Attacked(np.array(scores), np.array(members))
    with pytest.raises(ConfigError, match="shadows"):
        likelihood_ratios(np.zeros(3), np.zeros((1, 3)), np.zeros((1, 3), bool))
