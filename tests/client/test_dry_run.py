"""Proves: what a dry run foretells is what the ledger is charged, and it leaves no trace."""

from pathlib import Path

import pytest
import tomli_w

from client.dry_run import dry_run
from client.site import Site
from common.config import load_table, to_table
from scenarios.cli import main
from scenarios.simulate import simulate
from scenarios.simulation import Workplace
from server.store import RunStore
from tests.by_hand import NAMES, restart, workplace
from tests.common.test_audit import told


def everything(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(directory.rglob("*")) if p.is_file()}


def asked_of(place: Workplace) -> Path:
    """The plan of the run that was set up, as a researcher would hand it round."""
    file = place.out / "asked.toml"
    file.write_text(tomli_w.dumps(to_table(RunStore.open(place.run).plan)))
    return file


@pytest.mark.parametrize(
    ("mode", "every"), [("local", 0), ("local", 1), ("distributed", 0), ("distributed", 1), ("site", 0)]
)
def test_what_was_foretold_is_what_is_charged(tmp_path, capsys, mode, every):
    place = workplace(tmp_path / "run", NAMES, f"privacy.mode={mode}", f"metrics.every={every}")
    first, before = place.sites[0], everything(place.sites[0])
    code, foretold = told(capsys, "site", "check", first, "--order", asked_of(place))
    assert (code, foretold["agreed"], foretold["reasons"]) == (0, True, [])
    assert everything(first) == before
    assert (foretold["epsilon_before"], foretold["sites"]) == (0.0, 4)
    report = simulate(place)
    restart()
    site = Site.open(first)
    assert site.ledger.epsilon == pytest.approx(foretold["epsilon_after"], abs=1e-9)
    assert foretold["epsilon_after"] <= foretold["epsilon_reserved"] == foretold["epsilon_of_plan"]
    code, again = told(capsys, "site", "check", first, "--order", asked_of(place))
    assert again["epsilon_before"] == pytest.approx(foretold["epsilon_after"], abs=1e-9)
    assert again["parameters"] == report["wire"]["parameters"]
    if not every:
        assert again["update_bytes"] == report["wire"]["bytes_per_update"]


def test_the_update_of_a_longer_model_is_foretold_to_the_byte(tmp_path, capsys):
    overrides = ("model.factory=mlp", "model.hidden=[3000]", "federation.rounds=1", "privacy.mode=distributed")
    place = workplace(tmp_path / "run", NAMES, *overrides)
    _, foretold = told(capsys, "site", "check", place.sites[0], "--order", asked_of(place))
    report = simulate(place)
    assert foretold["update_bytes"] == report["wire"]["bytes_per_update"] > 50_000
    aggregate = place.run / "aggregates" / "000001"
    around = 10_000  # the list of sites, their signatures, and what lifts the masks
    assert foretold["sum_bytes"] / 3 < aggregate.stat().st_size <= foretold["sum_bytes"] + around


def test_a_refusal_gives_every_reason_and_leaves_no_trace(tmp_path, capsys):
    place = workplace(tmp_path / "run", NAMES)
    first, policy = place.sites[0], place.sites[0] / "policy.toml"
    changes = {"min_cohort": 5, "epsilon": 1.0, "epsilon_per_run": 0.9, "reports": ["seconds"]}
    policy.write_text(tomli_w.dumps(load_table(policy) | changes))
    before = everything(first)
    code, answer = told(capsys, "site", "check", first, "--order", asked_of(place), "--sites", 4)
    assert (code, answer["agreed"]) == (3, False)
    keys = [reason.partition(":")[0] for reason in answer["reasons"]]
    assert keys == ["policy.min_cohort", "policy.reports", "policy.epsilon", "policy.epsilon_per_run"]
    assert everything(first) == before
    assert main(["site", "check", str(first), "--order", str(asked_of(place))]) == 3
    shown = capsys.readouterr()
    assert shown.out.count("it would refuse: ") == 4
    assert shown.err.startswith("veilfed: this site would refuse the plan: policy.min_cohort")


def test_names_that_the_records_do_not_have_are_found_before_anybody_submits(tmp_path, capsys):
    place = workplace(tmp_path / "run", NAMES, "metrics.every=1")
    asked = place.out / "asked.toml"
    plan = load_table(asked_of(place))
    asked.write_text(tomli_w.dumps(plan | {"metrics": plan["metrics"] | {"importance": ["agee"]}}))
    code, answer = told(capsys, "site", "check", place.sites[0], "--order", asked)
    assert (code, answer["agreed"]) == (3, False)
    assert [reason for reason in answer["reasons"] if "agee" in reason] == answer["reasons"] != []


def test_code_that_the_policy_does_not_name_is_not_imported_for_a_dry_run(tmp_path):
    place = workplace(tmp_path / "run", NAMES)
    table = to_table(RunStore.open(place.run).plan)
    table["model"]["factory"] = "tests.common.bomb:build"
    file = tmp_path / "asked.toml"
    file.write_text(tomli_w.dumps(table))
    from client.dry_run import read_plan

    answer = dry_run(Site.open(place.sites[0]), read_plan(file), 4)
    assert (answer.agreed, answer.parameters) == (False, 0)
    assert "tests.common.bomb:build" in answer.reasons[0]


def test_a_price_that_nothing_bounds_is_null_in_json(tmp_path, capsys):
    place = workplace(tmp_path / "run", NAMES)
    table = to_table(RunStore.open(place.run).plan)
    table["privacy"]["noise_multiplier"] = 0.002
    file = tmp_path / "asked.toml"
    file.write_text(tomli_w.dumps(table))
    code, answer = told(capsys, "site", "check", place.sites[0], "--order", file)
    assert (code, answer["epsilon_after"]) == (3, None)


def test_sites_without_a_plan_is_no_question(tmp_path, capsys):
    code, answer = told(capsys, "site", "check", tmp_path, "--sites", 3)
    assert (code, answer["error"]["code"]) == (2, "ConfigError")
