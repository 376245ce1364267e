"""Proves: counts come back from the encrypted sum as they went in, with the noise that was paid for and no other."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from common.config import fill, to_table
from common.dp.noise_shares import NoiseShares
from common.errors import ConfigError
from common.evaluators.counts import sensitivity, size
from common.evaluators.fairness import (
    demographic_parity_difference,
    equal_opportunity_difference,
    equalized_odds_difference,
)
from common.evaluators.groups import GroupCounts
from common.federation import (
    EncryptionSettings,
    FederationSettings,
    MetricsSettings,
    ModelSettings,
    Plan,
    PrivacySettings,
    TrainingSettings,
)
from common.layout import CountKind, Layout, group_cells, longest
from common.metrics import MetricsCode
from common.wire import from_json, to_json

SEX = {"sex": ("f", "m"), "age": ("young", "middle", "old")}


def plan(
    mode: str = "local",
    every: int = 2,
    noise: float = 6.0,
    largest: int = 1000,
    groups: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    importance: tuple[str, ...] = (),
) -> Plan:
    return Plan(
        FederationSettings(rounds=5, min_cohort=3),
        ModelSettings(classes=2),
        TrainingSettings(local_steps=1),
        PrivacySettings(mode=mode, noise_multiplier=1.0),  # type: ignore[arg-type]
        EncryptionSettings(),
        MetricsSettings(every, noise, largest, groups, importance=importance),
    )


def code_of(plan: Plan, kind: CountKind = "counts", cohort: int = 4) -> MetricsCode:
    return MetricsCode.of(plan, cohort, 16, plan.last_round)[kind]


def test_the_noise_is_that_of_the_mode() -> None:
    full = 6.0 * sensitivity(2)
    assert code_of(plan("local"), cohort=10).std == full
    assert code_of(plan("distributed"), cohort=10).std == NoiseShares(10, 1).share(full)
    assert code_of(plan("none"), cohort=10).std == 0.0
    assert code_of(plan("local"), cohort=10).noise_in_sum(4) == 2 * full


@given(st.lists(st.floats(-2000, 2000), min_size=35, max_size=35), st.sampled_from(["local", "none"]))
def test_counts_come_back_up_to_a_step_with_their_noise(counts: list[float], mode: str) -> None:
    code, drawn = code_of(plan(mode)), np.linspace(-8, 8, 35)
    back = code.decode(code.encode(np.array(counts), drawn))
    bounded = np.clip(counts, -1000 if mode == "local" else 0, 1000)
    np.testing.assert_allclose(back, bounded + code.std * drawn, atol=code.step)
    assert code.step < 0.1


def test_noise_too_fine_for_the_integers_is_refused_and_the_way_out_named() -> None:
    with pytest.raises(ConfigError) as refusal:
        code_of(plan(noise=0.02, largest=10**6))
    assert "raise the noise" in refusal.value.hint


def test_a_round_carries_the_update_and_in_some_rounds_counts() -> None:
    assert [Layout.of(plan(), 100, number).length for number in range(1, 7)] == [100, 100, 135, 100, 135, 35]
    assert [Layout.of(plan(every=0), 100, number).length for number in range(1, 6)] == [100] * 5
    assert longest(plan(), 100) == 135 == 100 + size(2)
    assert longest(plan(every=0), 100) == 100


@pytest.mark.parametrize(("groups", "importance"), [({}, ()), (SEX, ()), ({}, ("a", "b")), (SEX, ("a", "b"))])
@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_all_kinds_of_counts_together_cost_what_one_release_at_the_plans_noise_does(
    mode: str, groups: Mapping[str, tuple[str, ...]], importance: tuple[str, ...]
) -> None:
    """Gaussian releases compose by their squared inverse noise multipliers: std over what one record moves."""
    asked, share = plan(mode, groups=groups, importance=importance), NoiseShares(10, 1).share(1.0)
    moves = {"counts": sensitivity(2), "groups": 1.0, "importance": 5**0.5}  # two features: five numbers, each by 1
    for number in filter(asked.measures, range(1, asked.last_round + 1)):
        codes = MetricsCode.of(asked, 10, 16, number)
        multipliers = [
            code.std / (share if mode == "distributed" else 1.0) / moves[kind] for kind, code in codes.items()
        ]
        assert sum(multiplier**-2 for multiplier in multipliers) == pytest.approx(6.0**-2)
        assert multipliers[0] == max(multipliers)
        last = number == asked.last_round
        assert [*codes] == ["counts", *(["groups"] if groups else []), *(["importance"] if importance and last else [])]


def test_importance_rides_last_and_with_the_final_model_alone() -> None:
    asked = plan(groups=SEX, importance=("a", "b", "c"))
    layouts = [Layout.of(asked, 100, number) for number in range(1, 7)]
    assert [layout.importance for layout in layouts] == [0, 0, 0, 0, 0, 6]
    assert [layout.length for layout in layouts] == [100, 100, 159, 100, 159, 65]
    assert layouts[-1].kinds == {"counts": slice(0, 35), "groups": slice(35, 59), "importance": slice(59, 65)}
    assert layouts[0].kinds == {}
    assert longest(asked, 100) == 159
    assert longest(asked, 2) == 65
    assert fill(Plan, from_json(to_json(to_table(asked)))) == asked  # as it comes over the wire


def test_counts_by_group_ride_behind_the_others_attributes_in_the_order_of_their_names() -> None:
    asked = plan(groups=SEX)
    assert [Layout.of(asked, 100, number).length for number in (2, 3, 6)] == [100, 100 + 35 + 24, 35 + 24]
    assert longest(asked, 100) == 100 + 35 + 24
    cells = group_cells(asked)
    assert cells is not None
    assert list(cells.attributes) == ["age", "sex"]
    assert group_cells(fill(Plan, from_json(to_json(to_table(asked))))) == cells  # as it comes over the wire
    assert group_cells(plan()) is None


@pytest.mark.parametrize(("mode", "noise"), [("distributed", 10.0), ("local", 4.0), ("none", 1.0)])
def test_intervals_hold_what_they_promise_after_the_road_through_integers(mode: str, noise: float) -> None:
    """1,000 draws of 4,000 records at ten sites, their noise in shares or not. False alarm 1e-6 at 94 %, 3e-6 a test.

    Both must be inside: the gap of the population, and that of the very records, which no noise has touched."""
    asked = plan(mode, noise=noise, groups={"sex": ("f", "m")})
    cells, code = group_cells(asked), code_of(asked, "groups", 10)
    assert cells is not None
    chances, random = np.array([0.27, 0.05, 0.02, 0.06, 0.26, 0.12, 0.05, 0.17]), np.random.default_rng()
    gaps = (demographic_parity_difference, equal_opportunity_difference, equalized_odds_difference)
    truth = [gap(GroupCounts(cells, chances * 1e9, 0.0).by("sex")).value for gap in gaps]
    covered = np.zeros((2, len(gaps)))
    for _ in range(1000):
        sites = random.multinomial(400, chances, size=10).astype(float)
        total = sum(code.encode(counts, random.normal(size=cells.size)) for counts in sites)
        told = GroupCounts(cells, code.decode(np.asarray(total)), code.noise_in_sum(10)).by("sex")
        pooled = GroupCounts(cells, sites.sum(axis=0), 0.0).by("sex")
        for place, gap in enumerate(gaps):
            found = gap(told)
            covered[0, place] += found.low <= truth[place] <= found.high
            covered[1, place] += found.low <= gap(pooled).value <= found.high
    assert covered.min() >= binom.ppf(1e-6, 1000, 0.94)


@pytest.mark.parametrize(
    ("groups", "bins", "key"),
    [
        ({"sex": ("f",)}, 2, "metrics.groups.sex"),
        ({"sex": ("f", "f")}, 2, "metrics.groups.sex"),
        ({"sex": ("f", "m")}, 3, "metrics.group_bins"),
        ({"sex": ("f", "m")}, 102, "metrics.group_bins"),
        ({"a": tuple("0123456789abcdefg"), "b": tuple("0123456789abcdefg")}, 2, "metrics.groups"),
    ],
)
def test_groups_that_cannot_be_counted_are_refused_by_their_key(groups: dict, bins: int, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        MetricsSettings(1, groups=groups, group_bins=bins)


@pytest.mark.parametrize(
    ("every", "importance"), [(0, ("a",)), (1, ("a", "a")), (1, ("a", "")), (1, tuple(map(str, range(257))))]
)
def test_features_that_cannot_be_asked_about_are_refused_by_their_key(every: int, importance: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.importance"):
        MetricsSettings(every, importance=importance)


def test_groups_are_for_two_classes() -> None:
    with pytest.raises(ConfigError, match=r"model\.classes = 3"):
        Plan(model=ModelSettings(classes=3), metrics=MetricsSettings(1, groups=SEX))


def test_without_noise_whole_counts_come_back_whole() -> None:
    code = code_of(plan("none"))
    counts = np.arange(0, 1000, 30, dtype=np.float64)
    assert (code.decode(code.encode(counts, np.zeros_like(counts))) == counts).all()
    assert code_of(plan("none", largest=10**6)).step == pytest.approx(10**6 / 32767)
