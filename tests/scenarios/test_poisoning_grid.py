"""Proves: the grid's verdict counts only rules that promise something, says where none can; its cells are poisoned."""

import numpy as np

from common.federation import ModelSettings, TrainingSettings
from common.robust_rules import RULES
from scenarios.poisoned_sites import Attack, Cohort, Defence, Part
from scenarios.poisoning import flipped
from scenarios.poisoning_grid import ATTACKED, Cell, summary, table


def cells(share: float, on: str, promised: bool, accuracy: float) -> list[Cell]:
    """Every rule reaches that, one point less under sign flip; the mean nothing."""
    return [
        Cell(
            share,
            on,
            attack,
            rule,
            promised and rule != "mean",
            0.0 if rule == "mean" else accuracy - 0.01 * (attack == "sign-flip") + 0.001 * (rule == "median"),
            0.5 if attack == "backdoor" else None,
        )
        for attack in ATTACKED
        for rule in RULES
    ]


def test_the_best_rule_is_the_one_that_loses_least_under_its_worst_attack_of_those_that_promise() -> None:
    found, lost, none = summary(
        0.95,
        [*cells(0.2, "buckets", True, 0.94), *cells(0.2, "single", True, 0.8), *cells(0.3, "buckets", False, 0.96)],
    )
    assert (found["best"], found["near"], found["worst"]["median"]["attack"]) == ("median", True, "sign-flip")
    assert abs(found["lost"] - 0.019) < 1e-9
    assert (lost["best"], lost["near"]) == ("median", False)
    assert (none["best"], none["lost"], none["near"]) == (None, None, None)


def test_the_table_marks_what_is_not_promised_and_says_where_no_rule_can() -> None:
    rows = [*cells(0.2, "single", True, 0.94), *cells(0.3, "buckets", False, 0.96)]
    result = {
        "command": "this",
        "clean": {"mean on single": 0.95},
        "cells": [vars(cell) for cell in rows],
        "summary": summary(0.95, rows),
    }
    shown = table(result)
    assert "| sign-flip | (0.0) | 93.1 | 93.0 |" in shown
    assert "| sign-flip | (0.0) | (95.1) |" in shown
    assert "| backdoor | (0.0 / 50) | 94.1 / 50 |" in shown
    assert "Best under its worst attack: median, which loses 1.9 points, within 3 of the clean run." in shown
    assert "No rule can: 6 bad sites may spoil 6 of 10 buckets" in shown


def _part(site: int, attack: str) -> Part:
    rng = np.random.default_rng(site)
    features = rng.normal(size=(40, 4)).astype(np.float32)
    labels = (features.sum(axis=1) > 0).astype(np.int64)
    return features, flipped(labels, 2) if attack == "label-flip" else labels


COHORT = Cohort(6, ModelSettings("logistic", (4,), 2), TrainingSettings(sampling="shuffle", batch_size=20), _part)


def right(attack: Attack, defence: Defence) -> float:
    model = COHORT.trained(attack, defence, 3)
    features, labels = _part(99, "")
    return float((COHORT.predicted(model, features).argmax(axis=1) == labels).mean())


def test_bad_sites_turn_the_mean_and_not_the_median() -> None:
    mean, median = Defence(RULES["mean"]), Defence(RULES["median"], 1)
    assert right(Attack(), mean) > 0.9
    for name in ("label-flip", "sign-flip"):
        bad = Attack(name, (0, 1, 2, 3, 4) if name == "label-flip" else (2,))
        assert right(bad, mean) < 0.2
    assert right(Attack("sign-flip", (2,)), median) > 0.9


def test_equal_buckets_leave_the_mean_as_it_is_and_the_cell_is_the_same_again() -> None:
    single, buckets = (COHORT.trained(Attack(), Defence(RULES["mean"], 0, count), 2) for count in (0, 3))
    np.testing.assert_allclose(single, buckets, rtol=1e-5, atol=1e-7)
    again = COHORT.trained(Attack("gaussian", (1,)), Defence(RULES["median"], 1, 3), 2)
    np.testing.assert_array_equal(again, COHORT.trained(Attack("gaussian", (1,)), Defence(RULES["median"], 1, 3), 2))
