"""A small federation to be played by hand: see `scenarios/by_hand.py`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from client.datasets import Records
from client.runs import SiteRun
from common.config import fill, override
from common.keystore import load_secret
from scenarios import by_hand
from scenarios.by_hand import restart
from scenarios.grid import envelope_of, with_envelope
from scenarios.simulation import Simulation, Workplace, set_up

__all__ = [
    "NAMES",
    "TINY",
    "Coordinator",
    "envelope_of",
    "restart",
    "run_of",
    "secrets_of",
    "with_envelope",
    "workplace",
]

TINY = {
    "federation": {"rounds": 3, "min_cohort": 2},
    "training": {"local_steps": 1, "sample_rate": 0.5, "lot_size": 10.0},
    "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_multiplier": 2.0, "max_update_norm": 2.0},
    "data": {"loader": "tests.by_hand:records", "holdout": 0.2},
    "simulation": {"baselines": False, "site_epsilon": 100.0, "insecure_randomness": 7},
}
NAMES = ("adler", "birke", "cedar", "dorn")


def records(name: str) -> Records:
    """Twenty records of three numbers, which make two features, in two groups; different at every site."""
    random = np.random.default_rng(sum(name.encode()))
    features = random.normal(size=(20, 3)).astype(np.float32)
    labels = (features.sum(axis=1) > 0).astype(np.int64)
    columns = {"first": (0,), "others": (1, 2)}
    return Records(features, labels, {"sex": random.choice(["f", "m"], 20)}, columns=columns)


def workplace(out: Path, names: Sequence[str] = NAMES, *overrides: str) -> Workplace:
    table = override(TINY, overrides)
    table["data"]["site_names"] = list(names)
    return set_up(fill(Simulation, table), out)


class Coordinator(by_hand.Coordinator):
    @classmethod
    def ready(cls, out: Path, names: Sequence[str] = NAMES, *overrides: str) -> "Coordinator":
        """Every site has joined and holds the cohort's key."""
        return cls.prepared(workplace(out, names, *overrides))


def run_of(coordinator: Coordinator, name: str) -> SiteRun:
    return SiteRun.open(coordinator.directories[name] / "runs", coordinator.store.run)


def secrets_of(coordinator: Coordinator, name: str, number: int) -> tuple[bytes, bytes]:
    data = load_secret(run_of(coordinator, name).directory / f"masks-{number:06d}", None)
    return data[:32], data[32:]
