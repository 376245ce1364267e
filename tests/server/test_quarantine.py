"""Proves: a site is kept out for what chance cannot do, an honest one hardly ever, and for the rest of the run."""

import random

import pytest
from scipy.stats import binom

from common.buckets import shuffled
from common.config import fill
from common.federation import Plan
from server.quarantine import quarantined

SITES = tuple(f"site-{number:02}" for number in range(20))
PLAN = fill(
    Plan,
    {
        "robustness": {"rule": "median", "byzantine": 2, "buckets": 10},
        "federation": {"rounds": 40},
    },
)
CHANCE = 2 / 19  # of an honest site to sit beside one of the two, in pairs


def played(rounds: int, bad: set[str], run: bytes = b"r" * 16) -> list[dict]:
    """Records in which every bucket with a bad site is broken."""
    return [
        {
            "buckets": [
                {"sites": list(bucket), "code": "BucketNormExceeded" * bool(bad & set(bucket))} for bucket in each
            ]
        }
        for each in (shuffled(SITES, 10, run, number, b"m" * 32) for number in range(rounds))
    ]


def test_a_site_that_always_breaks_the_bound_is_out_as_soon_as_chance_cannot_explain_it():
    limit = 1e-3 / (20 * 40)
    needed = next(k for k in range(1, 40) if CHANCE**k < limit)
    assert quarantined(played(needed - 1, set(SITES[:2])), PLAN, SITES) == ()
    found = quarantined(played(needed, set(SITES[:2])), PLAN, SITES)
    assert {left.site for left in found} == set(SITES[:2])
    assert {left.code for left in found} == {"Quarantined"}
    assert f"in {needed} of {needed} rounds" in found[0].message


def test_it_stays_out_when_later_rounds_have_no_broken_bucket():
    history = played(7, {SITES[3]}) + played(33, set())
    assert binom.sf(6, 40, CHANCE) > 1e-3 / (20 * 40)  # as if it had been there all the time
    assert [left.site for left in quarantined(history, PLAN, SITES)] == [SITES[3]]


def test_honest_sites_stay_in_whatever_the_bad_do():
    """40 rounds, 25 runs: the plan's odds are 1 in 1,000 a run. False alarm below 2e-8: four runs of 25, by union."""
    dice = random.Random()
    wronged = sum(
        any(
            left.site not in SITES[:2]
            for left in quarantined(played(40, set(SITES[:2]), dice.randbytes(16)), PLAN, SITES)
        )
        for _ in range(25)
    )
    assert wronged <= 3


@pytest.mark.parametrize("buckets", [0, 10])
def test_rounds_without_broken_buckets_or_on_no_record_keep_nobody_out(buckets):
    rule = {"rule": "median", "byzantine": 2, "buckets": 10} if buckets else {}
    plan = fill(Plan, {"robustness": rule})
    assert quarantined([{}, *played(20, set())], plan, SITES) == ()
