"""Proves: settings are tried in every combination, and on nothing that a figure is measured on."""

import numpy as np

from client.datasets import Records
from common.config import fill
from scenarios.simulation import Simulation
from scenarios.tune import accuracy, trials


def site_with_false_test_records(site: str) -> Records:
    """The sign decides the class, except in the records that are reserved for testing: there it misleads."""
    rng = np.random.default_rng(len(site))
    features = rng.uniform(-1, 1, (400, 1)).astype(np.float32)
    reserved = np.arange(400) >= 100
    return Records(features, ((features[:, 0] > 0) ^ reserved).astype(np.int64), {}, reserved)


def simulation(mode: str) -> Simulation:
    return fill(
        Simulation,
        {
            "federation": {"rounds": 4},
            "training": {"local_steps": 1, "sample_rate": 0.5, "lot_size": 40, "learning_rate": 4.0},
            "privacy": {"mode": mode},
            "encryption": {"preset": "compact"},
            "data": {"loader": f"{__name__}:site_with_false_test_records", "site_names": ["a", "bb", "ccc"]},
        },
    )


def test_records_kept_for_testing_have_no_say():
    """They outnumber the others: whoever trained or scored on them would find half of all answers wrong, or more.

    Noise costs two of 25 answers at most, three once in 150 draws; seven are as many as would be noticed.
    """
    for mode in ("local", "distributed"):
        assert accuracy(simulation(mode)) > 0.75


def test_every_combination_is_tried_once():
    assert trials(["a.b=1|2", "c=x", "d=3|4"]) == [
        ["a.b=1", "c=x", "d=3"],
        ["a.b=1", "c=x", "d=4"],
        ["a.b=2", "c=x", "d=3"],
        ["a.b=2", "c=x", "d=4"],
    ]
