"""Try settings on training records alone: `python -m scenarios.tune NAME SPLITS [KEY=VALUE|VALUE|... ...]`.

Every combination of the values is trained in plain loops, with the plan's sampling, clipping and calibrated noise, on
nine tenths of the sites' training records and scored on the other tenth; a mean over that many splits, best last.
Records that are held out for testing are never looked at, so the figures in `results/` are not of settings that fit
them. For public records: with anybody's own, trials are releases like all others.
"""

import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from client.datasets import Records, load_records, split
from common.config import fill, load_table, override
from common.evaluators.utility import evaluate
from common.models import build, load_parameters, predict
from scenarios.baselines import pooled, together
from scenarios.data import site_loader, site_names
from scenarios.simulation import Simulation, fitted

_HELD_OUT = 0.1


def trials(assignments: Sequence[str]) -> list[list[str]]:
    """`a=1|2`, `b=3` -> `a=1`, `b=3` and `a=2`, `b=3`."""
    choices = [(key, values.split("|")) for key, _, values in (each.partition("=") for each in assignments)]
    return [list(chosen) for chosen in itertools.product(*([f"{key}={value}" for value in vs] for key, vs in choices))]


def accuracy(simulation: Simulation) -> float:
    """Of the model that a run of it would give, on training records that this one was not trained on."""
    parts = [
        split(_trainable(simulation, site), _HELD_OUT, simulation.data.seed) for site in site_names(simulation.data)
    ]
    kept, held_out = [part for part, _ in parts], pooled([part for _, part in parts])
    plan = fitted(simulation, kept)
    network = build(plan.model)
    load_parameters(network, together(plan, kept).released)
    return evaluate(predict(network, held_out.features), held_out.labels)["accuracy"].value


def _trainable(simulation: Simulation, site: str) -> Records:
    """The records that this site trains on in a run."""
    loader, options = site_loader(simulation.data, site)
    kept, _ = split(load_records(loader, site, options), simulation.data.holdout, simulation.data.seed)
    return replace(kept, reserved=np.zeros(len(kept), bool))


def main(name: str, splits: int, assignments: Sequence[str]) -> None:
    table, found = load_table(Path(__file__).parent / f"{name}.toml"), {}
    for chosen in trials(assignments):
        seeds = (override(table, [*chosen, f"data.seed={seed}"]) for seed in range(splits))
        found[" ".join(chosen)] = statistics.mean(accuracy(fill(Simulation, each)) for each in seeds)
        print(f"{found[' '.join(chosen)]:.4f}  {' '.join(chosen)}", file=sys.stderr, flush=True)
    for words, mean in sorted(found.items(), key=lambda item: item[1]):
        print(f"{mean:.4f}  {words}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
