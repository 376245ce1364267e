"""Proves: the shuffle is public, even, and another one for everything that it depends on; short buckets are refused."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from common.buckets import filled, require_full_enough, require_room, shuffled
from common.config import fill
from common.errors import CohortTooSmall, ConfigError
from common.federation import Plan

RUN, MODEL = b"r" * 16, b"m" * 32
SITES = tuple(f"site-{number:02}" for number in range(20))
PLAN = fill(Plan, {"robustness": {"rule": "median", "byzantine": 2, "buckets": 6}, "federation": {"min_cohort": 3}})


@given(st.sets(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=30), st.integers(0, 9), st.integers(0, 99))
def test_everybody_is_in_one_bucket_and_sizes_differ_by_one_at_most(names, count, number):
    buckets = shuffled(sorted(names), count, RUN, number, MODEL)
    assert sorted(site for bucket in buckets for site in bucket) == sorted(names)
    assert len(buckets) == max(1, count)
    assert max(map(len, buckets)) - min(map(len, buckets)) <= 1
    assert all(list(bucket) == sorted(bucket) for bucket in buckets)


def test_it_is_worked_out_as_documented():
    """By hand: sites in the order of SHA-256(seed | name), dealt out in turn."""
    seed = hashlib.sha256(b"veilfed.buckets.v1|" + RUN + (7).to_bytes(4, "big") + MODEL).digest()
    order = sorted(SITES, key=lambda site: hashlib.sha256(seed + site.encode()).digest())
    assert shuffled(SITES, 6, RUN, 7, MODEL) == tuple(tuple(sorted(order[place::6])) for place in range(6))
    assert shuffled(SITES[::-1], 6, RUN, 7, MODEL) == shuffled(SITES, 6, RUN, 7, MODEL)


def test_another_run_round_or_model_shuffles_anew():
    found = {
        shuffled(SITES, 6, *given)
        for given in [(RUN, 7, MODEL), (b"R" * 16, 7, MODEL), (RUN, 8, MODEL), (RUN, 7, RUN * 2)]
    }
    assert len(found) == 4


def test_two_sites_meet_as_often_as_chance_has_it():
    """10,000 rounds, buckets of 2: each of 19 others is met equally often. False alarm 1e-6, on a fixed shuffle."""
    met = Counter(
        site
        for number in range(10_000)
        for bucket in shuffled(SITES, 10, RUN, number, MODEL)
        if SITES[0] in bucket
        for site in bucket
        if site != SITES[0]
    )
    expected = 10_000 / 19
    assert len(met) == 19
    assert sum((times - expected) ** 2 / expected for times in met.values()) < chi2.isf(1e-6, 18)


def test_those_who_are_away_leave_gaps_and_no_empty_bucket():
    assert filled((("a", "d"), ("b",), ("c", "e")), {"a", "c", "e"}) == (("a",), ("c", "e"))


def test_buckets_without_room_for_the_smallest_sum_are_refused():
    require_room(PLAN, 18)
    with pytest.raises(ConfigError) as refusal:
        require_room(PLAN, 17)
    assert refusal.value.message == "robustness.buckets = 6 is not possible"
    assert refusal.value.hint == "allowed: at most 5 for 17 sites with federation.min_cohort = 3"


def test_a_short_bucket_and_too_few_for_the_rule_are_refused():
    whole = shuffled(SITES, 6, RUN, 1, MODEL)
    require_full_enough(PLAN, whole[:5], 3)
    with pytest.raises(CohortTooSmall, match="a sum of 2 sites is not opened, 3 are required"):
        require_full_enough(PLAN, (*whole[:5], whole[5][:2]), 3)
    with pytest.raises(CohortTooSmall, match="4 sums or updates are left: rule 'median' bears 2 bad ones of 5"):
        require_full_enough(PLAN, whole[:4], 3)
