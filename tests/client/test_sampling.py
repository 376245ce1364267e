"""Proves: each record enters a batch on its own with the promised chance, and empty batches are real.

Statistics: each test raises a false alarm with chance at most 1e-6 per run, over fresh randomness.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.sampling import poisson_batch
from common.errors import ConfigError
from common.randomness import Randomness

FALSE_ALARM = 1e-6


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.97])
def test_each_record_enters_with_the_same_chance_and_independently(rate: float) -> None:
    """Chi-square over positions and over neighbouring pairs: a lump, a gap or a drift along the data would show."""
    from scipy.stats import chi2

    records, batches, randomness = 40, 4000, Randomness.from_os()
    chosen = np.zeros((batches, records))
    for row in chosen:
        row[poisson_batch(records, rate, randomness)] = 1
    for table, chance in ((chosen, rate), (chosen[:, 1:] * chosen[:, :-1], rate**2)):
        if batches * chance < 20:
            continue
        # Neighbouring pairs overlap, so each parity is tested on its own.
        for columns in (table[:, ::2], table[:, 1::2]):
            counts = columns.sum(0)
            expected = batches * chance
            statistic = np.sum((counts - expected) ** 2 / (expected * (1 - chance)))
            low, high = chi2.ppf([FALSE_ALARM / 8, 1 - FALSE_ALARM / 8], df=len(counts))
            assert low / 1.3 < statistic < high * 1.3  # 1.3: counts are not quite normal


def test_the_size_of_a_batch_is_binomial_and_often_zero() -> None:
    from scipy.stats import binom, chi2

    records, rate, batches, randomness = 20, 0.05, 20_000, Randomness.from_os()
    sizes = np.array([len(poisson_batch(records, rate, randomness)) for _ in range(batches)])
    observed = np.append(np.bincount(np.minimum(sizes, 5), minlength=6), 0)[:6]
    expected = batches * np.append(binom.pmf(range(5), records, rate), binom.sf(4, records, rate))
    assert observed[0] > 0
    assert np.sum((observed - expected) ** 2 / expected) < chi2.isf(FALSE_ALARM / 2, df=5)


@given(st.integers(0, 300), st.floats(1e-300, 1), st.integers(0, 99))
def test_indices_are_ascending_distinct_and_in_range(records: int, rate: float, seed: int) -> None:
    batch = poisson_batch(records, rate, Randomness.insecure(seed))
    assert batch.dtype == np.int64
    assert np.all(np.diff(batch) > 0)
    assert not len(batch) or (batch[0] >= 0 and batch[-1] < records)


def test_a_rate_of_one_takes_everybody() -> None:
    assert poisson_batch(7, 1.0, Randomness.insecure(0)).tolist() == list(range(7))


def test_a_draw_that_ends_too_early_goes_on() -> None:
    """A randomness of small skips uses up the first draw of distances before the data set ends."""

    class Crowded(Randomness):
        def uniform(self, n: int) -> np.ndarray:
            return np.zeros(n)  # ln(1) = 0: every distance is 0, every record is taken

    assert poisson_batch(1000, 0.01, Crowded(bytes(32), secure=False)).tolist() == list(range(1000))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_chance_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="sample_rate"):
        poisson_batch(10, rate, Randomness.insecure(0))
