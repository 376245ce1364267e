"""Proves: exposure is what its definition says, and of a secret that was not learnt as seldom high as stated."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from common.errors import ConfigError
from common.evaluators.exposure import Secrets, exposures


@given(st.integers(0, 99))
def test_by_rank_in_a_space_that_is_known_whole(rank: int) -> None:
    """Of 100 secrets, the one with `rank` better ones has log2(100) - log2(rank + 1) bits, and nothing is uncertain."""
    others = np.delete(np.arange(100.0), rank)
    (found,) = exposures(Secrets(np.array([float(rank)]), others, math.log2(100)))
    assert found.value == pytest.approx(math.log2(100) - math.log2(rank + 1))
    assert found.low == found.value == found.high


def test_a_sample_of_the_others_tells_it_within_its_interval() -> None:
    """2,000 samples of 300 of a million secrets: covered in 95 % or more, false alarm 1e-6."""
    random, space, rank = np.random.default_rng(), 10**6, 20_000
    truth, covered = math.log2(space) - math.log2(rank), 0
    for _ in range(2000):
        (found,) = exposures(Secrets(np.array([float(rank)]), random.integers(0, space, 300) + 0.5, math.log2(space)))
        covered += found.low <= truth <= found.high
    assert covered >= binom.ppf(1e-6, 2000, 0.95)


def test_of_secrets_that_were_not_learnt_one_has_x_bits_with_a_chance_of_2_to_the_minus_x() -> None:
    random = np.random.default_rng()
    found = exposures(Secrets(random.random(4000), random.random(4000), 30.0))
    for bits in (1, 3, 6):
        high = sum(each.value >= bits for each in found)
        assert high <= 2 * binom.isf(1e-6, 4000, 2.0**-bits)


def test_more_than_a_sample_can_show_is_not_claimed_and_not_denied() -> None:
    (found,) = exposures(Secrets(np.array([0.0]), np.ones(1023), 40.0))
    assert (found.value, found.high) == (10.0, 40.0)
    assert 7 < found.low < 10


def test_a_tie_is_no_success() -> None:
    (found,) = exposures(Secrets(np.array([1.0]), np.ones(1023), 40.0))
    assert found.value == 0


def test_what_is_no_experiment_is_refused() -> None:
    for planted, others, bits in [([], [1.0], 9.0), ([1.0], [np.nan], 9.0), ([1.0], [1.0] * 100, 5.0)]:
        with pytest.raises(ConfigError):
            Secrets(np.array(planted), np.array(others), bits)
