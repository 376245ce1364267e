"""Proves: what a site reaches alone is measured under the same budget, with all of the noise its own."""

from dataclasses import replace

import numpy as np
import pytest

from client.datasets import Records
from common.errors import ConfigError
from common.federation import FederationSettings, ModelSettings, Plan, PrivacySettings, TrainingSettings
from scenarios.baselines import alone, non_private

RECORDS = Records(np.zeros((40, 3), np.float32), np.zeros(40, np.int64))  # nothing to learn but the bias


def plan(mode: str) -> Plan:
    return Plan(
        FederationSettings(rounds=1),
        ModelSettings(inputs=(3,), classes=2),
        TrainingSettings(local_steps=1, sample_rate=0.5, lot_size=1.0, learning_rate=1.0),
        PrivacySettings(mode=mode, noise_multiplier=3.0, max_grad_norm=1.0, max_update_norm=1e3),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_a_site_alone_adds_all_its_noise(mode):
    """The weights' gradients are zero, so what they hold is noise of deviation 3. False alarm below 1e-9."""
    weights = np.concatenate([alone(plan(mode), RECORDS).model[:6] for _ in range(200)])
    assert 2.5 < weights.std() < 3.5


def test_without_privacy_there_is_none():
    assert not alone(plan("none"), RECORDS).model[:6].any()
    assert not non_private(plan("distributed"), [RECORDS, RECORDS]).model[:6].any()


def test_a_site_that_is_the_secret_has_no_model_to_give_alone():
    unit = plan("local")
    with pytest.raises(ConfigError, match=r"privacy\.mode") as refusal:
        alone(replace(unit, privacy=replace(unit.privacy, mode="site")), RECORDS)
    assert "for a site alone" in refusal.value.hint
