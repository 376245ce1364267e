"""Proves: sums over pairs of records tell what permutation importance does, and how far one record moves them."""

from collections import Counter
from itertools import permutations
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2, norm

from common.errors import ConfigError
from common.evaluators.explanation import permutation_importance
from common.evaluators.importance import estimates, paired, sensitivity, size, tally

COLUMNS = [[0], [1, 2], [3]]


def capricious(features: np.ndarray) -> np.ndarray:
    """A model that any change of any column may turn: the worst that a bound has to hold for."""
    chance = np.array([crc32(row.tobytes()) % 2 for row in np.ascontiguousarray(features)], float)
    return np.column_stack([1 - chance, chance])


def by_sign(features: np.ndarray) -> np.ndarray:
    """Named 1 when column 0 is above 0; the others play no part."""
    chance = (features[:, 0] > 0).astype(float)
    return np.column_stack([1 - chance, chance])


def drawn(n: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return random.normal(size=(n, 4)).astype(np.float32), random.integers(0, 2, n)


def test_each_feature_counts_those_that_are_right_with_the_values_of_their_givers() -> None:
    features = np.array([[1, 0, 0, 5], [1, 0, 0, 6], [-1, 0, 0, 7], [-1, 0, 0, 8]], np.float32)
    given_them = np.array([[-3, 1, 1, 1], [2, 1, 1, 1], [-2, 1, 1, 1], [3, 1, 1, 1]], np.float32)
    counts = tally(by_sign, features, np.array([1, 1, 0, 1]), given_them, COLUMNS)
    assert counts.tolist() == [4, 3, 3, 3, 3, 3]
    assert tally(by_sign, features, np.array([1, 1, 0, 0]), given_them, COLUMNS).tolist() == [4, 4, 4, 2, 4, 4]
    assert tally(by_sign, features[:0], np.zeros(0, int), given_them[:0], COLUMNS).tolist() == [0] * 6


def test_a_prediction_that_is_no_number_counts_and_stops_nobody() -> None:
    features = np.zeros((3, 4), np.float32)
    assert tally(lambda asked: np.full((len(asked), 2), np.nan), features, np.array([0, 1, 0]), features, [[0]])[1] == 2


def with_one_more(
    pairs: list[tuple[int, int]], place: int, held_out: bool, takers: int, givers: int, random: np.random.Generator
) -> list[tuple[int, int]]:
    """Pairs as they may be with the record at `place` as well, drawn beside given pairs without it: see the module."""
    taking, giving = [taker for taker, _ in pairs], [giver for _, giver in pairs]
    mine, others = (taking, givers) if held_out else (giving, takers)
    free = sorted(set(range(others)) - set(giving if held_out else taking))
    if free:
        other = int(random.choice(free))
        return [*pairs, (place, other) if held_out else (other, place)]
    if random.random() >= len(pairs) / ((takers if held_out else givers) + 1):
        return pairs
    replaced = int(random.integers(len(mine)))
    return [
        pair if i != replaced else ((place, pair[1]) if held_out else (pair[0], place)) for i, pair in enumerate(pairs)
    ]


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 12), st.integers(0, 12), st.booleans(), st.integers(0, 10**6))
def test_one_record_more_in_either_part_moves_no_number_by_more_than_one(
    takers: int, givers: int, held_out: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    features, labels = drawn(takers + 1, random)
    training, _ = drawn(givers + 1, random)
    fewer = list(zip(*map(np.ndarray.tolist, paired(random.random(takers), random.random(givers))), strict=True))
    more = with_one_more(fewer, takers if held_out else givers, held_out, takers, givers, random)

    def counted(pairs: list[tuple[int, int]]) -> np.ndarray:
        taking, giving = np.array(pairs, int).reshape(-1, 2).T
        return tally(capricious, features[taking], labels[taking], training[giving], COLUMNS)

    moved = counted(more) - counted(fewer)
    assert np.abs(moved).max() <= 1
    assert np.linalg.norm(moved) <= sensitivity(len(COLUMNS)) == np.sqrt(size(len(COLUMNS)))


def injections(takers: int, givers: int) -> list[tuple[tuple[int, int], ...]]:
    if takers <= givers:
        return [tuple(enumerate(chosen)) for chosen in permutations(range(givers), takers)]
    return [tuple(sorted(zip(chosen, range(givers), strict=True))) for chosen in permutations(range(takers), givers)]


@pytest.mark.parametrize(("takers", "givers"), [(2, 3), (3, 2), (3, 3)])
@pytest.mark.parametrize("grown", ["no", "held out", "training"])
def test_all_pairs_are_drawn_alike_also_where_one_record_joins_pairs_without_it(
    takers: int, givers: int, grown: str
) -> None:
    """So that what holds for fixed pairs holds for drawn ones. 6,000 draws; false alarm 1e-6 for each of nine tests."""
    random, seen = np.random.default_rng(), Counter[tuple[tuple[int, int], ...]]()
    held_out = grown == "held out"
    before = (takers - (grown == "held out"), givers - (grown == "training"))
    for _ in range(6000):
        taking, giving = paired(random.random(before[0]), random.random(before[1]))
        pairs = list(zip(taking.tolist(), giving.tolist(), strict=True))
        if grown != "no":
            pairs = with_one_more(pairs, before[0] if held_out else before[1], held_out, *before, random)
        seen[tuple(sorted(pairs))] += 1
    possible = injections(takers, givers)
    assert set(seen) <= set(possible)
    expected = 6000 / len(possible)
    distance = sum((seen[each] - expected) ** 2 / expected for each in possible)
    assert distance < chi2.ppf(1 - 1e-6, len(possible) - 1)


def test_it_is_permutation_importance() -> None:
    """Both estimate 2 p (1 - p) of a sign that is positive with chance p, and 0 of what plays no part.

    20,000 records: standard deviations of 0.0033 and less, five of both together are 0.02."""
    random = np.random.default_rng()
    features, training = (random.normal(0.5, 1, (20_000, 4)).astype(np.float32) for _ in range(2))
    labels = (features[:, 0] > 0).astype(int)
    taking, giving = paired(random.random(20_000), random.random(20_000))
    counts = tally(by_sign, features[taking], labels[taking], training[giving], COLUMNS)
    found = estimates(counts, ("x", "y", "z"), 0.0)
    columns = dict(zip("xyz", COLUMNS, strict=True))
    expected = permutation_importance(by_sign, features, labels, columns, random)
    p = norm.cdf(0.5)
    assert found["x"].value == pytest.approx(2 * p * (1 - p), abs=0.02)
    for name in "xyz":
        assert found[name].value == pytest.approx(expected[name].value, abs=0.02)
    assert found["y"].value == found["z"].value == 0.0


@pytest.mark.parametrize("noise", [0.0, 8.0, 60.0])
def test_intervals_hold_the_truth_as_often_as_they_say(noise: float) -> None:
    """A sign, of which one label in ten is wrong; 500 draws of 1,500 pairs. False alarm 1e-6 for each noise at 94 %."""
    random, p, held, none = np.random.default_rng(), norm.cdf(1.0), 0, 0
    truth = 0.8 * 2 * p * (1 - p)  # right in 0.9, and with another's value in 0.9 or 0.1 as it has the same sign or not
    for _ in range(500):
        features, training = (random.normal(1.0, 1.0, (1500, 4)).astype(np.float32) for _ in range(2))
        labels = (features[:, 0] > 0) ^ (random.random(1500) < 0.1)
        counts = tally(by_sign, features, labels.astype(int), training, COLUMNS)
        found = estimates(counts + noise * random.normal(size=counts.size), ("x", "y", "z"), noise)
        held += found["x"].low <= truth <= found["x"].high
        none += found["y"].low <= 0 <= found["y"].high
    assert min(held, none) >= binom.ppf(1e-6, 500, 0.94)


def test_what_all_differences_are_taken_from_travels_so_often_that_they_have_the_least_noise() -> None:
    """Variance of a difference: what so many numbers cost, times how many noises are in it."""
    for features in (1, 2, 5, 11, 13, 40, 256):
        least = min((1 + r + features) * (1 + 1 / r) for r in range(1, features + 1))
        r = size(features) - 1 - features
        assert (1 + r + features) * (1 + 1 / r) <= 1.02 * least
        assert sensitivity(features) ** 2 == pytest.approx(1 + r + features)


def test_what_noise_drowns_is_left_out_and_the_rest_stays_possible() -> None:
    assert estimates(np.array([100.0, 90.0, 80.0]), ("x",), 40.0) == {}
    assert estimates(np.zeros(3), ("x",), 0.0) == {}
    wild = estimates(np.array([100.0, 150.0, -250.0]), ("x",), 30.0)["x"]
    assert (wild.value, wild.high) == (1.0, 1.0)
    assert -1 <= wild.low < 1


def test_what_makes_no_sense_is_refused() -> None:
    features, labels = drawn(4, np.random.default_rng(1))
    with pytest.raises(ConfigError, match="features"):
        tally(by_sign, features, labels, features[:3], COLUMNS)
    with pytest.raises(ConfigError, match="labels"):
        tally(by_sign, features, labels[:3], features, COLUMNS)
    with pytest.raises(ConfigError, match="sums for 2 features"):
        estimates(np.zeros(3), ("x", "y"), 0.0)
    assert size(0) == 0
