"""The site's own limits hold whatever a plan says, each by itself, and each names its key in policy.toml."""

import tomllib
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from client.policy import EXAMPLE, Resources, SitePolicy, consent, objections, require_bundle_key, require_open_window
from client.windows import DAYS, Window, is_open
from common.config import fill, load_table, to_table
from common.errors import CohortTooSmall, ConfigError, NotNow, PrivacyError, ProtocolError, TrustError
from common.federation import (
    EncryptionSettings,
    FederationSettings,
    MetricsSettings,
    ModelSettings,
    Plan,
    PrivacySettings,
)
from common.wire import digest

POLICY = SitePolicy(epsilon=3.0, delta=1e-3, min_cohort=3)
PLAN = Plan(federation=FederationSettings(min_cohort=3))
READABLE = replace(PLAN, encryption=EncryptionSettings(preset="none"), privacy=PrivacySettings(mode="none"))
COHORT = ("a", "b", "c", "d")


def test_a_plan_within_the_policy_is_agreed_to():
    assert consent(POLICY, PLAN, COHORT, 100) is None


@pytest.mark.parametrize(
    ("plan", "error", "key"),
    [
        (replace(PLAN, encryption=EncryptionSettings(preset="none")), PrivacyError, "require_encryption"),
        (replace(PLAN, privacy=PrivacySettings(mode="none")), PrivacyError, "require_privacy"),
        (replace(PLAN, federation=FederationSettings(min_cohort=2)), CohortTooSmall, "min_cohort"),
        (replace(PLAN, model=ModelSettings("a:b")), PrivacyError, "model_factories"),
        (replace(PLAN, model=ModelSettings("mlp", (3,), 2, (2**26, 2**26))), ProtocolError, "max_weights"),
    ],
)
def test_what_the_policy_forbids_is_refused(plan, error, key):
    with pytest.raises(error, match=key):
        consent(POLICY, plan, COHORT, 100)


def test_a_policy_whose_delta_its_records_do_not_bear_agrees_to_nothing_whatever_the_plans_is():
    """What it says tells nobody how many records there are: no plan changes it."""
    for delta in (1e-9, 0.02):
        plan = replace(PLAN, privacy=PrivacySettings(delta=delta))
        consent(POLICY, plan, COHORT, 999)
        with pytest.raises(PrivacyError, match=r"policy\.delta"):
            consent(POLICY, plan, COHORT, 1000)


BY_SEX = MetricsSettings(every=1, groups={"sex": ("f", "m")})
SMALL = ModelSettings("mlp", (3,), 2, (8,))
RULES = [
    ("min_cohort", 4, PLAN, CohortTooSmall),
    ("require_encryption", True, READABLE, PrivacyError),
    ("require_privacy", True, READABLE, PrivacyError),
    ("privacy_modes", ("distributed", "site"), PLAN, PrivacyError),
    ("model_families", ("logistic", "cnn"), replace(PLAN, model=SMALL), PrivacyError),
    ("model_factories", (), replace(PLAN, model=ModelSettings("a:b")), PrivacyError),
    ("max_weights", 39, replace(PLAN, model=SMALL), ProtocolError),
    ("reports", ("seconds", "metrics"), PLAN, PrivacyError),
    ("protected_attributes", ("race",), replace(PLAN, metrics=BY_SEX), PrivacyError),
]
GENEROUS = replace(
    POLICY,
    require_encryption=False,
    require_privacy=False,
    model_factories=("a:b",),
    max_weights=40,
    protected_attributes=("race", "sex"),
)


@pytest.mark.parametrize(("key", "value", "plan", "error"), RULES, ids=[rule[0] for rule in RULES])
def test_each_rule_alone_turns_a_yes_into_a_no_and_names_itself(key, value, plan, error):
    assert list(objections(GENEROUS, plan, len(COHORT), 100)) == []
    asked = replace(plan, federation=replace(plan.federation, min_cohort=3))
    (objection,) = objections(replace(GENEROUS, **{key: value}), asked, len(COHORT), 100)
    assert type(objection) is error
    assert objection.message.startswith(f"policy.{key}: ")
    with pytest.raises(error, match=f"policy.{key}"):
        consent(replace(GENEROUS, **{key: value}), asked, COHORT, 100)


def test_nobody_is_counted_by_a_protected_attribute_unless_the_administrator_names_it():
    (objection,) = objections(POLICY, replace(PLAN, metrics=BY_SEX), len(COHORT), 100)
    assert objection.message.startswith("policy.protected_attributes: the plan counts records by sex")


def test_no_rule_is_without_a_test():
    """The others are about a ledger, a clock, a disk, a person or a bundle: their tests are beside what asks those."""
    asked_elsewhere = {"epsilon", "delta", "epsilon_per_run", "approval", "bundle_keys", "time_zone", "windows"}
    assert {field.name for field in fields(SitePolicy)} == {rule[0] for rule in RULES} | asked_elsewhere | {"resources"}


def test_every_objection_is_told_at_once():
    harsh = replace(POLICY, reports=(), privacy_modes=("site",), model_families=(), min_cohort=9)
    told = [objection.message.partition(":")[0] for objection in objections(harsh, PLAN, 4, 10_000)]
    named = ("model_families", "privacy_modes", "delta", "min_cohort", "reports")
    assert told == [f"policy.{key}" for key in named]


def test_a_cohort_is_as_large_as_its_smallest_sum():
    assert consent(POLICY, PLAN, COHORT[:3], 100) is None
    with pytest.raises(CohortTooSmall):
        consent(POLICY, PLAN, COHORT[:2], 100)


def test_an_administrator_may_allow_it():
    relaxed = replace(POLICY, require_encryption=False, require_privacy=False)
    assert consent(relaxed, READABLE, COHORT, 100) is None


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)),
    st.sampled_from(["UTC", "Europe/Vienna", "America/New_York", "Pacific/Chatham"]),
    st.integers(-14, 14),
)
def test_outside_of_its_windows_a_site_says_when_to_ask_again(instant, zone, asked_from):
    """Whichever zone the time is given in, what counts is the policy's own."""
    policy = replace(POLICY, time_zone=zone, windows=(Window("22:00", "06:00", ("mon", "fri")),))
    now = (instant.replace(tzinfo=UTC)).astimezone(_offset(asked_from))
    if is_open(policy.windows, now.astimezone(policy.zone)):
        assert require_open_window(policy, now) is None
        return
    with pytest.raises(NotNow, match=r"policy\.windows: this site trains from") as refused:
        require_open_window(policy, now)
    told = datetime.fromisoformat(refused.value.message.split()[5])
    assert now < told
    assert (told.astimezone(policy.zone).hour, DAYS[told.astimezone(policy.zone).weekday()] in ("mon", "fri")) == (
        22,
        True,
    )


def _offset(hours: int):
    from datetime import timezone

    return timezone(timedelta(hours=hours))


def test_a_bundle_key_must_be_on_the_roster_and_named_where_keys_are_named():
    ours, other, strange = b"o" * 32, b"p" * 32, b"s" * 32
    named = replace(POLICY, bundle_keys=(digest(ours).hex(),))
    assert require_bundle_key(POLICY, other, {ours, other}) is None
    assert require_bundle_key(named, ours, {ours, other}) is None
    with pytest.raises(TrustError, match=r"policy\.bundle_keys"):
        require_bundle_key(named, other, {ours, other})
    for policy in (POLICY, replace(POLICY, bundle_keys=(digest(strange).hex(),))):
        with pytest.raises(TrustError, match="roster"):
            require_bundle_key(policy, strange, {ours, other})


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


def test_a_policy_is_the_same_after_a_file():
    policy = replace(
        POLICY, windows=(Window("22:00", "06:00", ("fri",)),), resources=Resources(2, 60.0, 4000, 0.5, 500)
    )
    assert fill(SitePolicy, tomllib.loads(tomli_w.dumps(to_table(policy)))) == policy


def test_the_shipped_example_shows_every_key_and_its_default():
    """Lines that are commented out are what holds anyway."""
    example = fill(SitePolicy, load_table(EXAMPLE))
    assert example == SitePolicy(example.epsilon, example.delta)
    text = "\n".join(
        line.removeprefix("# ") if " = " in line or "[[" in line else line for line in EXAMPLE.read_text().splitlines()
    )
    shown = tomllib.loads(text)
    assert set(shown) == {field.name for field in fields(SitePolicy)}
    assert set(shown["resources"]) == {field.name for field in fields(Resources)}
    assert fill(SitePolicy, {**shown, "windows": []}) == replace(example, time_zone=shown["time_zone"])
