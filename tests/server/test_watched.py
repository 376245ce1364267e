"""Proves: rules watch what the sites measured together, else what a simulation sees, and say when it is nothing."""

from typing import Any

from common.alerts import AlertRule
from server.watched import alerts_of, series_of, watched


def figure(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": value, "high": value}


def record(number: int, **parts: dict[str, float | None]) -> dict[str, Any]:
    found = {name: {key: figure(value) for key, value in part.items()} for name, part in parts.items()}
    fairness = {"fairness": {"figures": found.pop("fairness"), "remarks": []}} if "fairness" in found else {}
    return {"round": number, **found, **fairness}


ROUNDS = [
    record(1, metrics={"accuracy": 0.1, "auc": 0.6}),
    record(2, metrics={"accuracy": 0.2, "auc": 0.7}, reported={"accuracy": 0.8}, fairness={"sex: gap": 0.3}),
    record(3, metrics={"accuracy": 0.3, "auc": None}, reported={"accuracy": 0.7}, fairness={"sex: gap": 0.1}),
]


def test_what_was_measured_together_counts_over_what_a_simulation_sees() -> None:
    values = {name: {n: found["value"] for n, found in series.items()} for name, series in series_of(ROUNDS).items()}
    assert values == {"accuracy": {2: 0.8, 3: 0.7}, "auc": {1: 0.6, 2: 0.7}, "sex: gap": {2: 0.3, 3: 0.1}}


def test_rules_fire_on_their_own_figures_and_an_unknown_figure_is_not_passed_over() -> None:
    rules = [
        AlertRule("accuracy", "below", 0.75),
        AlertRule("sex: gap", "above", 0.2),
        AlertRule("acuracy", "below", 1),
    ]
    assert [each.fired for each in watched(rules, ROUNDS)] == [(3,), (2,), ()]
    told = alerts_of(rules, ROUNDS)
    assert [(rule["measured"], rule["fired"]) for rule in told] == [(2, [3]), (2, [2]), (0, [])]
    assert told[0]["rule"] == "accuracy below 0.75"
