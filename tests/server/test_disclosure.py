"""What a limit means in words is the theorem's, and numbers are rounded to the safe side."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from server.disclosure import Disclosure, detectable, not_protected, round_up, who_learns_what


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


def facts(buckets: int, opened: list[int], **robustness: object) -> Disclosure:
    entry = {"sites": [f"s{n}" for n in range(sum(opened))], "left_out": []}
    if buckets:
        names = iter(entry["sites"])
        entry["buckets"] = [{"sites": [next(names) for _ in range(size)], "code": ""} for size in opened]
    return Disclosure.of(
        {
            "config": {
                "federation": {"min_cohort": 2},
                "encryption": {"preset": "compact"},
                "privacy": {"mode": "none"},
                "robustness": {"buckets": buckets, **robustness},
            },
            "privacy": {},
            "insecure": [],
            "sites": [{"epsilon": None, "delta": None, "trials": None}] * sum(opened),
            "rounds": [entry],
        }
    )


def test_the_smallest_sum_is_the_smallest_opened_bucket():
    assert facts(0, [9]).smallest_sum == 9
    divided = facts(3, [4, 3, 2], rule="median", byzantine=1)
    assert divided.smallest_sum == 2
    other = next(party for party in who_learns_what(divided) if party.name == "One other site")
    assert other.update.level == "yes"  # of two sites, each can subtract its own part
    wide = next(party for party in who_learns_what(facts(3, [4, 3, 3])) if party.name == "One other site")
    assert "sums of 3 buckets. Less its own part, that is the sum of 2 other sites" in wide.update.why


def test_buckets_and_what_a_rule_bears_are_told():
    told = dict(not_protected(facts(3, [3, 3, 3], rule="median", byzantine=1), False))
    assert "3 sums a round, not one" in told["Buckets"]
    assert "The rule median keeps up to 1 such sites from moving the model far" in told["A site that lies"]
    plain = dict(not_protected(facts(0, [9]), False))
    assert "Buckets" not in plain
    assert "does not detect it" in plain["A site that lies"]


@pytest.mark.parametrize("mode", ["local", "none"])
def test_what_is_counted_is_named_and_whether_a_limit_holds_for_it(mode):
    metrics = {"every": 2, "groups": {"sex": ["f", "m"], "age": ["old", "young"]}, "importance": ["a", "b"]}
    told = {}
    for asked in (metrics, {}):
        config = {
            "federation": {"reveal": "never"},
            "encryption": {"preset": "compact"},
            "privacy": {"mode": mode},
            "metrics": asked,
        }
        site = {"epsilon": 1.0 if mode == "local" else None, "delta": 1e-5, "trials": None}
        report = {"config": config, "privacy": {}, "insecure": [], "sites": [site] * 3, "rounds": []}
        facts = Disclosure.of(report)
        gaps, coordinator = dict(not_protected(facts, False)), who_learns_what(facts)[0]
        told[bool(asked)] = (gaps.get("What the sites count", ""), coordinator.records.level)
    counted, records = told[True]
    assert "the same by age and sex, right predictions with each of 2 features replaced" in counted
    assert ("ε counts them" if mode == "local" else "No limit holds") in counted
    assert records == ("limited" if mode == "local" else "yes")
    assert told[False] == ("", "no")
