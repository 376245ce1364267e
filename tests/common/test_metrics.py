"""Proves: counts come back from the encrypted sum as they went in, with the noise that was paid for and no other."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import fill, to_table
from common.dp.noise_shares import NoiseShares
from common.errors import ConfigError
from common.evaluators.counts import sensitivity, size
from common.federation import (
    EncryptionSettings,
    FederationSettings,
    MetricsSettings,
    ModelSettings,
    Plan,
    PrivacySettings,
    TrainingSettings,
)
from common.layout import Layout, group_cells, longest
from common.metrics import MetricsCode
from common.wire import from_json, to_json

SEX = {"sex": ("f", "m"), "age": ("young", "middle", "old")}


def plan(
    mode: str = "local",
    every: int = 2,
    noise: float = 6.0,
    largest: int = 1000,
    groups: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Plan:
    return Plan(
        FederationSettings(rounds=5, min_cohort=3),
        ModelSettings(classes=2),
        TrainingSettings(local_steps=1),
        PrivacySettings(mode=mode, noise_multiplier=1.0),  # type: ignore[arg-type]
        EncryptionSettings(),
        MetricsSettings(every, noise, largest, groups),
    )


def test_the_noise_is_that_of_the_mode() -> None:
    full = 6.0 * sensitivity(2)
    assert MetricsCode.of(plan("local"), 10, 16).std == full
    assert MetricsCode.of(plan("distributed"), 10, 16).std == NoiseShares(10, 1).share(full)
    assert MetricsCode.of(plan("none"), 10, 16).std == 0.0
    assert MetricsCode.of(plan("local"), 10, 16).noise_in_sum(4) == 2 * full


@given(st.lists(st.floats(-2000, 2000), min_size=35, max_size=35), st.sampled_from(["local", "none"]))
def test_counts_come_back_up_to_a_step_with_their_noise(counts: list[float], mode: str) -> None:
    code, drawn = MetricsCode.of(plan(mode), 4, 16), np.linspace(-8, 8, 35)
    back = code.decode(code.encode(np.array(counts), drawn))
    bounded = np.clip(counts, -1000 if mode == "local" else 0, 1000)
    np.testing.assert_allclose(back, bounded + code.std * drawn, atol=code.step)
    assert code.step < 0.1


def test_noise_too_fine_for_the_integers_is_refused_and_the_way_out_named() -> None:
    with pytest.raises(ConfigError) as refusal:
        MetricsCode.of(plan(noise=0.02, largest=10**6), 4, 16)
    assert "raise the noise" in refusal.value.hint


def test_a_round_carries_the_update_and_in_some_rounds_counts() -> None:
    assert [Layout.of(plan(), 100, number).length for number in range(1, 7)] == [100, 100, 135, 100, 135, 35]
    assert [Layout.of(plan(every=0), 100, number).length for number in range(1, 6)] == [100] * 5
    assert longest(plan(), 100) == 135 == 100 + size(2)
    assert longest(plan(every=0), 100) == 100


def test_both_kinds_of_counts_together_cost_what_one_release_at_the_plans_noise_does() -> None:
    """Gaussian releases compose by their squared inverse noise multipliers: std over what one record moves."""
    for mode, share in (("local", 1.0), ("distributed", NoiseShares(10, 1).share(1.0))):
        asked = plan(mode, groups=SEX)
        of_all = MetricsCode.of(asked, 10, 16).std / share / sensitivity(2)
        of_groups = MetricsCode.of_groups(asked, 10, 16).std / share
        assert of_all**-2 + of_groups**-2 == pytest.approx(6.0**-2)
        assert of_groups < of_all


def test_counts_by_group_ride_behind_the_others_attributes_in_the_order_of_their_names() -> None:
    asked = plan(groups=SEX)
    assert [Layout.of(asked, 100, number).length for number in (2, 3, 6)] == [100, 100 + 35 + 24, 35 + 24]
    assert longest(asked, 100) == 100 + 35 + 24
    cells = group_cells(asked)
    assert cells is not None
    assert list(cells.attributes) == ["age", "sex"]
    assert group_cells(fill(Plan, from_json(to_json(to_table(asked))))) == cells  # as it comes over the wire
    assert group_cells(plan()) is None


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


def test_groups_are_for_two_classes() -> None:
    with pytest.raises(ConfigError, match=r"model\.classes = 3"):
        Plan(model=ModelSettings(classes=3), metrics=MetricsSettings(1, groups=SEX))


def test_without_noise_whole_counts_come_back_whole() -> None:
    code = MetricsCode.of(plan("none"), 4, 16)
    counts = np.arange(0, 1000, 30, dtype=np.float64)
    assert (code.decode(code.encode(counts, np.zeros_like(counts))) == counts).all()
    assert MetricsCode.of(plan("none", largest=10**6), 4, 16).step == pytest.approx(10**6 / 32767)
