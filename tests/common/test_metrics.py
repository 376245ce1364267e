"""Proves: counts come back from the encrypted sum as they went in, with the noise that was paid for and no other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from common.layout import Layout, longest
from common.metrics import MetricsCode


def plan(mode: str = "local", every: int = 2, noise: float = 6.0, largest: int = 1000) -> Plan:
    return Plan(
        FederationSettings(rounds=5, min_cohort=3),
        ModelSettings(classes=2),
        TrainingSettings(local_steps=1),
        PrivacySettings(mode=mode, noise_multiplier=1.0),  # type: ignore[arg-type]
        EncryptionSettings(),
        MetricsSettings(every, noise, largest),
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


def test_without_noise_whole_counts_come_back_whole() -> None:
    code = MetricsCode.of(plan("none"), 4, 16)
    counts = np.arange(0, 1000, 30, dtype=np.float64)
    assert (code.decode(code.encode(counts, np.zeros_like(counts))) == counts).all()
    assert MetricsCode.of(plan("none", largest=10**6), 4, 16).step == pytest.approx(10**6 / 32767)
