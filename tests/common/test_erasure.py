"""Proves: after an erasure the models are those of a training that never had the records, and no other was touched."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.erasure import train_shards
from common.errors import ConfigError

VALUES = np.random.default_rng(0).normal(size=(60, 3))
ASKED = np.zeros((4, 1), np.float32)


class Fitting:
    """Fits the mean of a shard's records, so that every record shows; remembers what it was asked to fit."""

    def __init__(self):
        self.asked = []

    def __call__(self, places, number):
        self.asked.append((number, set(places.tolist())))
        mean = VALUES[places].mean(axis=0) + number
        return lambda features: np.tile(mean, (len(features), 1))


def dealt(shards):
    return [np.arange(60)[np.arange(60) % shards == number] for number in range(shards)]


@given(st.integers(1, 6), st.sets(st.integers(0, 59), min_size=1, max_size=50))
def test_an_erasure_gives_what_training_without_the_records_gives_and_fits_only_their_shards(shards, erased):
    gone = sorted(erased)
    whole = train_shards(dealt(shards), Fitting())
    again = Fitting()
    after = whole.without(gone, again)
    never = train_shards([np.setdiff1d(shard, gone) for shard in dealt(shards)], Fitting())
    assert after(ASKED).tobytes() == never(ASKED).tobytes()
    assert {number for number, _ in again.asked} <= set(whole.touched(gone)) == {place % shards for place in gone}
    assert not set().union(*(places for _, places in again.asked)) & erased
    assert after.trained == sum(len(places) for _, places in again.asked)


def test_one_record_of_six_shards_costs_a_sixth():
    after = train_shards(dealt(6), Fitting()).without([7], Fitting())
    assert (after.trained, after.touched([7]), after.touched([8])) == (9, (), (2,))


def test_a_record_that_is_nobodys_changes_nothing():
    whole, fit = train_shards(dealt(3), Fitting()), Fitting()
    assert whole.without([99], fit)(ASKED).tobytes() == whole(ASKED).tobytes()
    assert fit.asked == []


def test_a_shard_that_is_erased_whole_has_no_say_any_more():
    fit = Fitting()
    after = train_shards(dealt(2), fit).without(dealt(2)[0], fit)
    assert after(ASKED)[0] == pytest.approx(VALUES[1::2].mean(axis=0) + 1)


def test_no_record_is_in_two_shards_and_something_is_left():
    for shards in ([np.array([1, 2]), np.array([2, 3])], [np.array([4, 4])], [np.zeros(0, np.int64)], []):
        with pytest.raises(ConfigError, match="one shard"):
            train_shards(shards, Fitting())
    with pytest.raises(ConfigError, match="need records"):
        train_shards(dealt(2), Fitting()).without(np.arange(60), Fitting())
