"""Proves: a site's administrator sees what was spent, hears the truth of it, and what a plan would cost beforehand."""

import json
from functools import partial
from pathlib import Path

import pytest
import tomli_w

from client.site import Site, verify_entry
from common.config import to_table
from common.dp.ledger import Ledger
from common.errors import TrustError
from scenarios.cli import main
from scenarios.simulate import simulate
from scenarios.simulation import Workplace
from tests.by_hand import NAMES, restart, workplace


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Workplace:
    place = workplace(tmp_path_factory.mktemp("played") / "run", NAMES, "privacy.mode=distributed")
    simulate(place)
    return place


@pytest.fixture
def ledger(played) -> Path:
    return played.sites[0] / "ledgers" / "tests.by_hand.records.jsonl"


def told(capsys, *arguments: object) -> tuple[int, dict]:
    restart()
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_show_tells_all_that_a_promise_consists_of(played, capsys):
    code, shown = told(capsys, "site", "ledger", "show", played.sites[0])
    keys = {"site", "data_set", "entries", "epsilon", "delta", "remaining_epsilon", "neighbouring", "unit", "verified"}
    assert code == 0
    assert keys | {"sampling", "adversary", "accountant", "premises"} <= set(shown)
    assert (shown["site"], shown["entries"], shown["verified"]) == ("adler", 3, True)
    assert shown["premises"] == ["of 4 sites summed together at most 1 pools or leaves out its share of the noise"]


def test_remaining_is_the_budget_less_what_was_spent(played, capsys):
    code, left = told(capsys, "site", "ledger", "remaining", played.sites[0])
    _, shown = told(capsys, "site", "ledger", "show", played.sites[0])
    assert code == 0
    assert left["remaining_epsilon"] == pytest.approx(left["budget_epsilon"] - shown["epsilon"])


def test_an_export_is_the_ledger_itself_and_can_be_checked_elsewhere(played, ledger, tmp_path, capsys):
    """By whoever has the site's public key and nothing else of the site; one entry less and it says so."""
    code, exported = told(capsys, "site", "ledger", "export", played.sites[0])
    _, shown = told(capsys, "site", "ledger", "show", played.sites[0])
    assert (code, exported["head"]) == (0, shown["head"])
    assert [entry["record"]["kind"] for entry in exported["entries"]][:2] == ["ledger", "charge"]
    assert main(["site", "ledger", "export", str(played.sites[0])]) == 0
    copy = tmp_path / "copy.jsonl"
    copy.write_text(capsys.readouterr().out)
    assert copy.read_bytes() == ledger.read_bytes()
    public = Site.open(played.sites[0]).identity.public
    assert Ledger.read(copy, verify=partial(verify_entry, public)).epsilon == shown["epsilon"]
    copy.write_text("".join(copy.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(TrustError, match="line 1"):
        Ledger.read(copy, verify=partial(verify_entry, public))


def test_a_whole_ledger_is_verified(played, capsys):
    code, verdict = told(capsys, "site", "ledger", "verify", played.sites[0])
    assert (code, verdict["verified"], verdict["signer"]) == (0, True, "adler")
    assert told(capsys, "site", "ledger", "show", played.sites[0])[1]["head"] in verdict["subject"]


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda data: data.replace(b'"sample_rate":0.5', b'"sample_rate":0.1', 1), "line 2"),
        (lambda data: b"".join(data.splitlines(keepends=True)[:-1]), "rolled back or truncated"),
        (lambda data: b"", "rolled back or truncated"),
    ],
)
def test_a_ledger_that_was_touched_is_no_error_but_a_verdict(played, ledger, capsys, harm, word):
    before = ledger.read_bytes()
    try:
        ledger.write_bytes(harm(before))
        code, verdict = told(capsys, "site", "ledger", "verify", played.sites[0])
        assert (code, verdict["verified"]) == (4, False)
        assert word in verdict["reason"]
        assert set(verdict) == {"verified", "reason", "where"}
        for action in ("show", "export"):
            assert main(["site", "ledger", action, str(played.sites[0])]) == 4
    finally:
        ledger.write_bytes(before)


def test_a_plan_is_priced_before_anyone_says_yes_and_nothing_is_written(played, ledger, tmp_path, capsys):
    settings = to_table(played.simulation)
    settings["privacy"]["mode"] = "local"
    file, before = tmp_path / "next.toml", ledger.read_bytes()
    file.write_text(tomli_w.dumps(settings))
    code, price = told(capsys, "site", "ledger", "plan", played.sites[0], file)
    assert (code, price["fits"], price["sites"], price["rounds"]) == (0, True, 4, 3)
    assert price["epsilon_before"] < price["epsilon_after"] < price["epsilon_before"] + price["epsilon_of_plan"]
    settings["privacy"]["noise_multiplier"] = 0.1
    file.write_text(tomli_w.dumps(settings))
    code, refusal = told(capsys, "site", "ledger", "plan", played.sites[0], file)
    assert (code, refusal["error"]["code"]) == (3, "BudgetExceeded")
    assert ledger.read_bytes() == before


def test_a_plan_without_noise_of_its_own_is_given_the_least_that_fits_its_epsilon(played, tmp_path, capsys):
    settings = to_table(played.simulation)
    settings["privacy"] |= {"noise_multiplier": 0.0, "epsilon": 2.0}
    file = tmp_path / "next.toml"
    file.write_text(tomli_w.dumps(settings))
    _, few = told(capsys, "site", "ledger", "plan", played.sites[0], file)
    _, many = told(capsys, "site", "ledger", "plan", played.sites[0], file, "--sites", 5)
    assert 1.9 < few["epsilon_of_plan"] <= 2.0
    assert many["noise_multiplier"] != few["noise_multiplier"]  # what a sum of the fewest would cost depends on them


def test_a_directory_that_is_no_site_is_named(tmp_path, capsys):
    code, answer = told(capsys, "site", "ledger", "show", tmp_path)
    assert (code, answer["error"]["code"]) == (2, "ConfigError")
    assert str(tmp_path) in answer["error"]["message"]
