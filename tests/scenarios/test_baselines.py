"""Proves: what a site reaches alone is measured under the same budget, with all of the noise its own."""

import math
from dataclasses import replace

import numpy as np
import pytest

from client.datasets import Records
from common.errors import ConfigError
from common.federation import FederationSettings, ModelSettings, Plan, PrivacySettings, TrainingSettings
from scenarios.baselines import alone, central, non_private, together

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


@pytest.mark.parametrize(("baseline", "deviation"), [(central, 3 / 4), (together, 3 / math.sqrt(4 * 3))])
def test_a_centre_adds_one_noise_and_shares_a_little_more(baseline, deviation):
    """Four sites, one of whose shares does not count; the mean divides by four. False alarm below 1e-9."""
    weights = np.concatenate([baseline(plan("distributed"), [RECORDS] * 4).model[:6] for _ in range(600)])
    assert 0.92 * deviation < weights.std() < 1.08 * deviation


def test_local_noise_is_every_sites_own():
    """The mean over four sites holds half of one site's deviation of 3. False alarm below 1e-9."""
    weights = np.concatenate([together(plan("local"), [RECORDS] * 4).model[:6] for _ in range(200)])
    assert 0.85 * 1.5 < weights.std() < 1.15 * 1.5


def test_a_centre_takes_the_steps_of_the_federation_whatever_the_sites_sizes():
    """Every record drawn, none clipped, next to no noise: the model of the sites' sums, over the same lots."""
    rng = np.random.default_rng(0)
    sites = [Records(rng.normal(0, 0.3, (n, 3)).astype(np.float32), rng.integers(0, 2, n)) for n in (5, 40, 15)]
    quiet = plan("distributed")
    quiet = replace(
        quiet,
        federation=replace(quiet.federation, rounds=3),
        training=replace(quiet.training, sample_rate=1.0, lot_size=20.0, server_momentum=0.5),
        privacy=replace(quiet.privacy, max_grad_norm=3.0, noise_multiplier=1e-3),
    )
    np.testing.assert_allclose(central(quiet, sites).model, non_private(quiet, sites).model, atol=2e-3)


def test_a_centre_has_nothing_to_say_where_sites_are_the_secret():
    for mode in ("site", "none"):
        with pytest.raises(ConfigError, match=r"privacy\.mode"):
            central(replace(plan("local"), privacy=replace(plan("local").privacy, mode=mode)), [RECORDS])
