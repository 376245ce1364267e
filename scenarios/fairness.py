"""Thresholds by group, tried over splits: `python -m scenarios.fairness NAME RUNS RESULT ATTRIBUTE [KEY=VALUE ...]`.

They follow from the federation's own noised counts, paid for in its ledgers, and are judged on records that neither
trained the model nor were counted: two in five of those that the data set's publisher reserved, which no site is given.
What comes of it is in `results/RESULT.json`, with the command.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.datasets import Records
from common.config import fill, load_table, override
from common.files import write_atomically
from common.models import load_parameters, predict
from scenarios.baselines import pooled
from scenarios.data import DataSettings, Option, simulated_site, site_loader, site_names
from scenarios.mitigation import before_and_after
from scenarios.repeat import means
from scenarios.simulate import Observer, simulate
from scenarios.simulation import Simulation, set_up

_HERE = Path(__file__).parent
_GAP = "demographic_parity_difference"


def counted_site(site: str, **options: Option) -> Records:
    """A simulated site without the records that are kept to judge by."""
    return _parted(site, options)[0]


def tried(name: str, seed: int, attribute: str, overrides: Sequence[str]) -> dict[str, Any]:
    """One run of a shipped federation file on its own split, and its thresholds on the records kept to judge by."""
    table = override(load_table(_HERE / f"{name}.toml"), [*overrides, f"data.seed={seed}"])
    data = fill(DataSettings, table["data"])
    names, (_, options) = site_names(data), site_loader(data, site_names(data)[0])
    loader = {"loader": "scenarios.fairness:counted_site", "options": options}
    simulation = fill(Simulation, table | {"data": {**loader, "site_names": names, "seed": seed}})
    with tempfile.TemporaryDirectory(prefix="veilfed-fairness-") as place:
        workplace = set_up(simulation, Path(place))
        report = simulate(workplace)
        observer = Observer(workplace)
        load_parameters(observer.network, observer.state().released)
    kept = pooled([_parted(site, options)[1] for site in names])
    told = report["rounds"][-1]["fairness"]
    found = before_and_after(predict(observer.network, kept.features), kept, attribute, told["thresholds"][attribute])
    figures = {
        f"{figure}_{when}": found[when][key]["value"]
        for key, figure in ((_GAP, "gap"), ("accuracy", "accuracy"))
        for when in ("before", "after")
    }
    return {
        "seed": seed,
        "final": {**figures, "gap_by_noised_counts": told["figures"][f"{attribute}: {_GAP}"]["value"]},
        "thresholds": found["thresholds"],
        "judged": len(kept),
        "epsilon": max(site["epsilon"] or 0.0 for site in report["sites"]),
    }


def _parted(site: str, options: Mapping[str, Option]) -> tuple[Records, Records]:
    records = simulated_site(site, **options)
    kept = records.reserved & (np.cumsum(records.reserved) % 5 < 2)
    return records.subset(~kept), records.subset(kept)


if __name__ == "__main__":
    name, runs, file, attribute, *overrides = sys.argv[1:]
    told = [word for word in sys.argv[1:] if not word.startswith("data.directory=")]  # a place on this machine
    rows = [tried(name, seed, attribute, overrides) for seed in range(int(runs))]
    result = {
        "command": f"python -m scenarios.fairness {' '.join(told)}",
        "mean": means([row["final"] for row in rows]),
        "runs": rows,
    }
    path = _HERE / "results" / f"{file}.json"
    write_atomically(path, json.dumps(result, indent=1, sort_keys=True).encode() + b"\n", mode=0o644)
    print(path)
