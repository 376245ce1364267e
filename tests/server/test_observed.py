"""Proves: the coordinator shows its own rounds, and of the sites' numbers those alone that the plan declares public."""

import json
import logging

import pytest

from common.alerts import AlertRule
from common.errors import CohortTooSmall
from common.log import Lines
from common.telemetry import read
from scenarios.engines import run_local
from server import observed
from server.observed import NUMBERS, Watch, numbers_of
from tests.by_hand import NAMES, workplace

RECORD = {
    "round": 2,
    "seconds": 1.5,
    "train_s": 0.5,
    "sum_s": 0.25,
    "sites": ["adler", "birke"],
    "left_out": [{"site": "cedar", "reason": "BudgetExceeded", "message": "3.1 over 3"}],
    "late": [],
    "epsilon": {"adler": 0.7},
    "reported": {},
    "bytes_up": {"adler": 100, "birke": 90},
}


def shown(place) -> dict[tuple[str, ...], float]:
    return {(number.name.removeprefix("veilfed_coordinator_"), *number.labels): number.value for number in read(place)}


def test_a_closed_round_in_numbers(place):
    watch = Watch(place, "ab" * 16)
    watch.round_closed(RECORD)
    late = {"site": "birke", "reason": "LateUpdate", "message": "birke answered round 2, now collecting 3"}
    watch.round_closed(RECORD | {"round": 3, "bytes_up": {"adler": 150, "birke": 180}, "left_out": [], "late": [late]})
    watch.ended()
    numbers = shown(place / NUMBERS)
    del numbers["last_round_timestamp_seconds",]
    assert numbers == {
        ("rounds_total",): 2,
        ("round_seconds_total",): 3.0,
        ("phase_seconds_total", "train"): 1.0,
        ("phase_seconds_total", "sum"): 0.5,
        ("bytes_total", "adler"): 150,
        ("bytes_total", "birke"): 180,
        ("left_out_total", "cedar", "BudgetExceeded"): 1,
        ("left_out_total", "birke", "LateUpdate"): 1,
        ("cohort",): 2,
        ("round",): 3,
        ("site_epsilon", "adler"): 0.7,
        ("runs_total", "done"): 1,
    }


def test_a_site_cannot_make_up_series(place):
    """A refusal's code is whatever the site signs; a thousand made-up ones are one series."""
    for number in range(1000):
        left = [{"site": "cedar", "reason": f"MadeUp{number}", "message": ""}]
        codes = {labels.labels for labels in numbers_of(RECORD | {"left_out": left}, {}) if "left_out" in labels.name}
        assert codes == {("cedar", "other")}


def test_a_run_that_failed_says_why(place, caplog):
    with caplog.at_level(logging.INFO):
        Watch(place, "ab" * 16).ended(CohortTooSmall("1 of 2 sites", "start the others"))
    assert shown(place / NUMBERS) == {("runs_total", "CohortTooSmall"): 1}
    line = json.loads(Lines("executor").format(caplog.records[-1]))
    assert (line["event"], line["code"], line["hint"]) == ("run ended", "CohortTooSmall", "start the others")


def test_an_alert_is_counted_and_a_warning_in_each_round_that_it_lasts_also_over_a_restart(place, caplog):
    rules = (AlertRule("accuracy", "below", 0.8, 2), AlertRule("auc", "above", 0.9))
    rounds = [
        RECORD | {"round": number, "reported": {"accuracy": dict.fromkeys(("value", "low", "high"), value)}}
        for number, value in ((2, 0.75), (3, 0.7), (4, 0.9))
    ]
    Watch(place, "ab" * 16, rules).round_closed(rounds[0])
    label = "accuracy below 0.8, 2 times in a row"
    assert ("alerts_total", label) not in shown(place / NUMBERS)
    watch = Watch(place, "ab" * 16, rules, rounds[:1])
    with caplog.at_level(logging.WARNING):
        watch.round_closed(rounds[1] | {"left_out": []})
    numbers = shown(place / NUMBERS)
    assert (numbers["alerts_total", label], numbers["figure", "accuracy"]) == (1, 0.7)
    line = json.loads(Lines("executor").format(caplog.records[-1]))
    assert (line["event"], line["message"], line["round"]) == ("alert", f"{label}: 0.7", 3)
    watch.round_closed(rounds[2])
    numbers = shown(place / NUMBERS)
    assert (numbers["alerts_total", label], numbers["figure", "accuracy"]) == (1, 0.9)
    assert not [key for key in numbers if "auc" in str(key)]


@pytest.mark.parametrize(
    ("public", "seconds", "epsilon"), [([], False, False), (["epsilon"], False, True), (["seconds"], True, False)]
)
def test_the_coordinator_shows_what_the_plan_declares_and_no_more(tmp_path, public, seconds, epsilon):
    """A whole run of the real apps under each plan. Kept back: what a plan does not let out of any site."""
    made = workplace(tmp_path / "run", NAMES, f"federation.public={json.dumps(public)}", "federation.rounds=1")
    watch = Watch(tmp_path, "ab" * 16)
    run_local(made.run, list(made.sites), watch.round_closed)
    numbers = shown(tmp_path / NUMBERS)
    assert numbers["rounds_total",] == 1
    assert numbers["cohort",] == len(NAMES)
    assert (numbers["phase_seconds_total", "train"] > 0) == seconds
    assert {key[1] for key in numbers if key[0] == "site_epsilon"} == (set(NAMES) if epsilon else set())


def test_what_the_log_tells_of_a_round(place, caplog):
    with caplog.at_level(logging.INFO, logger=observed.log.name):
        Watch(place, "ab" * 16).round_closed(RECORD)
    closed, left = (json.loads(Lines("executor").format(record)) for record in caplog.records)
    assert (closed["event"], closed["round"], closed["cohort"]) == ("round closed", 2, 2)
    assert (left["event"], left["site"], left["code"]) == ("answer left out", "cedar", "BudgetExceeded")
    assert "not_told" not in closed | left
