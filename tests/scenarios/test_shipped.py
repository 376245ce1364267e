"""Proves: what is shipped beside the code fits it: federation files, and figures with the command that made them."""

import json
import statistics
from pathlib import Path

import pytest

from common.config import fill, load_table, override
from scenarios.simulation import Simulation

SCENARIOS = Path(__file__).parents[2] / "scenarios"
FILES = sorted(SCENARIOS.glob("*.toml"))
RESULTS = sorted((SCENARIOS / "results").glob("*.json"))
FIGURES = [file for file in RESULTS if "mean" in json.loads(file.read_text())]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_federation_is_private_and_encrypted_and_bounds_what_a_full_lot_can_move(file):
    shipped = fill(Simulation, load_table(file))
    assert shipped.federation.name == file.stem.replace("_", "-")
    assert shipped.privacy.mode in ("local", "distributed")
    assert shipped.encryption.preset != "none"
    if shipped.privacy.mode == "distributed":
        # One update without its noise: the sum of a lot, all gradients alike. Less would clip what is not too large.
        assert shipped.privacy.max_update_norm >= shipped.training.learning_rate * shipped.privacy.max_grad_norm * 0.999


@pytest.mark.parametrize("file", FIGURES, ids=lambda file: file.stem)
def test_a_figure_is_a_mean_over_three_runs_or_more_of_a_command_that_still_runs(file):
    result = json.loads(file.read_text())
    program, name, runs, written, *overrides = (
        word for word in result["command"].removeprefix("python -m ").split() if word != "--centre"
    )
    assert (written, int(runs)) == (file.stem, len(result["runs"]))
    if program == "scenarios.fairness":
        attribute, *overrides = overrides
        assert attribute in load_table(SCENARIOS / f"{name}.toml")["metrics"]["groups"]
    else:
        assert program == "scenarios.repeat"
    assert len(result["runs"]) >= 3
    assert [run["seed"] for run in result["runs"]] == list(range(len(result["runs"])))
    fill(Simulation, override(load_table(SCENARIOS / f"{name}.toml"), overrides))
    for metric, mean in result["mean"].items():
        assert mean == pytest.approx(statistics.mean(run["final"][metric] for run in result["runs"]))


def test_the_shipped_thresholds_cut_adults_gap_by_four_fifths_at_two_points_at_most():
    mean = json.loads((SCENARIOS / "results" / "adult_fair.json").read_text())["mean"]
    assert mean["gap_after"] <= 0.2 * mean["gap_before"]
    assert mean["accuracy_after"] >= mean["accuracy_before"] - 0.02


def test_poison_in_a_fifth_of_the_sites_costs_three_points_at_most_by_buckets_and_the_mean_collapses():
    (grid,) = (json.loads(file.read_text()) for file in RESULTS if file not in FIGURES)
    cells = [cell for cell in grid["cells"] if (cell["on"], cell["share"]) == ("buckets", 0.2)]
    worst = {
        rule: min(cell["accuracy"] for cell in cells if cell["rule"] == rule)
        for rule in {cell["rule"] for cell in cells}
    }
    assert max(worst.values()) >= grid["clean"]["mean on buckets"] - 0.03
    assert worst["mean"] < 0.5
