"""The site's own limits hold whatever a plan says."""

from dataclasses import replace

import pytest

from client.policy import Resources, SitePolicy, consent
from common.errors import CohortTooSmall, ConfigError, PrivacyError
from common.federation import EncryptionSettings, FederationSettings, Plan, PrivacySettings

POLICY = SitePolicy(epsilon=3.0, delta=1e-3, min_cohort=3)
PLAN = Plan(federation=FederationSettings(min_cohort=3))
COHORT = ("a", "b", "c", "d")


def test_a_plan_within_the_policy_is_agreed_to():
    assert consent(POLICY, PLAN, COHORT, 100) is None


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        (replace(PLAN, encryption=EncryptionSettings(preset="none")), PrivacyError),
        (replace(PLAN, privacy=PrivacySettings(mode="none")), PrivacyError),
        (replace(PLAN, privacy=PrivacySettings(delta=0.02)), PrivacyError),
        (replace(PLAN, federation=FederationSettings(min_cohort=2)), CohortTooSmall),
    ],
    ids=["readable", "no privacy", "delta of one record", "small cohort"],
)
def test_what_the_policy_forbids_is_refused(plan, error):
    with pytest.raises(error):
        consent(POLICY, plan, COHORT, 100)


def test_an_administrator_may_allow_it():
    relaxed = replace(POLICY, require_encryption=False, require_privacy=False)
    plan = replace(PLAN, encryption=EncryptionSettings(preset="none"), privacy=PrivacySettings(mode="none"))
    assert consent(relaxed, plan, COHORT, 100) is None


@pytest.mark.parametrize(
    "values",
    [
        {"epsilon": 0.0},
        {"epsilon": float("nan")},
        {"delta": 0.5},
        {"min_cohort": 1},
        {"epsilon_per_run": 3.5},
        {"epsilon_per_run": float("nan")},
        {"max_weights": 0},
        {"bundle_keys": ("AB" * 32,)},
        {"model_factories": ("mlp",)},
        {"time_zone": "Mars/Olympus"},
        {"time_zone": "../../etc/passwd"},
    ],
)
def test_an_impossible_policy_is_refused_at_birth(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        replace(POLICY, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"cpu_cores": -1},
        {"cpu_seconds_per_round": float("inf")},
        {"memory_mb": -5},
        {"gpu_memory_fraction": 0.0},
        {"gpu_memory_fraction": 1.1},
        {"free_disk_mb": -1},
    ],
)
def test_impossible_caps_are_refused_at_birth(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        Resources(**values)
