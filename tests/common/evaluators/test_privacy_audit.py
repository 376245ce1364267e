"""Proves: the certificate is the published bound, the detector is exact for normal noise, and an honest run is flagged
as seldom as is said. Against the real training: `tests/scenarios/test_canaries.py`."""

import math

import numpy as np
import pytest
from scipy.stats import beta, binom, nct, norm

from common.dp.accounting import epsilon as accounted
from common.dp.events import Gaussian
from common.errors import ConfigError
from common.evaluators.privacy_audit import (
    FALSE_ALARM,
    LARGEST_EPSILON,
    Canaries,
    audit,
    certificate,
    detector,
    effect_of_claim,
    epsilon_of_gaussian,
    p_value,
)

DELTA = 1e-5


def gaussian(m: int, effect: float, claimed: float = 4.0, rng: np.random.Generator | None = None) -> Canaries:
    """Scores of a Gaussian mechanism."""
    rng = rng or np.random.default_rng()
    coins = rng.random(m) < 0.5
    return Canaries(rng.normal(size=m) + effect * coins, coins, claimed, DELTA)


def bound(m: int, guesses: int, right: int, delta: float, doubt: float) -> float:
    """By bisection, as their code has it."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(m, guesses, right, middle, delta) < doubt else (low, middle)
    return low


def test_the_published_example() -> None:
    """1,000 examples, 100 guesses, 75 right, delta 1e-4, 95 %: 0.673, as the paper's code prints."""
    assert bound(1000, 100, 75, 1e-4, 0.05) == pytest.approx(0.673, abs=5e-4)


@pytest.mark.parametrize(("guesses", "right"), [(100, 75), (40, 40), (1000, 600), (10, 6)])
def test_with_pure_dp_the_bound_is_clopper_pearsons_for_randomised_response(guesses: int, right: int) -> None:
    share = beta.ppf(0.05, right, guesses - right + 1)
    expected = max(0.0, math.log(share / (1 - share)))
    assert bound(1000, guesses, right, 0.0, 0.05) == pytest.approx(expected, abs=1e-6)


def test_the_chance_is_the_sum_that_the_paper_writes() -> None:
    """Their loop, word for word, beside the vectors."""
    for guesses, right, epsilon in [(50, 40, 1.0), (200, 110, 0.1), (5, 5, 2.0), (20, 1, 0.5)]:
        chance, alpha, total = 1 / (1 + math.exp(-epsilon)), 0.0, 0.0
        for i in range(1, right + 1):
            total += binom.pmf(right - i, guesses, chance)
            alpha = max(alpha, total / i)
        expected = binom.sf(right - 1, guesses, chance) + alpha * 1e-3 * 2 * 500
        assert p_value(500, guesses, right, epsilon, 1e-3) == pytest.approx(min(1.0, expected))
    assert p_value(500, 20, 0, 0.5, 1e-3) == 1.0


@pytest.mark.slow
def test_randomised_response_is_certified_seldom_beyond_its_epsilon() -> None:
    """Pure DP at epsilon 1: over 200 runs at 95 %, false alarm 1e-6 if at most 5 % are wrong; and it finds much."""
    rng, truth, found = np.random.default_rng(), 1.0, []
    for _ in range(200):
        coins = rng.random(1000) < 0.5
        told = np.where(rng.random(1000) < 1 / (1 + math.exp(-truth)), coins, ~coins)
        found.append(certificate(Canaries(told + 1e-6 * rng.random(1000), coins, truth, DELTA)))
    assert np.sum(np.array(found) > truth) <= binom.ppf(1 - 1e-6, 200, 0.05)
    assert np.median(found) > 0.6


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 1.0811, 3.0])
def test_epsilon_of_normal_noise_is_the_accountants(noise_multiplier: float) -> None:
    """Which rounds up by its grid, by under one percent."""
    ours, theirs = epsilon_of_gaussian(1 / noise_multiplier, DELTA), accounted([Gaussian(noise_multiplier)], DELTA)
    assert ours <= theirs <= ours * 1.01 + 1e-3
    assert effect_of_claim(ours, DELTA) == pytest.approx(1 / noise_multiplier)


@pytest.mark.slow
def test_the_detector_is_wrong_as_often_as_it_says() -> None:
    """400 honest runs at 95 %: its bound is above the truth in 5 % of them, neither more nor less, at odds of 1e-6."""
    rng, effect = np.random.default_rng(), effect_of_claim(4.0, DELTA)
    wrong = sum(detector(gaussian(500, effect, rng=rng)) > 4.0 for _ in range(400))
    assert binom.ppf(1e-6, 400, 0.05) <= wrong <= binom.ppf(1 - 1e-6, 400, 0.05)


def test_false_alarms_are_computed_and_under_one_in_a_thousand() -> None:
    """What flags by the detector is one number for t; 2,000,000 honest t drawn from their definition pass it in half of
    FALSE_ALARM, and the certificate's half is a bound of the theorem. False alarm of this test: 1e-6."""
    rng, m, runs = np.random.default_rng(), 5000, 2_000_000
    effect, scale = effect_of_claim(4.0, DELTA), math.sqrt(m) / 2
    limit = nct.ppf(1 - FALSE_ALARM / 2, m - 2, effect * scale)
    drawn = (rng.normal(size=runs) + effect * scale) / np.sqrt(rng.chisquare(m - 2, runs) / (m - 2))
    assert np.sum(drawn > limit) <= binom.ppf(1 - 1e-6, runs, FALSE_ALARM / 2)
    assert np.sum(drawn > limit) >= binom.ppf(1e-6, runs, FALSE_ALARM / 2)


def shifted(m: int, t: float) -> Canaries:
    """Scores whose t statistic is exactly so: quantiles, one set of them moved."""
    half = norm.ppf((np.arange(m // 2) + 0.5) / (m // 2))
    spread = math.sqrt(2 * float(half @ half) / (m - 2))
    return Canaries(np.concatenate([half + t * spread * 2 / math.sqrt(m), half]), np.arange(m) < m // 2, 4.0, DELTA)


def test_a_verdict_falls_where_the_computed_limit_is() -> None:
    m = 5000
    limit = float(nct.ppf(1 - FALSE_ALARM / 2, m - 2, effect_of_claim(4.0, DELTA) * math.sqrt(m) / 2))
    assert not audit(shifted(m, limit * 0.999)).flagged
    assert audit(shifted(m, limit * 1.001)).flagged
    assert audit(shifted(m, limit * 0.95)).detector <= 4.1


def test_scores_that_give_everything_away() -> None:
    coins = np.arange(5000) % 2 == 0
    told = audit(Canaries(coins.astype(float), coins, 4.0, DELTA))
    assert told.flagged
    assert told.detector == told.fit == LARGEST_EPSILON
    assert told.certificate > 5
    nothing = audit(Canaries(np.zeros(5000), np.random.default_rng(0).random(5000) < 0.5, 4.0, DELTA))
    assert not nothing.flagged
    assert nothing.detector == 0.0
    backwards = audit(Canaries(-coins.astype(float), coins, 4.0, DELTA))
    assert (backwards.detector, backwards.certificate) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "coins", "epsilon"),
    [
        ([0.0, 1.0], [True, False], 4.0),
        ([0.0, 1.0, 2.0, math.nan], [True, True, False, False], 4.0),
        ([0.0, 1.0, 2.0], [True, True, False, False], 4.0),
        ([0.0, 1.0, 2.0, 3.0], [True, True, False, False], math.inf),
        ([0.0, 1.0, 2.0, 3.0], [True, True, False, False], 0.0),
    ],
)
def test_what_is_no_audit_is_refused(scores: list, coins: list, epsilon: float) -> None:
    with pytest.raises(ConfigError):
        Canaries(np.array(scores), np.array(coins), epsilon, DELTA)
