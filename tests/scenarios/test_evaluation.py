"""Proves: a trained model is evaluated by every evaluator that its records allow, and the others are named."""

import json
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from client.datasets import Records
from client.evaluation import evaluate_run, material
from client.site import Site
from common.config import fill, load_table, override
from common.errors import ConfigError
from common.evaluators.catalogue import evaluate_all
from scenarios.cli import main
from scenarios.evaluation import evaluate
from scenarios.simulate import simulate
from scenarios.simulation import Simulation, Workplace, set_up
from tests.deployment import HEART


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    changes = ["federation.rounds=2", "simulation.baselines=false", "simulation.insecure_randomness=3"]
    place = set_up(fill(Simulation, override(load_table(HEART), changes)), tmp_path_factory.mktemp("played") / "out")
    simulate(place)
    return place


def test_a_simulations_model_is_evaluated_on_what_nobody_trained_on(played):
    result = evaluate(played)
    report = json.loads((played.out / "report.json").read_text())
    told = {(row["evaluator"], row["figure"]): row for row in result["rows"]}
    for name in ("accuracy", "auc"):
        assert told["utility", name]["value"] == pytest.approx(report["final"][name]["value"], abs=1e-12)
    assert {row["evaluator"] for row in result["rows"]} == {
        *("utility", "fairness", "robustness", "adversarial", "explanation", "drift"),
    }
    assert [line.split(":")[0] for line in result["skipped"]] == [
        *("out_of_distribution", "privacy_audit", "membership_inference", "inversion"),
        *("exposure", "property_inference", "contribution"),
    ]
    assert result["skipped"][-1] == "contribution: needs game; set simulation.contribution"
    assert sorted(result["by_site"]) == [site.name for site in played.sites]
    assert json.loads((played.out / "evaluation.json").read_text()) == json.loads(json.dumps(result))
    page = (played.out / "evaluation.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_where_it_was_asked_for_it_is_told_what_each_site_adds_and_no_other_figure_changes(played):
    asked = replace(played.simulation, simulation=replace(played.simulation.simulation, contribution=True))
    rows = evaluate(replace(played, simulation=asked))["rows"]
    added = [row for row in rows if row["evaluator"] == "contribution"]
    assert {row["figure"] for row in added if row["figure"].endswith("shapley")} == {
        f"{site.name}: shapley" for site in played.sites
    }
    assert [row for row in rows if row not in added] == evaluate(played)["rows"]


def test_the_same_model_gives_the_same_figures_again(played):
    assert evaluate(played)["rows"] == evaluate(played)["rows"]


def test_a_site_evaluates_the_model_on_its_own_records(played, capsys):
    site, run = Site.open(played.sites[0]), played.run.name
    figures = {each.evaluator: each.figures for each in evaluate_run(site, run[:6])}
    everywhere = json.loads((played.out / "report.json").read_text())["final_by_site"][site.name]
    assert figures["utility"]["accuracy"].value == pytest.approx(everywhere["accuracy"]["value"], abs=1e-12)
    assert main(["site", "evaluate", str(site.directory), run[:6], "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["evaluator"] for row in rows} == set(figures)


@pytest.mark.parametrize(("directory", "run", "said"), [("sites/cleveland", "zz", "no run"), ("sites/nowhere", "", "")])
def test_what_cannot_be_evaluated_is_refused_in_words(played, capsys, directory, run, said):
    assert main(["site", "evaluate", str(played.out / directory), run]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
    assert main(["evaluate", str(played.out / "sites")]) == 2


@pytest.mark.parametrize("command", ["evaluate", "simulate"])
def test_a_place_that_cannot_be_written_to_is_named(played, tmp_path, capsys, command):
    if command == "evaluate":
        place = played.out / "evaluation.html"
        place.unlink(missing_ok=True)
        place.mkdir()
        code = main(["evaluate", str(played.out)])
        place.rmdir()
    else:
        place = tmp_path / "a file"
        place.touch()
        code = main(["simulate", "--out", str(place), "--set", "federation.rounds=1"])
    told = capsys.readouterr().err
    assert code == 2
    assert place.name in told
    assert "Traceback" not in told


def test_groups_that_the_data_does_not_have_are_refused_before_anybody_trains(tmp_path, capsys):
    for groups, words in (("{age=['old','young']}", "['sex']"), ("{sex=['x','y']}", "Female")):
        changes = ["--set", "metrics.every=1", "--set", f"metrics.groups={groups}"]
        assert main(["simulate", "--out", str(tmp_path / words), *changes]) == 2
        assert words in capsys.readouterr().err


def records(count: int, **groups: np.ndarray) -> Records:
    rng = np.random.default_rng(count)
    return Records(rng.normal(size=(count, 3)), rng.integers(0, 2, count), groups)


def test_protected_attributes_bring_fairness_with_them():
    sex = np.array(["f", "m"] * 50)
    told = {
        each.evaluator: each for each in evaluate_all(material(nn.Linear(3, 2), records(100, sex=sex), records(50)))
    }
    assert "sex: demographic_parity_difference" in told["fairness"].figures
    constant = material(nn.Linear(3, 2), records(100, sex=np.array(["f"] * 100)), records(50))
    assert constant.groups is None


def test_of_many_records_a_few_are_asked_the_same_each_time():
    first, second = (material(nn.Linear(3, 2), records(5000), records(4000)) for _ in range(2))
    assert len(first.labels) == len(first.features) == len(first.reference) == 2000
    assert np.array_equal(first.features, second.features)


def test_nothing_held_out_is_nothing_to_evaluate_on():
    with pytest.raises(ConfigError, match="held out"):
        material(nn.Linear(3, 2), records(5).subset(np.zeros(5, bool)), records(5))
