"""Proves: values are the only fair ones on games whose answer is known, and a sample's intervals hold."""

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.evaluators.contribution import (
    MOST_EXACT,
    Coalition,
    Game,
    error_bound,
    leave_one_out,
    sampled_shapley,
    shapley,
    valued,
)

NAMES = tuple("abcdefghijklmnopqrst")


def random_game(seed: int, sites: int, monotone: bool = False) -> Game:
    """What a coalition reaches is drawn for each; monotone: never less than what a part of it reaches."""

    def drawn(coalition: Coalition) -> float:
        return float(np.random.default_rng([seed, *sorted(NAMES.index(site) for site in coalition)]).random())

    def best(coalition: Coalition) -> float:
        parts = [coalition - {site} for site in coalition]
        return max([drawn(coalition), *map(game.utility, parts)])

    game = Game(NAMES[:sites], best if monotone else drawn)
    return game


def counted(utility: Callable[[Coalition], float], sites: int) -> tuple[Game, list[Coalition]]:
    asked: list[Coalition] = []

    def noted(coalition: Coalition) -> float:
        asked.append(coalition)
        return utility(coalition)

    return Game(NAMES[:sites], noted), asked


def test_glove_game_by_hand() -> None:
    """One left glove, two right ones, a pair is worth 1: Shapley's own example gives 2/3, 1/6, 1/6."""
    game = Game(("left", "right", "other"), lambda who: float("left" in who and len(who) > 1))
    assert shapley(game) == pytest.approx({"left": 2 / 3, "right": 1 / 6, "other": 1 / 6})
    assert leave_one_out(game) == {"left": 1.0, "right": 0.0, "other": 0.0}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_values_are_means_over_all_orders(seed: int, sites: int) -> None:
    game = random_game(seed, sites)
    mean = dict.fromkeys(game.sites, 0.0)
    for order in permutations(game.sites):
        for place, site in enumerate(order):
            before = frozenset(order[:place])
            mean[site] += (game.utility(before | {site}) - game.utility(before)) / math.factorial(sites)
    assert shapley(game) == pytest.approx(mean)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(3, 7))
def test_the_axioms_hold(seed: int, sites: int) -> None:
    """Efficiency, dummy, symmetry and additivity are all that Shapley values are."""
    drawn, other = random_game(seed, sites), random_game(seed + 1, sites)
    names, idle, (one, two) = drawn.sites, NAMES[0], NAMES[1:3]

    values = shapley(drawn)
    assert sum(values.values()) == pytest.approx(drawn.utility(drawn.everybody) - drawn.utility(frozenset()))
    without = Game(names, lambda who: drawn.utility(who - {idle}))
    assert shapley(without)[idle] == pytest.approx(0)
    assert leave_one_out(without)[idle] == 0
    swap = {one: two, two: one}
    alike = Game(names, lambda who: drawn.utility(who) + drawn.utility(frozenset(swap.get(s, s) for s in who)), 2.0)
    assert shapley(alike)[one] == pytest.approx(shapley(alike)[two])
    both = shapley(Game(names, lambda who: drawn.utility(who) + other.utility(who), 2.0))
    apart = shapley(other)
    assert both == pytest.approx({site: values[site] + apart[site] for site in names})


def test_the_interval_of_a_sample_holds_for_all_sites_at_once() -> None:
    """Each of 60 samples misses with a chance of 5 %, 7 % with a spread that is not normal: 17 do once in a million."""
    missed = 0
    for seed in range(60):
        game = random_game(seed, 6)
        truth, found = shapley(game), sampled_shapley(game, np.random.default_rng(), 100)
        missed += not all(found[site].low <= truth[site] <= found[site].high for site in game.sites)
    assert missed < 17


def test_the_bound_holds_for_the_game_that_spreads_most() -> None:
    """Whoever comes last in the order takes all: each of 200 samples is beyond the bound with a chance of 5 % at most,
    so that 30 are has one below 1e-6. It is no idle bound either: a fifth of it is passed now and then."""
    game = Game(NAMES[:4], lambda who: float(len(who) == 4))
    errors = [
        max(abs(found.value - 0.25) for found in sampled_shapley(game, np.random.default_rng(), 50).values())
        for _ in range(200)
    ]
    bound = error_bound(1.0, 4, 50)
    assert sum(error > bound for error in errors) < 30
    assert max(errors) > bound / 5


def test_a_bound_by_hand_that_falls_with_the_root_of_the_orders() -> None:
    assert error_bound(1.0, 20, 1000) == pytest.approx((2 * math.log(800) / 1000) ** 0.5)
    assert error_bound(3.0, 20, 4000) == pytest.approx(1.5 * error_bound(1.0, 20, 1000))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(0, 0.5))
def test_an_early_end_takes_no_more_than_its_tolerance(seed: int, tolerance: float) -> None:
    game = random_game(seed, 6, monotone=True)
    whole = sampled_shapley(game, np.random.default_rng(seed), 40)
    early = sampled_shapley(game, np.random.default_rng(seed), 40, tolerance)
    gained = game.utility(game.everybody) - game.utility(frozenset())
    assert sum(value.value for value in whole.values()) == pytest.approx(gained)
    assert gained - sum(value.value for value in early.values()) <= tolerance + 1e-9
    for site in game.sites:
        assert whole[site].value - early[site].value + 1e-12 >= 0
        assert whole[site].value <= early[site].value + tolerance + 1e-9


def test_an_early_end_spares_evaluations() -> None:
    game, asked = counted(lambda who: min(len(who), 3) / 3, 12)
    sampled_shapley(game, np.random.default_rng(0), 30, 0.01)
    assert max(len(coalition) for coalition in asked if len(coalition) < 12) == 3


def test_few_sites_are_valued_exactly_and_many_by_a_sample_and_no_coalition_is_asked_twice() -> None:
    for sites, exact in ((MOST_EXACT, True), (MOST_EXACT + 1, False)):
        game, asked = counted(lambda who: len(who) / 20, sites)
        found = valued(game, np.random.default_rng(0))
        assert found.exact is exact
        assert (found.nothing, found.whole) == (0.0, sites / 20)
        assert len(set(asked)) == len(asked) <= 200 * sites + 2
        assert all(value.value == pytest.approx(0.05) for value in found.shapley.values())
        assert found.left_out == pytest.approx(dict.fromkeys(game.sites, 0.05))


def test_of_many_sites_orders_end_when_next_to_nothing_is_left() -> None:
    """20 sites, each of which takes half of what is left: seven leave less than a hundredth."""
    game, asked = counted(lambda who: 1 - 0.5 ** len(who), 20)
    found = valued(game, np.random.default_rng(0))
    assert {len(coalition) for coalition in asked} == {*range(8), 19, 20}
    assert sum(value.value for value in found.shapley.values()) == pytest.approx(found.whole, abs=0.01)


def test_what_is_no_game_is_refused() -> None:
    for sites in (("a",), ("a", "a")):
        with pytest.raises(ConfigError, match="sites of a game"):
            Game(sites, len)
    with pytest.raises(ConfigError, match="sites of a game = 11"):
        shapley(Game(NAMES[:11], len))
    with pytest.raises(ConfigError, match="span"):
        sampled_shapley(Game(NAMES[:3], lambda who: 2.0 * len(who)), np.random.default_rng(0))
