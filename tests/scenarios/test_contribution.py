"""Proves: the values of a simulated run share out what it gained, find a bad site, and are shown where asked for."""

import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest

from client.datasets import Records
from common.evaluators.contribution import Game, shapley
from common.evaluators.utility import accuracy
from common.federation import FederationSettings as Federation
from common.federation import ModelSettings, Plan, PrivacySettings, TrainingSettings
from common.model_state import ModelState, advance
from common.models import build, load_parameters, predict
from scenarios.baselines import played
from scenarios.cli import main
from scenarios.contribution import game_of
from scenarios.simulate import simulate
from tests.scenarios.test_simulate import workplace

PLAN = Plan(
    federation=Federation(rounds=4),
    model=ModelSettings("logistic", (4,), 2),
    training=TrainingSettings(local_steps=5, sample_rate=0.5, lot_size=50, server_momentum=0.5, tail_average=0.5),
    privacy=PrivacySettings(mode="none"),
)


def hospital(random: np.random.Generator, n: int = 100, wrong: float = 0.0) -> Records:
    features = random.normal(size=(n, 4)).astype(np.float32)
    labels = (features[:, 0] - features[:, 1] > 0).astype(int)
    return Records(features, np.where(random.random(n) < wrong, 1 - labels, labels))


def scored(records: Records) -> Callable[[ModelState], float]:
    network = build(PLAN.model)

    def score(state: ModelState) -> float:
        load_parameters(network, state.released)
        return accuracy(predict(network, records.features), records.labels).value

    return score


def game(seed: int = 0, plan: Plan = PLAN) -> Game:
    random = np.random.default_rng(seed)
    sites = {"good": hospital(random), "better": hospital(random, 200), "bad": hospital(random, 100, wrong=1.0)}
    return game_of(plan, sites, scored(hospital(random, 400)))


def test_a_site_with_wrong_labels_does_harm_and_the_values_share_out_the_gain() -> None:
    values = shapley(played_game := game())
    assert values["bad"] < 0 < min(values["good"], values["better"])
    gained = played_game.utility(played_game.everybody) - played_game.utility(frozenset())
    assert sum(values.values()) == pytest.approx(gained)


def test_all_sites_together_are_worth_the_model_that_the_rounds_end_with() -> None:
    random = np.random.default_rng(0)
    sites, score = [hospital(random) for _ in range(3)], scored(hospital(random, 400))
    rounds = list(played(PLAN, sites))
    for this, after in itertools.pairwise(rounds):
        mean = np.mean([update.astype(np.float64) for update in this.updates], axis=0)
        assert (advance(this.before, mean, PLAN.training, 4).model == after.before.model).all()
    assert [this.before.round_number for this in rounds] == [0, 1, 2, 3]
    assert score(rounds[-1].after(PLAN, range(3))) > score(rounds[0].before)


def test_noise_that_comes_in_shares_is_in_the_updates() -> None:
    """What the sum of 3 sites holds of the noise is what the plan says for one sum: chi-squared, alarm 1e-6."""
    from dataclasses import replace

    from scipy.stats import chi2

    from common.dp.cost import noise_shares

    training = replace(PLAN.training, local_steps=1, learning_rate=1e-9)
    plan = replace(PLAN, training=training, privacy=PrivacySettings(mode="site", noise_multiplier=2.0))
    updates = np.concatenate([this.updates for this in played(plan, [hospital(np.random.default_rng(0))] * 3)])
    std = noise_shares(plan, 3).share(2.0 * 2 * plan.privacy.max_update_norm)
    low, high = chi2.ppf([0.5e-6, 1 - 0.5e-6], updates.size)
    assert low < (updates.astype(np.float64) ** 2).sum() / std**2 < high


def test_a_simulation_that_is_asked_says_what_each_site_adds(tmp_path, capsys) -> None:
    shown = ["--set", "federation.rounds=2", "--set", "simulation.baselines=false", "--out", str(tmp_path)]
    assert main(["simulate", "--set", "simulation.contribution=true", *shown]) == 0
    assert "added by hungary" in capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())["contribution"]
    assert set(found["shapley"]) == set(found["left_out"]) == {"cleveland", "hungary", "switzerland", "va-long-beach"}
    assert sum(value["value"] for value in found["shapley"].values()) == pytest.approx(
        found["whole"] - found["nothing"]
    )
    assert (found["exact"], found["metric"], found["nothing"]) == (True, "auc", 0.5)
    assert "What each site adds" in (tmp_path / "report.html").read_text()


def test_it_is_not_told_unasked(tmp_path) -> None:
    assert "contribution" not in simulate(workplace(tmp_path))
