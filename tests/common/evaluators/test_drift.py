"""Proves: what moved is seen, what did not is not, at the stated odds; indices are those of the formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from common.errors import ConfigError
from common.evaluators.drift import (
    CHANCE,
    Profile,
    holm,
    output_shift,
    shifts,
    shifts_between,
    stability_index,
)

COUNTS = st.lists(st.integers(0, 500), min_size=2, max_size=12)


def test_the_index_by_hand() -> None:
    expected, observed = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    by_hand = (0.25 * np.log(2)) + (-0.25 * np.log(2 / 3))
    assert stability_index(expected * 1e9, observed * 1e9) == pytest.approx(by_hand)


@settings(deadline=None)
@given(COUNTS, st.integers(0, 1000))
def test_the_index_is_0_for_equal_shares_symmetric_and_never_negative(counts: list[int], seed: int) -> None:
    other = np.random.default_rng(seed).permutation(counts)
    assert stability_index(counts, counts) == 0
    assert stability_index(counts, other) == pytest.approx(stability_index(other, counts))
    assert stability_index(counts, other) >= 0


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.001]), [0.9, 0.002])


def mixed(random: np.random.Generator, n: int, shift: float = 0.0) -> np.ndarray:
    """Three continuous columns, then two of levels; only the second and the last may move."""
    table = random.normal(size=(n, 5))
    table[:, 1] += shift
    table[:, 3] = random.random(n) < 0.3
    table[:, 4] = random.choice(3, n, p=[0.5 - shift / 4, 0.3 + shift / 4, 0.2])
    return table


@pytest.mark.parametrize("how", ["profile", "records"])
def test_the_columns_that_moved_are_found_and_no_others(how: str) -> None:
    """Others are blamed with CHANCE at most: six of 20 once in a million. Of the two that moved one is missed
    below 1e-9: the levels' chi-squared of 3,000 and 3,000 has a noncentrality of 118, and 12 is enough."""
    random, blamed = np.random.default_rng(), 0
    for _ in range(20):
        before, now = mixed(random, 3000), mixed(random, 3000, 0.5)
        found = shifts(Profile.of(before), now) if how == "profile" else shifts_between(before, now)
        assert [shift.moved for shift in found][1::3] == [True, True]
        assert found[1].index > 0.1 > found[0].index
        blamed += any(shift.moved for place, shift in enumerate(found) if place not in (1, 4))
    assert blamed <= binom.isf(1e-6, 20, CHANCE)


@pytest.mark.parametrize("how", ["profile", "records"])
def test_false_alarms_come_as_seldom_as_stated(how: str) -> None:
    """300 comparisons of the same law; more alarms than these come with a chance below 1e-6."""
    random, alarms = np.random.default_rng(), 0
    for _ in range(300):
        before, now = mixed(random, 400), mixed(random, 300)
        found = shifts(Profile.of(before), now) if how == "profile" else shifts_between(before, now)
        alarms += any(shift.moved for shift in found)
    assert alarms <= binom.isf(1e-6, 300, 1.3 * CHANCE)  # asymptotic tests: a little over their size at most


def test_records_themselves_tell_of_a_shift_within_a_bin() -> None:
    before = np.random.default_rng(0).random((3000, 1))
    squeezed = np.floor(before * 10) / 10 + (before * 10 % 1) / 40  # every decile keeps its share
    assert not shifts(Profile.of(before), squeezed + 1e-9)[0].p_value < 1e-6
    assert shifts_between(before, squeezed)[0].p_value < 1e-9


def test_a_level_that_was_never_there_is_counted_and_a_constant_column_is_no_trouble() -> None:
    before, now = np.zeros((100, 2)), np.zeros((100, 2))
    before[:50, 0] = 1
    now[:, 0] = 7
    found = shifts(Profile.of(before), now)
    assert found[0].moved
    assert (found[1].index, found[1].p_value) == (0.0, 1.0)


def test_images_are_columns_by_pixel() -> None:
    images = np.random.default_rng(0).random((50, 4, 4))
    assert len(shifts(Profile.of(images), images)) == 16


def test_outputs_of_the_same_model_have_not_moved_and_others_have() -> None:
    random = np.random.default_rng(0)
    scores = random.random(500)
    before = np.stack([1 - scores, scores], axis=1)
    assert output_shift(before, before, random).high == 0
    assert output_shift(before, before[:, ::-1] ** 3, random).low > 0.1
    named = np.eye(3)[random.choice(3, 500)]
    assert (
        output_shift(named, named[:, [1, 2, 0]], random).value
        < 0.1
        < output_shift(named, np.eye(3)[[0] * 500], random).low
    )


def test_what_cannot_be_compared_is_refused() -> None:
    for values in ([1.0, 2.0], np.zeros((0, 3)), [[np.nan]]):
        with pytest.raises(ConfigError, match="finite records"):
            Profile.of(values)
    with pytest.raises(ConfigError, match="2 columns"):
        shifts(Profile.of([[1.0]]), [[1.0, 2.0]])
    with pytest.raises(ConfigError, match="profile"):
        Profile((np.zeros(2),), (np.ones(2),))
