"""What a limit means in words is the theorem's, and numbers are rounded to the safe side."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from server.disclosure import detectable, round_up


@given(st.floats(0, 12), st.floats(0, 0.1), st.floats(1e-6, 0.9))
def test_no_test_of_randomised_response_beats_the_bound_and_one_reaches_it(epsilon, delta, false_alarm):
    """Randomised response that tells its bit plainly with chance delta is the worst (epsilon, delta)-DP mechanism."""
    lie = (1 - delta) / (1 + math.exp(epsilon))  # it says 1 though the bit is 0
    truth = delta + (1 - delta) - lie
    weight = min(1.0, false_alarm / lie)
    best = delta + weight * (truth - delta)
    if false_alarm > lie:
        best = truth + (false_alarm - lie) / (1 - delta - lie) * (1 - truth)
    assert detectable(epsilon, delta, false_alarm) == pytest.approx(min(best, 1.0), abs=1e-9)


@given(st.floats(0.05, 4))
def test_the_bound_covers_the_gaussian_mechanism(mu):
    epsilon = 1.5
    delta = float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))
    assert float(norm.cdf(norm.ppf(0.01) + mu)) <= detectable(epsilon, delta, 0.01) + 1e-12


def test_nothing_lost_is_guessing_and_everything_lost_is_certainty():
    assert detectable(0.0, 0.0, 0.01) == pytest.approx(0.01)
    assert detectable(math.inf, 0.0, 0.01) == 1.0


@given(st.floats(0, 1e6))
def test_epsilon_is_never_rounded_below_the_truth(epsilon):
    assert epsilon - 1e-8 <= float(round_up(epsilon)) <= epsilon + 0.01 + 1e-8


def test_a_full_budget_reads_as_itself():
    assert [round_up(epsilon) for epsilon in (3.0, 2.93, 2.9301, 0.0)] == ["3.00", "2.93", "2.94", "0.00"]
