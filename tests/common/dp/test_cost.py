"""Proves: a round is charged for the noise that is left in what is opened, and reserved for the least there may be."""

from dataclasses import replace

import pytest

from common.dp.accounting import epsilon
from common.dp.cost import noise_share, planned_events, round_events
from common.dp.events import Gaussian, PoissonGaussian
from common.dp.noise_shares import NoiseShares
from common.federation import (
    FederationSettings,
    MetricsSettings,
    ModelSettings,
    Plan,
    PrivacySettings,
    TrainingSettings,
)


def plan(mode: str, every: int = 0, steps: int = 1) -> Plan:
    return Plan(
        FederationSettings(rounds=6, min_cohort=4),
        ModelSettings(classes=2),
        TrainingSettings(local_steps=steps, sample_rate=0.3, lot_size=30, learning_rate=2.0),
        PrivacySettings(mode=mode, noise_multiplier=2.0, max_grad_norm=0.5, max_update_norm=7.0),  # type: ignore[arg-type]
        metrics=MetricsSettings(every, noise_multiplier=5.0),
    )


def test_local_noise_is_worth_the_same_whoever_is_there() -> None:
    bought = {"train": (PoissonGaussian(2.0, 0.3, 4),)}
    assert [round_events(plan("local", steps=4), 1, 9, summed) for summed in (9, 4)] == [bought, bought]
    assert round_events(plan("none", every=1), 2, 9, 9) == {}


def test_a_trial_of_settings_is_charged_as_one() -> None:
    trial = replace(plan("local", every=3), federation=FederationSettings(rounds=6, tuning="trial"))
    assert round_events(trial, 1, 9, 9) == {"tuning": (PoissonGaussian(2.0, 0.3, 1),)}
    assert set(round_events(trial, 4, 9, 9)) == {"tuning", "metrics"}
    assert planned_events(trial, 9, range(1, 8)) == planned_events(plan("local", every=3), 9, range(1, 8))


def test_shares_are_worth_what_the_honest_survivors_brought() -> None:
    left = NoiseShares(9, 1).left(5)
    assert round_events(plan("distributed"), 1, 9, 9)["train"] == (PoissonGaussian(2.0, 0.3, 1),)
    assert round_events(plan("distributed"), 1, 9, 5)["train"] == (PoissonGaussian(2.0 * left, 0.3, 1),)
    assert round_events(plan("site"), 1, 9, 5)["train"] == (Gaussian(2.0 * left),)
    assert round_events(plan("distributed", every=1), 7, 9, 5) == {"metrics": (Gaussian(5.0 * left),)}


@pytest.mark.parametrize(
    ("every", "measured"), [(0, []), (1, [2, 3, 4, 5, 6, 7]), (2, [3, 5, 7]), (4, [5, 7]), (9, [7])]
)
def test_counts_are_paid_for_in_the_rounds_that_carry_them(every: int, measured: list[int]) -> None:
    chosen = plan("local", every)
    assert chosen.last_round == (7 if every else 6)
    assert [n for n in range(1, chosen.last_round + 1) if "metrics" in round_events(chosen, n, 9, 9)] == measured
    assert [n for n in range(1, chosen.last_round + 1) if "train" in round_events(chosen, n, 9, 9)] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_what_is_planned_covers_every_run_in_which_all_are_there_up_to_one_reservation() -> None:
    cheap = replace(plan("distributed", every=9), metrics=MetricsSettings(9, noise_multiplier=500.0))
    for chosen in (plan("distributed", every=2), cheap, plan("local", every=2), plan("site")):
        numbers = range(1, chosen.last_round + 1)
        planned = epsilon(planned_events(chosen, 9, numbers), 1e-5)
        settled: list = []
        for number in numbers:
            reserved = round_events(chosen, number, 9, chosen.smallest_sum(9))
            assert epsilon([*settled, *(e for events in reserved.values() for e in events)], 1e-5) <= planned + 1e-9
            settled += [e for events in round_events(chosen, number, 9, 9).values() for e in events]


@pytest.mark.parametrize("mode", ["distributed", "site"])
def test_a_reservation_covers_every_list_that_can_be_opened(mode: str) -> None:
    chosen = plan(mode)
    reserved = epsilon(round_events(chosen, 1, 9, chosen.smallest_sum(9))["train"], 1e-5)
    for summed in range(chosen.smallest_sum(9), 10):
        assert epsilon(round_events(chosen, 1, 9, summed)["train"], 1e-5) <= reserved


def test_a_share_is_in_the_units_of_the_update() -> None:
    """One record moves a distributed update by max_grad_norm * learning_rate / lot_size; a site one by two norms."""
    assert noise_share(plan("local"), 9) == noise_share(plan("none"), 9) == 0.0
    assert noise_share(plan("distributed"), 9) == pytest.approx(2.0 * 0.5 * 2.0 / 30 / 8**0.5)
    assert noise_share(plan("site"), 9) == pytest.approx(2.0 * 14 / 8**0.5)
    more = plan("distributed")
    more = replace(more, privacy=replace(more.privacy, colluding=3))
    assert noise_share(more, 9) > noise_share(plan("distributed"), 9)
